"""What each option of a config may be."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from gpuopt.errors import UsageError
from gpuopt.rules import Rule
from gpuopt.runs.saving.checkpoints import expect_interval
from gpuopt.runs.saving.explosions import OnExplosion
from gpuopt.training.data import Task
from gpuopt.training.data.preparation import Missing
from gpuopt.training.model import Activation, Initial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuopt.training.config import Config

Matmul: TypeAlias = Literal["float32", "float64"]
OnGPUError: TypeAlias = Literal["stop", "cpu"]
BY_DATA: Any = None
"""What an option is until the data are known, if it is not chosen."""
COUNT = "a positive integer below 2**53"
DEEPEST = 1000
"""Hidden layers."""
LEGACY = "dtype"
"""The task that version 0.1.0 chose by the targets' dtype, in the configurations that it wrote."""
CHOICES = {
    "task": Task,
    "activation": Activation,
    "init": Initial,
    "matmul": Matmul,
    "on_gpu_error": OnGPUError,
    "on_explosion": OnExplosion,
    "missing": Missing,
    "class_weights": Literal["balanced"],
}
ALSO = ("task", LEGACY), ("missing", None), ("class_weights", None)
"""What options may be that is none of their choices."""


def check(config: Config) -> None:
    """Raise UsageError for the first value that cannot be used: the option, what was given and what was expected."""
    expect_interval(config.checkpoint_every, "--checkpoint-every ")
    for is_met, option, expected in _expectations(config):
        if not is_met:
            given = getattr(config, option)
            shown = ",".join(map(str, given)) if isinstance(given, tuple) else given
            raise UsageError(f"--{option.replace('_', '-')} {shown}: expected {expected}")
    if len(config.hidden) > DEEPEST:
        raise UsageError(f"--hidden: {len(config.hidden):,} layers, expected at most {DEEPEST:,}")


def _expectations(config: Any) -> Iterator[tuple[object, str, str]]:
    """Whether each one is met, the option, and what is expected of it."""
    chosen = {option: value for option, value in vars(config).items() if value is not None}  # None: by default
    for option, kind in CHOICES.items():
        value = getattr(config, option)
        yield value in get_args(kind) or (option, value) in ALSO, option, " or ".join(get_args(kind))
    for option in ("epochs", "report_every", "patience", "parts"):
        yield option not in chosen or _is_count(chosen[option]), option, COUNT
    for option in ("target", "labels", "encoding", "schedule"):
        words = "the text of one, as in cosine" if option == "schedule" else "text"
        yield isinstance(chosen.get(option, ""), str), option, words
    for option in ("clip_norm", "clip_value"):
        yield option not in chosen or _is_positive(chosen[option]), option, "a positive number"
    yield not {"clip_norm", "clip_value"} <= chosen.keys(), "clip_norm", "this or --clip-value, not both"
    yield _is_count(config.keep), "keep", COUNT
    hidden = isinstance(config.hidden, tuple) and all(map(_is_count, config.hidden))
    yield hidden, "hidden", "positive integers, as in 256,128"
    yield config.batch_size == "full" or _is_count(config.batch_size), "batch_size", f"full or {COUNT}"
    seed = _is_integer(config.seed) and 0 <= config.seed < 2**32
    yield seed, "seed", "an integer from 0 to 4294967295"
    share = config.validation
    yield share is None or _is_positive(share, below=1), "validation", "a number between 0 and 1, as in 0.2"
    yield config.dropout == 0 or _is_positive(config.dropout, below=1), "dropout", "a number in [0, 1)"
    decay = config.weight_decay
    yield decay is None or decay == 0 or _is_positive(decay), "weight_decay", "a number that is 0 or more"
    ignored = isinstance(config.ignore, tuple) and all(isinstance(name, str) for name in config.ignore)
    yield ignored, "ignore", "names of columns"
    for option in ("target", "labels", "encoding"):
        yield config.data is not None or not chosen.get(option), option, "--data FILE with it"
    yield isinstance(config.optimizer, str | Rule | None), "optimizer", "a name or a rule such as Adam()"
    has_lr = not isinstance(config.optimizer, Rule) or "lr" in config.optimizer.hyperparameters()
    yield has_lr, "optimizer", "a rule with a hyperparameter lr"
    yield isinstance(config.hyperparameters, Mapping), "hyperparameters", "values by name"
    yield isinstance(config.device, str), "device", "auto, cpu, cuda or cuda:N"


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and 0 < value < 2**53


def _is_positive(value: Any, below: float = float("inf")) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 < value <= sys.float_info.max
        and value < below
    )
