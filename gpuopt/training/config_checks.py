"""What each option of a config may be."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from gpuopt.errors import UsageError
from gpuopt.rules import Rule
from gpuopt.runs.saving.checkpoints import expect_interval
from gpuopt.runs.saving.explosions import OnExplosion
from gpuopt.training.activations import Activation
from gpuopt.training.data import Task
from gpuopt.training.data.preparation import Missing
from gpuopt.training.model import Initial

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuopt.training.config import Config

Matmul: TypeAlias = Literal["float32", "float64"]
OnGPUError: TypeAlias = Literal["stop", "cpu"]
BY_DATA: Any = None
"""What an option is until the data are known, if it is not chosen."""
LARGEST_COUNT = 2**53
COUNT = "a positive integer below 2**53"
DEEPEST = 1000
"""Hidden layers."""
LEGACY = "dtype"
"""The task that version 0.1.0 chose by the targets' dtype, in the configurations that it wrote."""


def check(config: Config) -> None:
    """Raise UsageError for the first value that cannot be used: the option, what was given and what was expected."""

    def expect(condition: object, option: str, expected: str) -> None:
        if not condition:
            given = getattr(config, option)
            shown = ",".join(map(str, given)) if isinstance(given, tuple) else given
            raise UsageError(f"--{option.replace('_', '-')} {shown}: expected {expected}")

    for option, choices in (
        ("task", (*get_args(Task), LEGACY) if config.task == LEGACY else get_args(Task)),
        ("activation", get_args(Activation)),
        ("init", get_args(Initial)),
        ("matmul", get_args(Matmul)),
        ("on_gpu_error", get_args(OnGPUError)),
        ("on_explosion", get_args(OnExplosion)),
    ):
        expect(getattr(config, option) in choices, option, " or ".join(choices))
    is_tuple = isinstance(config.hidden, tuple)
    expect(is_tuple and all(map(_is_count, config.hidden)), "hidden", "positive integers, as in 256,128")
    if len(config.hidden) > DEEPEST:
        raise UsageError(f"--hidden: {len(config.hidden):,} layers, expected at most {DEEPEST:,}")
    expect(config.epochs == BY_DATA or _is_count(config.epochs), "epochs", COUNT)
    _check_data_and_network(config, expect)
    expect(config.batch_size == "full" or _is_count(config.batch_size), "batch_size", f"full or {COUNT}")
    expect(_is_integer(config.seed) and 0 <= config.seed < 2**32, "seed", "an integer from 0 to 4294967295")
    expect(config.report_every == BY_DATA or _is_count(config.report_every), "report_every", COUNT)
    expect_interval(config.checkpoint_every, "--checkpoint-every ")
    expect(_is_count(config.keep), "keep", COUNT)
    expect(config.clip_norm is None or config.clip_value is None, "clip_norm", "this or --clip-value, not both")
    for option in ("clip_norm", "clip_value"):
        limit = getattr(config, option)
        expect(limit is None or _is_positive(limit), option, "a positive number")
    for option in ("target", "labels", "encoding"):
        expect(config.data is not None or not getattr(config, option), option, "--data FILE with it")
    expect(isinstance(config.optimizer, str | Rule | None), "optimizer", "a name or a rule such as Adam()")
    has_lr = not isinstance(config.optimizer, Rule) or "lr" in config.optimizer.hyperparameters()
    expect(has_lr, "optimizer", "a rule with a hyperparameter lr")
    expect(isinstance(config.schedule, str | None), "schedule", "the text of one, as in cosine")
    expect(isinstance(config.hyperparameters, Mapping), "hyperparameters", "values by name")
    expect(isinstance(config.device, str), "device", "auto, cpu, cuda or cuda:N")


def _check_data_and_network(config: Config, expect: Callable[[object, str, str], None]) -> None:
    """Look at the options that say how data are read and what the network learns from them."""
    expect(config.missing in {None, *get_args(Missing)}, "missing", " or ".join(get_args(Missing)))
    share = config.validation
    expect(share is None or (_is_positive(share) and share < 1), "validation", "a number between 0 and 1, as in 0.2")
    for option in ("patience", "parts"):
        count = getattr(config, option)
        expect(count is None or _is_count(count), option, COUNT)
    expect(config.class_weights in {None, "balanced"}, "class_weights", "balanced")
    expect(
        config.dropout == 0 or (_is_positive(config.dropout) and config.dropout < 1), "dropout", "a number in [0, 1)"
    )
    decay = config.weight_decay
    expect(decay is None or decay == 0 or _is_positive(decay), "weight_decay", "a number that is 0 or more")
    ignored: Any = config.ignore
    names = isinstance(ignored, tuple) and all(isinstance(name, str) for name in ignored)
    expect(names, "ignore", "names of columns")
    for option in ("target", "labels", "encoding"):
        expect(isinstance(getattr(config, option), str | None), option, "text")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and 0 < value < LARGEST_COUNT


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
