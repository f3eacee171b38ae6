"""Reductions: the same bits whoever adds up, in so many launches, over whatever leaves there are."""

import math
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from formulas import RULES, TRANSFORMS
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import VALUES, Leaf, Problem
from spaces import Host, Space, assert_same_bits, opened

import gpuopt
from gpuopt.engines.cpu import code as cpu_code
from gpuopt.engines.cpu import reductions
from gpuopt.engines.norms import ordered_sum
from gpuopt.engines.program.passes import passes, update
from gpuopt.engines.program.symbols import TraceError
from gpuopt.engines.program.trace import trace, traced
from gpuopt.engines.table import Variant
from gpuopt.rules import Array, Hyper, Rule
from gpuopt.rules.slots import leaf, shared

if TYPE_CHECKING:
    from gpuopt.engines.choice import Engine


@dataclass(frozen=True)
class Everything(Rule):
    """All kinds of reductions, in three passes, and all kinds of numbers."""

    lr: Hyper = gpuopt.bounded(0.1, 0)

    slots = {"m": 0.0, "own": leaf(0.5), "all": shared(2.0), "largest": leaf(0.0)}  # noqa: RUF012

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        first = xp.norm(s.own * g + p) + xp.sum(g) - abs(xp.dot(p, g)) / xp.maximum(xp.total_norm(p), 1e-3)
        second = xp.total(g / first) + xp.total_dot(first * p, s.all * g) - xp.total_max(p - first)
        second = second + xp.total(first) - xp.total(0.5 * s.own)
        is_small = (first < 3) & (second != 0) | ~(second >= s.all)
        third = xp.max(xp.where(is_small, second, first) * s.m - g)
        m = xp.where((h.t > 1) & is_small, s.m + third * g, s.m)
        everywhere = xp.where(xp.total_max(g) > h.lr, xp.sqrt(xp.total_dot(g, g)), s.all)
        third = third + xp.dot(g, g)
        new = p - h.lr / (1 + third * third) * g + xp.where(is_small, m, 1e-3)
        return new, {"m": m, "own": s.own + h.t * first, "all": everywhere, "largest": third}


@dataclass(frozen=True)
class Chosen(Rule):
    """What a truth value of the whole leaf chooses: arrays, the same operation of arrays, zeros, and what is nothing of that."""

    lr: Hyper = gpuopt.bounded(0.1, 0)

    components = True
    slots = {"a": 0.25, "b": -0.5}  # noqa: RUF012

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        early, late = h.t < 3, h.t > 4
        change = xp.where(early, p - s.a, xp.where(late, g - s.b, 0))
        array = xp.where(late, 0, xp.where(early, s.b, xp.where(h.t == 4, p, 0)))
        same = xp.where(early, p + s.a, g + s.b) + xp.where(late, xp.sqrt(p * p), xp.where(early, 0, 0))
        other = xp.where(late, p * g, p - g) + xp.where(early, s.a + g, 0)
        return p - h.lr * (change + same + other), {"a": xp.where(late, change, s.a), "b": array - xp.where(late, 0, g)}


FORMULAS: dict[str, Rule] = {
    name: rule for name, (rule, _) in {**RULES, **TRANSFORMS}.items() if name != "Scale"
}  # which has a shape
REDUCING: dict[str, Rule] = {name: rule for name, rule in FORMULAS.items() if passes(trace(rule))} | {
    "everything": Everything()
}


def reference(asked: Problem) -> dict[str, Host]:
    """What the array engine makes of it: of parameters that are laid out alike, since sums are in the order of memory."""
    (numpy,) = opened("numpy")
    expected = asked.run(numpy, "array")
    if all(own.layout == "C" for own in asked.leaves):
        assert_same_bits(asked.run_on_copies(), expected)
    return expected


