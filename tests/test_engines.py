"""All engines give the same bits: any rule, dtype, shape, memory layout, gradient, on any device."""

import formulas
import numpy as np
import pytest
from conformance import ROWS
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import SHAPES, Leaf, Problem
from spaces import DENSE, LAYOUTS, Space, assert_same_bits, opened
from user_rules import USER_RULES

import gpuopt
from gpuopt import schedules
from gpuopt.engines.program.trace import trace

WAVE = schedules.cosine(0.5, steps=8, final=0.01)

# All other rules and transforms that are fused, but for one that has an array of one shape.
FUSED = [rule for rule, _ in (formulas.RULES | formulas.TRANSFORMS).values() if "Scale" not in rule.name]

# Several rules at once, some of them twice and with schedules. There are few sets, since each is a kernel to compile.
RULES: list[list[gpuopt.Rule]] = [
    *([row.make(lr=WAVE) for row in ROWS[i : i + 3]] for i in range(0, len(ROWS), 3)),
    [gpuopt.Adam(), gpuopt.SGD(), gpuopt.Adam(lr=WAVE, beta1=lambda step: 0.9 / (step + 1), eps=0.0)],
    USER_RULES[:3],
    USER_RULES[3:],
    *(FUSED[i : i + 4] for i in range(0, len(FUSED), 4)),
]


@st.composite
def problems(draw: st.DrawFn, layouts: list[str]) -> Problem:
    """Any problem. Its first leaves are always there, so that the kernel depends on the rules alone."""
    rules = draw(st.sampled_from(RULES))
    first = [Leaf(group, dtype, (2,), "C", (("f4", "C"),)) for group in range(len(rules)) for dtype in ("f4", "f8")]
    kinds = st.none() | st.tuples(st.sampled_from(["f4", "f8", "i8"]), st.sampled_from([*LAYOUTS, "reused"]))
    same = st.tuples(st.sampled_from(["f4", "f8"]), st.just("reused")).map(lambda kind: (kind,))
    leaves = st.builds(
        Leaf,
        group=st.integers(0, len(rules) - 1),
        dtype=st.sampled_from(["f4", "f8"]),
        shape=st.sampled_from(SHAPES),
        layout=st.sampled_from(layouts),
        gradients=same | st.lists(kinds, min_size=1, max_size=3).map(tuple),
    )
    others = draw(st.lists(leaves, max_size=4))
    return Problem(rules, first + others, draw(st.sampled_from([1, 3, 8])), draw(st.integers(0, 1000)))


@pytest.mark.slow
@settings(max_examples=60)
@given(problems(list(LAYOUTS)))
def test_on_numpy_fused_and_array_agree_to_the_bit(problem: Problem) -> None:
    (numpy,) = opened("numpy")
    expected = problem.run_on_copies()
    assert_same_bits(problem.run(numpy, "array"), expected)
    assert_same_bits(problem.run(numpy, "auto"), expected)
    if all(a.layout in DENSE for a in problem.leaves):
        assert_same_bits(problem.run(numpy, "fused"), expected)


@settings(max_examples=25)
@given(problems(DENSE))
def test_on_cupy_fused_agrees_to_the_bit(problem: Problem) -> None:
    for cupy in opened("cupy"):
        assert_same_bits(problem.run(cupy, "fused"), problem.run_on_copies())


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "-".join(type(rule).__name__ for rule in rules))
def test_a_hundred_steps_agree_to_the_bit(rules: list[gpuopt.Rule], fused_space: Space) -> None:
    leaves = [
        Leaf(group, dtype, shape, "C", ((dtype, "reused"), None, (dtype, "C")))
        for group in range(len(rules))
        for dtype in ("f4", "f8")
        for shape in ((2,), (1029,))
    ]
    problem = Problem(rules, leaves, 100, 7)
    assert_same_bits(problem.run(fused_space, "fused"), problem.run_on_copies())


