"""Leaves of float16 and bfloat16: the bits of NumPy and ml_dtypes, computed in float32."""

import pickle
from typing import Any

import numpy as np
import pytest
from conformance import ROWS, Row
from spaces import Space, assert_same_bits, opened

import gpuopt


def dtype_of(name: str) -> Any:
    return np.dtype(getattr(pytest.importorskip("ml_dtypes"), name)) if name == "bfloat16" else np.dtype(name)


def of(space: Space, name: str) -> Any:
    if name == "bfloat16" and space.name == "cupy":
        pytest.skip("CuPy has no bfloat16")
    return dtype_of(name)


each_dtype = pytest.mark.parametrize("name", ["float16", "bfloat16"])


def patterns(dtype: Any) -> Any:
    """All numbers there are, infinities and NaN among them."""
    return np.arange(1 << 16, dtype=np.uint16).view(dtype)


def assert_same(a: Any, b: Any) -> None:
    """As bits, where any NaN is as good as another."""
    assert a.dtype == b.dtype
    wide = a.astype("f4"), b.astype("f4")
    nan = np.isnan(wide[0]) & np.isnan(wide[1])
    np.testing.assert_array_equal(np.where(nan, 0, a.view(np.uint16)), np.where(nan, 0, b.view(np.uint16)))


@each_dtype
@pytest.mark.parametrize("lr", [0.0, 1.0, 2.0**-9 * 1.37, 1e3])
def test_loads_and_stores_are_those_of_the_library(name: str, lr: float, fused_space: Space) -> None:
    dtype = of(fused_space, name)
    p = patterns(dtype)
    g = np.random.RandomState(0).permutation(p)
    with np.errstate(all="ignore"):
        want = (p.astype("f4") - np.float32(lr) * g.astype("f4")).astype(dtype)
    for engine in ("array", "fused"):
        w = fused_space.put(p)
        gpuopt.Optimizer(w, gpuopt.SGD(lr=lr), engine=engine).step(fused_space.put(g))
        assert_same(fused_space.get(w), want)


@each_dtype
@pytest.mark.parametrize("precision", ["state32", "param"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_steps_are_those_of_float32_rounded(row: Row, precision: Any, name: str, fused_space: Space) -> None:
    dtype, random = of(fused_space, name), np.random.RandomState(0)
    start = (1 + random.random_sample(4200)).astype(dtype)
    gradients = [random.standard_normal(4200).astype(dtype) for _ in range(4)]
    p, state = start, gpuopt.init(row.make(), start.astype("f4"))
    for g in gradients:
        wide, state = gpuopt.update(row.make(), p.astype("f4"), g.astype("f4"), state)
        p = wide.astype(dtype)
        if precision == "param":
            state = state._replace(slots={k: x.astype(dtype).astype("f4") for k, x in state.slots.items()})
    for engine in ("array", "fused"):
        w = fused_space.put(start)
        opt = gpuopt.Optimizer(w, row.make(), engine=engine, precision=precision)
        for g in gradients:
            opt.step(fused_space.put(g))
        assert_same(fused_space.get(w), p)
        for slot, x in opt.state_dict()["state"][""].items():
            assert x.dtype == (dtype if precision == "param" else np.float32)
            np.testing.assert_array_equal(fused_space.get(x).astype("f4"), state.slots[slot])


PRECISIONS = {"state32": 1.0, "param": 1.0, "split": 0.99, "stochastic": 0.99}
FITTING = [
    (name, precision)
    for name in ("float16", "bfloat16")
    for precision in PRECISIONS
    if (name, precision) != ("float16", "split")
]
"""Dtypes, and the precisions that are for them."""


@pytest.mark.parametrize(("name", "precision"), FITTING)
def test_small_steps_are_lost_or_not(name: str, precision: Any, fused_space: Space) -> None:
    dtype = of(fused_space, name)
    for engine in ("array", "fused"):
        w = fused_space.put(np.ones(5000, dtype))
        opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1e-4), engine=engine, precision=precision)
        g = fused_space.put(np.ones(5000, dtype))
        for _ in range(100):
            opt.step(g)
        found = fused_space.get(w).astype("f8")
        if precision == "stochastic":
            assert abs(found.mean() - 0.99) < 1e-3
            assert len(np.unique(found)) > 2
        else:
            assert np.unique(found).tolist() == [float(np.asarray(PRECISIONS[precision], "f4").astype(dtype))]


