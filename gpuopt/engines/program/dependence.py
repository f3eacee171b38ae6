"""What of a rule its program depends on, so that another learning rate needs no look at the formula again.

A formula reads most hyperparameters from its argument ``h``: they are coefficients, and any number will do. What it reads
from ``self`` (a flag, a count, a number that it branches on) has a say in the program, and is noted.
"""

from __future__ import annotations

import inspect
from functools import cached_property, reduce
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from gpuopt.engines.program.trace import recorded
from gpuopt.rules.formula import Formula
from gpuopt.rules.pairs import ComplexError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuopt.rules.base import Rule

Path = tuple[str | int, ...]


class _Watched:
    """A formula of which every attribute that is read is noted.

    It is no subclass, which would be one more rule for all that list rules, but passes for one of the formula's class, also to
    ``super()``.

    Parameters
    ----------
    formula
        Formulas among its attributes, and in tuples of them, are watched, too.
    reads
        The values that were read, by path: names of attributes, and places in tuples.
    path
        That of the formula itself.

    """

    def __init__(self, formula: Formula, reads: dict[Path, Any], path: Path = ()) -> None:
        vars(self)["_watched"] = formula, reads, path

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The class of the formula that is watched, so that `isinstance` tells no difference."""
        return type(vars(self)["_watched"][0])

    def __getattr__(self, name: str) -> Any:
        formula, reads, path = vars(self)["_watched"]
        found = inspect.getattr_static(type(formula), name, None)
        if name != "name":  # of the class
            if isinstance(found, property) and found.fget:
                return found.fget(self)
            if isinstance(found, cached_property):
                return found.func(self)
            if isinstance(found, FunctionType):
                return MethodType(found, self)
        value = getattr(formula, name)
        path = *path, name
        reads[path] = _plain(value)
        if isinstance(value, tuple):
            return tuple(_Watched(x, reads, (*path, i)) if isinstance(x, Formula) else x for i, x in enumerate(value))
        return _Watched(value, reads, path) if isinstance(value, Formula) else value


def dependence(rule: Rule) -> dict[Path, Any] | None:
    """Return the values of a rule that its programs and slots depend on, by path; None if they cannot be found."""
    reads: dict[Path, Any] = {(): type(rule)}
    seen = _Watched(rule, reads)
    try:
        for is_complex in (False, True):
            try:
                program = recorded(rule, is_complex=is_complex)
            except ComplexError:
                continue  # it is for real numbers alone
            if recorded(rule, is_complex=is_complex, seen=seen) != program:
                return None
    except Exception:  # noqa: BLE001 - whatever a user's code raises when it is run on symbols
        return None
    return reads


def agrees(rule: Rule, reads: Mapping[Path, Any]) -> bool:
    """Whether a rule has the same values as those read from another rule, and so the same programs and slots."""
    return all(_is_same(_plain(reduce(_follow, path, rule)), value) for path, value in reads.items())


def _plain(value: Any) -> Any:
    """Return a value in a form to compare: a formula becomes its class, as its attributes are compared one by one."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return type(value) if isinstance(value, Formula) else value


def _follow(value: Any, step: str | int) -> Any:
    return value[step] if isinstance(step, int) else getattr(value, step)


def _is_same(a: Any, b: Any) -> bool:
    try:
        return a is b or (type(a) is type(b) and bool(a == b))
    except Exception:  # noqa: BLE001 - arrays among them
        return False
