"""What a run is: all that somebody may choose, checked, with what is not chosen filled in; to JSON and back."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from gpuopt import schedules
from gpuopt.errors import UsageError
from gpuopt.gradients import Clip, clip_by_global_norm, clip_by_value
from gpuopt.rules import RULES, Rule
from gpuopt.rules.adam import Adam
from gpuopt.runs.loop import spread
from gpuopt.runs.saving.checkpoints import expect_interval
from gpuopt.runs.saving.explosions import OnExplosion
from gpuopt.suggest import did_you_mean, printable
from gpuopt.training import plain_rules
from gpuopt.training.activations import Activation
from gpuopt.training.data import Reading, Task
from gpuopt.training.data.preparation import Missing
from gpuopt.training.model import Initial
from gpuopt.transforms.averages import EMA
from gpuopt.transforms.chain import chain
from gpuopt.transforms.decay import WeightDecay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Config", "settings"]

Matmul: TypeAlias = Literal["float32", "float64"]
OnGPUError: TypeAlias = Literal["stop", "cpu"]

# What is chosen for those who do not: the book's network for the built-in spiral, something sensible for a file.
SPIRAL = {
    "hidden": (64,),
    "init": "small",
    "matmul": "float64",
    "epochs": 10_000,
    "batch_size": "full",
}
FILE = {
    "hidden": (128,),
    "init": "he",
    "matmul": "float32",
    "batch_size": 128,
}
FEWEST_EPOCHS, FEWEST_STEPS = 10, 2000
"""On a file: as many epochs as it takes to have both."""
ARRAYS = "<arrays>"
"""What stands in place of the file's name when arrays are given from Python."""
_BY_DATA: Any = None
LONGEST = 600
"""Characters that are told of what is wrong with a config that was read."""
LARGEST_COUNT = 2**53
COUNT = "a positive integer below 2**53"
DEEPEST = 1000
"""Hidden layers."""
LEGACY = "dtype"
"""The task that version 0.1.0 chose by the targets' dtype, in the configurations that it wrote."""
SPIKES = (
    "Spikes in the loss: this learning rate hardly falls, and Adam now and then leaps out of a narrow valley, to which it returns; "
    "--lr 0.05 --schedule cosine ends smoothly"
)
"""What is said of the built-in run, which is that of a book."""
BUILT_IN_RULE = Adam(lr=schedules.inverse_time(0.05, decay=5e-7))


