"""Helpers of several libraries."""

from __future__ import annotations

import functools
import inspect
from numbers import Real
from typing import TYPE_CHECKING, Any

from gpuopt.rules.hyper import Flag, Number, hint_for_parameters
from gpuopt.suggest import bound
from gpuopt.transforms import chain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpuopt.rules.base import Rule
    from gpuopt.rules.hyper import Hyper
    from gpuopt.transforms import Transform


def around(rule: Rule, *transforms: tuple[type[Transform], Any]) -> Rule:
    """Put transforms before a rule, each as (class, argument); one with argument 0, None or False is left out."""
    wanted = [kind(given) if kind.hyperparameters() else kind() for kind, given in transforms if is_wanted(given)]
    return chain(*wanted, rule) if wanted else rule


def is_wanted(given: Any) -> bool:
    """Whether an argument is neither 0 nor None nor False; what is no number is left to who checks it."""
    return not (given is None or given is False or (isinstance(given, Real) and given == 0))


def flag(name: str, given: Any) -> bool:
    """Return an argument that is True or False; raise TypeError if it is neither."""
    return Flag().checked(given, name)


def decayed(lr: Hyper, decay: float) -> Hyper:
    """Return ``lr / (1 + decay*step)``."""
    if not Number(0).checked(decay, "lr_decay"):
        return lr
    if callable(lr):
        return lambda step: lr(step) / (1 + decay * step)
    from gpuopt.schedules import inverse_time

    return inverse_time(lr, decay)


def several(name: str, given: Any, example: Sequence[Any]) -> tuple[Any, ...]:
    """Return the numbers of an argument that has as many as the example; raise TypeError if it has not."""
    if not (isinstance(given, tuple | list) and len(given) == len(example)):
        count = {2: "two", 3: "three"}[len(example)]
        raise TypeError(f"{name}: {given!r:.40}, expected {count}, as in {name}={example!r}")
    return tuple(given)


def pair(betas: Any) -> tuple[Hyper, Hyper]:
    """Return the two betas; raise TypeError if there are not two."""
    first, second = several("betas", betas, (0.9, 0.999))
    return first, second


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
