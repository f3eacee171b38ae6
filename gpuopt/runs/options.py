"""What `gpuopt.Run` is given: refused before anything is made of it."""

from __future__ import annotations

from typing import Any, get_args

from gpuopt.arrays import describe
from gpuopt.errors import UsageError
from gpuopt.optimizer import Optimizer
from gpuopt.runs.remembering import is_count
from gpuopt.runs.saving.checkpoints import expect_interval
from gpuopt.runs.saving.explosions import OnExplosion

__all__ = ["expect_options"]


def expect_options(
    optimizer: Any, checkpoint_every: Any, keep: Any, on_explosion: Any, patience: Any, live: Any, seed: Any
) -> None:
    """TypeError or UsageError for one that is none."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: {describe(optimizer)}, expected a gpuopt.Optimizer")
    expect_interval(checkpoint_every, "checkpoint_every: ")
    for name, count in (("keep", keep), ("patience", patience)):
        if not is_count(count) and not (name == "patience" and count is None):
            raise UsageError(f"{name}: {count!r}, expected a positive integer")
    if not isinstance(live, bool | str):
        raise UsageError(f"live: {live!r}, expected True, False or a text HOST:PORT")
    if not (seed == 0 or is_count(seed)):
        raise UsageError(f"seed: {seed!r}, expected an integer from 0 on")
    if on_explosion not in get_args(OnExplosion):
        raise UsageError(f"on_explosion: {on_explosion!r}, expected {', '.join(get_args(OnExplosion))}")
    if on_explosion == "skip" and optimizer._nonfinite != "skip":
        raise UsageError("on_explosion: 'skip', expected an Optimizer with nonfinite='skip', which leaves steps out")
