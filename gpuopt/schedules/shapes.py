"""Schedules that are a formula of the step and of numbers."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated

from gpuopt.schedules.base import schedule
from gpuopt.schedules.domains import Count, Domain, Fraction, NonNegative, Positive, each, increasing, integer, real


@schedule
def constant(step: int, value: float) -> float:
    """The same value at every step.

    Examples
    --------
    >>> constant(0.1)(1000)
    0.1
    """
    return value


@schedule
def inverse_time(step: int, initial: float, decay: NonNegative) -> float:
    """Inverse-time decay: ``initial / (1 + decay * step)``.

    Parameters
    ----------
    initial
        Value at step 0.
    decay
        >= 0, per step; after ``1 / decay`` steps the value has halved.

    Examples
    --------
    >>> inverse_time(1.0, decay=0.1)(1)
    0.9090909090909091
    """
    return initial / (1 + decay * step)


@schedule
def exponential(step: int, initial: float, decay: Positive, every: Count = 1) -> float:
    """Exponential decay: ``initial * decay ** (step / every)``.

    Parameters
    ----------
    initial
        Value at step 0.
    decay
        > 0, the factor over `every` steps; above 1 the value grows.
    every
        Steps in which the value is multiplied by `decay`.

    Examples
    --------
    >>> exponential(1.0, decay=0.5, every=10)(20)
    0.25
    """
    return float(initial * decay ** (step / every))


@schedule
def step(step: int, initial: float, factor: Positive, every: Count) -> float:
    """Stairs: ``initial * factor ** (step // every)``.

    Parameters
    ----------
    initial
        Value of the first `every` steps.
    factor
        > 0, from one stair to the next.
    every
        Width of a stair in steps.

    Examples
    --------
    >>> halving = step(1.0, factor=0.5, every=10)
    >>> halving(9), halving(10), halving(20)
    (1.0, 0.5, 0.25)
    """
    return initial * factor ** (step // every)


@schedule
def piecewise(
    step: int,
    initial: float,
    boundaries: Annotated[
        Sequence[int], Domain("increasing positive integers", each(integer), lambda v, _: increasing(v))
    ],
    values: Annotated[
        Sequence[float],
        Domain("finite numbers, one a boundary", each(real), lambda v, earlier: len(v) == len(earlier["boundaries"])),
    ],
) -> float:
    """Constant pieces: `initial`, then ``values[i]`` from step ``boundaries[i]`` on.

    Parameters
    ----------
    initial
        Value before the first boundary.
    boundaries
        Steps at which the value changes, increasing.
    values
        As many as boundaries.

    Examples
    --------
    >>> pieces = piecewise(0.1, boundaries=[100, 200], values=[0.03, 0.01])
    >>> pieces(99), pieces(100), pieces(200)
    (0.1, 0.03, 0.01)
    """
    piece = bisect_right(boundaries, step)
    return values[piece - 1] if piece else initial


@schedule
def polynomial(step: int, initial: float, steps: Count, final: float = 0.0, power: Positive = 1.0) -> float:
    """Polynomial decay: ``final + (initial - final) * (1 - step / steps) ** power``, then `final`.

    Parameters
    ----------
    initial, final
        Values at step 0 and from step `steps` on.
    steps
        Number of steps in which the value gets from one to the other.
    power
        > 0; 1 is a straight line.

    Examples
    --------
    >>> polynomial(1.0, steps=100)(25)
    0.75
    """
    return blend(initial, final, (max(steps - step, 0) / steps) ** power)


@schedule
def cosine(
    step: int,
    initial: float,
    steps: Count,
    final: float = 0.0,
    cycles: Annotated[
        int, Domain("a positive integer, at most steps", integer, lambda n, earlier: 0 < n <= earlier["steps"])
    ] = 1,
    growth: Annotated[
        int,
        Domain(
            "a positive integer that leaves the first cycle at least a step",
            integer,
            lambda n, earlier: n > 0 and (earlier["cycles"] - 1) * math.log(n) <= math.log(earlier["steps"]),
        ),
    ] = 1,
) -> float:
    """Cosine annealing with warm restarts: ``final + (initial - final) * (1 + cos(pi * fraction)) / 2``, then `final`.

    `fraction` runs from 0 to 1 within each cycle, and the next cycle starts at `initial` again.

    Parameters
    ----------
    initial, final
        Values at the start and at the end of each cycle.
    steps
        Number of steps of all cycles together.
    cycles
        How many there are; 1 means no restart.
    growth
        How many times longer than the cycle before it each one is.

    Examples
    --------
    >>> cosine(1.0, steps=100)(50)
    0.5
    >>> restarts = cosine(1.0, steps=70, cycles=3, growth=2)  # of 10, 20 and 40 steps
    >>> restarts(10), restarts(20), restarts(30)
    (1.0, 0.5, 1.0)

    References
    ----------
    I. Loshchilov, F. Hutter, "SGDR: Stochastic gradient descent with warm restarts", 2017, arXiv:1608.03983 (there
    ``T_0`` is the length of the first cycle and ``T_mult`` is `growth`).
    """
    if step >= steps:
        return final
    # In units of 1 / (1 + growth + growth**2 + ...) step the first cycle lasts `steps`: integers, so restarts are exact.
    if growth == 1:
        elapsed, length = step * cycles % steps, steps
    else:
        elapsed, length = step * (growth**cycles - 1) // (growth - 1), steps
        while elapsed >= length:
            elapsed, length = elapsed - length, length * growth
    return blend(initial, final, _half_cosine(elapsed / length))


@schedule
def one_cycle(
    step: int,
    peak: float,
    steps: Count,
    pct_start: Fraction = 0.3,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
) -> float:
    """One cycle: half a cosine from ``peak / div_factor`` up to `peak`, half a cosine down to almost nothing.

    With ``top = pct_start * steps``, ``start = peak / div_factor`` and ``final = start / final_div_factor``, up to `top` it is
    ``peak + (start - peak) * (1 + cos(pi * step / top)) / 2``, and then
    ``final + (peak - final) * (1 + cos(pi * (step - top) / (steps - top))) / 2``; `final` from step `steps` on.

    This is the two-phase form of fast.ai and torch's ``OneCycleLR`` (which reaches both ends one step earlier), not the
    paper's three straight lines; momentum is not cycled.

    Parameters
    ----------
    peak
        Highest value.
    steps
        Number of steps of the cycle.
    pct_start
        Fraction of the steps on the way up, between 0 and 1.
    div_factor, final_div_factor
        > 0, as above.

    Examples
    --------
    >>> cycle = one_cycle(1.0, steps=100)
    >>> cycle(0), cycle(30)
    (0.04, 1.0)

    References
    ----------
    L. N. Smith, N. Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2018,
    arXiv:1708.07120.
    """
    top = pct_start * steps
    start = peak / div_factor
    if step < top:
        return blend(start, peak, _half_cosine(step / top))
    return blend(peak, start / final_div_factor, _half_cosine((min(step, steps) - top) / (steps - top)))


def blend(first: float, last: float, weight: float) -> float:
    """`first` at weight 1, `last` at weight 0: exact at both ends, which `last + weight * (first - last)` is not."""
    return weight * first + (1 - weight) * last


def _half_cosine(fraction: float) -> float:
    """From 1 at 0 down to 0 at 1, level at both ends."""
    return (1 + math.cos(math.pi * fraction)) / 2