HARD = np.concatenate(
    [
        np.array([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 1e-45, 2.0**-24, 2.0**-25, 3.4e38, 3.3961e38, 65503, 65504]),
        np.array([65519.996, 65520, 65535.9, 65536, 1e30, 6.1e-5, 6.10e-5, 6.09e-5, 5.9e-8, 1 + 2.0**-8, 1 + 2.0**-9]),
        np.random.RandomState(1).standard_normal(9000) * 10.0 ** np.random.RandomState(2).randint(-9, 6, 9000),
    ]
).astype("f4")
"""Of float32, to be stored in 16 bits: among them the limits of both dtypes."""


def split_mix(seed: int, number: int) -> int:
    """Output of SplitMix64, as its authors write it down."""
    state = seed
    for _ in range(number + 1):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        z ^= z >> 31
    return z


def random_bits(seed: int, step: int, leaf: int, size: int) -> Any:
    """The 16 bits of each element, by the documented hash."""
    key, found = split_mix(split_mix(seed, step), leaf), []
    for i in range(size):
        h = i ^ key % 2**32
        h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
        h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
        found.append((h ^ (h >> 16) ^ (key >> 32)) >> 16)
    return np.array(found)


def rounded_at_random(x: Any, bits: Any, dtype: Any) -> Any:
    """In float64: down to the next number, and up if the rest and the random bits make a whole one."""
    fraction, least, largest = (10, -24, 65504.0) if dtype == np.float16 else (7, -133, 2.0**127 * (2 - 2.0**-7))
    with np.errstate(all="ignore"):
        exact = np.abs(x.astype("f8"))
        unit = 2.0 ** np.maximum(np.floor(np.log2(np.where(exact > 0, exact, 1))) - fraction, least)
        chance = np.floor(exact / unit % 1 * 2**16) if dtype != np.float16 else _sixteenths(exact, unit)
        scale = 2**16 if dtype != np.float16 else np.where(exact < 2.0**-14, 2**16, 2**13)
        random = bits if dtype != np.float16 else np.where(exact < 2.0**-14, bits, bits >> 3)
        found = (np.floor(exact / unit) + (chance + random >= scale)) * unit
        found = np.where(np.isfinite(exact) & (found <= largest), found, np.where(np.isnan(exact), np.nan, np.inf))
        return np.copysign(found, x).astype(dtype)


def _sixteenths(exact: Any, unit: Any) -> Any:
    """Of float16, what is beyond a number: in 13 bits, all that float32 has, or among the smallest numbers in 16."""
    return np.floor(exact / unit % 1 * np.where(exact < 2.0**-14, 2**16, 2**13))


@each_dtype
def test_random_rounding_is_the_documented_one(name: str, fused_space: Space) -> None:
    dtype, seed = of(fused_space, name), 2**64 - 3
    for engine in ("array", "fused"):
        leaves = {k: fused_space.put(np.zeros(HARD.size, dtype)) for k in "ab"}
        opt = gpuopt.Optimizer(leaves, gpuopt.SGD(lr=1.0), engine=engine, precision=gpuopt.Stochastic(seed))
        zero = np.zeros(HARD.size, dtype)
        opt.step({"a": None, "b": fused_space.put(zero)})
        opt.step({"a": None, "b": fused_space.put(-HARD)})  # of float32: its bits arrive
        want = rounded_at_random(HARD + zero.astype("f4"), random_bits(seed, 1, 1, HARD.size), dtype)
        assert_same(fused_space.get(leaves["b"]), want)
        assert not fused_space.get(leaves["a"]).any()


@each_dtype
def test_random_rounding_follows_memory(name: str, fused_space: Space) -> None:
    dtype, random = of(fused_space, name), np.random.RandomState(0)
    start, g = random.random_sample((70, 80)).astype(dtype), random.standard_normal((70, 80)).astype(dtype)
    for layout in ("C", "F", "strided", "reversed"):
        found = []
        for engine in ("array", "auto"):
            w = fused_space.put(start, layout)
            opt = gpuopt.Optimizer(w, gpuopt.Adam(0.01), engine=engine, precision="stochastic")
            for _ in range(2):
                opt.step(fused_space.put(g))
            found.append(fused_space.get(w))
        assert_same(*found)


