"""Hyperparameters that are changed while an optimizer runs."""

from __future__ import annotations

import dataclasses
from numbers import Real
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from gpuopt.rules.hyper import Arrays, Hyper, as_float, unknown
from gpuopt.schedules import Schedule
from gpuopt.suggest import did_you_mean, listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import SupportsFloat

    from gpuopt.rules.base import Rule

Tuned: TypeAlias = dict[str, Hyper]
"""The changed hyperparameters of one rule, by name."""


class Shown(dict[str, Any]):
    """What an optimizer has by pattern, to be read: a change would be one of this dict alone, and is refused."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "a dict that is to be read alone, expected opt.tune(PATTERN, lr=...) to change a hyperparameter"
        )

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return dict, (dict(self),)


def tuned(
    before: Sequence[Tuned], rules: Mapping[str, Rule], pattern: str | None, changes: Mapping[str, Hyper]
) -> list[Tuned]:
    """Return the changed hyperparameters of each rule, with further changes added.

    Parameters
    ----------
    before
        What had been changed of each rule.
    rules
        By pattern.
    pattern
        Which rule to change; None for every rule that has the hyperparameter.
    changes
        New values by name, whose ranges are not looked at.

    Raises
    ------
    TypeError, ValueError
        If there is no such pattern or hyperparameter.

    """
    given: Any = pattern
    if given is not None and not (isinstance(given, str) and given in rules):
        near, there = did_you_mean(pattern, rules), listed(rules, shown=repr)
        cure = "" if isinstance(given, str) else "; hyperparameters are changed by their names, as by opt.tune(lr=0.01)"
        raise ValueError(f"tune: no rule for {pattern!r:.80}{near}, expected one of {there}{cure}")
    known = [rule.hyperparameters() if pattern in (None, own) else () for own, rule in rules.items()]
    for name in changes.keys() - {name for names in known for name in names}:
        raise unknown("tune", name, dict.fromkeys(name for names in known for name in names))
    for names, rule in zip(known, rules.values(), strict=True):
        for name in changes.keys() & names:
            value: Any = changes[name]
            if isinstance(value, Real) or callable(value) or not isinstance(rule.hyperparameter(name).kind, Arrays):
                continue
            raise TypeError(
                f"tune: {name}: {value!r:.40} ({type(value).__name__}), expected a number or a schedule; arrays are a part of "
                "the state, for others make a new optimizer"
            )
    return [
        own | {name: value for name, value in changes.items() if name in names}
        for own, names in zip(before, known, strict=True)
    ]


def expect_values(rules: Iterable[Rule], schedules: Mapping[str, Hyper], step: int) -> None:
    """Ask the rules that have these schedules for a step; raise TypeError or ValueError if one fails or leaves its range."""
    for rule in rules:
        for name, schedule in schedules.items():
            if name in rule.hyperparameters() and rule.hyperparameter(name).value is schedule:
                rule.hyperparameter(name).at(step)


def expect_no_hyperparameter(name: str, rules: Iterable[Rule]) -> None:
    """Raise an AttributeError if an attribute of an optimizer would be called like a hyperparameter, or much like one."""
    known = dict.fromkeys(own for rule in rules for own in rule.hyperparameters())
    if near := did_you_mean(name, known, likeness=0.8):
        raise AttributeError(
            f"{name}: no attribute of an optimizer{'' if name in known else near}, expected opt.tune(NAME=...) or opt.lr = ... "
            "to change a hyperparameter"
        )


def are_same(some: Sequence[Tuned], others: Sequence[Tuned]) -> bool:
    """Whether the changes are equal numbers of the same types; schedules never count as equal."""
    return [*map(_numbers, some)] == [*map(_numbers, others)] and None not in map(_numbers, some)


def _numbers(own: Tuned) -> dict[str, tuple[type, object]] | None:
    plain = all(type(value) in {bool, float, int} for value in own.values())
    return {name: (type(value), value) for name, value in own.items()} if plain else None


def rules_with(tuned: Sequence[Tuned], original: Sequence[Rule]) -> list[Rule]:
    """Return rules with their changes; raise TypeError or ValueError if a value is out of range."""
    return [dataclasses.replace(rule, **own) if own else rule for rule, own in zip(original, tuned, strict=True)]


def schedules_of(rule: Rule) -> dict[str, Schedule]:
    """Return the hyperparameters of a rule that are schedules of ours, by name."""
    values = {name: getattr(rule, name) for name in rule.hyperparameters()}
    return {name: value for name, value in values.items() if isinstance(value, Schedule)}


def heard(rules: Sequence[Rule], metric: SupportsFloat) -> list[Tuned]:
    """Return what schedules that listen make of a metric: of each rule, what changes.

    Raises
    ------
    TypeError
        If the metric is no number.

    """
    given: Any = metric
    try:
        number = None if isinstance(given, str | bytes) else as_float(given)
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise TypeError(f"tell: {metric!r:.80}, expected a number")
    told = [{name: (value, value.told(number)) for name, value in schedules_of(rule).items()} for rule in rules]
    return [{name: new for name, (old, new) in own.items() if new != old} for own in told]
