"""Rules in JSON's types and back: those of the package by name, own ones by the module they can be imported from, chains."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from gpuopt import schedules
from gpuopt.errors import UsageError
from gpuopt.rules import OF_VECTORS, RULES, Rule
from gpuopt.suggest import did_you_mean
from gpuopt.transforms import TRANSFORMS
from gpuopt.transforms.base import Transform
from gpuopt.transforms.chain import Chain, chain

__all__ = ["from_plain", "known", "to_plain"]


def to_plain(rule: Any) -> dict[str, Any]:
    """A rule or a transform in JSON's types.

    Raises
    ------
    UsageError
        If a hyperparameter is a function that is none of `gpuopt.schedules`, or a class cannot be imported again.

    Examples
    --------
    >>> import gpuopt
    >>> to_plain(gpuopt.chain(gpuopt.SGD(lr=0.1), gpuopt.EMA(0.9)))["members"][1]
    {'rule': 'EMA', 'decay': 0.9}
    """
    if isinstance(rule, Chain):
        return {"rule": "chain", "members": [to_plain(member) for member in rule.members]}
    of = type(rule)
    name = of.__name__ if (RULES | TRANSFORMS).get(of.__name__) is of else f"{of.__module__}:{of.__qualname__}"
    if ":" in name and _found(name) is not of:
        raise UsageError(
            f"--optimizer {of.__name__}: could not be resumed: expected a class at the top level of its module"
        )
    values = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule) if field.init}
    for key, value in values.items():
        if callable(value) and not isinstance(value, schedules.Schedule):
            raise UsageError(f"{of.__name__}: {key}: expected a schedule of gpuopt.schedules")
        if not callable(value) and not isinstance(value, bool | int | float | str | None):
            raise UsageError(f"{of.__name__}: {key}: {type(value).__name__}, expected a number, a flag or a schedule")
    return {"rule": name} | {key: value.to_dict() if callable(value) else value for key, value in values.items()}


def from_plain(plain: Mapping[str, Any]) -> Any:
    """The rule of which `to_plain` made this; UsageError, TypeError, ValueError or KeyError if there is none."""
    if plain["rule"] == "chain":
        return chain(*(from_plain(member) for member in plain["members"]))
    given = dict(plain)
    name = given.pop("rule")
    of = _found(name) if ":" in name else TRANSFORMS.get(name) or RULES[known(name, "optimizer")]
    if of is None:
        raise UsageError(
            f"optimizer {name}: cannot be imported here; resume from the program that the run was started in"
        )
    return of(**{n: schedules.from_dict(v) if isinstance(v, Mapping) else v for n, v in given.items()})


def known(name: str, option: str, more: Iterable[str] = ()) -> str:
    """The rule's name that differs from `name` at most in capitals; `more` names are known, too, but of no rules."""
    by_lower = {rule.lower(): rule for rule in RULES}
    if name.lower() not in by_lower:
        near = did_you_mean(name, (*by_lower.values(), *more), shown=str)
        raise UsageError(f"{option} {name}: unknown{near}; known: {', '.join((*OF_VECTORS, *more))}")
    return by_lower[name.lower()]


def _found(name: str) -> Any:
    """The class of ``module:name``, or None."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (AttributeError, ImportError, ValueError):
        return None
    return found if isinstance(found, type) and issubclass(found, Rule | Transform) else None
