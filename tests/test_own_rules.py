"""Rules as users write them: what is refused when the class is made or used, and rules that derive from others."""

import copy
import inspect
import math
import pickle
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import gpuopt
from gpuopt.engines.program import trace as trace_module
from gpuopt.engines.program.dependence import dependence
from gpuopt.rules import RULES, Array, Hyper, Rule
from gpuopt.rules.slots import leaf, like
from gpuopt.training import Config, UsageError


class Plain(Rule):
    """What the rules below have in common."""

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        return p - getattr(h, "lr", 0.25) * g, {name: getattr(s, name) for name in self.slots}


def with_hyperparameter(name: str) -> type[Rule]:
    return dataclass(frozen=True)(type("Own", (Plain,), {"__annotations__": {name: "Hyper"}, name: 0.5}))


def with_slots(slots: Any) -> type[Rule]:
    return dataclass(frozen=True)(type("Own", (Plain,), {"slots": slots}))


def with_method(base: type, name: str, body: dict[str, Any]) -> Any:
    kind: Any = type(name, (base,), body)
    return dataclass(frozen=True)(kind)()


def with_carried(carried: Any) -> Rule:
    body = {"__annotations__": {"lr": "Hyper"}, "lr": 0.5, "carried": carried, "coefficients": lambda self, h: {}}
    made: Rule = with_method(Plain, "Own", body)
    return made


def with_default(default: Any, low: Any, high: Any) -> Any:
    return gpuopt.bounded(default, low, high)


# Refused when the class is made. Name: how it is made, the error, its words.
MADE: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    **{
        f"hyperparameter {name}": (
            lambda name=name: with_hyperparameter(name),  # type: ignore[misc]
            TypeError,
            rf"^Own: a hyperparameter '{name}', expected another name: that is {taken}$",
        )
        for name, taken in {
            "t": "the number of the step",
            "p": "the parameter",
            "g": "the gradient",
            "_scale": "a name of gpuopt's own",
            "at": "a name of gpuopt's own",
            "name": "a name of gpuopt's own",
            "slots": "a name of gpuopt's own",
        }.items()
    },
    "slot p": (lambda: with_slots(("m", "p")), TypeError, r"^Own: a slot 'p', expected another name: that is the para"),
    "slot t": (lambda: with_slots(("t",)), TypeError, "^Own: a slot 't', expected another name"),
    "slot _m": (lambda: with_slots(("_m",)), TypeError, "^Own: a slot '_m', expected another name"),
    "slot a b": (lambda: with_slots(("a b",)), TypeError, "^Own: a slot 'a b', expected another name"),
    "slots without a comma": (lambda: with_slots("momentum"), TypeError, r"^Own: slots = 'momentum', expected a tuple"),
    "slots that are no names": (
        lambda: with_slots((1,)),
        TypeError,
        r"^Own: slots = \(1,\), expected a tuple of names",
    ),
    "slots without an order": (
        lambda: with_slots({"m", "v"}),
        TypeError,
        r"^Own: slots = {.*}, expected a tuple of names",
    ),
    "no slots": (lambda: with_slots(None), TypeError, r"^Own: slots = None, expected a tuple of names"),
    "a slot twice": (lambda: with_slots(("m", "m")), TypeError, r"^Own: slots = .*, expected each name once"),
    "an empty range": (lambda: with_default(0.5, 1, 1), ValueError, "^bounded: low 1, high 1, expected low < high"),
    "NaN as a bound": (lambda: with_default(0.5, float("nan"), 1), ValueError, "^bounded: low nan"),
    "default out of range": (lambda: with_default(2, 0, 1), ValueError, r"^bounded: default: got 2\.0, .* \[0, 1\)"),
    "default of another type": (lambda: with_default("x", 0, 1), TypeError, "^bounded: default: got 'x'"),
}


@pytest.mark.parametrize("case", MADE)
def test_classes_that_are_refused(case: str) -> None:
    make, error, words = MADE[case]
    with pytest.raises(error, match=words):
        make()


class Undecorated(Plain):
    lr: Hyper = 0.1
    momentum: Hyper = 0.9


class Derived(gpuopt.Adam):
    weight_decay: Hyper = 0.1


@dataclass(frozen=True)
class Late(Plain):
    """Its slots depend on the hyperparameters."""

    lr: Hyper = 0.1

    @property
    def slots(self) -> Any:
        return "m" if self.lr else ("m",)


