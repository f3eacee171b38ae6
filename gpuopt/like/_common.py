"""What several libraries have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuopt.transforms import chain

if TYPE_CHECKING:
    from gpuopt.rules.base import Rule
    from gpuopt.rules.hyper import Hyper
    from gpuopt.transforms import Transform


def around(rule: Rule, *transforms: tuple[type[Transform], Any]) -> Rule:
    """Put transforms before a rule: those whose argument says that they are wanted."""
    wanted = [kind() if given is True else kind(given) for kind, given in transforms if given]
    return chain(*wanted, rule) if wanted else rule


def decayed(lr: Hyper, decay: float) -> Hyper:
    """Return ``lr / (1 + decay*step)``."""
    if not decay:
        return lr
    if callable(lr):
        return lambda step: lr(step) / (1 + decay * step)
    from gpuopt.schedules import inverse_time

    return inverse_time(lr, decay)
