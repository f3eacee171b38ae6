"""Gradient-descent optimizers for the arrays people already hold: NumPy on a CPU, CuPy on an NVIDIA GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuopt import schedules
from gpuopt.backends import Backend, BackendUnavailable, backend
from gpuopt.engines.threads import get_num_threads, set_num_threads
from gpuopt.functional import State, init, update
from gpuopt.gradients import Clip, clip_by_global_norm, clip_by_norm, clip_by_value
from gpuopt.optimizer import Optimizer
from gpuopt.rules import RULES, Hyper, Rule, bounded
from gpuopt.suggest import did_you_mean

if TYPE_CHECKING:
    from gpuopt.checkpoint import CheckpointError, load, save

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackendUnavailable",
    "CheckpointError",
    "Clip",
    "Hyper",
    "Optimizer",
    "Rule",
    "State",
    "backend",
    "bounded",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "get_num_threads",
    "init",
    "load",
    "save",
    "schedules",
    "set_num_threads",
    "update",
]

if TYPE_CHECKING:  # `nox -s derive` writes this
    from gpuopt.rules.adagrad import AdaGrad
    from gpuopt.rules.adam import Adam
    from gpuopt.rules.rmsprop import RMSProp
    from gpuopt.rules.sgd import SGD

    __all__ += [
        "SGD",
        "AdaGrad",
        "Adam",
        "RMSProp",
    ]
else:
    globals().update(RULES)
    __all__ += list(RULES)


def __getattr__(name: str) -> Any:
    # safetensors takes as long to import as everything else together, so it waits until it is needed
    if name in {"CheckpointError", "load", "save"}:
        from gpuopt import checkpoint

        return getattr(checkpoint, name)
    near = "" if name.startswith("_") else did_you_mean(name, __all__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")