# Refused when the class is used.
USED: dict[str, tuple[Callable[[], Any], str]] = {
    "no dataclass": (Undecorated, r"^Undecorated: lr, momentum .* put @dataclass\(frozen=True\) above the class$"),
    "no dataclass, with arguments": (lambda: Undecorated(lr=1), r"^Undecorated: lr, momentum .* put @dataclass"),
    "no dataclass, derived": (Derived, r"^Derived: weight_decay would be no hyperparameter; put @dataclass"),
    "slots that are no tuple": (Late, "^Late: slots = 'm', expected a tuple"),
    "a start like nothing": (
        with_slots({"m": like("P")}),
        r"^Own: slots: m: like\('P'\) .* 'p'\?\), expected p$",
    ),
    "a number like the parameter": (
        with_slots({"n": leaf(like("p"))}),
        r"^Own: slots: n: like\('p'\), expected a number$",
    ),
    "a start that is no number": (
        with_slots({"n": leaf("1")}),  # type: ignore[arg-type]
        "^Own: slots: n: starts at '1', expected a number$",
    ),
    "carried numbers without starts": (
        lambda: with_carried(["x"]),
        r"^Own: carried = \['x'\], expected a dict of numbers with their starts$",
    ),
    "a carried hyperparameter": (
        lambda: with_carried({"lr": 1.0}),
        "^Own: a carried number 'lr', expected another name: that is a hyperparameter$",
    ),
    "unknown hyperparameter": (lambda: with_hyperparameter("rate")(lr=1), r"^Own: .* 'lr' \(did you mean 'rate'\?\)"),
    "no hyperparameter at all": (lambda: with_slots(())(lr=1), "^Own: unknown hyperparameter 'lr', expected none$"),
    "too many by position": (lambda: gpuopt.AdaGrad(1, 2, 3), "AdaGrad"),  # type: ignore[call-arg]
}


@pytest.mark.parametrize("case", USED)
def test_classes_that_are_refused_when_they_are_used(case: str) -> None:
    make, words = USED[case]
    with pytest.raises(TypeError, match=words):
        make()


@dataclass(frozen=True)
class Rateless(Plain):
    """A rule without a learning rate."""

    damping: Hyper = 0.5
    _: KW_ONLY
    shared: ClassVar[int] = 3
    _known: ClassVar[dict[str, int]] = {}


def test_a_rule_without_learning_rate() -> None:
    w = {"a": np.ones(2), "b": np.ones(2)}
    alone = gpuopt.Optimizer(w, Rateless())
    with pytest.raises(AttributeError, match=r"^lr: Rateless has no hyperparameter 'lr'"):
        _ = alone.lr
    with pytest.raises(TypeError, match=r"^tune: unknown hyperparameter 'lr', expected damping$"):
        alone.lr = 0.1
    both = gpuopt.Optimizer(w, {"a": Rateless(), "*": gpuopt.SGD(lr=0.5)})
    assert both.lr == {"*": 0.5}
    both.lr = 0.25
    assert both.lr == {"*": 0.25}
    assert both.rules["a"] == Rateless()
    both.step({"a": np.ones(2), "b": np.ones(2)})
    assert both._repr_html_()
    assert "Rateless(damping=0.5)" in repr(both)
    with pytest.raises(UsageError, match=r"^--optimizer Rateless.*expected a rule with a hyperparamet"):
        Config(optimizer=Rateless())


# Rules that derive from others


