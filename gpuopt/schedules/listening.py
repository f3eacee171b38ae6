"""Schedules that follow a metric."""

import math
from typing import Annotated, Any

from gpuopt.schedules.base import LISTENERS, schedule
from gpuopt.schedules.domains import Domain, Flag, Fraction, Natural, NonNegative, real


def _real_or_none(value: Any) -> float | None:
    return None if value is None else real(value)


@schedule
def plateau(
    step: int,
    initial: float,
    factor: Fraction = 0.1,
    patience: Natural = 10,
    threshold: NonNegative = 1e-4,
    cooldown: Natural = 0,
    final: float = 0.0,
    maximize: Flag = False,
    falls: Natural = 0,
    best: Annotated[float | None, Domain("a finite number or None", _real_or_none)] = None,
    waited: Natural = 0,
    cooling: Natural = 0,
) -> float:
    """Fall when a metric no longer gets better: ``max(initial * factor ** falls, final)``.

    `Optimizer.tell` gives it the metric, usually once for each epoch. After more than `patience` values in a row that are not
    better, the value is multiplied by `factor`. Its memory is in its last four arguments, so it is a value like any other
    schedule and is saved with the optimizer.

    Parameters
    ----------
    initial
        Value at the beginning.
    factor
        Between 0 and 1.
    patience
        Number of values in a row that may fail to be better.
    threshold
        >= 0; to be better is to be below ``best - threshold * |best|``. A NaN is never better.
    cooldown
        Number of values after a fall that do not count.
    final
        Least value of the schedule.
    maximize
        Whether larger metrics are better.
    falls, best, waited, cooling
        Number of falls so far, best metric, values since then that were not better, values left of `cooldown`.

    Examples
    --------
    >>> falling = plateau(1.0, factor=0.5, patience=1)
    >>> for loss in (3.0, 2.0, 2.0, 2.5):
    ...     falling = falling.told(loss)
    >>> falling(0)
    0.5

    References
    ----------
    torch's ``ReduceLROnPlateau``, whose ``min_lr`` is `final`; its ``threshold_mode="abs"`` is not supported.
    """
    return max(initial * factor**falls, final)


def _heard(
    metric: float,
    patience: int,
    threshold: float,
    cooldown: int,
    maximize: bool,
    falls: int,
    best: float | None,
    waited: int,
    cooling: int,
    **_: Any,
) -> dict[str, Any]:
    """Return the changed arguments of a `plateau` after one more metric."""
    better = math.isfinite(metric)
    if best is not None:
        gain = metric - best if maximize else best - metric
        better = better and gain > threshold * abs(best)
    waited = 0 if better or cooling else waited + 1
    cooling = max(cooling - 1, 0)
    if waited > patience:
        falls, waited, cooling = falls + 1, 0, cooldown
    return {"best": metric if better else best, "falls": falls, "waited": waited, "cooling": cooling}


LISTENERS["plateau"] = _heard
