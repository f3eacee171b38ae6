"""Clipping and non-finite gradients: every engine against NumPy in float64, and against each other to the bit."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from spaces import opened

import gpuopt

if TYPE_CHECKING:
    from pathlib import Path

    from spaces import Space

SHAPES = {"a": (3,), "b": (70, 70), "c": (), "d": (0, 2), "e": (9001,)}
CLIPS = {
    "value": gpuopt.clip_by_value(0.5),
    "norm": gpuopt.clip_by_norm(2.0),
    "global_norm": gpuopt.clip_by_global_norm(2.0),
    "scheduled": gpuopt.clip_by_global_norm(gpuopt.schedules.inverse_time(5.0, decay=0.5)),
}


def draw(seed: int, dtype: str, scale: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape) * scale, dtype) for name, shape in SHAPES.items()}


def clipped(by: str, grads: dict[str, Any], step: int) -> dict[str, Any]:
    """The formulas in float64."""
    exact = {name: np.asarray(g, np.float64) for name, g in grads.items()}
    norms = {name: float(np.linalg.norm(g)) for name, g in exact.items()}
    total = math.hypot(*norms.values())
    match by:
        case "value":
            return {name: np.clip(g, -0.5, 0.5) for name, g in exact.items()}
        case "norm":
            return {name: g * min(1.0, 2.0 / (norms[name] or 1.0)) for name, g in exact.items()}
        case "global_norm":
            return {name: g * min(1.0, 2.0 / total) for name, g in exact.items()}
        case _:
            return {name: g * min(1.0, 5.0 / (1 + 0.5 * step) / total) for name, g in exact.items()}


def run(space: Space, engine: Any, clip: Any, dtype: str, steps: int = 4) -> tuple[gpuopt.Optimizer, dict[str, Any]]:
    params = {name: space.put(p) for name, p in draw(0, dtype).items()}
    opt = gpuopt.Optimizer(params, gpuopt.SGD(lr=0.25, momentum=0.5), engine=engine, clip=clip)
    for k in range(steps):
        opt.step({name: space.put(g) for name, g in draw(k + 1, dtype).items()})
    return opt, {name: space.get(p) for name, p in params.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", ["array", "auto"])
@pytest.mark.parametrize("by", CLIPS)
def test_clipping_follows_its_formula(space: Space, engine: str, by: str, dtype: str) -> None:
    opt, got = run(space, engine, CLIPS[by], dtype)
    want = {name: np.asarray(p, np.float64) for name, p in draw(0, dtype).items()}
    velocity = {name: np.zeros_like(p) for name, p in want.items()}
    for k in range(4):
        for name, g in clipped(by, draw(k + 1, dtype), k).items():
            velocity[name] = 0.5 * velocity[name] - 0.25 * g
            want[name] = want[name] + velocity[name]
    tolerance = 1e-6 if dtype == "float32" else 1e-14
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=tolerance, atol=tolerance)
    if by != "value":
        exact = math.hypot(*(float(np.linalg.norm(np.asarray(g, np.float64))) for g in draw(4, dtype).values()))
        assert opt.gradient_norm == pytest.approx(exact, rel=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("by", CLIPS)
def test_clipping_gives_the_same_bits_on_every_engine(fused_space: Space, by: str, dtype: str) -> None:
    (reference,) = opened("numpy")
    _, want = run(reference, "array", CLIPS[by], dtype)
    _, got = run(fused_space, "fused", CLIPS[by], dtype)
    for name, value in want.items():
        assert value.tobytes() == got[name].tobytes(), name


@pytest.mark.parametrize("size", [1e200, 1e-200, 1e-310])
def test_norms_neither_overflow_nor_underflow(space: Space, size: float) -> None:
    w = space.put(np.zeros(3))
    opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), clip=gpuopt.clip_by_norm(size))
    opt.step(space.put(np.asarray([3.0, 0.0, -4.0]) * size))
    assert opt.gradient_norm == pytest.approx(5 * size, rel=1e-13)
    np.testing.assert_allclose(space.get(w), np.asarray([-0.6, 0, 0.8]) * size, rtol=1e-9)


# Gradients of a float32 and of a float64, the norm of both together, and whether all that is in them is finite.
EDGES = {
    "infinity beside large ones": ([math.inf, 1.0], [1e200, 1e20], math.inf, False),
    "NaN beside large ones": ([math.nan, 1.0], [1e200, 1e20], math.nan, False),
    "infinity beside small ones": ([math.inf, 1.0], [1e-200, 0.0], math.inf, False),
    "large beside ordinary ones": ([3.0, 1.0], [3e200, 4e200], 5e200, True),
    "tiny beside none": ([0.0, 0.0], [3e-200, 4e-200], 5e-200, True),
    "a norm beyond float64": ([1.0, 1.0], [1.7e308, 1.7e308], math.inf, True),
}


@pytest.mark.parametrize("engine", ["array", "auto"])
@pytest.mark.parametrize("case", EDGES)
def test_norms_of_several_leaves_and_what_is_finite(space: Space, engine: Any, case: str) -> None:
    single, double, norm, finite = EDGES[case]
    params = [space.put(np.zeros(2, "f4")), space.put(np.zeros(2))]
    opt = gpuopt.Optimizer(
        params, gpuopt.SGD(lr=1.0), engine=engine, clip=gpuopt.clip_by_global_norm(1.0), nonfinite="skip"
    )
    opt.step([space.put(np.asarray(single, "f4")), space.put(np.asarray(double))])
    assert opt.gradient_norm == pytest.approx(norm, rel=1e-13, nan_ok=True)
    assert opt.skipped == (not finite)
    if finite and math.isfinite(norm):
        np.testing.assert_allclose(space.get(params[1]), -np.asarray(double) * min(1, 1 / norm), rtol=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("engine", ["array", "auto"])
def test_what_is_infinite_once_it_is_cast(space: Space, engine: Any) -> None:
    w = space.put(np.ones(3, "f4"))
    opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), engine=engine, nonfinite="skip")
    opt.step(space.put(np.asarray([1e300, 1, 1])))
    assert (opt.skipped, space.get(w).tolist()) == (1, [1, 1, 1])


def test_the_norm_of_what_nobody_looks_at(space: Space) -> None:
    w = space.put(np.ones(3))
    opt = gpuopt.Optimizer(w, gpuopt.SGD())
    opt.step(space.put(np.ones(3)))
    assert math.isnan(opt.gradient_norm)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("engine", ["array", "auto"])
@pytest.mark.parametrize("clip", [None, "value", "global_norm"])
def test_skip_leaves_parameters_and_state_but_counts(space: Space, engine: Any, clip: str | None, bad: float) -> None:
    params = {name: space.put(p) for name, p in draw(0, "float32").items()}
    how = CLIPS[clip] if clip else None
    opt = gpuopt.Optimizer(params, gpuopt.Adam(), engine=engine, clip=how, nonfinite="skip")
    opt.step({name: space.put(g) for name, g in draw(1, "float32").items()})
    before = snapshot(space, opt)
    grads = draw(2, "float32")
    grads["e"][8999] = bad
    opt.step({name: space.put(g) for name, g in grads.items()})
    assert snapshot(space, opt) == before
    assert (opt.steps, opt.skipped) == (2, 1)
    opt.step({name: space.put(g) for name, g in draw(3, "float32").items()})
    assert snapshot(space, opt) != before
    assert (opt.steps, opt.skipped) == (3, 1)


@pytest.mark.parametrize("engine", ["array", "auto"])
def test_the_count_of_steps_that_were_left_out_is_a_part_of_the_state(
    fused_space: Space, engine: Any, tmp_path: Path
) -> None:
    def made(*gradients: float) -> gpuopt.Optimizer:
        opt = gpuopt.Optimizer(fused_space.put(np.ones(3)), gpuopt.SGD(), engine=engine, nonfinite="skip")
        for g in gradients:
            opt.step(fused_space.put(np.full(3, g)))
        return opt

    opt, other = made(math.nan, 1.0, math.nan), made(math.nan)
    gpuopt.save(tmp_path / "file", opt)
    gpuopt.load(tmp_path / "file", other)
    assert other.skipped == opt.skipped == opt.state_dict()["skipped"] == 2
    other.step(fused_space.put(np.full(3, math.nan)))
    assert other.skipped == 3
    opt.load_state_dict(made(1.0).state_dict())
    assert opt.skipped == 0
    with pytest.raises(ValueError, match="skipped: -1, expected a number of steps"):
        opt.load_state_dict({**opt.state_dict(), "skipped": -1})


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_copy_knows_of_the_steps_that_were_left_out(fused_space: Space, nonfinite: Any) -> None:
    opt = gpuopt.Optimizer(fused_space.put(np.ones(3)), gpuopt.SGD(), nonfinite=nonfinite)

    def step_and_copy() -> gpuopt.Optimizer:
        opt.step(fused_space.put(np.full(3, math.nan)))
        return copy.deepcopy(opt)

    if nonfinite == "skip":
        assert (step_and_copy().skipped, opt.skipped) == (1, 1)
    else:
        with pytest.raises(FloatingPointError, match="NaN or infinity at step 0"):
            step_and_copy()
        assert (copy.deepcopy(opt).steps, opt.steps) == (0, 0)


@pytest.mark.parametrize("engine", ["array", "auto"])
def test_raise_names_the_leaf_and_changes_nothing(space: Space, engine: Any) -> None:
    params = {name: space.put(p) for name, p in draw(0, "float32").items()}
    opt = gpuopt.Optimizer(params, gpuopt.Adam(), engine=engine, nonfinite="raise")
    opt.step({name: space.put(g) for name, g in draw(1, "float32").items()})
    before = snapshot(space, opt)
    grads = draw(2, "float32")
    grads["b"][69, 69] = math.nan
    bad = {name: space.put(g) for name, g in grads.items()}
    with pytest.raises(FloatingPointError, match=r"grads\['b'\]: NaN or infinity at step 1; that step changed nothing"):
        repeat(opt, bad, 3)  # a GPU tells later
    assert opt.steps == 1
    assert snapshot(space, opt) == before
    opt.step({name: space.put(g) for name, g in draw(3, "float32").items()})
    assert opt.steps == 2
    assert snapshot(space, opt) != before


@pytest.mark.parametrize("ask", ["state_dict", "evaluation"])
def test_a_state_is_not_told_with_steps_that_did_not_happen(space: Space, ask: str) -> None:
    w = space.put(np.ones(3, "float32"))
    opt = gpuopt.Optimizer(w, gpuopt.SGD(), nonfinite="raise")
    with pytest.raises(FloatingPointError, match="grads: NaN or infinity at step 0"):
        repeat(opt, space.put(np.asarray([1, math.nan, 1], "float32")), 1, ask)
    assert opt.state_dict()["steps"] == 0


@pytest.mark.parametrize("limit", [-1.0, math.nan, math.inf, "1", None])
def test_a_limit_is_checked(limit: Any) -> None:
    for make in (gpuopt.clip_by_value, gpuopt.clip_by_norm, gpuopt.clip_by_global_norm):
        with pytest.raises((TypeError, ValueError), match="limit"):
            make(limit)


def repeat(opt: gpuopt.Optimizer, grads: Any, times: int, ask: str = "state_dict") -> None:
    for _ in range(times):
        opt.step(grads)
    getattr(opt, ask)()


def snapshot(space: Space, opt: gpuopt.Optimizer) -> list[bytes]:
    state = opt.state_dict()
    arrays = [*state["params"].values(), *(a for own in state["state"].values() for a in own.values())]
    return [space.get(a).tobytes() for a in arrays]


@pytest.mark.parametrize("name", [name for name in CLIPS if name != "scheduled"])
def test_clipping_is_written_as_it_was_made(name: str) -> None:
    assert repr(CLIPS[name]) == f"clip_by_{name}({0.5 if name == 'value' else 2.0})"


def test_of_very_many_bad_gradients_the_first_are_named() -> None:
    params = [np.zeros(1) for _ in range(1000)]
    opt = gpuopt.Optimizer(params, gpuopt.SGD(), nonfinite="raise")
    with pytest.raises(
        FloatingPointError, match=r"^grads\[0\], .*, grads\[19\] and 980 more: NaN or infinity at step 0"
    ):
        opt.step([np.full(1, np.nan) for _ in params])