NUMPY = next(opened("numpy"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_split_is_float32_to_the_bit(row: Row) -> None:
    dtype, random = dtype_of("bfloat16"), np.random.RandomState(0)
    start = (1 + random.random_sample((60, 71))).astype(dtype)
    gradients = [random.standard_normal(start.shape).astype(dtype) for _ in range(4)]
    engines: list[tuple[Any, str]] = [("array", "C"), ("fused", "F"), ("auto", "strided")]
    for engine, layout in engines:
        w, wide = NUMPY.put(start, layout), NUMPY.put(start.astype("f4"), layout)
        opt = gpuopt.Optimizer(w, row.make(), engine=engine, precision="split")
        other = gpuopt.Optimizer(wide, row.make(), engine=engine)
        for g in gradients:
            opt.step(g)
            other.step(g.astype("f4"))
            low = opt.state_dict()["state"][""]["split.low"]
            assert low.dtype == np.uint16
            np.testing.assert_array_equal(joined(w, low), np.ascontiguousarray(wide).view(np.uint32))
        assert np.abs(w.astype("f4") - wide).max() <= 2.0**-8 * np.abs(wide).max()


def joined(w: Any, low: Any) -> Any:
    """The bits of the float32: the lower ones are a signed number that is added to the upper ones."""
    high = np.ascontiguousarray(w).view(np.uint16).astype(np.int64)
    return ((high << 16) + np.ascontiguousarray(low).view(np.int16)).astype(np.uint32)


def test_split_of_hard_numbers() -> None:
    for engine in ("array", "fused"):
        w = np.zeros(HARD.size, dtype_of("bfloat16"))
        opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), engine=engine, precision="split")
        opt.step(-HARD)
        low = opt.state_dict()["state"][""]["split.low"]
        finite = np.isfinite(HARD)
        np.testing.assert_array_equal(joined(w, low)[finite], (HARD + np.float32(0)).view(np.uint32)[finite])
        assert_same(w[~finite], HARD[~finite].astype(w.dtype))
        away = w.view(np.uint16).astype("i8") - HARD.astype(w.dtype).view(np.uint16)
        assert set(np.unique(away[finite & (HARD != 0)])) <= {0, 1}  # ties go up, not to even
        opt.step(np.zeros_like(HARD))
        np.testing.assert_array_equal(joined(w, low)[finite], (HARD + np.float32(0)).view(np.uint32)[finite])
        w[:] = 0  # by somebody else: a projection
        opt.step(np.zeros_like(HARD))
        assert not w.astype("f4").any()


@pytest.mark.parametrize(
    ("leaves", "precision", "words"),
    [
        (
            {"w": "f2"},
            "split",
            r"params\['w'\]: dtype float16, expected bfloat16 for precision='split'; .*'stochastic'",
        ),
        ({"w": "bfloat16", "x": "f2"}, "split", r"params\['x'\]: dtype float16, expected bfloat16"),
        ({"w": "f4"}, "split", r"params\['w'\]: dtype float32, expected bfloat16 for precision='split'"),
        ({"w": "c8"}, "stochastic", r"params\['w'\]: dtype complex64, expected bfloat16 or float16"),
    ],
)
def test_precisions_of_other_leaves(leaves: dict[str, str], precision: Any, words: str) -> None:
    params = {k: np.ones(3, dtype_of(name)) for k, name in leaves.items()}
    with pytest.raises(TypeError, match=words):
        gpuopt.Optimizer(params, gpuopt.SGD(), precision=precision)


def test_larger_leaves_are_kept_as_they_are_beside_small_ones(fused_space: Space) -> None:
    w = {"half": fused_space.put(np.ones(3, "f2")), "w": fused_space.put(np.ones(3, "f4")), "frozen": np.ones(3)}
    rules = {"frozen": None, "*": gpuopt.SGD(lr=1.0)}
    opt = gpuopt.Optimizer(w, rules, precision="stochastic")
    opt.step({"half": fused_space.put(np.ones(3, "f2")), "w": fused_space.put(np.full(3, 1e-7, "f4")), "frozen": None})
    assert fused_space.get(w["w"]).tolist() == [float(np.float32(1 - 1e-7))] * 3


