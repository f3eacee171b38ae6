"""What a run is: all that somebody may choose, checked, with what is not chosen filled in; to JSON and back."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from gpuopt import schedules
from gpuopt.gradients import Clip, clip_by_global_norm, clip_by_value
from gpuopt.rules import RULES, Rule
from gpuopt.rules.adam import Adam
from gpuopt.suggest import did_you_mean
from gpuopt.training.data import Task
from gpuopt.training.errors import UsageError
from gpuopt.training.model import Initial
from gpuopt.transforms import TRANSFORMS, Chain, chain
from gpuopt.transforms.averages import EMA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Config", "settings"]

INTERVAL = re.compile(r"[1-9]\d{0,14}|\d{1,15}(\.\d*)?s")
Matmul: TypeAlias = Literal["float32", "float64"]
OnGPUError: TypeAlias = Literal["stop", "cpu"]
OnExplosion: TypeAlias = Literal["stop", "skip", "rollback"]

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
    "epochs": 10,
    "batch_size": 128,
}
_BY_DATA: Any = None
LARGEST_COUNT = 2**53
COUNT = "a positive integer below 2**53"
DEEPEST = 1000
"""Hidden layers."""
LOOKED_AT = 1000
"""Steps, evenly spread, at which schedules are checked beforehand."""
BUILT_IN_RULE = Adam(lr=schedules.inverse_time(0.05, decay=5e-7))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides how a run goes. ``Config()`` is the built-in run.

    Attributes
    ----------
    data : path, optional
        The file to train on, see `gpuopt.training.data.load`; None is the built-in spiral.
    target, task, standardize
        How the file is read.
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
        Default: 10,000 for the spiral, 10 for a file.
    batch_size : int or "full"
        Default: "full" for the spiral, 128 for a file.
    seed : int
        Of the spiral, the initial weights and the order of the samples.
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
    gpuopt.training.errors.UsageError: --optimizer Adm: unknown (did you mean Adam?); known: ...
    """

    data: str | None = None
    target: str | None = None
    task: Task = "auto"
    standardize: bool = False
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

    def __post_init__(self) -> None:
        if self.data is not None:
            object.__setattr__(self, "data", str(self.data))
        if self._is_built_in:
            self._fill({"matmul": "float32"})
        self._fill(SPIRAL if self.data is None else FILE)
        hidden: Any = self.hidden
        if isinstance(hidden, list):  # as JSON has it
            object.__setattr__(self, "hidden", tuple(hidden))
        self._check()
        self._fill({"report_every": -(-self.epochs // 100)})

    @property
    def _is_built_in(self) -> bool:
        return (self.data, self.optimizer, self.lr, self.schedule) == (None, None, None, None)

    def _fill(self, values: Mapping[str, Any]) -> None:
        """Set what is not chosen."""
        for name, value in values.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check(self) -> None:
        def expect(condition: object, option: str, expected: str) -> None:
            if not condition:
                given = getattr(self, option)
                shown = ",".join(map(str, given)) if isinstance(given, tuple) else given
                raise UsageError(f"--{option.replace('_', '-')} {shown}: expected {expected}")

        for option, choices in (
            ("task", get_args(Task)),
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
        expect(_is_count(self.epochs), "epochs", COUNT)
        expect(self.batch_size == "full" or _is_count(self.batch_size), "batch_size", f"full or {COUNT}")
        expect(_is_integer(self.seed) and 0 <= self.seed < 2**32, "seed", "an integer from 0 to 4294967295")
        expect(self.report_every == _BY_DATA or _is_count(self.report_every), "report_every", COUNT)
        expect(INTERVAL.fullmatch(str(self.checkpoint_every)), "checkpoint_every", "steps or seconds, as in 500 or 30s")
        expect(_is_count(self.keep), "keep", COUNT)
        expect(self.clip_norm is None or self.clip_value is None, "clip_norm", "this or --clip-value, not both")
        for option in ("clip_norm", "clip_value"):
            limit = getattr(self, option)
            expect(limit is None or _is_positive(limit), option, "a positive number")
        for option in ("target", "standardize"):
            expect(self.data is not None or not getattr(self, option), option, "--data FILE with it")
        expect(isinstance(self.optimizer, str | Rule | None), "optimizer", "a name or a rule such as Adam()")
        has_lr = not isinstance(self.optimizer, Rule) or "lr" in self.optimizer.hyperparameters()
        expect(has_lr, "optimizer", "a rule with a hyperparameter lr")
        expect(isinstance(self.schedule, str | None), "schedule", "the text of one, as in cosine")
        expect(isinstance(self.hyperparameters, Mapping), "hyperparameters", "values by name")
        expect(isinstance(self.device, str), "device", "auto, cpu, cuda or cuda:N")
        self.rule()  # whether there is such a one, before anything else is done

    @property
    def checkpoint_interval(self) -> tuple[int | None, float]:
        """Steps from one checkpoint to the next, or None and seconds."""
        text = str(self.checkpoint_every)
        return (None, float(text[:-1])) if text.endswith("s") else (int(text), math.inf)

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
        steps = self.epochs * self.batches(samples)
        rule = self.rule(steps)
        self._check_schedules(rule, steps)
        return dataclasses.replace(self, optimizer=rule, lr=None, schedule=None, hyperparameters={}, average=None)

    def rule(self, steps: int = 10**9) -> Rule:
        """Return the rule that a run of so many steps takes."""
        rule: Rule
        if isinstance(self.optimizer, Rule):
            rule = self.optimizer
        elif self._is_built_in:
            rule = BUILT_IN_RULE
        else:
            rule = RULES[_known("Adam" if self.optimizer is None else self.optimizer, RULES, "--optimizer")]()
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
        """Option, hyperparameter and value (text: of a schedule) of what was chosen, in the order in which it applies."""
        if self.lr is not None:
            yield f"--lr {self.lr}", "lr", self.lr
        if self.schedule is not None:
            yield f"--schedule {self.schedule}", "lr", self.schedule
        names = rule.hyperparameters()
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
            If a hyperparameter is a function that is none of `gpuopt.schedules`.
        """
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if isinstance(self.optimizer, Rule):
            plain["optimizer"] = _rule_to_plain(self.optimizer)
        return plain

    @classmethod
    def from_json(cls, plain: Any) -> Config:
        """Return the config of which `to_json` made this; UsageError if there is none."""
        if not isinstance(plain, Mapping):
            raise UsageError("expected a config")
        values = dict(plain)
        try:
            if isinstance(values.get("optimizer"), Mapping):
                values["optimizer"] = _rule_of(values["optimizer"])
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(str(error)) from None


def _rule_to_plain(rule: Any) -> dict[str, Any]:
    """A rule, a transform or a chain of them in JSON's types."""
    if isinstance(rule, Chain):
        return {"rule": "chain", "members": [_rule_to_plain(member) for member in rule.members]}
    values = {name: getattr(rule, name) for name in rule.hyperparameters()}
    for name, value in values.items():
        if callable(value) and not isinstance(value, schedules.Schedule):
            raise UsageError(f"{rule.name}: {name}: expected a schedule of gpuopt.schedules")
        if not callable(value) and not isinstance(value, bool | int | float):
            raise UsageError(f"{rule.name}: {name}: expected a number, which can be written into a run folder")
    plain = {name: value.to_dict() if callable(value) else value for name, value in values.items()}
    return {"rule": type(rule).__name__, **plain}


def _rule_of(plain: Mapping[str, Any]) -> Any:
    """What `_rule_to_plain` wrote."""
    given = dict(plain)
    name = given.pop("rule")
    if name == "chain":
        return chain(*map(_rule_of, given["members"]))
    known: dict[str, Any] = {**RULES, **TRANSFORMS}
    return known[_known(name, known, "optimizer")](
        **{n: schedules.from_dict(v) if isinstance(v, Mapping) else v for n, v in given.items()}
    )


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


def spread(first: int, end: int, rule: Rule) -> list[int]:
    """Steps from the first to the one before the end at which the schedules of a rule are checked.

    They are evenly spread, both ends among them, and where a schedule turns.
    """
    values = [getattr(rule, name) for name in rule.hyperparameters()]
    turns = [turn for value in values if isinstance(value, schedules.Schedule) for turn in value.turns]
    even = range(first, end, math.ceil(max(end - first, 1) / LOOKED_AT))
    near = (turn + offset for turn in turns for offset in (-1, 0, 1))
    return sorted({*even, max(first, end - 1), *(step for step in near if first <= step < end)})


def _known(name: str, known: Iterable[str], option: str) -> str:
    """The known name that differs from `name` at most in capitals."""
    by_lower = {k.lower(): k for k in known}
    if name.lower() not in by_lower:
        near = did_you_mean(name, by_lower.values(), shown=str)
        raise UsageError(f"{option} {name}: unknown{near}; known: {', '.join(by_lower.values())}")
    return by_lower[name.lower()]
