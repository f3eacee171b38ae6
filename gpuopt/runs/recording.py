"""How every run begins and ends in its folder: what it is, what hangs on its loop, how it went."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import dtype_of
from gpuopt.errors import ExplodedError, UsageError
from gpuopt.runs.control.steering import Steering
from gpuopt.runs.loop import spread
from gpuopt.runs.record.folder import write_json
from gpuopt.runs.secondary import warn
from gpuopt.schedules import Schedule
from gpuopt.suggest import printable, told_of_each

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gpuopt.optimizer import Optimizer
    from gpuopt.runs.loop import Callback, Loop
    from gpuopt.runs.saving.checkpoints import Checkpoints

__all__ = ["begin", "conclude", "described", "expect_same"]


def begin(
    run: Loop, checkpoints: Checkpoints, content: Mapping[str, Any], callbacks: Sequence[Callback]
) -> list[Callback]:
    """Write what a run is, with its content of ``config.json``; return what hangs on it, in the order in which it is called."""
    files = checkpoints.folder
    versions = {"gpuopt": sys.modules["gpuopt"].__version__, "numpy": np.__version__}
    _warn_of_idle_steps(run)
    files.write_config({**versions, "steps": run.total, **content, "resumed": checkpoints.noted()})
    files.summary.unlink(missing_ok=True)
    return [checkpoints.metrics, *callbacks, checkpoints, Steering(checkpoints)]


def _warn_of_idle_steps(run: Loop) -> None:
    """Tell steps at the end that change nothing, since a schedule was made for fewer: of a run that is longer now, say."""
    first, total = run.optimizer.steps, run.total
    for name, rule in run.rules.items():
        if total - first > 1 and rule.at(total - 1).get("lr") == 0 and callable(getattr(rule, "lr", None)):
            moving = [step for step in spread(first, total, rule) if rule.at(step)["lr"] != 0]
            since = moving[-1] + 1 if moving else first
            if since < total - 1:
                what = "" if name == "*" else f" of {name}"
                warn(
                    "the learning rate%s is 0 from about step %s to the end, step %s, by its schedule",
                    what,
                    since,
                    total,
                )


def conclude(run: Loop, checkpoints: Checkpoints, summary: Mapping[str, Any], cure: str) -> None:
    """Write how a run went.

    Raises
    ------
    ExplodedError
        If it exploded, with the cure.
    """
    write_json(checkpoints.folder.summary, summary)
    if checkpoints.explosions.message is not None:
        saved = f"the state after step {run.optimizer.steps} is saved"
        raise ExplodedError(f"{checkpoints.explosions.message}; {saved}. {cure}")


def described(optimizer: Optimizer) -> dict[str, str]:
    """What must be the same when a run is gone on with: rules with their hyperparameters, and leaves."""
    rules = {
        "rule" if pattern == "*" else f"rule {pattern}": f"{rule.name}({', '.join(_hyperparameters(rule))})"
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


def _hyperparameters(rule: Any) -> list[str]:
    values = {name: getattr(rule, name) for name in rule.hyperparameters()}
    is_function = {name: callable(value) and not isinstance(value, Schedule) for name, value in values.items()}
    return [
        f"{name}={getattr(value, '__qualname__', type(value).__name__) if is_function[name] else repr(value)}"
        for name, value in values.items()
    ]