@each_dtype
@pytest.mark.parametrize("rule", [gpuopt.LAMB(), gpuopt.Prodigy(), gpuopt.LBFGS(memory=2)], ids=lambda rule: rule.name)
def test_reductions(rule: gpuopt.Rule, name: str, fused_space: Space) -> None:
    dtype, random = of(fused_space, name), np.random.RandomState(0)
    start, gradients = random.random_sample(5000), [random.standard_normal(5000) for _ in range(3)]
    found = []
    for engine in ("array", "auto"):
        w = fused_space.put(start.astype(dtype))
        opt = gpuopt.Optimizer(w, rule, engine=engine, clip=gpuopt.clip_by_global_norm(1.0))
        for g in gradients:
            opt.step(fused_space.put(g.astype(dtype)))
        found.append(fused_space.get(w))
    assert_same(*found)


def test_overflow_is_seen(fused_space: Space) -> None:
    for engine in ("array", "fused"):
        w = fused_space.put(np.full(3, 60000, "f2"))
        opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), engine=engine, nonfinite="skip")
        opt.step(fused_space.put(np.full(3, -60000, "f2")))
        assert np.isinf(fused_space.get(w)).all()
        opt.step(fused_space.put(np.full(3, np.inf, "f2")))
        assert opt.skipped == 1


@pytest.mark.parametrize(
    ("name", "precision"), [*FITTING, *((name, gpuopt.Stochastic(7)) for name in ("float16", "bfloat16"))], ids=str
)
def test_goes_on_from_a_file_to_the_same_bits(name: str, precision: Any, tmp_path: Any) -> None:
    dtype, random = dtype_of(name), np.random.RandomState(0)
    gradients = [random.standard_normal((3, 5)).astype(dtype) for _ in range(5)]

    def made() -> gpuopt.Optimizer:
        return gpuopt.Optimizer({"w": np.ones((3, 5), dtype)}, gpuopt.Adam(0.1), precision=precision)

    whole, first, second = made(), made(), made()
    if isinstance(precision, gpuopt.Stochastic):  # the seed comes with the state
        second = gpuopt.Optimizer({"w": np.ones((3, 5), dtype)}, gpuopt.Adam(0.1), precision="stochastic")
    for i, g in enumerate(gradients):
        whole.step({"w": g})
        (first if i < 3 else second).step({"w": g})
        if i == 2:
            gpuopt.save(tmp_path / "run.safetensors", first)
            gpuopt.load(tmp_path / "run.safetensors", second)
            third = pickle.loads(pickle.dumps(first))
            fourth = first.with_params({"w": first.params["w"].copy()})
        elif i > 2:
            third.step({"w": g})
            fourth.step({"w": g})
    for opt in (second, third, fourth):
        assert_same(opt.params["w"], whole.params["w"])
    assert_same_bits(
        {k: x.astype("f4") for k, x in second.state_dict()["state"]["w"].items()},
        {k: x.astype("f4") for k, x in whole.state_dict()["state"]["w"].items()},
    )


def test_mixed_with_other_leaves_and_gaps(fused_space: Space) -> None:
    random = np.random.RandomState(0)
    start = {"half": random.random_sample((30, 7)).astype("f2"), "z": np.ones(5, "c8"), "w": np.ones(3)}
    found = []
    for engine in ("array", "auto"):
        params = {k: fused_space.put(x, "strided" if k == "half" else "C") for k, x in start.items()}
        opt = gpuopt.Optimizer(params, gpuopt.chain(gpuopt.ClipGlobalNorm(1.0), gpuopt.Adam(0.1)), engine=engine)
        opt.step({k: fused_space.put((x * 2).astype("f8" if k == "half" else x.dtype)) for k, x in start.items()})
        found.append({k: fused_space.get(x) for k, x in params.items()})
    assert_same_bits(*found)