def transforms() -> st.SearchStrategy[gpuopt.Transform]:
    """Any transform of the package, but for `Scale`, which has an array of one shape."""
    numbers = st.sampled_from([0.0, 0.25, 0.5, 0.999])
    schedules_too = numbers | st.just(lambda step: 0.5 / (step + 1))
    known = [
        st.builds(
            kind,
            **{name: schedules_too for name in kind.hyperparameters() if name not in ("every", "rescale", "outputs")},
        )
        for name, kind in gpuopt.transforms.TRANSFORMS.items()
        if name not in ("Scale", "Box", "Magnitude")
    ]
    return st.one_of(
        *known, st.builds(gpuopt.Box, st.just(-0.5), numbers), st.builds(gpuopt.Magnitude, st.just(0.0), numbers)
    )


@st.composite
def chains(draw: st.DrawFn) -> gpuopt.Rule:
    """Any chain of up to four members that can be made."""
    rule = draw(st.sampled_from(formulas.RULES_ALONE))
    before, after = (draw(st.lists(transforms(), max_size=2)) for _ in range(2))
    try:
        return gpuopt.chain(*before, rule, *after[: 3 - len(before)])
    except ValueError:  # one that stands after and works before
        return gpuopt.chain(*before, *after[: 3 - len(before)], rule)


def of_chain(rule: gpuopt.Rule, seed: int) -> Problem:
    shapes = [(2,), (), (4097,), (3, 0)]
    kinds = ("f4", "f8")
    leaves = [Leaf(0, dtype, shape, "C", ((dtype, "C"), None, (dtype, "C"))) for dtype in kinds for shape in shapes]
    return Problem([rule], leaves, 5, seed)


@pytest.mark.slow
@settings(max_examples=40)
@given(chains(), st.integers(0, 1000))
def test_on_numpy_random_chains_agree_to_the_bit(rule: gpuopt.Rule, seed: int) -> None:
    (numpy,) = opened("numpy")
    problem = of_chain(rule, seed)
    for engine in ("array", "auto", "fused"):
        assert_same_bits(problem.run(numpy, engine), problem.run_on_copies())


@settings(max_examples=10)
@given(chains(), st.integers(0, 1000))
def test_on_cupy_random_chains_agree_to_the_bit(rule: gpuopt.Rule, seed: int) -> None:
    problem = of_chain(rule, seed)
    for cupy in opened("cupy"):
        assert_same_bits(problem.run(cupy, "fused"), problem.run_on_copies())


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_subnormals_are_kept(dtype: str, fused_space: Space) -> None:
    smallest = np.finfo(dtype).smallest_subnormal
    w = fused_space.put(np.array([3 * smallest, 0, -smallest], dtype))
    gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0)).step(fused_space.put(np.array([smallest, -smallest, 0], dtype)))
    np.testing.assert_array_equal(fused_space.get(w), np.array([2 * smallest, smallest, -smallest], dtype))


@pytest.mark.parametrize("size", [1, 10_000, 70_000, 300_001])
def test_sizes_that_are_shared_among_threads(size: int, fused_space: Space) -> None:
    random = np.random.RandomState(0)
    p, g = random.standard_normal((2, size)).astype("f4")
    params = [fused_space.put(p), fused_space.put(p[:5])]
    opt = gpuopt.Optimizer(params, gpuopt.Adam(), engine="fused")
    expected, state = [p, p[:5]], gpuopt.init(gpuopt.Adam(), [p, p[:5]])
    for k in range(3):
        opt.step([fused_space.put(g * k), fused_space.put(g[:5])])
        expected, state = gpuopt.update(gpuopt.Adam(), expected, [g * np.float32(k), g[:5]], state)
    assert_same_bits(dict(enumerate(map(fused_space.get, params))), dict(enumerate(expected)))  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [row.make() for row in ROWS], ids=[row.id for row in ROWS])
def test_the_rules_of_the_package_are_exact(rule: gpuopt.Rule) -> None:
    assert trace(rule).exact
