"""Helpers of several libraries."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from gpuopt.rules.hyper import hint_for_parameters
from gpuopt.suggest import bound, did_you_mean
from gpuopt.transforms import chain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpuopt.rules.base import Rule
    from gpuopt.rules.hyper import Hyper
    from gpuopt.transforms import Transform


def around(rule: Rule, *transforms: tuple[type[Transform], Any]) -> Rule:
    """Put transforms before a rule, each as (class, argument); one with argument 0 or False is left out."""
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


def pair(betas: Any) -> tuple[Hyper, Hyper]:
    """Return the two betas; raise TypeError if there are not two."""
    if not (isinstance(betas, tuple | list) and len(betas) == 2):
        raise TypeError(f"betas: {betas!r:.40}, expected two, as in betas=(0.9, 0.999)")
    return betas[0], betas[1]


def checked(module: dict[str, Any], names: Sequence[str], common: Sequence[str] = ()) -> None:
    """Replace the functions of a module by such as refuse arguments that do not fit, with the name that was meant.

    Parameters
    ----------
    module
        Its ``globals()``.
    names
        The functions.
    common
        Arguments that all of them take beside their own.

    """
    for name in names:
        module[name] = _checked(module[name], common)


def _checked(function: Callable[..., Any], common: Sequence[str]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        more = hint_for_parameters(args[0]) if args else ""
        bound(function.__name__, signature, args, kwargs, common, more)
        return function(*args, **kwargs)

    return called


def absent(module: str, names: Sequence[str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module whose error suggests the nearest of its names."""

    def unknown(name: str) -> Any:
        near = "" if name.startswith("_") else did_you_mean(name, names)
        raise AttributeError(f"module {module!r} has no attribute {name!r}{near}")

    return unknown