@each_dtype
def test_gradients_keep_their_bits(name: str, fused_space: Space) -> None:
    dtype, random = of(fused_space, name), np.random.RandomState(0)
    start = random.random_sample(4500).astype(dtype)
    exact = random.standard_normal(4500) * 1e-3
    kinds = [dtype, np.dtype("f4"), np.dtype("f8"), dtype, np.dtype("i4")]
    wide, rule = start.astype("f4"), gpuopt.chain(gpuopt.ClipGlobalNorm(0.01), gpuopt.Adam(0.1))
    state = gpuopt.init(rule, wide)
    norms = []
    for kind in kinds:
        g = exact.astype(kind) if kind != dtype else exact.astype(dtype)
        norms.append(float(np.sqrt(np.sum(g.astype("f8") ** 2))))
        new, state = gpuopt.update(rule, wide, g.astype("f4"), state)
        wide = new.astype(dtype).astype("f4")
    for engine in ("array", "fused", "auto"):
        w = fused_space.put(start, "strided" if engine == "auto" else "C")
        opt = gpuopt.Optimizer(w, rule, engine=engine, nonfinite="skip")
        for kind, norm in zip(kinds, norms, strict=True):
            opt.step(fused_space.put(exact.astype(kind)))
            assert abs(opt.gradient_norm - norm) <= 1e-6 * norm
        assert_same(fused_space.get(w), wide.astype(dtype))


def test_a_gradient_in_its_own_leafs_memory() -> None:
    buffer = np.ones(10, "f4")
    w = buffer.view("f2")[:10]
    w[:] = 1
    g = buffer[:10]
    want = w.astype("f4") - g
    gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), engine="fused").step(g)
    assert_same(w, want.astype("f2"))


@pytest.mark.parametrize(
    ("precision", "state"), [("state32", 8), ("param", 4), ("split", 10), ("stochastic", 8)], ids=str
)
def test_memory_is_that_of_the_table_in_the_documentation(precision: Any, state: int) -> None:
    opt = gpuopt.Optimizer(np.ones(10, dtype_of("bfloat16")), gpuopt.Adam(), precision=precision)
    assert sum(x.nbytes for x in opt.state_dict()["state"][""].values()) == 10 * state


def test_seeds() -> None:
    with pytest.raises(ValueError, match=r"Stochastic: seed: -1, expected an integer from 0"):
        gpuopt.Stochastic(-1)
    plain = gpuopt.Optimizer(np.ones(3, "f2"), gpuopt.SGD())
    random = gpuopt.Optimizer(np.ones(3, "f2"), gpuopt.SGD(), precision=gpuopt.Stochastic(5))
    assert random.state_dict()["seed"] == 5
    with pytest.raises(ValueError, match=r"seed: unexpected"):
        plain.load_state_dict(random.state_dict())
    with pytest.raises(ValueError, match=r"seed: .*None, expected an integer"):
        random.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("engine", ["auto", "array"])
def test_frozen_leaves_have_no_other_half(engine: Any) -> None:
    params = {"a": np.full(3, 2, dtype_of("bfloat16")), "b": np.ones(3, dtype_of("bfloat16"))}
    rules = {"a": None, "b": gpuopt.SGD(0.5)}
    opt = gpuopt.Optimizer(params, rules, precision="split", engine=engine)
    opt.step({"a": None, "b": np.ones(3, "f4")})
    assert opt.evaluation() is params
    assert (params["a"].tolist(), params["b"].tolist()) == ([2.0] * 3, [0.5] * 3)
    assert list(opt.state_dict()["state"]["a"]) == []


def test_precisions_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"precision: 'double', expected one of 'state32', 'param'"):
        gpuopt.Optimizer(np.ones(3, "f2"), gpuopt.SGD(), precision="double")  # type: ignore[arg-type]


WAYS = [
    (name, precision)
    for name in ("float16", "bfloat16")
    for precision in ("state32", "param", "split", gpuopt.Stochastic(7))
    if (name, precision) != ("float16", "split")
]


