"""The names that `gpuopt` offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuopt import schedules
from gpuopt.backends import Backend, BackendUnavailable, backend
from gpuopt.engines.cpu.threads import get_num_threads, set_num_threads
from gpuopt.engines.norms import DynamicScale
from gpuopt.engines.storage import Stochastic
from gpuopt.functional import State, evaluation, init, update
from gpuopt.gradients import Clip, clip_by_global_norm, clip_by_norm, clip_by_value
from gpuopt.minimization import minimize, minimizer
from gpuopt.optimizer import Optimizer
from gpuopt.rules import RULES, Hyper, Rule, bounded
from gpuopt.suggest import did_you_mean
from gpuopt.transforms import TRANSFORMS, Transform, chain

if TYPE_CHECKING:
    from gpuopt import like
    from gpuopt.checkpoint import CheckpointError, load, save
    from gpuopt.runs.run import Run

__all__ = [
    "Backend",
    "BackendUnavailable",
    "CheckpointError",
    "Clip",
    "DynamicScale",
    "Hyper",
    "Optimizer",
    "Rule",
    "Run",
    "State",
    "Stochastic",
    "Transform",
    "backend",
    "bounded",
    "chain",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_value",
    "evaluation",
    "get_num_threads",
    "init",
    "like",
    "load",
    "minimize",
    "minimizer",
    "save",
    "schedules",
    "set_num_threads",
    "update",
]

if TYPE_CHECKING:  # `nox -s derive` writes this
    from gpuopt.rules.adabelief import AdaBelief
    from gpuopt.rules.adadelta import AdaDelta
    from gpuopt.rules.adafactor import Adafactor
    from gpuopt.rules.adagrad import AdaGrad
    from gpuopt.rules.adam import Adam
    from gpuopt.rules.adamax import AdaMax
    from gpuopt.rules.adamw import AdamW
    from gpuopt.rules.adan import Adan
    from gpuopt.rules.asgd import ASGD
    from gpuopt.rules.barzilaiborwein import BarzilaiBorwein
    from gpuopt.rules.fromage import Fromage
    from gpuopt.rules.lamb import LAMB
    from gpuopt.rules.lars import LARS
    from gpuopt.rules.lbfgs import LBFGS
    from gpuopt.rules.lion import Lion
    from gpuopt.rules.muon import Muon
    from gpuopt.rules.nadam import NAdam
    from gpuopt.rules.nonlinearcg import NonlinearCG
    from gpuopt.rules.novograd import Novograd
    from gpuopt.rules.prodigy import Prodigy
    from gpuopt.rules.radam import RAdam
    from gpuopt.rules.rmsprop import RMSProp
    from gpuopt.rules.rprop import Rprop
    from gpuopt.rules.schedulefree import ScheduleFreeAdamW, ScheduleFreeSGD
    from gpuopt.rules.sgd import SGD
    from gpuopt.rules.yogi import Yogi
    from gpuopt.transforms.averages import EMA, Lookahead
    from gpuopt.transforms.constraints import Box, Magnitude, NonNegative, SoftThreshold
    from gpuopt.transforms.decay import L2, WeightDecay
    from gpuopt.transforms.gradient import ClipValue, Maximize
    from gpuopt.transforms.moves import Accelerate, Cautious, Scale
    from gpuopt.transforms.norms import AdaptiveClip, Centralize, ClipGlobalNorm, ClipNorm

    __all__ += [
        "ASGD",
        "EMA",
        "L2",
        "LAMB",
        "LARS",
        "LBFGS",
        "SGD",
        "Accelerate",
        "AdaBelief",
        "AdaDelta",
        "AdaGrad",
        "AdaMax",
        "Adafactor",
        "Adam",
        "AdamW",
        "Adan",
        "AdaptiveClip",
        "BarzilaiBorwein",
        "Box",
        "Cautious",
        "Centralize",
        "ClipGlobalNorm",
        "ClipNorm",
        "ClipValue",
        "Fromage",
        "Lion",
        "Lookahead",
        "Magnitude",
        "Maximize",
        "Muon",
        "NAdam",
        "NonNegative",
        "NonlinearCG",
        "Novograd",
        "Prodigy",
        "RAdam",
        "RMSProp",
        "Rprop",
        "Scale",
        "ScheduleFreeAdamW",
        "ScheduleFreeSGD",
        "SoftThreshold",
        "WeightDecay",
        "Yogi",
    ]
else:
    globals().update(RULES | TRANSFORMS)
    __all__ += list(RULES | TRANSFORMS)


def __getattr__(name: str) -> Any:
    # safetensors takes as long to import as everything else together, so it waits until it is needed
    if name in {"CheckpointError", "load", "save"}:
        from gpuopt import checkpoint

        return getattr(checkpoint, name)
    if name == "Run":
        from gpuopt.runs.run import Run

        return Run
    near = did_you_mean(name, __all__) or did_you_mean(name, schedules.SCHEDULES, shown="'schedules.{}'".format)
    raise AttributeError(f"module 'gpuopt' has no attribute {name!r}{near}")
