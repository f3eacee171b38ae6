"""The rule that a config chooses: by name or as it is, with hyperparameters and schedules as numbers or text; in JSON's types.

In JSON rules of the package go by name, own ones by the module they can be imported from, chains by their members.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpuopt import schedules
from gpuopt.errors import UsageError
from gpuopt.rules import OF_VECTORS, RULES, Rule
from gpuopt.rules.adam import Adam
from gpuopt.runs.loop import spread
from gpuopt.suggest import did_you_mean
from gpuopt.training.data.texts import is_number
from gpuopt.transforms import TRANSFORMS
from gpuopt.transforms.averages import EMA
from gpuopt.transforms.base import Transform
from gpuopt.transforms.chain import Chain, chain
from gpuopt.transforms.decay import WeightDecay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuopt.training.config import Config

BUILT_IN_RULE = Adam(lr=schedules.inverse_time(0.05, decay=5e-7))


def rule_of(config: Config, steps: int) -> Rule:
    """Return the rule that a run of so many steps takes."""
    rule: Rule
    if isinstance(config.optimizer, Rule):
        rule = config.optimizer
    elif config.is_built_in:
        rule = BUILT_IN_RULE
    else:
        rule = RULES[known("Adam" if config.optimizer is None else config.optimizer, "--optimizer")]()
    if config.weight_decay and "weight_decay" not in rule.hyperparameters():
        rule = chain(WeightDecay(config.weight_decay), rule)
    if config.average is not None:
        try:
            rule = chain(rule, EMA(config.average))
        except (TypeError, ValueError) as error:
            raise UsageError(f"--average {config.average}: {error}") from None
    for option, name, value in _choices(config, rule):
        try:
            initial = rule.hyperparameter(name).at(0)
            chosen = schedules.parse(value, initial=initial, steps=steps) if isinstance(value, str) else value
            rule = dataclasses.replace(rule, **{name: chosen})
        except (TypeError, ValueError) as error:
            raise UsageError(f"{option}: {error}") from None
    if why := rule.unfit((1,)):
        raise UsageError(f"--optimizer {rule.name}: the biases of this network are vectors: {why}")
    return rule


def check_schedules(config: Config, rule: Rule, steps: int) -> None:
    """Refuse a schedule that leaves the range of its hyperparameter, before anything is written."""
    for step in spread(0, steps, rule):
        try:
            rule.at(step)
        except (TypeError, ValueError) as error:
            chosen = [option for option, name, _ in _choices(config, rule) if f": {name} at step" in str(error)]
            raise UsageError(": ".join([*chosen[-1:], str(error)])) from None


def _choices(config: Config, rule: Rule) -> Iterator[tuple[str, str, float | str]]:
    """Yield what the user chose, in the order of application: the option, the hyperparameter, and its value or schedule (as text)."""
    if config.lr is not None:
        yield f"--lr {config.lr}", "lr", config.lr
    if config.schedule is not None:
        yield f"--schedule {config.schedule}", "lr", config.schedule
    names = rule.hyperparameters()
    if config.weight_decay is not None and "weight_decay" in names:
        yield f"--weight-decay {config.weight_decay}", "weight_decay", config.weight_decay
    for name, value in config.hyperparameters.items():
        if name not in names:
            near = did_you_mean(name, names, shown=str)
            known = f"{rule.name} has {', '.join(names)}"
            raise UsageError(f"--set {name}={value}: unknown hyperparameter{near}; {known}")
        if name == "lr" and (config.lr is not None or config.schedule is not None):
            raise UsageError(f"--set lr={value}: expected this, or --lr and --schedule, not both")
        yield f"--set {name}={value}", name, value


def settings(
    texts: Iterable[str], option: str = "", expected: str = "NAME=VALUE, as in beta1=0.95", whole: str | None = None
) -> dict[str, float | str]:
    """What each ``NAME=VALUE`` chooses: a number, a flag, or the text of a schedule.

    Messages begin with `option` and one of the texts, or with the `whole` that these are parts of.

    >>> settings(["lr=cosine", "beta1=0.95"])
    {'lr': 'cosine', 'beta1': 0.95}
    """
    chosen: dict[str, float | str] = {}
    value = ""
    for text in texts:
        before = value
        name, equals, value = (part.strip() for part in text.partition("="))
        shown = whole or f"{option}{text}"
        if name.isdigit() and not equals and before.lstrip("-").isdigit():
            raise UsageError(f"{shown}: {before},{name} has a decimal comma; expected a point, {before}.{name}")
        if not (name and equals and value):
            raise UsageError(f"{shown}: expected {expected}")
        if name in chosen:
            raise UsageError(f"{shown}: {name} is given twice")
        if is_number(value):
            chosen[name] = float(value)
        elif is_number(point := value.replace(",", ".", 1)):
            raise UsageError(f"{shown}: {value} has a decimal comma; expected {name}={point}")
        else:
            chosen[name] = {"true": True, "false": False}.get(value.lower(), value)
    return chosen


def to_plain(rule: Any) -> dict[str, Any]:
    """A rule or a transform in JSON's types; UsageError for a function of one's own, and a class that cannot be imported again.

    >>> import gpuopt
    >>> to_plain(gpuopt.chain(gpuopt.SGD(lr=0.1), gpuopt.EMA(0.9)))["members"][1]
    {'rule': 'EMA', 'decay': 0.9}
    """
    if isinstance(rule, Chain):
        return {"rule": "chain", "members": [to_plain(member) for member in rule.members]}
    of = type(rule)
    name = of.__name__ if (RULES | TRANSFORMS).get(of.__name__) is of else f"{of.__module__}:{of.__qualname__}"
    if ":" in name and _found(name) is not of:
        expected = "expected a class at the top level of its module"
        raise UsageError(f"--optimizer {of.__name__}: could not be resumed: {expected}")
    values = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule) if field.init}
    for key, value in values.items():
        if callable(value) and not isinstance(value, schedules.Schedule):
            raise UsageError(f"{of.__name__}: {key}: expected a schedule of gpuopt.schedules")
        if not callable(value) and not isinstance(value, bool | int | float | str | None):
            raise UsageError(f"{of.__name__}: {key}: {type(value).__name__}, expected a number, a flag or a schedule")
    return {"rule": name} | {key: value.to_dict() if callable(value) else value for key, value in values.items()}


def from_plain(plain: Mapping[str, Any]) -> Any:
    """The rule of which `to_plain` made this; UsageError, TypeError, ValueError or KeyError if there is none."""
    if plain["rule"] == "chain":
        return chain(*(from_plain(member) for member in plain["members"]))
    given = dict(plain)
    name = given.pop("rule")
    of = _found(name) if ":" in name else TRANSFORMS.get(name) or RULES[known(name, "optimizer")]
    if of is None:
        cure = "resume from the program that the run was started in"
        raise UsageError(f"optimizer {name}: cannot be imported here; {cure}")
    return of(**{n: schedules.from_dict(v) if isinstance(v, Mapping) else v for n, v in given.items()})


def known(name: str, option: str, more: Iterable[str] = ()) -> str:
    """The rule's name that differs from `name` at most in capitals; `more` names are known, too, but of no rules."""
    by_lower = {rule.lower(): rule for rule in RULES}
    if name.lower() not in by_lower:
        near = did_you_mean(name, (*by_lower.values(), *more), shown=str)
        raise UsageError(f"{option} {name}: unknown{near}; known: {', '.join((*OF_VECTORS, *more))}")
    return by_lower[name.lower()]


def _found(name: str) -> Any:
    """The class of ``module:name``, or None."""
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (AttributeError, ImportError, ValueError):
        return None
    return found if isinstance(found, type) and issubclass(found, Rule | Transform) else None