@pytest.mark.parametrize(("name", "precision"), WAYS, ids=str)
def test_pure_functions(name: str, precision: Any, fused_space: Space) -> None:
    dtype, random = of(fused_space, name), np.random.RandomState(0)
    shapes = {"a": (50, 7), "b": (9,), "c": (5,), "d": ()}
    own = {k: random.standard_normal(shape).astype("f4" if k == "b" else dtype) for k, shape in shapes.items()}
    own, pure = ({k: fused_space.put(x) for k, x in own.items()} for _ in range(2))
    rule = {"c": None, "*": gpuopt.chain(gpuopt.Adam(lr=0.1), gpuopt.EMA(0.9))}
    opt = gpuopt.Optimizer(own, rule, precision=precision)
    state = gpuopt.init(rule, pure, precision=precision)
    for _ in range(3):
        grads = {
            k: fused_space.put(np.asarray(random.standard_normal(x.shape)).astype(x.dtype)) for k, x in own.items()
        }
        opt.step(grads)
        pure, state = gpuopt.update(rule, pure, grads, state)
    for a, b in ((pure, own), (gpuopt.evaluation(rule, pure, state), opt.evaluation())):
        assert_same_bits(*({k: fused_space.get(x) for k, x in tree.items()} for tree in (a, b)))
    for k in "abd":
        for slot, x in opt.state_dict()["state"][k].items():
            np.testing.assert_array_equal(fused_space.get(x), fused_space.get(state.slots[slot][k]))


def test_pure_functions_take_what_fits_their_precision() -> None:
    dtype, rule = dtype_of("bfloat16"), gpuopt.SGD()
    w = np.ones(3, dtype)
    state = gpuopt.init(rule, w, precision="split")
    assert repr(state) == (
        "State(steps=0, slots={'split.low': array([0, 0, 0], dtype=uint16)}, precision={'split': {}})"
    )
    with pytest.raises(TypeError, match="params: dtype float16, expected bfloat16 for precision='split'"):
        gpuopt.init(rule, np.ones(3, "f2"), precision="split")
    with pytest.raises(TypeError, match="params: dtype float32, expected bfloat16 for precision='split'"):
        gpuopt.update(rule, np.ones(3, "f4"), np.ones(3, "f4"), state)
    with pytest.raises(
        ValueError, match=r"state\.slots\['split\.low'\]: None, expected a numpy array of \(3,\), .*uint16"
    ):
        gpuopt.update(rule, w, w, state._replace(slots={"split.low": None}))
    with pytest.raises(ValueError, match=r"state\.precision: \{'double': \{\}\}, expected what gpuopt\.init"):
        gpuopt.update(rule, w, w, state._replace(precision={"double": {}}))
    with pytest.raises(ValueError, match="precision: 'double', expected one of"):
        gpuopt.init(rule, w, precision="double")  # type: ignore[arg-type]


@pytest.mark.peers
@pytest.mark.parametrize("precision", ["param", "split"])
def test_pure_functions_under_jit(precision: Any) -> None:
    jax = pytest.importorskip("jax")
    dtype, rule, random = dtype_of("bfloat16"), gpuopt.Adam(lr=1e-3), np.random.RandomState(0)
    own = random.standard_normal(1000).astype(dtype)
    w = jax.numpy.asarray(own)
    opt, state = gpuopt.Optimizer(own, rule, precision=precision), gpuopt.init(rule, w, precision=precision)
    compiled = jax.jit(lambda p, g, s: gpuopt.update(rule, p, g, s))
    for _ in range(5):
        g = random.standard_normal(1000).astype(dtype)
        opt.step(g)
        w, state = compiled(w, jax.numpy.asarray(g), state)
    np.testing.assert_allclose(np.asarray(w).astype("f4"), own.astype("f4"), rtol=2.0**-8, atol=1e-4)
    with pytest.raises(
        TypeError, match=r"params: a jax.* array, expected one of NumPy or CuPy for precision='stochastic'"
    ):
        gpuopt.init(rule, w, precision="stochastic")


def test_frozen_leaves_have_nothing_beside_them() -> None:
    params = {k: np.ones(3, dtype_of("bfloat16")) for k in "ab"}
    opt = gpuopt.Optimizer(params, {"a": None, "b": gpuopt.SGD()}, precision="split")
    assert opt.evaluation() is params
    assert list(opt.state_dict()["state"]["a"]) == []


def test_cupy_is_not_for_bfloat16(cupy_space: Space) -> None:
    try:
        w = cupy_space.xp.asarray(np.ones(3, dtype_of("bfloat16")))
    except (TypeError, ValueError):
        pytest.skip("this CuPy has no bfloat16")
    for make in (gpuopt.Optimizer, lambda p, rule: gpuopt.init(rule, p)):
        with pytest.raises(TypeError, match=r"params\['w'\]: dtype bfloat16 of CuPy, expected float16 or wider"):
            make({"w": w}, gpuopt.SGD())
