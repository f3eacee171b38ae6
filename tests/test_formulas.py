"""Rules and transforms on the array engine, against recurrences of their own; and what a chain, a slot and a number do."""

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from formulas import MATRICES, OF_MATRICES, RULES, SHAPED, TRANSFORMS, Recurrence
from spaces import Space, assert_same_bits

import gpuopt
from gpuopt.rules import Hyper, Rule
from gpuopt.rules.slots import leaf, like, shared

FORMULAS = {**RULES, **TRANSFORMS, **MATRICES, **SHAPED}
MOST = {"f4": 1e-4, "f8": 1e-11}  # of the distance moved


def problem(steps: int, rule: gpuopt.Rule) -> tuple[Any, list[Any]]:
    """Parameters between 1 and 2, and the gradients of a quadratic with noise, all of them float32 numbers."""
    random = np.random.RandomState(0)
    shape = (16, 4) if rule in OF_MATRICES else (64,)
    sizes = 10.0 ** random.uniform(-2, 0, shape)
    p = (1 + random.random_sample(shape)).astype("f4")
    return p, [(sizes * (1 + random.standard_normal(shape))).astype("f4") for _ in range(steps)]


@pytest.mark.parametrize(("rule", "recurrence"), FORMULAS.values(), ids=FORMULAS)
def test_agrees_with_the_recurrence(rule: gpuopt.Rule, recurrence: Recurrence, space: Space) -> None:
    measures = isinstance(rule, gpuopt.BarzilaiBorwein | gpuopt.LBFGS)  # curvature, of which noise has none
    is_slow = space.name == "array_api_strict"  # it checks every operation
    start, gradients = problem(12 if measures or is_slow else 60, rule)
    for dtype, most in {"f8": MOST["f8"]}.items() if measures else MOST.items():
        p, kept = start.astype("f8"), dict[str, Any]()
        pure = space.put(start.astype(dtype))
        state = gpuopt.init(rule, pure)
        opts = [gpuopt.Optimizer(space.put(start.astype(dtype)), rule, engine=engine) for engine in space.engines]
        for i, noise in enumerate(gradients):
            g = np.linspace(0.5, 2, p.size) * p if measures else noise
            p = recurrence(p, g.astype("f8"), kept, i + 1)
            pure, state = gpuopt.update(rule, pure, space.put(g.astype(dtype)), state)
            for opt in opts:
                opt.step(space.put(g.astype(dtype)))
        for ours in (pure, *(opt.params for opt in opts)):
            assert np.max(np.abs(space.get(ours) - p)) <= most * np.max(np.abs(p - start))


def test_every_rule_and_transform_has_a_formula() -> None:
    from conformance import ROWS

    from gpuopt import rules, transforms

    rows = {type(rule) for rule, _ in (RULES | MATRICES).values()} | {row.rule for row in ROWS}
    assert rows == set(rules.RULES.values())
    members = {type(member) for rule, _ in TRANSFORMS.values() for member in rule.members}  # type: ignore[attr-defined]
    assert members - {gpuopt.SGD} == set(transforms.TRANSFORMS.values()) - {gpuopt.EMA}