@dataclass(frozen=True, kw_only=True)
class Config:
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
    target: str | None = None
    task: Task = "auto"
    standardize: bool = False
    one_hot: bool = False
    missing: Missing | None = None
    validation: float | None = None
    ignore: tuple[str, ...] = ()
    labels: str | None = None
    encoding: str | None = None
    scale_target: bool = True
    patience: int | None = None
    class_weights: Literal["balanced"] | None = None
    activation: Activation = "relu"
    dropout: float = 0.0
    weight_decay: float | None = None
    hidden: tuple[int, ...] = _BY_DATA
    init: Initial = _BY_DATA
    matmul: Matmul = _BY_DATA
    optimizer: str | Rule | None = None
    lr: float | None = None
    schedule: str | None = None
    hyperparameters: Mapping[str, float | str] = field(default_factory=dict)
    epochs: int = _BY_DATA
    batch_size: int | Literal["full"] = _BY_DATA
    seed: int = 0
    device: str = "auto"
    on_gpu_error: OnGPUError = "stop"
    report_every: int = _BY_DATA
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
        if self._is_built_in:
            self._fill({"matmul": "float32"})
        self._fill(SPIRAL if self.data is None else FILE)
        hidden: Any = self.hidden
        if isinstance(hidden, list | tuple):  # a list in JSON
            plain = (units.item() if isinstance(units, np.integer) else units for units in hidden)
            object.__setattr__(self, "hidden", tuple(plain))
        ignored: Any = self.ignore
        if isinstance(ignored, list):
            object.__setattr__(self, "ignore", tuple(ignored))
        self._check()
        if self.epochs is not None:
            self._fill({"report_every": self._rows()})

    @property
    def _is_built_in(self) -> bool:
        return (self.data, self.optimizer, self.lr, self.schedule) == (None, None, None, None)

    def expect_data(self) -> None:
        """Refuse what the built-in spiral has no use for: it is trained on where neither a file nor arrays are given."""
        for option in ("standardize", "one_hot", "missing", "ignore"):
            if self.data is None and getattr(self, option):
                shown = f"--{option.replace('_', '-')} {getattr(self, option)}"
                raise UsageError(f"{shown}: expected --data FILE with it, or data=(x, y)")

    def _rows(self) -> int:
        """Epochs from one row of the metrics to the next: about a hundred, more often where somebody is impatient."""
        between = -(-self.epochs // 100)
        return between if self.patience is None else max(1, min(between, self.patience // 10))

    @property
    def reading(self) -> Reading:
        """How the data are read."""
        return Reading(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Reading)})

    def on_arrays(self) -> Config:
        """The same for arrays in place of the spiral: with what suits them where nothing else was chosen."""
        if self.data is not None:
            raise UsageError(f"--data {self.data}: expected this, or data=(x, y), not both")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "_filled"}
        chosen = {name: x for name, x in values.items() if name not in self._filled or self._filled[name] != x}
        return Config(**{**chosen, "data": ARRAYS})

    def _fill(self, values: Mapping[str, Any]) -> None:
        """Set what is not chosen."""
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
                self._filled[name] = value

    def _check(self) -> None:
        def expect(condition: object, option: str, expected: str) -> None:
            if not condition:
                given = getattr(self, option)
                shown = ",".join(map(str, given)) if isinstance(given, tuple) else given
                raise UsageError(f"--{option.replace('_', '-')} {shown}: expected {expected}")

        for option, choices in (
            ("task", (*get_args(Task), LEGACY) if self.task == LEGACY else get_args(Task)),
            ("activation", get_args(Activation)),
            ("init", get_args(Initial)),
            ("matmul", get_args(Matmul)),
            ("on_gpu_error", get_args(OnGPUError)),
            ("on_explosion", get_args(OnExplosion)),
        ):
            expect(getattr(self, option) in choices, option, " or ".join(choices))
        is_tuple = isinstance(self.hidden, tuple)
        expect(is_tuple and all(map(_is_count, self.hidden)), "hidden", "positive integers, as in 256,128")
        if len(self.hidden) > DEEPEST:
            raise UsageError(f"--hidden: {len(self.hidden):,} layers, expected at most {DEEPEST:,}")
        expect(self.epochs == _BY_DATA or _is_count(self.epochs), "epochs", COUNT)
        self._check_options(expect)
        expect(self.batch_size == "full" or _is_count(self.batch_size), "batch_size", f"full or {COUNT}")
        expect(_is_integer(self.seed) and 0 <= self.seed < 2**32, "seed", "an integer from 0 to 4294967295")
        expect(self.report_every == _BY_DATA or _is_count(self.report_every), "report_every", COUNT)
        expect_interval(self.checkpoint_every, "--checkpoint-every ")
        expect(_is_count(self.keep), "keep", COUNT)
        expect(self.clip_norm is None or self.clip_value is None, "clip_norm", "this or --clip-value, not both")
        for option in ("clip_norm", "clip_value"):
            limit = getattr(self, option)
            expect(limit is None or _is_positive(limit), option, "a positive number")
        for option in ("target", "labels", "encoding"):
            expect(self.data is not None or not getattr(self, option), option, "--data FILE with it")
        expect(isinstance(self.optimizer, str | Rule | None), "optimizer", "a name or a rule such as Adam()")
        has_lr = not isinstance(self.optimizer, Rule) or "lr" in self.optimizer.hyperparameters()
        expect(has_lr, "optimizer", "a rule with a hyperparameter lr")
        expect(isinstance(self.schedule, str | None), "schedule", "the text of one, as in cosine")
        expect(isinstance(self.hyperparameters, Mapping), "hyperparameters", "values by name")
        expect(isinstance(self.device, str), "device", "auto, cpu, cuda or cuda:N")
        self.rule()  # whether there is such a one, before anything else is done

    def _check_options(self, expect: Callable[[object, str, str], None]) -> None:
        expect(self.missing in {None, *get_args(Missing)}, "missing", " or ".join(get_args(Missing)))
        share = self.validation
        expect(
            share is None or (_is_positive(share) and share < 1), "validation", "a number between 0 and 1, as in 0.2"
        )
        for option in ("patience", "parts"):
            count = getattr(self, option)
            expect(count is None or _is_count(count), option, COUNT)
        expect(self.class_weights in {None, "balanced"}, "class_weights", "balanced")
        expect(self.dropout == 0 or (_is_positive(self.dropout) and self.dropout < 1), "dropout", "a number in [0, 1)")
        decay = self.weight_decay
        expect(decay is None or decay == 0 or _is_positive(decay), "weight_decay", "a number that is 0 or more")
        ignored: Any = self.ignore
        names = isinstance(ignored, tuple) and all(isinstance(name, str) for name in ignored)
        expect(names, "ignore", "names of columns")
        for option in ("target", "labels", "encoding"):
            expect(isinstance(getattr(self, option), str | None), option, "text")

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
        if self.epochs == _BY_DATA:
            epochs = max(FEWEST_EPOCHS, math.ceil(FEWEST_STEPS / batches))
            return dataclasses.replace(self, epochs=epochs).resolved(samples)
        steps = self.epochs * batches
        rule = self.rule(steps)
        self._check_schedules(rule, steps)
        chosen: dict[str, Any] = {
            "lr": None,
            "schedule": None,
            "hyperparameters": {},
            "average": None,
            "weight_decay": None,
        }
        return dataclasses.replace(self, optimizer=rule, **chosen)

    def rule(self, steps: int = 10**9) -> Rule:
        """Return the rule that a run of so many steps takes."""
        rule: Rule
        if isinstance(self.optimizer, Rule):
            rule = self.optimizer
        elif self._is_built_in:
            rule = BUILT_IN_RULE
        else:
            rule = RULES[plain_rules.known("Adam" if self.optimizer is None else self.optimizer, "--optimizer")]()
        if self.weight_decay and "weight_decay" not in rule.hyperparameters():
            rule = chain(WeightDecay(self.weight_decay), rule)
        if self.average is not None:
            try:
                rule = chain(rule, EMA(self.average))
            except (TypeError, ValueError) as error:
                raise UsageError(f"--average {self.average}: {error}") from None
        for option, name, value in self._choices(rule):
            try:
                initial = rule.hyperparameter(name).at(0)
                chosen = schedules.parse(value, initial=initial, steps=steps) if isinstance(value, str) else value
                rule = dataclasses.replace(rule, **{name: chosen})
            except (TypeError, ValueError) as error:
                raise UsageError(f"{option}: {error}") from None
        if why := rule.unfit((1,)):
            raise UsageError(f"--optimizer {rule.name}: the biases of this network are vectors: {why}")
        return rule

    def _check_schedules(self, rule: Rule, steps: int) -> None:
        """Refuse a schedule that leaves the range of its hyperparameter, before anything is written."""
        for step in spread(0, steps, rule):
            try:
                rule.at(step)
            except (TypeError, ValueError) as error:
                chosen = [option for option, name, _ in self._choices(rule) if f": {name} at step" in str(error)]
                raise UsageError(": ".join([*chosen[-1:], str(error)])) from None

    def _choices(self, rule: Rule) -> Iterator[tuple[str, str, float | str]]:
        """Yield what the user chose, in the order of application: the option, the hyperparameter, and its value or schedule (as text)."""
        if self.lr is not None:
            yield f"--lr {self.lr}", "lr", self.lr
        if self.schedule is not None:
            yield f"--schedule {self.schedule}", "lr", self.schedule
        names = rule.hyperparameters()
        if self.weight_decay is not None and "weight_decay" in names:
            yield f"--weight-decay {self.weight_decay}", "weight_decay", self.weight_decay
        for name, value in self.hyperparameters.items():
            if name not in names:
                near = did_you_mean(name, names, shown=str)
                known = f"{rule.name} has {', '.join(names)}"
                raise UsageError(f"--set {name}={value}: unknown hyperparameter{near}; {known}")
            if name == "lr" and (self.lr is not None or self.schedule is not None):
                raise UsageError(f"--set lr={value}: expected this, or --lr and --schedule, not both")
            yield f"--set {name}={value}", name, value

    def to_json(self) -> dict[str, Any]:
        """This config in JSON's types.

        Raises
        ------
        UsageError
            If the rule cannot be written down: a function that is none of `gpuopt.schedules`, a class that cannot be imported.
        """
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "_filled"}
        if isinstance(self.optimizer, Rule):
            plain["optimizer"] = plain_rules.to_plain(self.optimizer)
        return plain

    @classmethod
    def from_json(cls, plain: Any) -> Config:
        """Return the config of which `to_json` made this; UsageError if there is none."""
        if not isinstance(plain, Mapping):
            raise UsageError("expected a config")
        values = {name: value for name, value in plain.items() if name != "_filled"}
        if "scale_target" not in values:  # of version 0.1.0
            values |= {"scale_target": False} | ({"task": LEGACY} if values.get("task") == "auto" else {})
        try:
            if isinstance(values.get("optimizer"), Mapping):
                values["optimizer"] = plain_rules.from_plain(values["optimizer"])
            return cls(**values)
        except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise UsageError(printable(error, LONGEST)) from None


def settings(texts: Iterable[str], called: Callable[[str], str], expected: str) -> dict[str, float | str]:
    """What each ``NAME=VALUE`` chooses: a number, a flag, or the text of a schedule.

    Parameters
    ----------
    texts
    called
        What messages call one of them.
    expected
        What they say was expected of one that is written otherwise.

    Raises
    ------
    UsageError
        For such a one, and for a name that is given twice.

    Examples
    --------
    >>> settings(["lr=cosine", "beta1=0.95"], str, "NAME=VALUE")
    {'lr': 'cosine', 'beta1': 0.95}
    """
    chosen: dict[str, float | str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise UsageError(f"{called(text)}: expected {expected}")
        if name in chosen:
            raise UsageError(f"{called(text)}: {name} is given twice")
        if value.lower() in {"true", "false"}:
            chosen[name] = value.lower() == "true"
            continue
        try:
            chosen[name] = float(value)
        except ValueError:
            chosen[name] = value
    return chosen


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and 0 < value < LARGEST_COUNT


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