def problem(rules: list[Rule], values: str, layouts: list[str], seed: int = 0, steps: int = 6) -> Problem:
    """Small and large leaves of both dtypes, without axes, without elements, and with gradients that are missing."""
    often: tuple[Any, ...] = (("f4", "C"), None, ("f8", "C"), ("f4", "reused"), ("i8", "C"))
    shapes: list[tuple[int, ...]] = [(5000,), (3, 70), (), (0, 2), (257,), (2, 4096)]
    leaves = [
        Leaf(i % len(rules), dtype, shape, layouts[i % len(layouts)], often[i % 3 :] if i % 2 else (("f8", "C"),))
        for i, (dtype, shape) in enumerate((dtype, shape) for shape in shapes for dtype in ("f4", "f8"))
    ]
    return Problem(rules, leaves, steps, seed, values)


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        ("f4", "state32"),
        ("f8", "state32"),
        ("c8", "state32"),
        ("f2", "param"),
        ("f2", "stochastic"),
        ("bfloat16", "split"),
    ],
)
def test_what_is_chosen_for_a_whole_leaf(dtype: Any, precision: Any, fused_space: Space) -> None:
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
        if fused_space.name != "numpy":
            pytest.skip("only NumPy has bfloat16")
    start = np.concatenate([np.linspace(-2, 2, 4500), [0.0, -0.0, math.inf, math.nan, 1e-7]])
    found = []
    ways: list[tuple[Space, Engine]] = [(next(opened("numpy")), "array"), (fused_space, "fused")]
    for space, engine in ways:
        w = space.put(start.astype(dtype))
        opt = gpuopt.Optimizer(w, Chosen(), engine=engine, precision=precision)
        for k in range(7):
            opt.step(space.put((start[::-1] * (k - 2.5)).astype(dtype)))
        found.append(space.got(opt))
    assert_same_bits(found[1], found[0])


@pytest.mark.parametrize("name", [*FORMULAS, "everything"])
def test_every_rule_and_transform_gives_the_same_bits(name: str, fused_space: Space) -> None:
    rule = REDUCING.get(name) or FORMULAS[name]
    for values in VALUES if name in REDUCING else ("hard", "plain"):
        asked = problem([rule], values, ["C", "F", "strided", "permuted", "shifted", "reversed"])
        assert_same_bits(asked.run(fused_space, "auto"), reference(asked))


@pytest.mark.parametrize("engine", ["array", "fused"])
def test_groups_do_not_meet(engine: Any, fused_space: Space) -> None:
    """Totals are those of a group, though others have the same rule, another one, or none to reduce."""
    rules = [gpuopt.ScheduleFreeSGD(), gpuopt.LBFGS(memory=2), Everything(), gpuopt.Prodigy(d0=0.1), Everything()]
    asked = problem(rules, "plain", ["C", "F"])
    assert_same_bits(asked.run(fused_space, engine), reference(asked))


@dataclass(frozen=True)
class Tally(Rule):
    """Counts a leaf's steps, and adds up what the leaves that step have counted before and then."""

    slots = {"count": leaf(0.0), "before": shared(0.0), "after": shared(0.0)}  # noqa: RUF012

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        size = xp.dot(g, g)
        return p - g, {"count": s.count + size, "before": xp.total(s.count), "after": xp.total(s.count + size)}


@pytest.mark.parametrize("engine", ["array", "fused"])
def test_total_of_a_number_of_each_leaf(engine: Any, fused_space: Space) -> None:
    sizes = {"a": 3, "b": 5000, "c": 0}
    opt = gpuopt.Optimizer({name: fused_space.put(np.ones(n)) for name, n in sizes.items()}, Tally(), engine=engine)
    for gone, before, after in [("", 0, 5003), ("a", 5000, 10000), ("b", 3, 6), ("", 10006, 15009)]:
        opt.step({name: None if name == gone else fused_space.put(np.ones(n)) for name, n in sizes.items()})
        state = fused_space.got(opt)
        assert [state[f"a/{name}"].item() for name in ("before", "after")] == [before, after]


