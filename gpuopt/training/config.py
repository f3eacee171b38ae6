"""What a run is: all that somebody may choose, checked, with what is not chosen filled in; to JSON and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gpuopt.errors import UsageError
from gpuopt.gradients import Clip, clip_by_global_norm, clip_by_value
from gpuopt.rules import Rule
from gpuopt.suggest import printable
from gpuopt.training.config_checks import BY_DATA, LEGACY, Matmul, OnGPUError, check
from gpuopt.training.config_rule import check_schedules, from_plain, rule_of, to_plain
from gpuopt.training.data import Reading

if TYPE_CHECKING:
    from gpuopt.runs.saving.explosions import OnExplosion
    from gpuopt.training.model import Activation, Initial

__all__ = ["Config", "OnGPUError"]

# What is chosen for those who do not: the book's network for the built-in spiral, something sensible for a file.
SPIRAL = {"hidden": (64,), "init": "small", "matmul": "float64", "epochs": 10_000, "batch_size": "full"}
FILE = {"hidden": (128,), "init": "he", "matmul": "float32", "batch_size": 128}
FEWEST_EPOCHS, FEWEST_STEPS = 10, 2000
"""On a file: as many epochs as it takes to have both."""
ARRAYS = "<arrays>"
"""What stands in place of the file's name when arrays are given from Python."""
LONGEST = 600
"""Characters that are told of what is wrong with a config that was read."""
OF_A_LOOP = "the run of a program's own loop, without a network; that program, run again, goes on with it"
SPIKES = (
    "Spikes in the loss: this learning rate hardly falls, and Adam now and then leaps out of a narrow valley, to which it returns; "
    "--lr 0.05 --schedule cosine ends smoothly"
)
"""What is said of the built-in run, which is that of a book."""