@dataclass(frozen=True)
class Decayed(gpuopt.Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    weight_decay: Hyper = gpuopt.bounded(0.01, 0)

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        return super().update(xp, p - h.lr * h.weight_decay * p, g, s, h)


class Renamed(gpuopt.SGD):
    """Nothing of its own, so that it need not be a dataclass of its own."""


@pytest.mark.parametrize("engine", ["array", "fused"])
def test_a_rule_that_derives_from_another(engine: Any) -> None:
    w, plain, rng = np.ones(5), np.ones(5), np.random.RandomState(0)
    opt = gpuopt.Optimizer(w, Decayed(lr=0.1, weight_decay=0.5), engine=engine)
    assert list(opt.rule.slots) == ["m", "v"]  # type: ignore[union-attr]
    m = v = np.zeros(5)
    for t in range(1, 4):
        g = rng.standard_normal(5)
        opt.step(g)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        plain = plain * (1 - 0.05) - 0.1 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    np.testing.assert_allclose(w, plain, rtol=1e-13)
    with pytest.raises(ValueError, match=r"Decayed: weight_decay: got -1\.0"):
        Decayed(weight_decay=-1)


@pytest.mark.parametrize("rule", [Decayed(weight_decay=0.5), Renamed(lr=0.5), gpuopt.Adam(lr=0.5)], ids=repr)
def test_copies(rule: Rule) -> None:
    for copied in (pickle.loads(pickle.dumps(rule)), copy.deepcopy(rule), copy.copy(rule), replace(rule)):
        assert (type(copied), copied, hash(copied)) == (type(rule), rule, hash(rule))


def test_the_signature_is_that_of_the_dataclass() -> None:
    parameters = inspect.signature(Decayed).parameters.values()
    by_position = [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    assert by_position == ["lr", "beta1", "beta2", "eps", "weight_decay"]
    assert list(inspect.signature(Rule).parameters) == []


@dataclass(frozen=True, init=False)
class OwnConstructor(Plain):
    """Made in another way than from its hyperparameters."""

    lr: Hyper = field()

    def __init__(self, **rates: float) -> None:
        object.__setattr__(self, "lr", sum(rates.values()))
        self.__post_init__()


def test_a_constructor_of_its_own() -> None:
    assert OwnConstructor(slow=1, fast=2).lr == 3.0


# Scalars of a step


class Coefficients(Plain):
    """Returns what it is given."""

    found: ClassVar[Any] = {}

    def coefficients(self, h: Any) -> Any:
        return self.found(h) if callable(self.found) else self.found


@pytest.mark.parametrize(
    ("found", "error", "words"),
    [
        (lambda h: {"x": 2.0 ** (600 * h.t)}, ValueError, r"^Coefficients: coefficients at step 1: OverflowError"),
        (lambda h: {"x": 1 / (h.t - 2)}, ValueError, r"^Coefficients: coefficients at step 1: ZeroDivisionError"),
        (lambda h: {"x": (1.5 - h.t) ** 0.5}, TypeError, r"^Coefficients: coefficients at step 1: x: got \(.*complex"),
        (
            lambda h: {"x": np.ones(2) if h.t == 2 else 1},
            TypeError,
            r"^Coefficients: coefficients at step 1: x: got ar",
        ),
        (
            lambda h: {} if h.t == 1 else None,
            TypeError,
            "coefficients at step 1: returned NoneType, expected a dict of numb",
        ),
        (lambda h: {"x" if h.t == 1 else "t": 1}, TypeError, r"^Coefficients: .* 't', .* the number of the step$"),
        (lambda h: {"x" if h.t == 1 else "_scale": 1}, TypeError, r"^Coefficients: .* '_scale', expected another name"),
    ],
    ids=["overflow", "division", "complex", "array", "nothing", "t", "_scale"],
)
def test_coefficients_that_are_no_numbers(
    found: Any, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Coefficients, "found", staticmethod(found))
    assert Coefficients().at(0)["t"] == 1
    with pytest.raises(error, match=words):
        Coefficients().at(1)


class Moved(Plain):
    """Moves by a number of `coefficients`."""

    by: ClassVar[Any] = 0.0

    def coefficients(self, h: Any) -> Any:
        return {"x": self.by}

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - 2 * h.x * g, {}


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (Fraction(1, 4), 0.5),
        (np.longdouble(0.25), 0.5),
        (np.float16(0.25), 0.5),
        (np.int8(100), 200.0),
        (2**70, 2.0**71),
        (10**400, math.inf),
        (True, 2.0),
    ],
    ids=["fraction", "longdouble", "float16", "int8", "large", "huge", "bool"],
)
def test_coefficients_are_numbers_of_any_type(by: Any, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Moved, "by", by)
    for engine in ("fused", "array"):
        w = np.zeros(1, "f4")
        gpuopt.Optimizer(w, Moved(), engine=engine).step(np.ones(1, "f4"))
        assert -w[0] == np.float32(expected)


