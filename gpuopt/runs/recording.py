"""How every run begins and ends in its folder: what it is, what hangs on its loop, how it went."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.errors import ExplodedError
from gpuopt.runs.control.steering import Steering
from gpuopt.runs.loop import spread
from gpuopt.runs.record.folder import write_json
from gpuopt.runs.secondary import warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuopt.runs.loop import Callback, Loop
    from gpuopt.runs.saving.checkpoints import Checkpoints

__all__ = ["begin", "conclude"]


def begin(
    run: Loop, checkpoints: Checkpoints, content: Mapping[str, Any], callbacks: Sequence[Callback]
) -> list[Callback]:
    """Write what a run is, with its content of ``config.json``; return what hangs on it, in the order in which it is called."""
    files = checkpoints.folder
    run.folder = files.path
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
