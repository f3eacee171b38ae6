"""Schedules made of other schedules."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated, Any

from gpuopt.schedules.base import Schedule, schedule
from gpuopt.schedules.domains import Count, Domain, each, increasing, integer, real
from gpuopt.schedules.shapes import blend


def _schedule(value: Any) -> Schedule:
    if not isinstance(value, Schedule):
        raise TypeError
    return value


def _real_or_schedule(value: Any) -> float | Schedule:
    return value if isinstance(value, Schedule) else real(value)


@schedule
def linear_warmup(
    step: int,
    peak: Annotated[float | Schedule, Domain("a finite number or a schedule", _real_or_schedule)],
    warmup: Count,
    start: float = 0.0,
) -> float:
    """Linear warm-up, ``start + (peak - start) * step / warmup``, then `peak`.

    Parameters
    ----------
    peak
        Value from step `warmup` on; or a schedule, which starts there, counting from 0.
    warmup
        Number of steps of the line.
    start
        Value at step 0. With the default, 0, the first step changes nothing; ``start = peak / warmup`` avoids that.

    Examples
    --------
    >>> linear_warmup(1.0, warmup=4)(1)
    0.25
    >>> warm_cosine = linear_warmup(cosine(1.0, steps=100), warmup=4)
    >>> warm_cosine(2), warm_cosine(4), warm_cosine(54)
    (0.5, 1.0, 0.5)
    """
    if step < warmup:
        return blend(peak(0) if isinstance(peak, Schedule) else peak, start, step / warmup)
    return peak(step - warmup) if isinstance(peak, Schedule) else peak


@schedule
def join(
    step: int,
    schedules: Annotated[Sequence[Schedule], Domain("one or more schedules", each(_schedule), lambda v, _: len(v) > 0)],
    boundaries: Annotated[
        Sequence[int],
        Domain(
            "increasing positive integers, one fewer than schedules",
            each(integer),
            lambda v, earlier: increasing(v) and len(v) == len(earlier["schedules"]) - 1,
        ),
    ],
) -> float:
    """One schedule after another: ``schedules[0]``, then ``schedules[i + 1]`` from step ``boundaries[i]`` on.

    Each one counts its steps from its own beginning.

    Parameters
    ----------
    schedules
        One or more.
    boundaries
        Steps at which the next schedule takes over, increasing; one fewer than schedules.

    Examples
    --------
    >>> both = join([linear_warmup(1.0, warmup=10), inverse_time(1.0, decay=0.1)], boundaries=[10])
    >>> both(5), both(10), both(20)
    (0.5, 1.0, 0.5)
    """
    piece = bisect_right(boundaries, step)
    return schedules[piece](step - boundaries[piece - 1] if piece else step)


@schedule
def scaled(step: int, schedule: Annotated[Schedule, Domain("a schedule", _schedule)], factor: float) -> float:
    """Another schedule times a factor.

    Parameters
    ----------
    schedule
        The other one.
    factor
        Any number.

    Examples
    --------
    >>> scaled(inverse_time(1.0, decay=1.0), factor=0.5)(1)
    0.25
    """
    return schedule(step) * factor