BOX = np.zeros(3), np.ones(3)
PAIRS: dict[str, tuple[Any, Any, bool]] = {
    "the same arrays": (gpuopt.Box(*BOX), gpuopt.Box(*BOX), True),
    "equal arrays": (gpuopt.Box(*BOX), gpuopt.Box(*(x.copy() for x in BOX)), True),
    "another element": (gpuopt.Box(*BOX), gpuopt.Box(BOX[0], np.array([1.0, 2.0, 1.0])), False),
    "another shape": (gpuopt.Box(*BOX), gpuopt.Box(np.zeros((1, 3)), np.ones((1, 3))), False),
    "another dtype": (gpuopt.Box(*BOX), gpuopt.Box(*(x.astype("f4") for x in BOX)), False),
    "a number": (gpuopt.Box(*BOX), gpuopt.Box(0.0, BOX[1]), False),
    "trees": (gpuopt.Scale({"a": [BOX[1]]}), gpuopt.Scale({"a": [np.ones(3)]}), True),
    "other trees": (gpuopt.Scale({"a": [BOX[1]]}), gpuopt.Scale({"a": (BOX[1],)}), False),
    "other leaves": (gpuopt.Scale({"a": BOX[1]}), gpuopt.Scale({"b": BOX[1]}), False),
    "a chain": (gpuopt.chain(gpuopt.Adam(), gpuopt.Box(*BOX)), gpuopt.chain(gpuopt.Adam(), gpuopt.Box(*BOX)), True),
    "another chain": (
        gpuopt.chain(gpuopt.Adam(), gpuopt.Box(*BOX)),
        gpuopt.chain(gpuopt.Adam(), gpuopt.Box(*BOX[:1])),
        False,
    ),
    "a derived class": (gpuopt.Adam(), Decayed(), False),
    "something else": (gpuopt.Box(*BOX), BOX, False),
}


@pytest.mark.parametrize("case", PAIRS)
def test_rules_with_arrays_can_be_compared(case: str) -> None:
    one, other, expected = PAIRS[case]
    assert (one == other) is (other == one) is expected
    assert (one != other) is not expected


@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        (-1, ValueError, "^Adam: step -1, expected an integer from 0 to"),
        (2**53, ValueError, "^Adam: step 9007199254740992, expected"),
        (10**5000, ValueError, "^Adam: step of 16,610 bits, expected"),
        (1.0, TypeError, r"^Adam: step 1\.0, expected an integer"),
        (np.float32(3), TypeError, r"^Adam: step np\.float32\(3\.0\), expected an integer"),
        ("1", TypeError, "^Adam: step '1', expected an integer"),
        (None, TypeError, "^Adam: step None, expected an integer"),
    ],
    ids=["-1", "2**53", "10**5000", "float", "NumPy's", "text", "None"],
)
def test_steps_that_are_none(step: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        gpuopt.Adam().at(step)


def test_steps_of_other_types() -> None:
    step: Any = np.int64(3)
    assert gpuopt.Adam().at(step) == gpuopt.Adam().at(3)
    assert gpuopt.Adam(lr=gpuopt.schedules.step(1.0, 0.5, every=1)).at(2**53 - 1)["lr"] == 0.0


@dataclass(frozen=True)
class Returning(Rule):
    """Returns what it is told to."""

    result: Callable[[Any, Any], Any] = lambda p, g: (p - g, {})

    def hyperparameters(self) -> tuple[str, ...]:  # type: ignore[override]
        return ()

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return self.result(p, g)


RETURNED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "nothing": (lambda p, g: None, r"update returned NoneType, expected \(p, slots\)$"),
    "an array": (lambda p, g: p - g, r"update returned \w+, expected \(p, slots\)$"),
    "too much": (lambda p, g: (p, g, {}), r"update returned 3 values, expected \(p, slots\)$"),
    "None for p": (lambda p, g: (None, {}), "update returned None for p, expected a value$"),
    "slots that are no dict": (
        lambda p, g: (p, g),
        r"update returned \w+ for its slots, expected a dict, {} if it has none$",
    ),
}


@pytest.mark.parametrize("engine", ["auto", "array", "fused"])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a chain"])
@pytest.mark.parametrize("case", RETURNED)
def test_what_updates_may_not_return(case: str, inside: bool, engine: Any) -> None:
    result, words = RETURNED[case]
    rule: Any = Returning(result)
    with pytest.raises(TypeError, match=f"^Returning[.]{words}"):
        gpuopt.Optimizer(np.ones(2), gpuopt.chain(gpuopt.L2(0.1), rule) if inside else rule, engine=engine)


