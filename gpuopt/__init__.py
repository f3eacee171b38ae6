"""Gradient-descent optimizers for the arrays people already hold: NumPy on a CPU, CuPy on an NVIDIA GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuopt import schedules
from gpuopt.backends import Backend, BackendUnavailable, backend
from gpuopt.functional import State, init, update
from gpuopt.gradients import Clip, clip_by_global_norm, clip_by_norm, clip_by_value
from gpuopt.optimizer import Optimizer
from gpuopt.rules import SGD, AdaGrad, Adam, Hyper, RMSProp, Rule, bounded

if TYPE_CHECKING:
    from gpuopt.checkpoint import CheckpointError, load, save

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "AdaGrad",
    "Adam",
    "Backend",
    "BackendUnavailable",
    "CheckpointError",
    "Clip",
    "Hyper",
    "Optimizer",
    "RMSProp",
    "Rule",
    "State",
    "backend",
    "bounded",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "init",
    "load",
    "save",
    "schedules",
    "update",
]


def __getattr__(name: str) -> Any:
    # safetensors takes as long to import as everything else together, so it waits until it is needed
    if name in {"CheckpointError", "load", "save"}:
        from gpuopt import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