@pytest.mark.parametrize("engine", ["array", "fused"])
@pytest.mark.parametrize("rule", [rule for rule, _ in FORMULAS.values()], ids=FORMULAS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_an_optimizer_saved_in_the_middle_goes_on_to_the_same_bits(
    rule: gpuopt.Rule, dtype: str, engine: Any, fused_space: Space, tmp_path: Any
) -> None:
    start, gradients = problem(7, rule)

    def optimizer() -> gpuopt.Optimizer:
        return gpuopt.Optimizer({"a": fused_space.put(start.astype(dtype))}, rule, engine=engine)

    whole, first, second = optimizer(), optimizer(), optimizer()
    p, state = {"a": start.astype(dtype)}, gpuopt.init(rule, {"a": start.astype(dtype)})
    for i, g in enumerate(gradients):
        own = {"a": fused_space.put(g.astype(dtype))}
        whole.step(own)
        p, state = gpuopt.update(rule, p, {"a": g.astype(dtype)}, state)
        (first if i < 4 else second).step(own)
        if i == 3:
            gpuopt.save(tmp_path / "run.safetensors", first)
            gpuopt.load(tmp_path / "run.safetensors", second)
            with fused_space.use():  # CuPy unpickles on the current device
                third = pickle.loads(pickle.dumps(first))
        elif i > 3:
            third.step(own)
    assert_same_bits(fused_space.got(second), fused_space.got(whole))
    assert_same_bits(fused_space.got(third), fused_space.got(whole))
    pure = {"a": p["a"], **{f"a/{name}": np.asarray(own["a"]) for name, own in state.slots.items()}}
    if fused_space.name == "numpy" or not isinstance(rule, gpuopt.Muon):  # whose products have the bits of the library
        assert_same_bits(pure, fused_space.got(whole))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e300, 1e-300])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_clipping_in_a_chain_has_the_bits_of_the_optimizers_own(dtype: str, size: float) -> None:
    random = np.random.RandomState(0)
    shapes = [(5000,), (3, 7), ()]
    g = [np.asarray(random.standard_normal(shape) * size).astype(dtype) for shape in shapes]
    for transform, clip in (
        (gpuopt.ClipNorm(0.5), gpuopt.clip_by_norm(0.5)),
        (gpuopt.ClipGlobalNorm(0.5), gpuopt.clip_by_global_norm(0.5)),
        (gpuopt.ClipValue(0.5), gpuopt.clip_by_value(0.5)),
    ):
        p, q = ([np.ones(shape, dtype) for shape in shapes] for _ in range(2))
        gpuopt.Optimizer(p, gpuopt.SGD(0.1), clip=clip).step(g)
        gpuopt.Optimizer(q, gpuopt.chain(transform, gpuopt.SGD(0.1)), engine="array").step(g)
        assert_same_bits(dict(enumerate(p)), dict(enumerate(q)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Counting(Rule):
    """Every kind of slot, and every kind of total."""

    lr: Hyper = gpuopt.bounded(0.5, 0)

    slots = {  # noqa: RUF012
        "start": like("p"),
        "rate": like("lr"),
        "own": leaf(1.0),
        "all": shared(2.0),
        "three": 3.0,
        "first": leaf(like("lr")),
    }

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        own = s.own + xp.sum(g) + xp.max(g) + xp.dot(g, g)
        total = s.all + xp.total(g) + xp.total_max(g) + xp.total_norm(g) * xp.total_dot(g, p)
        return p - h.lr * g, {**vars(s), "own": own, "all": total}


def test_slots_start_as_they_say_and_totals_are_over_leaves_with_gradients() -> None:
    p = {"a": np.array([1.0, 2.0]), "b": np.array([3.0]), "c": np.array(4.0)}
    state = gpuopt.init(Counting(), p)
    assert {name: [float(np.ravel(x)[0]) for x in own.values()] for name, own in state.slots.items()} == {
        "start": [1, 3, 4],
        "rate": [0.5, 0.5, 0.5],
        "own": [1, 1, 1],
        "all": [2, 2, 2],
        "three": [3, 3, 3],
        "first": [0.5, 0.5, 0.5],
    }
    _, state = gpuopt.update(Counting(), p, {"a": np.array([3.0, 0.0]), "b": None, "c": np.array(4.0)}, state)
    assert state.slots["own"] == {"a": 1 + 3 + 3 + 9, "b": 1, "c": 1 + 4 + 4 + 16}
    assert set(state.slots["all"].values()) == {2 + 7 + 4 + 5 * (3 + 16)}
    opt = gpuopt.Optimizer(p, Counting(), engine="array")
    opt.step({"a": np.array([3.0, 0.0]), "b": None, "c": np.array(4.0)})
    assert {path: float(own["all"]) for path, own in opt.state_dict()["state"].items()} == state.slots["all"]


def test_evaluation_gives_averages() -> None:
    for rule, want in (
        (gpuopt.chain(gpuopt.SGD(1.0), gpuopt.NonNegative(), gpuopt.EMA(0.5)), [2.5, 1.0]),
        (gpuopt.chain(gpuopt.SGD(2.0), gpuopt.EMA(0.5), gpuopt.NonNegative()), [2.0, 0.0]),
        (gpuopt.chain(gpuopt.SGD(2.0), gpuopt.NonNegative(), gpuopt.EMA(0.5)), [2.0, 1.0]),
        (gpuopt.chain(gpuopt.SGD(2.0), gpuopt.Accelerate(), gpuopt.NonNegative()), [1.0, 0.0]),
        (gpuopt.chain(gpuopt.SGD(2.0), gpuopt.Box(0.0, 3.0), gpuopt.Accelerate()), [1.0, 0.0]),
        (gpuopt.chain(gpuopt.ASGD(2.0, decay=0.0), gpuopt.NonNegative()), [1.0, 0.0]),
        (gpuopt.chain(gpuopt.ASGD(2.0, decay=0.0), gpuopt.Box(np.array([2.0, -1.0]), np.full(2, 3.0))), [2.0, -1.0]),
        (gpuopt.chain(gpuopt.ASGD(2.0, decay=0.0), gpuopt.Magnitude(1.5, 3.0)), [1.5, -2.0]),
        (gpuopt.ScheduleFreeSGD(1.0), [2.0, 0.0]),
        (gpuopt.ASGD(1.0, decay=0.0), [2.0, 0.0]),
        (gpuopt.SGD(1.0), [2.0, 0.0]),
    ):
        opt = gpuopt.Optimizer(np.array([3.0, 2.0]), rule, engine="array")
        np.testing.assert_allclose(opt.evaluation(), [3.0, 2.0], rtol=1e-15)
        opt.step(np.array([1.0, 2.0]))
        np.testing.assert_allclose(opt.evaluation(), want, rtol=1e-15, atol=1e-15)
        if "array" not in repr(rule):  # limits of both elements; the second element as a leaf without axes
            opt = gpuopt.Optimizer(np.array(2.0), rule, engine="array")
            opt.step(np.array(2.0))
            assert abs(opt.evaluation() - want[1]) < 1e-15
            assert opt.evaluation().shape == ()


def test_members_of_a_chain_are_tuned_by_name() -> None:
    rule = gpuopt.chain(gpuopt.L2(0.1), gpuopt.Adam(1e-2), gpuopt.EMA(0.9), gpuopt.EMA(0.99))
    opt = gpuopt.Optimizer(np.ones(2), rule)
    assert list(opt.state_dict()["state"][""]) == ["Adam.m", "Adam.v", "EMA.average", "EMA2.average"]
    opt.tune(lr=1e-3, **{"EMA2.decay": 0.5})
    assert (opt.lr, opt.rule.lr) == (1e-3, 1e-3)  # type: ignore[union-attr]
    assert opt.rule == gpuopt.chain(gpuopt.L2(0.1), gpuopt.Adam(1e-3), gpuopt.EMA(0.9), gpuopt.EMA(0.5))
    with pytest.raises(TypeError, match=r"unknown hyperparameter 'EMA.decya' \(did you mean 'EMA.decay'\?\)"):
        opt.tune(**{"EMA.decya": 0.5})
    with pytest.raises(ValueError, match=r"EMA: decay: got 1.5, expected a number in \[0, 1\)"):
        opt.tune(**{"EMA.decay": 1.5})
    other = gpuopt.Optimizer(np.ones(2), gpuopt.chain(gpuopt.Adam(), gpuopt.EMA()))
    with pytest.raises(ValueError, match=r"rules: {'\*': 'chain\(L2, Adam, EMA, EMA\)'}, expected {'\*': 'chain\(Adam"):
        other.load_state_dict(opt.state_dict())


@dataclass(frozen=True)
class Truth(Rule):
    """Reduces a truth value."""

    lr: Hyper = gpuopt.bounded(0.5, 0)

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - xp.sum(g > 0), {}


@dataclass(frozen=True)
class Branch(Rule):
    """Has an `if` of arrays."""

    lr: Hyper = gpuopt.bounded(0.5, 0)

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * g if g > 0 else p, {}


@dataclass(frozen=True)
class Silent(gpuopt.Transform):
    """Returns no slots."""

    def after(self, xp: Any, old: Any, new: Any, g: Any, s: Any, h: Any) -> Any:
        return new, None


def _any(x: Any) -> Any:
    return x


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no rule": (lambda: gpuopt.chain(gpuopt.L2()), ValueError, "chain: no rule among 1 members, expected one rule"),
    "two rules": (lambda: gpuopt.chain(gpuopt.SGD(), gpuopt.Adam()), ValueError, "chain: SGD, Adam among 2 members"),
    "a class": (
        lambda: gpuopt.chain(_any(gpuopt.EMA), gpuopt.Adam()),
        TypeError,
        "chain: EMA, a class, expected rules and",
    ),
    "after": (
        lambda: gpuopt.chain(gpuopt.SGD(), gpuopt.L2()),
        ValueError,
        "chain: L2 stands after SGD; it works before",
    ),
    "box": (lambda: gpuopt.Box(2, 1), ValueError, "Box: low 2.0, high 1.0, expected low <= high"),
    "box of arrays": (
        lambda: gpuopt.Box(np.array([0.0, 2.0]), np.array([1.0, 1.0])),
        ValueError,
        r"Box: low array\(\[0., 2.\]\), high array\(\[1., 1.\]\), expected low <= high",
    ),
    "box of both": (lambda: gpuopt.Box(np.array([0.0, 2.0]), 1), ValueError, "expected low <= high"),
    "misspelt": (
        lambda: gpuopt.chain(gpuopt.SGD(), gpuopt.EMA(decya=0.5)),  # type: ignore[call-arg]
        TypeError,
        r"EMA: unknown hyperparameter 'decya' \(did you mean 'decay'\?\)",
    ),
    "every": (lambda: gpuopt.Lookahead(every=0), ValueError, "Lookahead: every: got 0, expected a positive integer"),
    "given": (
        lambda: gpuopt.init(gpuopt.chain(gpuopt.SGD(), gpuopt.Scale(np.ones(3))), np.ones(2)),
        ValueError,
        r"Scale.factor: an array of shape \(3,\) for params, expected \(2,\) like the leaf",
    ),
    "given, of other names": (
        lambda: scaled_by({"x": np.ones(2), "y": np.ones(2)}),
        ValueError,
        r"Scale.factor: another structure than params: missing Scale.factor\['b'\]",
    ),
    "given, in another order": (
        lambda: scaled_by({"a": np.zeros(2), "b": np.ones(2)}),
        ValueError,
        "Scale.factor: leaves in another order than those of params, expected the same containers",
    ),
    "given, too few": (lambda: scaled_by([np.ones(2)]), ValueError, "Scale.factor: another structure than params"),
    "given, numbers": (
        lambda: scaled_by(OrderedDict(b=1.0, a=1.0)),
        TypeError,
        r"Scale.factor: float for params\['b'\], expected an array like the leaf",
    ),
    "given, complex": (
        lambda: scaled_by(np.ones(2, complex)),
        TypeError,
        r"Scale.factor: an array of complex128 for params\['b'\], expected one of real numbers",
    ),
    "box of NaN": (lambda: gpuopt.Box(np.array([0.0, np.nan]), 1), ValueError, "expected low <= high"),
}


def scaled_by(factor: Any) -> None:
    params = OrderedDict(b=np.ones(2), a=np.ones(2))
    gpuopt.Optimizer(params, gpuopt.chain(gpuopt.SGD(), gpuopt.Scale(factor)))


@pytest.mark.parametrize(("make", "error", "words"), BAD.values(), ids=BAD)
def test_says_what_is_wrong(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("engine", ["array", "auto", "fused"])
@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Truth(), "^Truth.update reduces truth values, expected numbers, as xp.where"),
        (Branch(), r"^Branch.update branches on a value \(if, and, or, not, min, max\), expected xp.where"),
        (gpuopt.chain(gpuopt.SGD(), Silent()), "Silent.after returned NoneType for its slots, expected a dict"),
    ],
    ids=["truth", "branch", "silent"],
)
def test_updates_that_cannot_be_are_refused_when_an_optimizer_is_made(rule: Rule, words: str, engine: Any) -> None:
    with pytest.raises(TypeError, match=words):
        gpuopt.Optimizer(np.ones(2), rule, engine=engine)


