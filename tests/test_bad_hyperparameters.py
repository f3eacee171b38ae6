"""Bad hyperparameters, schedules and state: the type of the error, what its message names, and that nothing has changed."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conformance import DEFAULTS

import gpuopt
from gpuopt import schedules
from gpuopt.rules import RULES
from gpuopt.rules.hyper import Number

Engine = Any

# Hyperparameters

VALUES: list[tuple[Any, type[Exception]]] = [
    (float("nan"), ValueError),
    (float("inf"), ValueError),
    (-float("inf"), ValueError),
    (-1e-9, ValueError),
    (10**400, ValueError),
    (np.float32("nan"), ValueError),
    ("0.1", TypeError),
    (None, TypeError),
    (True, TypeError),
    (1j, TypeError),
    ([0.1], TypeError),
    (np.ones(1), TypeError),
]
HYPERPARAMETERS = [(name, h) for name in DEFAULTS for h, x in DEFAULTS[name].items() if not isinstance(x, bool)]


@pytest.mark.parametrize(("name", "h"), HYPERPARAMETERS)
@pytest.mark.parametrize(("value", "error"), VALUES, ids=lambda x: f"{x!r:.20}" if not isinstance(x, type) else "")
def test_hyperparameters(name: str, h: str, value: Any, error: type[Exception]) -> None:
    words = rf"{name}: {h}: got .*, expected a number"
    with pytest.raises(error, match=words):
        RULES[name](**{h: value})
    opt = gpuopt.Optimizer(np.ones(3), RULES[name]())
    with pytest.raises(error, match=words):
        opt.tune(**{h: value})
    assert opt.rule == RULES[name]()
    with pytest.raises(error, match=rf"{name}: {h} at step 0, by its schedule: got .*, expected a number"):
        RULES[name](**{h: lambda step: value}).at(0)


FRACTIONS = [(name, h) for name, h in HYPERPARAMETERS if RULES[name]().hyperparameter(h).kind == Number(0, 1)]


def test_fractions_are_among_the_hyperparameters() -> None:
    assert {("SGD", "momentum"), ("RMSProp", "rho"), ("Adam", "beta1"), ("Adam", "beta2")} <= set(FRACTIONS)


@pytest.mark.parametrize("value", [1.0, 1.5])
@pytest.mark.parametrize(("name", "h"), FRACTIONS)
def test_fractions_are_less_than_one(name: str, h: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: {h}: got {value}, expected a number in \[0, 1\)"):
        RULES[name](**{h: value})


@pytest.mark.parametrize(
    "value", [1, 0.5, "yes", None, lambda step: True], ids=["1", "0.5", "text", "None", "schedule"]
)
def test_flags(value: Any) -> None:
    with pytest.raises(TypeError, match=r"SGD: nesterov: got .*, expected True or False"):
        gpuopt.SGD(nesterov=value)


@pytest.mark.parametrize("name", RULES)
def test_unknown_hyperparameters(name: str) -> None:
    there = ", ".join(RULES[name].hyperparameters())
    with pytest.raises(
        TypeError, match=rf"^{name}: unknown .*'learning_rate' \(did you mean 'lr'[^?]*\?\), expected {there}$"
    ):
        RULES[name](learning_rate=0.1)


# Schedules that fail in the middle of a run


def failing(step: int) -> float:
    if step == 2:
        raise RuntimeError("no such step")
    return 0.1


@pytest.mark.parametrize("engine", ["array", "fused"])
@pytest.mark.parametrize(
    ("schedule", "error", "words"),
    [
        (lambda step: float("nan") if step == 2 else 0.1, ValueError, "Adam: lr at step 2, by its schedule: got nan"),
        (lambda step: None if step == 2 else 0.1, TypeError, "Adam: lr at step 2, by its schedule: got None"),
        (lambda step: 1.0 - step, ValueError, "Adam: lr at step 2, by its schedule: got -1"),
        (failing, ValueError, "Adam: lr at step 2, by its schedule: RuntimeError: no such step; expected a number in"),
        (lambda step: 1 / (2 - step), ValueError, "Adam: lr at step 2, by its schedule: ZeroDivisionError: "),
        (lambda step: 2.0 ** (2000 * (step == 2)), ValueError, "Adam: lr at step 2, by its schedule: OverflowError: "),
        (lambda step: (1.0 - step) ** 0.5, TypeError, r"Adam: lr at step 2, by its schedule: got \(.*j\) \(complex\)"),
        (lambda step: np.ones(1) if step == 2 else 0.1, TypeError, r"Adam: lr at step 2, .* got array\(\[1\.\]\)"),
        (lambda step: [0.1, 0.1][step], ValueError, "Adam: lr at step 2, by its schedule: IndexError: "),
        (lambda step: step / None if step == 2 else 0.1, TypeError, "Adam: lr at step 2, by its schedule: TypeError: "),
        (schedules.exponential(1.0, 1e200), ValueError, r"Adam: lr at step 2, .*: exponential: beyond the floats"),
        (
            schedules.linear_warmup(schedules.scaled(schedules.step(1.0, 1e200, every=1), 1e200), warmup=1),
            ValueError,
            "Adam: lr at step 2, by its schedule: got inf",
        ),
    ],
    ids=[
        "nan",
        "None",
        "negative",
        "raises",
        "divides by zero",
        "overflows",
        "complex",
        "array",
        "raises IndexError",
        "raises TypeError",
        "exponential",
        "step",
    ],
)
def test_schedules(engine: Engine, schedule: Any, error: type[Exception], words: str) -> None:
    w = {"a": np.ones(3), "b": np.ones(3, "f4")}
    opt = gpuopt.Optimizer(w, {"a": gpuopt.SGD(), "b": gpuopt.Adam(lr=schedule)}, engine=engine)
    g = {"a": np.ones(3), "b": np.ones(3, "f4")}
    for _ in range(2):
        opt.step(g)
    before = copy.deepcopy(opt.state_dict())
    new = {"a": np.full(3, 2.0), "b": None}
    for grads in (g, new):
        with pytest.raises(error, match=words):
            opt.step(grads)
    np.testing.assert_equal(opt.state_dict(), before)
    assert opt.steps == 2
    opt.tune("b", lr=0.1)
    opt.step(g)
    np.testing.assert_allclose(before["params"]["a"] - w["a"], 0.01)


@dataclasses.dataclass(frozen=True)
class Inverse(gpuopt.Rule):
    """A rule whose update fails where x is 0."""

    lr: gpuopt.Hyper = 0.1
    x: gpuopt.Hyper = 1.0

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * (1 / h.x) * g, {}


@pytest.mark.parametrize("engine", ["auto", "array"])
def test_numbers_that_an_update_cannot_take(engine: Engine) -> None:
    w = {"a": np.ones(3), "b": np.ones(6)[::2], "c": np.ones(3, "f4"), "d": np.ones(6)[::2]}
    rules = {"[ab]": gpuopt.Adam(), "c": gpuopt.SGD(), "d": Inverse(x=lambda step: 1.0 - step)}
    opt = gpuopt.Optimizer(w, rules, engine=engine)
    g = {name: np.ones(3) for name in w}
    opt.step(g)
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ZeroDivisionError):
        opt.step(g)
    np.testing.assert_equal(opt.state_dict(), before)


# Tuning


@pytest.mark.parametrize(
    ("arguments", "h", "error", "words"),
    [
        (
            (),
            {"beta": 0.5},
            TypeError,
            r"unknown hyperparameter 'beta' \(did you mean 'beta1' or 'momentum'\?\), expected lr, ",
        ),
        ((), {"learning_rate": 0.5}, TypeError, r"unknown hyperparameter 'learning_rate'.*expected lr, "),
        ((), {"lr": 0.5, "momentun": 0.5}, TypeError, r"'momentun' \(did you mean 'momentum'\?\)"),
        (("a",), {"momentum": 0.5}, TypeError, r"unknown hyperparameter 'momentum'"),
        (("w",), {"lr": 0.5}, ValueError, r"tune: no rule for 'w', expected one of 'a', 'b'"),
        ((), {"lr": -0.5}, ValueError, r"Adam: lr: got -0\.5, expected a number in \[0, inf\)"),
        ((), {"lr": 0.5, "beta1": 1.0}, ValueError, r"Adam: beta1: got 1\.0"),
        ((), {"nesterov": 0.5}, TypeError, r"(SGD|Adam): nesterov: got 0\.5, expected True or False"),
        ((), {"beta1": math.cos}, ValueError, r"Adam: beta1 at step 0, by its schedule: got 1\.0"),
        (("b",), {"lr": math.log}, ValueError, "SGD: lr at step 0, by its schedule: .*; expected a number"),
        (("b",), {"lr": len}, TypeError, "SGD: lr at step 0, by its schedule: TypeError: "),
    ],
    ids=str,
)
def test_tuning(arguments: Any, h: Any, error: type[Exception], words: str) -> None:
    rules = {"a": gpuopt.Adam(), "b": gpuopt.SGD()}
    opt = gpuopt.Optimizer({"a": np.ones(3), "b": np.ones(3)}, rules)
    with pytest.raises(error, match=words):
        opt.tune(*arguments, **h)
    assert opt.rule == rules
    assert opt.state_dict()["rules"]["a"]["tuned"] == {}


# State. Name: what is done to a good one; all that the message lists.


def without(d: Any, *path: str) -> Any:
    *outer, last = path
    for key in outer:
        d = d[key]
    del d[last]
    return d


LOADING: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "empty": (lambda d: d.clear(), ["steps: None", "rules: {}", "params/a: missing", "state/b/m: missing"]),
    "leaf missing": (lambda d: without(d, "params", "a"), ["params/a: missing"]),
    "leaf unexpected": (lambda d: d["params"].update(c=np.ones(1)), ["params/c: unexpected"]),
    "slot missing": (lambda d: without(d, "state", "b", "v"), ["state/b/v: missing"]),
    "slot unexpected": (lambda d: d["state"]["a"].update(m=np.ones(3)), ["state/a/m: unexpected"]),
    "shape": (lambda d: d["params"].update(a=np.ones((1, 3))), [r"params/a: shape (1, 3), expected (3,)"]),
    "dtype": (lambda d: d["state"]["b"].update(m=np.ones(2)), ["state/b/m: dtype float64, expected float32"]),
    "rule": (
        lambda d: d["rules"]["a"].update(name="Adam"),
        ["rules: {'a': 'Adam', 'b': 'Adam'}, expected {'a': 'SGD'"],
    ),
    "pattern": (lambda d: d["rules"].update(c={"name": "SGD", "tuned": {}}), ["rules: {'a': 'SGD', 'b': 'Adam', 'c'"]),
    "steps": (lambda d: d.update(steps=-1), ["steps: -1, expected a number of steps"]),
    "steps beyond": (lambda d: d.update(steps=10**5000), ["steps: inf, expected a number of steps"]),
    "steps no number": (lambda d: d.update(steps="3"), ["steps: '3', expected a number of steps"]),
    "tuned out of range": (lambda d: d["rules"]["a"].update(tuned={"lr": -1.0}), ["rules/a: SGD: lr: got -1.0"]),
    "tuned unknown": (lambda d: d["rules"]["a"].update(tuned={"beta": 1.0}), ["rules/a: ", "'beta'"]),
    "unknown schedule": (
        lambda d: d["rules"]["a"].update(tuned={"lr": {"schedule": "zigzag", "arguments": {}}}),
        ["rules/a: ", "zigzag"],
    ),
    "key unexpected": (lambda d: d.update(step=3), ["step: unexpected"]),
    "scale unexpected": (lambda d: d.update(scale=(8.0, 0.0)), ["scale: unexpected; it is of a DynamicScale"]),
    "carried unexpected": (
        lambda d: d["rules"]["a"].update(carried={"x": 1.0}),
        ["rules/a: carried numbers ['x'], expected []"],
    ),
    "carried no dict": (
        lambda d: d["rules"]["a"].update(carried=[1.0]),
        ["rules/a: carried numbers [1.0], expected a"],
    ),
    "no array": (lambda d: d["params"].update(a=[1.0, 2.0, 3.0]), ["params/a: list, expected an array"]),
    "many": (
        lambda d: (without(d, "params", "a"), d["state"]["b"].update(m=np.ones(2), c=np.ones(1)), d.update(steps=None)),
        ["steps: None", "params/a: missing", "state/b/m: dtype float64", "state/b/c: unexpected"],
    ),
}


@pytest.mark.parametrize("engine", ["auto", "array"])
def test_a_shared_number_that_differs_between_leaves(engine: Engine) -> None:
    w = {"a": np.ones(3), "b": np.ones(2)}
    opt = gpuopt.Optimizer(w, gpuopt.Prodigy(), engine=engine)
    state = copy.deepcopy(opt.state_dict())
    opt.load_state_dict(state)
    state["state"]["a"]["d"] = np.array(7.0)
    with pytest.raises(ValueError, match=r"state/\*/d: 1e-06, 7\.0, expected one number for all leaves$"):
        opt.load_state_dict(state)


@pytest.mark.parametrize("case", LOADING)
def test_loading(case: str) -> None:
    spoil, words = LOADING[case]

    def optimizer() -> gpuopt.Optimizer:
        rules = {"a": gpuopt.SGD(), "b": gpuopt.Adam()}
        return gpuopt.Optimizer({"a": np.ones(3), "b": np.ones(2, "f4")}, rules)

    opt, other = optimizer(), optimizer()
    for each, value in ((opt, 1), (other, 2)):
        each.step({"a": np.full(3, value), "b": np.full(2, value)})
    opt.tune("a", lr=0.5)
    held = copy.deepcopy(other.state_dict())
    spoil(held)
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=r"the state does not fit this optimizer:\s+") as error:
        opt.load_state_dict(held)
    for word in words:
        assert word in str(error.value)
    np.testing.assert_equal(opt.state_dict(), before)
    assert opt.lr == {"a": 0.5, "b": 0.001}


def test_the_hyperparameters_of_a_rule_cannot_be_written_over() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        gpuopt.Adam().lr = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("engine", ["array", "auto"])
@pytest.mark.parametrize(
    ("does", "words"),
    [
        (lambda opt, g: opt.step(g), "^SGD: lr at step 1, by its schedule: RecursionError"),
        (lambda opt, g: opt.tune(momentum=0.5), "RuntimeError: tune: called again and again by a schedule"),
    ],
    ids=["steps", "tunes"],
)
def test_a_schedule_that_changes_its_own_optimizer_each_time(does: Any, words: str, engine: Engine) -> None:
    """Each change asks the schedule, which changes it: an error, and no endless work."""
    held: list[gpuopt.Optimizer] = []
    w, g = np.ones(3), np.ones(3)

    def rate(step: int) -> float:
        for opt in held:
            does(opt, g)
        return 0.25

    opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=rate), engine=engine)
    opt.step(g)
    held.append(opt)
    with pytest.raises(ValueError, match=words) as error:
        opt.step(g)
    assert len(str(error.value)) < 500
    held.clear()
    opt.step(g)
    assert (opt.steps, list(w)) == (2, [0.5] * 3)
    opt.tune(momentum=0.5)
    opt.step(g)
    assert (opt.steps, list(w)) == (3, [0.25] * 3)