def test_a_group_without_a_gradient_stays_as_it_is(fused_space: Space) -> None:
    params = {f"{group}{i}": fused_space.put(np.ones(5)) for group in "ab" for i in range(2)}
    opt = gpuopt.Optimizer(params, {"a*": Everything(), "b*": Everything()})
    before = fused_space.got(opt)
    opt.step({name: fused_space.put(np.ones(5)) if name == "a1" else None for name in params})
    after = fused_space.got(opt)
    changed = {name for name in after if after[name].tobytes() != before[name].tobytes()}
    assert changed == {"a1", "a1/own", "a1/largest", "a1/all", "a0/all"}  # m begins at the second step
    assert after["a0/all"] == after["a1/all"] == math.sqrt(5)


# Chains


def some(*made: Callable[..., Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(made).map(lambda make: make())


BEFORE = some(
    gpuopt.L2,
    gpuopt.Maximize,
    gpuopt.ClipValue,
    gpuopt.ClipNorm,
    gpuopt.ClipGlobalNorm,
    gpuopt.AdaptiveClip,
    gpuopt.Centralize,
    gpuopt.WeightDecay,
)
AFTER = some(
    gpuopt.Cautious,
    gpuopt.NonNegative,
    lambda: gpuopt.Box(-2.0, 3.0),
    gpuopt.SoftThreshold,
    gpuopt.Accelerate,
    gpuopt.EMA,
    lambda: gpuopt.Lookahead(every=2),
)
CENTRE = st.sampled_from(
    [*(rule for name, rule in REDUCING.items() if name in RULES), gpuopt.Adam(), gpuopt.SGD(0.1, 0.9)]
)


@st.composite
def chains(draw: st.DrawFn) -> Problem:
    """A chain of up to four members."""
    before = draw(st.lists(BEFORE, max_size=3))
    after = draw(st.lists(AFTER, max_size=3 - len(before)))
    rule = gpuopt.chain(*before, draw(CENTRE), *after)
    return problem([rule], draw(st.sampled_from(sorted(VALUES))), ["C", "strided"], draw(st.integers(0, 99)), 4)


@pytest.mark.slow
@settings(max_examples=25)
@given(chains())
def test_on_numpy_chains_give_the_same_bits(asked: Problem) -> None:
    (numpy,) = opened("numpy")
    assert_same_bits(asked.run(numpy, "auto"), reference(asked))


@settings(max_examples=12)
@given(chains())
def test_on_cupy_chains_give_the_same_bits(asked: Problem) -> None:
    for cupy in opened("cupy"):
        assert_same_bits(asked.run(cupy, "auto"), reference(asked))


# What numbers are


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("size", [1.0, 1e300, 1e-300])
def test_norms_neither_overflow_nor_vanish(dtype: str, size: float, fused_space: Space) -> None:
    if dtype == "f4":
        size = {1.0: 1.0, 1e300: 1e38, 1e-300: 1e-38}[size]
    for rule in (gpuopt.ClipNorm(size), gpuopt.ClipGlobalNorm(size)):
        w = fused_space.put(np.zeros(3, dtype))
        opt = gpuopt.Optimizer(w, gpuopt.chain(rule, gpuopt.SGD(1.0)), engine="fused")
        opt.step(fused_space.put(np.asarray([1.5, 0.0, -2.0], dtype) * np.asarray(size, dtype)))
        np.testing.assert_allclose(fused_space.get(w) / size, [-0.6, 0, 0.8], rtol=1e-6)


@dataclass(frozen=True)
class Sums(Rule):
    """The numbers of a leaf, as slots."""

    lr: Hyper = gpuopt.bounded(1.0, 0)

    slots = {name: leaf(0.0) for name in ("sum", "dot", "norm", "max")}  # noqa: RUF012

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        return p, {"sum": xp.sum(g), "dot": xp.dot(p, g), "norm": xp.norm(g), "max": xp.max(g)}


@pytest.mark.parametrize("engine", ["array", "fused"])
@pytest.mark.parametrize("size", [1, 255, 257, 4097, 300_001])
def test_sums_are_right_and_in_order(size: int, engine: Any, fused_space: Space) -> None:
    p, g = np.random.RandomState(0).standard_normal((2, size))
    opt = gpuopt.Optimizer(fused_space.put(p), Sums(), engine=engine)
    opt.step(fused_space.put(g))
    found = {name: float(x) for name, x in fused_space.got(opt).items() if name.startswith("/")}
    exact = {"sum": math.fsum(g), "dot": math.fsum(p * g), "norm": math.sqrt(math.fsum(g * g)), "max": max(g)}
    for name, want in exact.items():
        assert found[f"/{name}"] == pytest.approx(want, rel=1e-12)
    assert found["/sum"] == ordered_sum(g)
    assert found["/norm"] == math.sqrt(ordered_sum(g * g))


# Launches


@pytest.fixture
def count(cupy_space: Space) -> Callable[[], AbstractContextManager[Any]]:
    """The emulator's counters."""
    if os.environ.get("CUDASIM") != "1":
        pytest.skip("a real GPU counts nothing")
    import cudasim

    return cudasim.count  # type: ignore[no-any-return]


LAUNCHES: dict[str, tuple[Rule, int]] = {
    "SGD": (gpuopt.SGD(), 1),
    "LAMB": (gpuopt.LAMB(), 2),
    "Novograd": (gpuopt.Novograd(), 2),
    "Prodigy": (gpuopt.Prodigy(), 2),
    "BarzilaiBorwein": (gpuopt.BarzilaiBorwein(), 2),
    "LBFGS": (gpuopt.LBFGS(memory=5), 2),
    "clipped LAMB with an average": (gpuopt.chain(gpuopt.ClipGlobalNorm(), gpuopt.LAMB(), gpuopt.EMA()), 3),
}


@pytest.mark.parametrize("leaves", [1, 100])
@pytest.mark.parametrize(("rule", "launches"), LAUNCHES.values(), ids=LAUNCHES)
def test_a_launch_a_pass_and_nothing_else(
    rule: Rule, launches: int, leaves: int, cupy_space: Space, count: Any
) -> None:
    with cupy_space.use():
        params = [cupy_space.xp.ones(i % 7 + 1, "f4") for i in range(leaves)]
        grads = [cupy_space.xp.ones_like(p) for p in params]
    for nonfinite, more in (("ignore", 0), ("skip", 1)):
        opt = gpuopt.Optimizer(params, rule, nonfinite=nonfinite)  # type: ignore[arg-type]
        opt.step(grads)
        cupy_space.device.synchronize()
        with count() as counted:
            for _ in range(3):
                opt.step(grads)
        assert counted.summary == {**dict.fromkeys(counted.summary, 0), "launches": 3 * (launches + more)}


REDUCES = {
    *("BarzilaiBorwein", "Fromage", "LAMB", "LARS", "LBFGS", "NonlinearCG", "Novograd", "Prodigy"),
    *("AdaptiveClip", "Cautious", "Centralize", "ClipGlobalNorm", "ClipNorm"),
}
"""Rules and transforms with sums over a leaf or all leaves: each has one pass more. Those that see shapes are tested elsewhere."""


@pytest.mark.parametrize("dtype", ["f2", "f8", "c8"])
@pytest.mark.parametrize("name", sorted({*gpuopt.rules.OF_VECTORS, *gpuopt.transforms.TRANSFORMS} - {"Adafactor"}))
def test_every_rule_and_transform_is_launches_alone(name: str, dtype: str, cupy_space: Space, count: Any) -> None:
    if name in gpuopt.rules.RULES:
        rule = gpuopt.rules.RULES[name]()
    else:
        kind = gpuopt.transforms.TRANSFORMS[name]
        own = kind(np.ones((5, 3))) if name == "Scale" else kind()
        rule = gpuopt.chain(*((gpuopt.SGD(), own) if "after" in vars(kind) else (own, gpuopt.SGD())))
    if dtype == "c8" and name in {"Box", "NonNegative"}:
        pytest.skip("for real leaves")
    with cupy_space.use():
        p, g = cupy_space.xp.ones((5, 3), dtype), cupy_space.xp.ones((5, 3), dtype)
    opt = gpuopt.Optimizer(p, rule, engine="fused")
    opt.step(g)
    cupy_space.device.synchronize()
    with count() as counted:
        for _ in range(3):
            opt.step(g)
    assert counted.summary == {**dict.fromkeys(counted.summary, 0), "launches": 3 * (2 if name in REDUCES else 1)}


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_launch_that_fails_changes_nothing(failing: int, cupy_space: Space, count: Any) -> None:
    import cudasim

    rule = gpuopt.chain(gpuopt.ClipGlobalNorm(), gpuopt.Prodigy())
    opt, other = (gpuopt.Optimizer(cupy_space.put(np.ones(5000)), rule) for _ in range(2))
    g = cupy_space.put(np.linspace(1, 2, 5000))
    for each in (opt, other):
        each.step(g)
    before = cupy_space.got(opt)
    cudasim.fail_launch(failing, 701)
    try:
        with pytest.raises(Exception, match="LAUNCH_OUT_OF_RESOURCES"):
            opt.step(g)
    finally:
        cudasim.fail_launch(0)
    assert_same_bits(cupy_space.got(opt), before)
    for each in (opt, other):
        each.step(g)
    assert_same_bits(cupy_space.got(opt), cupy_space.got(other))


@pytest.mark.parametrize("rule", [gpuopt.LAMB(), gpuopt.Prodigy(d0=0.1), Everything()], ids=lambda rule: rule.name)
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_step_left_out_leaves_numbers_as_they_are(rule: Rule, nonfinite: Any, fused_space: Space) -> None:
    opt = gpuopt.Optimizer(fused_space.put(np.ones(5000)), rule, nonfinite=nonfinite)
    opt.step(fused_space.put(np.linspace(1, 2, 5000)))
    before = fused_space.got(opt)
    try:
        opt.step(fused_space.put(np.full(5000, math.nan)))
        opt.state_dict()
    except FloatingPointError:
        assert nonfinite == "raise"
    assert_same_bits(fused_space.got(opt), before)


@pytest.mark.parametrize("memory", [3, 10])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
def test_many_sums_in_one_pass(dtype: str, memory: int, fused_space: Space) -> None:
    """13 and 41 of them, over leaves that end within a tile, a stretch, a block and a chunk; on a GPU of more arrays than fit registers."""
    random = np.random.RandomState(0)
    sizes = (7, 256, 300, 1024, 1500, 4096, 5000, 9003)
    shapes = [random.standard_normal(n) + (1j * random.standard_normal(n) if dtype[0] == "c" else 0) for n in sizes]
    params = {str(n): x.astype(dtype) for n, x in zip(sizes, shapes, strict=True)}
    rule = gpuopt.LBFGS(0.1, memory=memory)
    fused = gpuopt.Optimizer({name: fused_space.put(x) for name, x in params.items()}, rule, engine="fused")
    array = gpuopt.Optimizer(params, rule, engine="array")
    for k in range(6):
        grads = [((0.5 + 0.1 * k) * x + 0.01 * x * x).astype(dtype) for x in shapes]
        for opt, put in ((array, np.asarray), (fused, fused_space.put)):
            opt.step({str(n): None if (i + k) % 5 == 0 else put(grads[i]) for i, n in enumerate(sizes)})
    assert_same_bits({name: fused_space.get(x) for name, x in fused.params.items()}, params)


@pytest.mark.parametrize("memory", [1, 2, 5, 10])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_a_loop_fit_registers(dtype: str, memory: int) -> None:
    """Each is in one loop, and those of points are not beside those of gradients, where they are many."""
    variant = Variant(trace(gpuopt.LBFGS(memory=memory)), dtype)
    (own,) = passes(variant.program)
    loops = reductions.loops(variant, own.reductions)
    assert sorted(r.number for loop in loops for r in loop.reductions) == sorted(r.number for r in own.reductions)
    widths = {"dot": 1, "norm": 1 if dtype == "float32" else 3}
    assert all(sum(widths[r.kind] for r in loop.reductions) <= reductions.SUMS for loop in loops)
    if memory > 2:
        counts = [sum(variant.program.nodes[i].op == "load" for i in loop.elements) for loop in loops]
        assert sorted(counts)[:-1] <= [memory + 2] * (len(counts) - 1)


@pytest.mark.parametrize("memory", [1, 5, 10])
def test_lbfgs_reads_each_array_once_a_pass(memory: int) -> None:
    """The points and gradients that are kept, the parameter and the gradient; it writes one of each beside the parameter."""
    program = trace(gpuopt.LBFGS(memory=memory))
    (own,), last = passes(program), update(program)
    for elements in (own.elements, last.elements):
        assert sum(program.nodes[i].op == "load" for i in elements) == 2 * memory + 2
    assert [store.name for store in last.stores if store.when is None] == ["p"]


@pytest.mark.parametrize(("memory", "stores"), [(1, {3}), (2, {3, 5}), (3, {3, 7}), (10, {3, 21})])
def test_what_stays_as_it_is_is_not_written(memory: int, stores: set[int]) -> None:
    """Of many copies that a truth value of the leaf decides over, the loop of most steps does two."""
    program = trace(gpuopt.LBFGS(memory=memory))
    loops = re.findall(
        r"define [^\n]*@update0\S*\(.*?^}", cpu_code.source((Variant(program, "float32"),)), re.DOTALL | re.MULTILINE
    )
    assert {loop.count("store float") for loop in loops} - {0} == stores


def test_lbfgs_begins_with_the_first_step_that_counts(fused_space: Space) -> None:
    """One that is left out is no pair, and does not take the place of one."""
    found = []
    for bad in ((), (0, 3)):
        w, k = fused_space.put(np.ones(5)), 0
        opt = gpuopt.Optimizer(w, gpuopt.LBFGS(0.1, memory=2), nonfinite="skip")
        while opt.steps - opt.skipped < 6:
            opt.step(fused_space.put(np.arange(1, 6) * (math.nan if k in bad else fused_space.get(w))))
            k += 1
        found.append(fused_space.got(opt))
    assert_same_bits(found[1], found[0])


def test_lbfgs_of_leaves_that_come_and_go(fused_space: Space) -> None:
    """A leaf without a gradient is 0 in that pair: as one L-BFGS of all, by two loops over whole vectors."""
    random = np.random.RandomState(0)
    curvature, sizes = np.linspace(0.5, 2, 9), {"a": slice(0, 4), "b": slice(4, 7), "c": slice(7, 9)}
    absent = [{"c"}, {"c"}, set(), {"a"}, {"a", "b"}, set(), {"b"}, set(), set(), {"a", "b", "c"}, set(), {"c"}, set()]
    p = random.standard_normal(9)
    params = {name: fused_space.put(p[own]) for name, own in sizes.items()}
    opt = gpuopt.Optimizer(params, gpuopt.LBFGS(0.5, memory=3))
    pairs: list[tuple[Any, Any]] = []
    before: dict[str, tuple[Any, Any]] = {}
    for gone in absent:
        there = {name: own for name, own in sizes.items() if name not in gone}
        g, s, y = np.zeros(9), np.zeros(9), np.zeros(9)
        for name, own in there.items():
            g[own] = (curvature * p)[own]
            if name in before:
                s[own], y[own] = p[own] - before[name][0], g[own] - before[name][1]
            before[name] = p[own].copy(), g[own].copy()
        opt.step({name: fused_space.put(g[own]) if name in there else None for name, own in sizes.items()})
        if there:
            pairs = [*pairs, (s, y)][-3:] if opt.steps > 1 else []
            q, alphas = g.copy(), []
            for s, y in reversed(pairs):
                alphas.append(s @ q / (s @ y) if s @ y else 0.0)
                q -= alphas[-1] * y
            scale = min(1.0, 1 / float(np.linalg.norm(g)))
            if pairs:
                s, y = pairs[-1]
                scale = s @ y / (y @ y) if y @ y else 1.0
            q *= scale
            for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
                q += s * (alpha - (y @ q / (s @ y) if s @ y else 0.0))
            for own in there.values():
                p[own] -= 0.5 * q[own]
        for name, own in sizes.items():
            np.testing.assert_allclose(fused_space.get(params[name]), p[own], rtol=1e-9, atol=1e-12)


# Several places


def test_totals_over_two_devices(cupy_space: Space) -> None:
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one device, of 2")
    for rule in (gpuopt.LAMB(), gpuopt.Prodigy(d0=0.1), gpuopt.chain(gpuopt.ClipGlobalNorm(0.1), gpuopt.LAMB())):
        host = {str(i): np.random.RandomState(i).standard_normal(5000) for i in range(4)}
        params = {}
        for i, (name, x) in enumerate(host.items()):
            with cupy.cuda.Device(i % 2):
                params[name] = cupy.asarray(x)
        other = gpuopt.Optimizer({name: x.copy() for name, x in host.items()}, rule)
        opt = gpuopt.Optimizer(params, rule)
        for _ in range(3):
            grads = {}
            for i, (name, x) in enumerate(host.items()):
                with cupy.cuda.Device(i % 2):
                    grads[name] = cupy.asarray(x + 1)
            opt.step(grads)
            other.step({name: x + 1 for name, x in host.items()})
        (numpy,) = opened("numpy")
        assert_same_bits(cupy_space.got(opt), numpy.got(other))
    gpuopt.Optimizer(params, gpuopt.LAMB(), engine="fused")
    with pytest.raises(TypeError, match="totals over leaves of cupy:0 and cupy:1, expected one place; engine='auto'"):
        gpuopt.Optimizer(params, gpuopt.Prodigy(), engine="fused")


@pytest.mark.parametrize("engine", ["auto", "array", "fused"])
def test_totals_over_several_libraries_are_refused(engine: Any, cupy_space: Space) -> None:
    params = {"a": np.ones(3), "b": cupy_space.put(np.ones(3))}
    with pytest.raises(TypeError, match=r"Prodigy.update asks for totals over leaves of cupy:\d and numpy, expected"):
        gpuopt.Optimizer(params, gpuopt.Prodigy(), engine=engine).step(params)
    gpuopt.Optimizer(params, gpuopt.LAMB(), engine=engine).step(params)


@dataclass(frozen=True)
class Odd(Rule):
    """Returns a shared number that is not one."""

    lr: Hyper = gpuopt.bounded(0.5, 0)
    slots = {"all": shared(0.0)}  # noqa: RUF012

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * g, {"all": s.all + xp.norm(g)}


def test_a_shared_number_is_made_of_totals() -> None:
    with pytest.raises(TraceError, match=r"shared number all of sums over one leaf.*totals"):
        trace(Odd())
    with pytest.raises(TypeError, match="shared number all"):
        gpuopt.Optimizer([np.ones(2), np.ones(3)], Odd()).step([np.ones(2), np.ones(3)])


REFUSED = {
    "a truth value": lambda xp, p, g: xp.sum(g > 0),
    "a number": lambda xp, p, g: xp.sum(1.0),
    "a number as a condition": lambda xp, p, g: xp.where(xp.sum(g), 1, 0),
    "a branch": lambda xp, p, g: 1 if xp.sum(g) > 0 else 0,
    "a power": lambda xp, p, g: xp.sum(g) ** 0.3,
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_fused(function: Any) -> None:
    @dataclass(frozen=True)
    class Own(Rule):
        lr: Hyper = gpuopt.bounded(0.5, 0)

        def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - function(xp, p, g) * g, {}

    assert traced(Own()) is None