@dataclass(frozen=True)
class Exploding(Rule):
    """Carries a number that is infinite at the third step."""

    lr: Hyper = gpuopt.bounded(0.5, 0)
    carried = {"grown": 1e200}  # noqa: RUF012

    def coefficients(self, h: Any) -> Any:
        return {"grown": h.grown * (1e40 if h.t < 3 else 1e300)}

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * g, {}


def another_chain(opt: gpuopt.Optimizer, folder: Any) -> None:
    other = gpuopt.Optimizer(opt.params, gpuopt.chain(gpuopt.L2(), gpuopt.SGD(1.0)))
    gpuopt.save(folder / "x.safetensors", other)
    gpuopt.load(folder / "x.safetensors", opt)


def with_carried(opt: gpuopt.Optimizer, value: Any) -> None:
    state = opt.state_dict()
    state["rules"]["*"]["carried"] = {"grown": value}
    opt.load_state_dict(state)


def one(step: int) -> float:
    return 1.0


def two_at_the_third(step: int) -> float:
    return 0.0 if step < 2 else 2.0


BOX = gpuopt.chain(gpuopt.SGD(1.0), gpuopt.Box(0, 1))
CHANGES: dict[str, tuple[Rule, Any, str]] = {
    "tuned box": (BOX, lambda opt, _: opt.tune(**{"Box.low": 2.0}), "Box: low 2.0, high 1.0, expected low <= high"),
    "misspelt": (BOX, lambda opt, _: opt.tune(**{"Bxo.low": 0.5}), r"'Bxo.low' \(did you mean 'Box.low'\?\)"),
    "misspelt member's": (BOX, lambda opt, _: opt.tune(**{"Box.lwo": 0.5}), r"'Box.lwo' \(did you mean 'Box.low'\?\)"),
    "tuned to an array": (
        BOX,
        lambda opt, _: opt.tune(**{"Box.low": np.zeros(2)}),
        r"tune: Box.low: array.* \(ndarray\), expected a number or a schedule; arrays are a part of the state",
    ),
    "tuned by no pattern": (BOX, lambda opt, _: opt.tune({"lr": 1.0}), "tune: no rule for {'lr': 1.0}"),
    **{
        f"{type(bounds).__name__} of schedules, {kind}": (
            gpuopt.chain(gpuopt.SGD(1.0), bounds),
            lambda opt, _: opt.step(np.zeros(2)),
            rf"{type(bounds).__name__}: low 2.0, high \S+ at step 2, expected low <= high",
        )
        for kind, bounds in {
            "number": gpuopt.Box(two_at_the_third, 1.0),
            "array": gpuopt.Box(two_at_the_third, np.array([1.0, 3.0])),
            "both": gpuopt.Magnitude(two_at_the_third, one),
        }.items()
    },
    "another chain": (
        BOX,
        another_chain,
        r"x.safetensors: .*'chain\(L2, SGD\)'}, expected {'\*': 'chain\(SGD, Box\)'}",
    ),
    "carried": (
        Exploding(),
        lambda opt, _: opt.step(np.ones(2)),
        "Exploding: coefficients at step 2: carried number 'grown': got inf, expected a finite number",
    ),
    "carried infinity": (
        Exploding(),
        lambda opt, _: with_carried(opt, float("inf")),
        r"rules/\*: carried number grown: inf, expected a finite number",
    ),
    "carried beyond float64": (
        Exploding(),
        lambda opt, _: with_carried(opt, 10**400),
        r"carried number grown: 1000+, expected a finite",
    ),
    "carried text": (
        Exploding(),
        lambda opt, _: with_carried(opt, "1"),
        "carried number grown: '1', expected a finite",
    ),
}