def test_what_transforms_may_not_be() -> None:
    @dataclass(frozen=True)
    class Nothing(gpuopt.Transform):
        def before(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
            return None

    with pytest.raises(TypeError, match=r"^Nothing\.before returned NoneType, expected \(p, g, slots\)$"):
        gpuopt.Optimizer(np.ones(2), gpuopt.chain(Nothing(), gpuopt.SGD()))
    with pytest.raises(TypeError, match=r"^chain: Transform defines neither before nor after"):
        gpuopt.chain(gpuopt.Transform(), gpuopt.SGD())


# What a transform makes of parameter and gradient: broadcast, it would be another formula in silence. The words of its error.
MEMBERS: dict[str, tuple[str, Callable[..., Any], type[Exception], str]] = {
    "before, a gradient of one element": (
        "before",
        lambda xp, p, g: (p, xp.sum(g, axis=0, keepdims=True), {}),
        ValueError,
        r"^Own\.before returned g with shape \(1, 2\), expected \(3, 2\)$",
    ),
    "before, a number as the gradient": (
        "before",
        lambda xp, p, g: (p, xp.norm(g), {}),
        TypeError,
        r"^Own\.before returned a number for g, expected an array like the gradient$",
    ),
    "before, a number as the parameter": (
        "before",
        lambda xp, p, g: (1.0, g, {}),
        TypeError,
        r"^Own\.before returned a number for p, expected an array like the parameter$",
    ),
    "after, a parameter of one row": (
        "after",
        lambda xp, old, p: (xp.sum(p, axis=0, keepdims=True), {}),
        ValueError,
        r"^Own\.after returned p with shape \(1, 2\), expected \(3, 2\)$",
    ),
}


@pytest.mark.parametrize("engine", ["auto", "array"])
@pytest.mark.parametrize("dtype", ["float32", "complex128", "float16"])
@pytest.mark.parametrize("case", MEMBERS)
def test_transforms_that_change_a_shape(case: str, dtype: str, engine: Any) -> None:
    method, function, error, words = MEMBERS[case]

    def own(self: object, xp: Any, a: Any, b: Any, *_: Any) -> Any:
        return function(xp, a, b)

    member = with_method(gpuopt.Transform, "Own", {method: own})
    members = (member, gpuopt.SGD()) if method == "before" else (gpuopt.SGD(), member)
    with pytest.raises(error, match=words):
        gpuopt.Optimizer(np.ones((3, 2), dtype), gpuopt.chain(*members, gpuopt.EMA(0.9)), engine=engine)


@pytest.mark.parametrize("engine", ["fused", "array"])
@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_a_number_is_no_parameter_in_any_engine(dtype: str, engine: Any) -> None:
    rule: Any = Returning(lambda p, g: (0.0, {}))
    with pytest.raises(TypeError, match=r"^Returning\.update returned p: .*number.*, expected an array like the param"):
        gpuopt.Optimizer(np.ones(3, dtype), rule, engine=engine)


# A name that is not there: how it is read, and the words of the error.
MISSPELT: dict[str, tuple[Callable[..., Any], str]] = {
    "a slot": (lambda s, h: s.velocty, r"^Velocity: no slot 'velocty' \(did you mean 'velocity'\?\); it has velocity$"),
    "a hyperparameter": (
        lambda s, h: h.learning_rate,
        r"^Velocity: no hyperparameter 'learning_rate' \(did you mean 'lr'\?\); it has .*lr",
    ),
    "nothing like it": (lambda s, h: s.xyz, r"^Velocity: no slot 'xyz'; it has velocity$"),
}


@pytest.mark.parametrize("engine", ["auto", "fused", "array"])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("case", MISSPELT)
def test_misspelt_names_are_told_with_the_ones_there_are(case: str, dtype: str, engine: Any) -> None:
    read, words = MISSPELT[case]

    def update(self: object, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - read(s, h) * g, {"velocity": s.velocity}

    body = {"slots": ("velocity",), "update": update, "__annotations__": {"lr": "Hyper"}, "lr": 0.5}
    rule = with_method(Rule, "Velocity", body)
    with pytest.raises(AttributeError, match=words):
        gpuopt.Optimizer(np.ones(3, dtype), rule, engine=engine)


def test_an_update_that_draws_random_numbers_is_run_as_it_is() -> None:
    random = np.random.RandomState(0)
    rule = Returning(lambda p, g: (p - random.standard_normal() * g, {}))
    w = np.zeros((40_000, 2))[:, 0]  # of more than one block, if there were blocks
    opt = gpuopt.Optimizer(w, rule)
    steps = []
    for _ in range(2):
        before = w.copy()
        opt.step(np.ones_like(w))
        steps.append(w - before)
    assert [np.ptp(step) < 1e-12 for step in steps] == [True, True]
    assert steps[0][0] != steps[1][0]
    with pytest.raises(TypeError, match=r"does something else each time .* engine='array' runs it as it is$"):
        gpuopt.Optimizer(np.ones(2), rule, engine="fused")


def in_place(xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
    g += 0.5 * p
    s.m *= 0.5
    s.m += g
    p -= h.lr * s.m
    return p, {"m": s.m}


def under_two_names(xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
    m, before = g, +g
    m += 0.5 * p
    return p - h.lr * g, {"m": m + before}


def into_sums_and_truth_values(xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
    column, is_up = xp.sum(g, axis=0, keepdims=True), g > 0
    twice, both = column, is_up
    twice *= 0.5
    both &= p > 0
    return p - h.lr * xp.where(is_up, g, 0.0), {"m": s.m + column}


def by_numbers(xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
    also = g
    g /= xp.max(g) + 1
    g -= xp.max(p)
    g *= xp.max(g)
    return p - h.lr * also, {"m": s.m + g}


def handed_on(xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
    return p - h.lr * s.m, {"m": g}


def with_items(xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
    g[g > 1] = 1.0
    return p - h.lr * g, {"m": g[...]}


def by_size(xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
    return p - h.lr * g / p.size, {"m": s.m + p.shape[-1] * g}


def with_arrays_of_its_own(xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
    ramp = xp.arange(p.shape[-1], dtype=p.dtype) / p.shape[-1]
    return p - h.lr * g * xp.linspace(0.0, 1.0, p.shape[-1], dtype=p.dtype), {"m": s.m + g * ramp}


@pytest.mark.parametrize("engine", ["auto", "array", "strided", "update"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "update",
    [
        *(in_place, under_two_names, into_sums_and_truth_values, by_numbers),
        *(handed_on, with_items, by_size, with_arrays_of_its_own),
    ],
)
def test_updates_as_numpy_would_run_them(update: Callable[..., Any], dtype: str, engine: str) -> None:
    """Also in what the array engine cuts into blocks; what an update writes into is its own, and no gradient."""
    body = {"update": lambda self, *args: update(*args), "slots": ("m",)}
    rule: Any = dataclass(frozen=True)(type("Own", (gpuopt.SGD,), body))
    random = np.random.default_rng(0)
    shape = 3, 20_000
    start, grads = random.normal(size=shape).astype(dtype), random.normal(size=(3, *shape)).astype(dtype)
    p, m = start.copy(), np.zeros_like(start)
    for g in grads.copy():
        p, slots = update(np, p.copy(), g.copy(), SimpleNamespace(m=m.copy()), SimpleNamespace(lr=0.25))
        m = slots["m"]
    w = np.zeros((3, 40_000), dtype)[:, ::2] if engine == "strided" else np.zeros(shape, dtype)
    w[...] = start
    given = grads.copy()
    if engine == "update":
        state = gpuopt.init(rule(lr=0.25), w)
        for g in given:
            w, state = gpuopt.update(rule(lr=0.25), w, g, state)
        found = state.slots["m"]
    else:
        opt = gpuopt.Optimizer(w, rule(lr=0.25), engine="array" if engine == "array" else "auto")
        for g in given:
            opt.step(g)
        found = opt.state_dict()["state"][""]["m"]
    np.testing.assert_array_equal(given, grads)
    given[...] = np.nan  # what is kept is no part of it
    tolerance = 1e-6 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(w, p, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found, m, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("engine", ["auto", "array", "update"])
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("shape", [(), (5,), (40_000,)])
def test_slots_that_change_places(shape: tuple[int, ...], dtype: str, engine: str) -> None:
    def update(self: object, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return s.a, {"a": s.b, "b": p}

    rule: Any = dataclass(frozen=True)(type("Own", (gpuopt.SGD,), {"update": update, "slots": {"a": 1.0, "b": 2.0}}))
    w, g = np.full(shape, 3.0, dtype), np.ones(shape, dtype)
    if engine == "update":
        new, state = gpuopt.update(rule(), w, g, gpuopt.init(rule(), w))
        found = state.slots
        np.testing.assert_array_equal(w, 3)
    else:
        opt = gpuopt.Optimizer(w, rule(), engine="array" if engine == "array" else "auto")
        opt.step(g)
        new, found = w, opt.state_dict()["state"][""]
    for x, expected in ((new, 1), (found["a"], 2), (found["b"], 3)):
        np.testing.assert_array_equal(x, np.full(shape, expected, dtype))


LOOKS: list[float] = []


@dataclass(frozen=True)
class Looked(gpuopt.SGD):
    """Tells when its formula is looked at, and reads one hyperparameter of its own."""

    bound: Hyper = gpuopt.bounded(0.5, 0)

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        LOOKS.append(h.lr if isinstance(h.lr, float) else 0.0)
        p, slots = super().update(xp, p, g, s, h)
        return (p if self.bound == 0.5 else 2 * p), slots


@pytest.mark.parametrize("wrap", [lambda rule: rule, lambda rule: gpuopt.chain(gpuopt.L2(0.0), rule)])
def test_a_formula_is_looked_at_again_only_for_what_it_reads_itself(wrap: Callable[[Rule], Rule]) -> None:
    w = np.zeros(2)
    rule = wrap(Looked(lr=1.0))
    opt = gpuopt.Optimizer(w, rule)
    opt.lr = 0.5
    LOOKS.clear()
    opt.lr = 0.25
    opt.step(np.full(2, -4.0))
    assert LOOKS == []
    np.testing.assert_array_equal(w, 1)
    opt.tune(bound=1.0)
    opt.step(np.full(2, -4.0))
    assert LOOKS
    np.testing.assert_array_equal(w, 4)


def test_a_formula_of_our_own_is_looked_at_once_for_all_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a user may read what it likes, and is looked at by each optimizer."""
    looks: list[str] = []
    recorded = trace_module.recorded

    def look(rule: Rule, **of: Any) -> Any:
        looks.append(rule.name)
        return recorded(rule, **of)

    monkeypatch.setattr(trace_module, "recorded", look)
    made: dict[str, tuple[bool, Callable[[], Rule]]] = {
        "another eps": (True, lambda: gpuopt.Adam(eps_root=0.0123)),
        "the same": (False, lambda: gpuopt.Adam(eps_root=0.0123)),
        "a schedule": (True, lambda: gpuopt.Adam(lr=lambda t: 0.5, eps_root=0.0123)),
        "another schedule": (False, lambda: gpuopt.Adam(lr=lambda t: 0.25, eps_root=0.0123)),
        "a chain": (True, lambda: gpuopt.chain(gpuopt.ClipValue(0.0123), gpuopt.SGD())),
        "the same chain": (False, lambda: gpuopt.chain(gpuopt.ClipValue(0.0123), gpuopt.SGD())),
        "a chain with a user's": (True, lambda: gpuopt.chain(gpuopt.L2(0.0123), Looked())),
        "the same with a user's": (True, lambda: gpuopt.chain(gpuopt.L2(0.0123), Looked())),
        "arrays": (True, lambda: gpuopt.chain(gpuopt.Box(np.zeros(2), 1.0), gpuopt.SGD())),
        "the same arrays": (True, lambda: gpuopt.chain(gpuopt.Box(np.zeros(2), 1.0), gpuopt.SGD())),
    }
    for name, (expected, make) in made.items():
        looks.clear()
        gpuopt.Optimizer(np.zeros(2), make())
        assert bool(looks) is expected, name
    gpuopt.Optimizer(np.zeros(2), gpuopt.Adam(), clip=gpuopt.clip_by_value(0.0123), engine="fused")


def test_what_has_a_say_in_the_programs_of_the_rules() -> None:
    def names(rule: Rule) -> set[str]:
        reads = dependence(rule)
        assert reads is not None
        return {str(path[-1]) for path in reads if path}

    for kind in RULES.values():
        if not kind().unfit((1,)) and kind is not gpuopt.Adafactor:
            assert "lr" not in names(kind())
            assert names(kind()) <= names(gpuopt.chain(gpuopt.EMA(0.9), kind()))
    assert {"amsgrad", "nesterov", "eps_root"} <= names(gpuopt.Adam())
