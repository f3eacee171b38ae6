"""Leaves of float16 and bfloat16: the bits of NumPy and ml_dtypes, computed in float32."""

import pickle
from typing import Any

import numpy as np
import pytest
from conformance import ROWS, Row
from spaces import Space, assert_same_bits

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


@each_dtype
def test_small_steps_are_lost(name: str) -> None:
    w = np.ones(3, dtype_of(name))
    opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1e-4))
    for _ in range(100):
        opt.step(np.ones(3, w.dtype))
    assert w.astype("f4").tolist() == [1.0] * 3


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


@each_dtype
@pytest.mark.parametrize("precision", ["state32", "param"])
def test_goes_on_from_a_file_to_the_same_bits(name: str, precision: Any, tmp_path: Any) -> None:
    dtype, random = dtype_of(name), np.random.RandomState(0)
    gradients = [random.standard_normal((3, 5)).astype(dtype) for _ in range(5)]

    def made() -> gpuopt.Optimizer:
        return gpuopt.Optimizer({"w": np.ones((3, 5), dtype)}, gpuopt.Adam(0.1), precision=precision)

    whole, first, second = made(), made(), made()
    for i, g in enumerate(gradients):
        whole.step({"w": g})
        (first if i < 3 else second).step({"w": g})
        if i == 2:
            gpuopt.save(tmp_path / "run.safetensors", first)
            gpuopt.load(tmp_path / "run.safetensors", second)
            third = pickle.loads(pickle.dumps(first))
        elif i > 2:
            third.step({"w": g})
    for opt in (second, third):
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


def test_precisions_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"precision: 'double', expected one of 'state32', 'param'"):
        gpuopt.Optimizer(np.ones(3, "f2"), gpuopt.SGD(), precision="double")  # type: ignore[arg-type]


def test_pure_functions() -> None:
    w, rule = np.ones(3, "f2"), gpuopt.Adam(0.1)
    state = gpuopt.init(rule, w)
    assert state.slots["m"].dtype == np.float32
    new, state = gpuopt.update(rule, w, np.ones(3, "f2"), state)
    assert new.dtype == np.float16
    np.testing.assert_array_equal(new, np.float16(0.9))
