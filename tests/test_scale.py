"""Scaled losses: what the optimizer makes of their gradients, against a reference in float64."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
from spaces import Space, assert_same_bits

import gpuopt

SHAPES = {"a": (5,), "b": (70, 70), "c": ()}
BAD = {3: math.inf, 4: math.nan, 11: -math.inf}
"""Steps whose gradients are not finite."""


def draw(seed: int, dtype: str) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def scaled(step: int, scale: float, dtype: str) -> dict[str, Any]:
    """The gradients of a loss that was multiplied by ``scale``."""
    grads = {name: np.asarray(g * scale, dtype) for name, g in draw(step + 1, "f8").items()}
    if step in BAD:
        grads["b"][1, 2] = BAD[step]
    return grads


class Reference:
    """SGD with momentum and clipping by the global norm, with a scale that falls and grows, in float64."""

    def __init__(self, dtype: str, scale: gpuopt.DynamicScale) -> None:
        self.params = {name: np.asarray(p, "f8") for name, p in draw(0, dtype).items()}
        self.velocity = {name: np.zeros_like(p) for name, p in self.params.items()}
        self.scale, self.factor, self.every, self.good, self.skipped = scale.initial, scale.factor, scale.every, 0, 0

    def step(self, grads: dict[str, Any]) -> float:
        if not all(np.isfinite(g).all() for g in grads.values()):
            self.scale, self.good, self.skipped = self.scale / self.factor, 0, self.skipped + 1
            return math.nan
        exact = {name: np.asarray(g, "f8") / self.scale for name, g in grads.items()}
        norm = math.sqrt(sum(float(np.sum(g * g)) for g in exact.values()))
        for name, g in exact.items():
            self.velocity[name] = 0.5 * self.velocity[name] - 0.25 * g * min(1.0, 30.0 / norm)
            self.params[name] = self.params[name] + self.velocity[name]
        self.good += 1
        if self.good == self.every:
            self.scale, self.good = self.scale * self.factor, 0
        return norm


RULE = gpuopt.SGD(lr=0.25, momentum=0.5)
SCALES = {
    "powers of 2": gpuopt.DynamicScale(2.0**10, every=3),
    "others": gpuopt.DynamicScale(1000.0, factor=3, every=2),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("engine", ["array", "auto"])
def test_dynamic_scale_follows_its_formula(engine: Any, scale: gpuopt.DynamicScale, dtype: str, space: Space) -> None:
    reference = Reference(dtype, scale)
    params = {name: space.put(p) for name, p in draw(0, dtype).items()}
    clip = gpuopt.clip_by_global_norm(30.0)
    opt = gpuopt.Optimizer(params, RULE, engine=engine, scale=scale, clip=clip)
    for step in range(20):
        assert opt.scale == reference.scale == float(opt.scale_array)
        grads = scaled(step, reference.scale, dtype)
        norm = reference.step(grads)
        opt.step({name: space.put(g) for name, g in grads.items()})
        assert step in BAD or opt.gradient_norm == pytest.approx(norm, rel=1e-12)
    assert opt.skipped == reference.skipped == len(BAD)
    assert opt.steps == 20
    for name, want in reference.params.items():
        tolerance = 1e-6 if dtype == "float32" else 1e-14
        np.testing.assert_allclose(space.get(params[name]), want, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("clip", [None, gpuopt.clip_by_value(0.5), gpuopt.clip_by_norm(1.0)], ids=str)
@pytest.mark.parametrize("scale", [8.0, 3.0, gpuopt.DynamicScale(2.0**8, every=2)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_same_bits_on_every_engine(dtype: str, scale: Any, clip: Any, fused_space: Space) -> None:
    found = []
    for engine in ("array", "fused"):
        params = {name: fused_space.put(p) for name, p in draw(0, dtype).items()}
        opt = gpuopt.Optimizer(params, gpuopt.Adam(0.1), engine=engine, scale=scale, clip=clip, nonfinite="skip")
        for step in range(6):
            opt.step({name: fused_space.put(g) for name, g in scaled(step, opt.scale, dtype).items()})
        assert opt.skipped == 2
        found.append(fused_space.got(opt))
    assert_same_bits(*found)


@pytest.mark.parametrize("clip", [None, gpuopt.clip_by_value(0.5), gpuopt.clip_by_global_norm(1.0)], ids=str)
def test_a_power_of_2_changes_no_bit(clip: Any, fused_space: Space) -> None:
    found = []
    for scale in (None, 2.0**7, gpuopt.DynamicScale(2.0**7)):
        params = {name: fused_space.put(p) for name, p in draw(0, "float32").items()}
        opt = gpuopt.Optimizer(params, gpuopt.Adam(0.1), scale=scale, clip=clip)
        for step in range(3):
            opt.step({name: fused_space.put(g) for name, g in scaled(step, opt.scale, "float32").items()})
        found.append(fused_space.got(opt))
    for other in found[1:]:
        assert_same_bits(found[0], other)


def test_a_number_is_divided_by(fused_space: Space) -> None:
    g = np.random.RandomState(0).standard_normal(1000).astype("f4")
    w = fused_space.put(np.zeros(1000, "f4"))
    gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), scale=1000).step(fused_space.put(g))
    np.testing.assert_array_equal(fused_space.get(w), -(g / np.float32(1000)))


def test_complex_leaves_and_several_places_of_decision() -> None:
    found = []
    for scale in (None, gpuopt.DynamicScale(2.0**5)):
        params = {"z": np.ones(5, "c8"), "w": np.ones((4, 6))[:, ::2]}
        opt = gpuopt.Optimizer(params, gpuopt.Adam(0.1), scale=scale)
        opt.step({"z": np.full(5, 1 + 2j, "c8") * np.float32(opt.scale), "w": np.full((4, 3), opt.scale)})
        found.append({name: p.copy() for name, p in params.items()})
    assert_same_bits(*found)


WAYS = ["state_dict", "file", "pickle", "copy", "with_params", "tune"]


@pytest.mark.parametrize("way", WAYS)
def test_it_is_a_part_of_the_state(way: str, tmp_path: Any, fused_space: Space) -> None:
    def made() -> gpuopt.Optimizer:
        params = {name: fused_space.put(p) for name, p in draw(0, "float32").items()}
        return gpuopt.Optimizer(params, gpuopt.Adam(0.1), scale=gpuopt.DynamicScale(2.0**9, every=3))

    def step(opt: gpuopt.Optimizer, k: int) -> None:
        opt.step({name: fused_space.put(g) for name, g in scaled(k, opt.scale, "float32").items()})

    whole, opt = made(), made()
    for k in range(8):
        step(whole, k)
    for k in range(6):
        step(opt, k)
    match way:
        case "state_dict":
            other = made()
            other.load_state_dict(opt.state_dict())
        case "file":
            other = made()
            gpuopt.save(tmp_path / "run.safetensors", opt)
            gpuopt.load(tmp_path / "run.safetensors", other)
        case "pickle":
            with fused_space.use():
                other = pickle.loads(pickle.dumps(opt))
        case "copy":
            other = copy.deepcopy(opt)
        case "with_params":
            other = opt.with_params({name: fused_space.put(fused_space.get(p)) for name, p in opt.params.items()})
        case _:
            other = opt
            other.tune(amsgrad=True)  # another program
            assert (other.scale, other.skipped) == (2.0**8, 2)
            return
    assert (other.scale, other.skipped) == (2.0**8, 2)
    for k in range(6, 8):
        step(other, k)
    assert other.scale == whole.scale == 2.0**9
    assert_same_bits(fused_space.got(other), fused_space.got(whole))


def test_with_accumulation() -> None:
    w = np.ones(3, "f4")
    opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), scale=gpuopt.DynamicScale(4.0, every=1), every=2)
    for g in (1.0, 3.0):
        opt.step(np.full(3, g * opt.scale, "f4"))
    assert (w.tolist(), opt.scale) == ([-1.0] * 3, 8.0)


def test_it_stays_in_float32s_range() -> None:
    opt = gpuopt.Optimizer(np.ones(1), gpuopt.SGD(), scale=gpuopt.DynamicScale(2.0**126, every=1))
    for _ in range(3):
        opt.step(np.ones(1))
    assert opt.scale == 2.0**127
    opt = gpuopt.Optimizer(np.ones(1), gpuopt.SGD(), scale=gpuopt.DynamicScale(2.0**-125, every=1))
    for _ in range(3):
        opt.step(np.array([np.inf]))
    assert opt.scale == 2.0**-126


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"scale": 0}, ValueError, r"scale: got 0\.0, expected a finite number above 0"),
        ({"scale": math.inf}, ValueError, r"scale: got inf, expected a finite number above 0"),
        ({"scale": 10**400}, ValueError, r"scale: got inf, expected a finite number above 0"),
        ({"every": 10**400}, ValueError, r"every: got inf, expected a positive integer"),
        ({"scale": "large"}, TypeError, r"scale: got 'large' \(str\), expected a number above 0"),
        ({"scale": gpuopt.DynamicScale(), "nonfinite": "raise"}, ValueError, r"nonfinite: 'raise' with a DynamicScale"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        gpuopt.Optimizer(np.ones(3), gpuopt.SGD(), **options)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"initial": -1}, ValueError, r"DynamicScale: initial: got -1\.0, expected a finite number above 0"),
        ({"factor": 1}, ValueError, r"DynamicScale: factor: got 1\.0, expected a finite number above 1"),
        ({"every": 0}, ValueError, r"DynamicScale: every: got 0, expected a positive integer"),
        ({"initial": None}, TypeError, r"DynamicScale: initial: got None \(NoneType\), expected a number above 0"),
    ],
)
def test_bad_fields(fields: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        gpuopt.DynamicScale(**fields)


def test_no_gpu_is_waited_for(cupy_space: Space) -> None:
    cudasim = pytest.importorskip("cudasim", reason="counts what the emulator of CUDA does")
    w, g = cupy_space.put(np.ones(5000, "f2")), cupy_space.put(np.ones(5000, "f2"))
    opt = gpuopt.Optimizer(w, gpuopt.Adam(), scale=gpuopt.DynamicScale(every=2))
    for _ in range(2):
        opt.step(g)
    with cudasim.count() as counted:
        opt.step(g)
        scale = opt.scale_array
    assert counted.summary == {**dict.fromkeys(counted.summary, 0), "launches": 2}
    assert float(scale) == opt.scale == 2.0**17
