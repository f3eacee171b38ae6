"""Hyperparameters that are changed while an optimizer runs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeAlias

from gpuopt.rules.hyper import Hyper, unknown
from gpuopt.suggest import did_you_mean, listed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuopt.rules.base import Rule

Tuned: TypeAlias = dict[str, Hyper]
"""Of one rule: the hyperparameters that were changed, by name."""


def tuned(
    before: Sequence[Tuned], rules: Mapping[str, Rule], pattern: str | None, changes: Mapping[str, Hyper]
) -> list[Tuned]:
    """Return what is changed of each rule, with some further changes.

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
    if pattern is not None and pattern not in rules:
        near, there = did_you_mean(pattern, rules), listed(rules, shown=repr)
        raise ValueError(f"tune: no rule for {pattern!r}{near}, expected one of {there}")
    known = [rule.hyperparameters() if pattern in (None, own) else () for own, rule in rules.items()]
    for name in changes.keys() - {name for names in known for name in names}:
        raise unknown("tune", name, dict.fromkeys(name for names in known for name in names))
    return [
        own | {name: value for name, value in changes.items() if name in names}
        for own, names in zip(before, known, strict=True)
    ]


def rules_with(tuned: Sequence[Tuned], original: Sequence[Rule]) -> list[Rule]:
    """Return rules with their changes; raise TypeError or ValueError if a value is out of range."""
    return [dataclasses.replace(rule, **own) for rule, own in zip(original, tuned, strict=True)]