@dataclass(frozen=True, kw_only=True)
class Config(Reading):
    """Everything that decides how a run goes. ``Config()`` is the built-in run.

    Attributes
    ----------
    data : path, optional
        The file to train on, see `gpuopt.training.data.load`; None is the built-in spiral.
    target, task, standardize, one_hot, missing, validation, ignore, labels, encoding, scale_target
        How the file is read, see `gpuopt.training.data.Reading`.
    patience : int, optional
        End when the loss of the test set (or the validation part) has not become lower for so many epochs; the best state
        is the one that the model is made of.
    class_weights : "balanced", optional
        Let each class count alike in the loss, however many samples it has.
    activation : {"relu", "leaky_relu", "elu", "tanh", "sigmoid", "silu"}
        Between the layers.
    dropout : float
        The share of hidden units that each step leaves out, in [0, 1).
    weight_decay : float, optional
        Decoupled: weights and biases become smaller by this share times the learning rate in each step.
    hidden : tuple of int
        Units of the hidden layers. Default: 64 for the spiral, 128 for a file.
    init : {"small", "he"}
        How weights start. Default: "small" for the spiral, "he" for a file.
    matmul : {"float64", "float32"}
        In which precision matrices are multiplied. float64 costs time, but gives (all but) the same run on every
        machine. Default: float32; float64 for the spiral with an optimizer of your choice, whose end is a matter of the
        last bit: so it is the one that the book has.
    optimizer : str or Rule
        A rule, or the name of one; default: Adam.
    lr : float, optional
        Its learning rate; default: the rule's own.
    schedule : str, optional
        How the learning rate goes on from there, as `gpuopt.schedules.parse` reads it. If none of `optimizer`, `lr` and
        `schedule` is given, the spiral is trained with ``Adam(lr=inverse_time(0.05, decay=5e-7))``.
    hyperparameters : mapping
        Others by name: numbers, flags, or schedules as text.
    epochs : int
        Default: 10,000 for the spiral; for a file 10 or more, so many that there are 2,000 steps.
    batch_size : int or "full"
        Default: "full" for the spiral, 128 for a file.
    seed : int
        Of the spiral, the initial weights and the order of the samples.
    parts : int, optional
        Cut each batch into so many parts, which as many processes compute, or fewer. The result depends on how many there are
        in its last bits, not on who computes them. Default: one for each process; None for a process alone.
    device : str
        "auto", "cpu", "cuda" or "cuda:N".
    on_gpu_error : {"stop", "cpu"}
        What to do when the GPU fails on the way: save and stop, or go on on the CPU.
    report_every : int
        Epochs from one row of the metrics to the next. Default: such that there are about a hundred.
    checkpoint_every : int or str
        Steps from one checkpoint to the next; or seconds, as in "30s".
    keep : int
        How many of the last checkpoints stay. The best one stays in any case.
    on_explosion : {"stop", "skip", "rollback"}
        What to do when parameters or loss explode: go back to the last good state and stop, or go on from there with
        half the learning rate; or leave out steps whose gradients are not finite.
    clip_norm, clip_value : float, optional
        Scale the gradients down to this global norm, or cut their elements to this size.
    average : float, optional
        Keep an exponential moving average of the parameters with this decay, and evaluate with it: the rule becomes a chain
        with `gpuopt.EMA`.

    Raises
    ------
    UsageError
        If a value cannot be used; the message has the option's name and what was expected.

    Examples
    --------
    >>> Config(optimizer="sgd", lr=1, schedule="inverse_time:decay=1e-3", hyperparameters={"momentum": 0.9}).rule().lr
    inverse_time(initial=1.0, decay=0.001)
    >>> Config(optimizer="Adm")
    Traceback (most recent call last):
        ...
    gpuopt.errors.UsageError: --optimizer Adm: unknown (did you mean Adam?); known: ...
    """

    data: str | None = None
    patience: int | None = None
    class_weights: Literal["balanced"] | None = None
    activation: Activation = "relu"
    dropout: float = 0.0
    weight_decay: float | None = None
    hidden: tuple[int, ...] = BY_DATA
    init: Initial = BY_DATA
    matmul: Matmul = BY_DATA
    optimizer: str | Rule | None = None
    lr: float | None = None
    schedule: str | None = None
    hyperparameters: Mapping[str, float | str] = field(default_factory=dict)
    epochs: int = BY_DATA
    batch_size: int | Literal["full"] = BY_DATA
    device: str = "auto"
    on_gpu_error: OnGPUError = "stop"
    report_every: int = BY_DATA
    checkpoint_every: int | str = "30s"
    keep: int = 2
    on_explosion: OnExplosion = "stop"
    clip_norm: float | None = None
    clip_value: float | None = None
    average: float | None = None
    parts: int | None = None
    _filled: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What was not chosen, and what it became; `dataclasses.replace` hands it on."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_filled", dict(self._filled))
        if self.data is not None:
            object.__setattr__(self, "data", str(self.data))
        for name, value in vars(self).items():
            if isinstance(value, np.integer | np.floating | np.bool_):  # as a search over a grid has them
                object.__setattr__(self, name, value.item())
        if self.is_built_in:
            self._fill({"matmul": "float32"})
        self._fill(SPIRAL if self.data is None else FILE)
        several: dict[str, Any] = {"hidden": self.hidden, "ignore": self.ignore}
        for name, value in several.items():
            if isinstance(value, list | tuple):  # lists in JSON
                plain = (units.item() if isinstance(units, np.integer) else units for units in value)
                object.__setattr__(self, name, tuple(plain))
        check(self)
        self.rule()  # whether there is such a one, before anything else is done
        if self.epochs is not None:  # about a hundred rows of metrics, more often where somebody is impatient
            between = -(-self.epochs // 100)
            impatient = between if self.patience is None else max(1, min(between, self.patience // 10))
            self._fill({"report_every": impatient})

    @property
    def is_built_in(self) -> bool:
        """Whether this is the run that nobody has chosen anything of."""
        return (self.data, self.optimizer, self.lr, self.schedule) == (None, None, None, None)

    def expect_data(self) -> None:
        """Refuse what the built-in spiral has no use for: it is trained on where neither a file nor arrays are given."""
        for option in ("standardize", "one_hot", "missing", "ignore") if self.data is None else ():
            if given := getattr(self, option):
                shown = f"--{option.replace('_', '-')} {given}"
                raise UsageError(f"{shown}: expected --data FILE with it, or data=(x, y)")

    @property
    def reading(self) -> dict[str, Any]:
        """How the data are read, the fields of `Reading`."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(Reading)}

    @property
    def _values(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "_filled"}

    def on_arrays(self) -> Config:
        """The same for arrays in place of the spiral: with what suits them where nothing else was chosen."""
        if self.data is not None:
            raise UsageError(f"--data {self.data}: expected this, or data=(x, y), not both")
        chosen = {name: x for name, x in self._values.items() if name not in self._filled or self._filled[name] != x}
        return Config(**{**chosen, "data": ARRAYS})

    def _fill(self, values: Mapping[str, Any]) -> None:
        """Set what is not chosen."""
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
                self._filled[name] = value

    @property
    def clip(self) -> Clip | None:
        """How gradients are clipped."""
        if self.clip_norm is not None:
            return clip_by_global_norm(self.clip_norm)
        return None if self.clip_value is None else clip_by_value(self.clip_value)

    def batches(self, samples: int) -> int:
        """Steps in an epoch of so many samples."""
        return 1 if self.batch_size == "full" else math.ceil(samples / self.batch_size)

    def resolved(self, samples: int) -> Config:
        """Return the same config for so many samples, with its rule as a `Rule`: schedules then know their steps."""
        batches = self.batches(samples)
        if self.epochs == BY_DATA:
            epochs = max(FEWEST_EPOCHS, math.ceil(FEWEST_STEPS / batches))
            return dataclasses.replace(self, epochs=epochs).resolved(samples)
        steps = self.epochs * batches
        rule = self.rule(steps)
        check_schedules(self, rule, steps)
        return dataclasses.replace(
            self, optimizer=rule, lr=None, schedule=None, hyperparameters={}, average=None, weight_decay=None
        )

    def rule(self, steps: int = 10**9) -> Rule:
        """Return the rule that a run of so many steps takes."""
        return rule_of(self, steps)

    def to_json(self) -> dict[str, Any]:
        """This config in JSON's types.

        Raises
        ------
        UsageError
            If the rule cannot be written down: a function that is none of `gpuopt.schedules`, a class that cannot be imported.
        """
        rule = self.optimizer
        return self._values | {"optimizer": to_plain(rule) if isinstance(rule, Rule) else rule}

    @classmethod
    def from_json(cls, plain: Any) -> Config:
        """Return the config of which `to_json` made this; UsageError if there is none."""
        if not isinstance(plain, Mapping):
            raise UsageError(OF_A_LOOP if plain is None else "expected a config")
        values = {name: value for name, value in plain.items() if name != "_filled"}
        if "scale_target" not in values:  # of version 0.1.0
            values |= {"scale_target": False} | ({"task": LEGACY} if values.get("task") == "auto" else {})
        try:
            if isinstance(values.get("optimizer"), Mapping):
                values["optimizer"] = from_plain(values["optimizer"])
            return cls(**values)
        except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise UsageError(printable(error, LONGEST)) from None