@pytest.mark.parametrize("engine", ["array", "auto"])
@pytest.mark.parametrize(("rule", "change", "words"), CHANGES.values(), ids=CHANGES)
def test_what_is_wrong_is_named_and_changes_nothing(
    rule: Rule, change: Any, words: str, engine: Any, tmp_path: Any
) -> None:
    opt = gpuopt.Optimizer(np.full(2, 0.5), rule, engine=engine)
    opt.step(np.zeros(2))
    opt.step(np.zeros(2))
    before = pickle.dumps((opt.params, opt.state_dict(), repr(opt)))
    with pytest.raises((TypeError, ValueError), match=words):
        change(opt, tmp_path)
    assert pickle.dumps((opt.params, opt.state_dict(), repr(opt))) == before


def test_totals_over_leaves_of_two_libraries_are_refused() -> None:
    import array_api_strict

    for rule in (gpuopt.LBFGS(), gpuopt.Prodigy(), gpuopt.chain(gpuopt.ClipGlobalNorm(), gpuopt.SGD())):
        params = {"a": np.ones(2), "b": array_api_strict.ones(2)}  # dtypes are not compared, of which it would warn
        with pytest.raises(TypeError, match=r"totals over leaves of array_api_strict.* and numpy, expected one place"):
            gpuopt.Optimizer(params, rule, engine="array")
