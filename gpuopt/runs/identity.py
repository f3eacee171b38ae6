"""What must be the same when a run is gone on with: the optimizer's rules with their hyperparameters, and its leaves."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gpuopt.arrays import dtype_of
from gpuopt.errors import UsageError
from gpuopt.schedules import Schedule
from gpuopt.suggest import printable, told_of_each

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gpuopt.optimizer import Optimizer

__all__ = ["described", "expect_same"]


def described(optimizer: Optimizer) -> dict[str, str]:
    """The optimizer in words, by rule and by leaf."""
    rules = {
        "rule" if pattern == "*" else f"rule {pattern}": _described(rule)
        for pattern, rule in optimizer.rules.items()
        if rule is not None
    }
    leaves = {
        f"leaf {path or '(the parameters)'}": f"{dtype_of(x)} {tuple(x.shape)}"
        for path, x in optimizer.state_dict()["params"].items()
    }
    return {**rules, **leaves}


def expect_same(folder: Path, there: Mapping[str, Any], here: Mapping[str, str]) -> None:
    """UsageError that lists what differs between the optimizer of the run in a folder and another one, if anything does."""
    if there == here:
        return
    both = [(key, str(there[key]), now) for key, now in here.items() if key in there and there[key] != now]
    lines = [
        *(f"{key}: there {printable(_apart(was, now), 300)}, here {_apart(now, was)}" for key, was, now in both[:20]),
        *([f"and {len(both) - 20:,} more"] if len(both) > 20 else []),
        *told_of_each([key for key in there if key not in here], "only there"),
        *told_of_each([key for key in here if key not in there], "only here"),
    ]
    cure = "choose another folder, or change it there while it runs, by gpuopt tune or run.tune"
    raise UsageError("\n  ".join([f"{folder}: holds a run of another optimizer; {cure}:", *lines]))


def _apart(one: str, other: str) -> str:
    """A rule in words: of many hyperparameters the first one, and those that another rule of its name has otherwise."""
    (first, *own), (begin, *others) = (re.split(r", (?=[\w.]+=)", text.removesuffix(")")) for text in (one, other))
    if first.rpartition("(")[0] != begin.rpartition("(")[0] or not own:
        return one
    return ", ".join([first, *(x for x in own if x not in others), "...)"])


def _described(rule: Any) -> str:
    def shown(value: Any) -> str:
        is_function = callable(value) and not isinstance(value, Schedule)
        return getattr(value, "__qualname__", type(value).__name__) if is_function else repr(value)

    return f"{rule.name}({', '.join(f'{name}={shown(getattr(rule, name))}' for name in rule.hyperparameters())})"
