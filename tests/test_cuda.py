"""CuPy: one launch a step and nothing else, streams, devices; what a GPU must not do is counted by an emulator."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from conformance import ROWS
from spaces import Space, assert_same_bits, opened
from user_rules import HeavyBall

import gpuopt
from gpuopt import schedules
from gpuopt.engines.cuda import cache

RULES = [gpuopt.Adam(lr=schedules.exponential(0.1, 0.9)), gpuopt.SGD(momentum=0.9), HeavyBall()]


@pytest.fixture
def count(cupy_space: Space) -> Callable[[], AbstractContextManager[Any]]:
    """The emulator's counters of launches, copies, synchronizations and allocations."""
    if os.environ.get("CUDASIM") != "1":
        pytest.skip("a real GPU counts nothing")
    import cudasim

    return cudasim.count  # type: ignore[no-any-return]


def many(space: Space, leaves: int, rules: list[gpuopt.Rule]) -> tuple[gpuopt.Optimizer, Callable[[], dict[str, Any]]]:
    """An optimizer of many leaves in groups, and a function that makes gradients for it."""
    with space.use():
        keys = [f"{i}.g{i % len(rules)}" for i in range(leaves)]
        params = {k: space.xp.ones(i % 7 + 1, ["f4", "f8"][i % 2]) for i, k in enumerate(keys)}
        used = {f"*.g{k}": rule for k, rule in enumerate(rules[:leaves])}
        opt = gpuopt.Optimizer(params, used, engine="fused")
        return opt, lambda: {k: space.xp.ones_like(p) for k, p in params.items()}


def settled(space: Space, opt: gpuopt.Optimizer, *gradients: Any) -> None:
    """Take a first step with each, and wait."""
    for g in gradients:
        opt.step(g)
    space.device.synchronize()


@pytest.mark.parametrize("leaves", [1, 100, 1000])
@pytest.mark.parametrize(
    "rules", [RULES, [gpuopt.Adam(lr=0.1 / k) for k in (1, 2, 3)]], ids=["three rules", "one rule"]
)
def test_a_step_is_one_launch_and_nothing_else(leaves: int, rules: Any, cupy_space: Space, count: Any) -> None:
    opt, make = many(cupy_space, leaves, rules)
    with cupy_space.use():
        g = make()
    settled(cupy_space, opt, g)
    with count() as counted:
        for _ in range(10):
            opt.step(g)
            opt.tune(lr=0.5)
    assert counted.summary == {**dict.fromkeys(counted.summary, 0), "launches": 10}


DECIDED: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip": {"clip": gpuopt.clip_by_global_norm(0.5)},
    "skip": {"nonfinite": "skip"},
    "scale": {"scale": gpuopt.DynamicScale(4.0, every=2)},
}


@pytest.mark.parametrize("options", DECIDED.values(), ids=DECIDED)
@pytest.mark.parametrize(
    ("rule", "leaves", "launches"),
    [(gpuopt.Adafactor(), 1, 8), (gpuopt.Adafactor(), 9, 8), (gpuopt.Adafactor(), 60, 8), (gpuopt.Muon(), 9, None)],
    ids=lambda x: getattr(x, "name", x),
)
def test_rows_and_columns_take_a_launch_a_stage_and_nothing_else(
    rule: gpuopt.Rule, leaves: int, launches: int | None, options: Any, cupy_space: Space, count: Any
) -> None:
    with cupy_space.use():
        params, *g = ({k: cupy_space.xp.ones((k % 9 + 2, 5), "f4") for k in range(leaves)} for _ in range(3))
    opt = gpuopt.Optimizer(params, rule, engine="fused", **options)
    settled(cupy_space, opt, *g)
    with count() as counted:
        opt.step(g[0])
    assert not any(counted.summary[name] for name in ("h2d", "d2h", "syncs", "blocking_memcpy")), counted.summary
    if launches:
        want = launches + bool(options)
        assert counted.summary == {**dict.fromkeys(counted.summary, 0), "launches": want}


def test_gathering_gradients_is_a_launch_each_and_nothing_else(cupy_space: Space, count: Any) -> None:
    with cupy_space.use():
        params, g = ({k: cupy_space.xp.ones(5000) for k in "ab"} for _ in range(2))
    rule = gpuopt.chain(gpuopt.L2(0.1), gpuopt.Adam(), gpuopt.EMA())
    opt = gpuopt.Optimizer(params, rule, every=4, engine="fused")
    settled(cupy_space, opt, *[g] * 4)
    with count() as counted:
        for _ in range(12):
            opt.step(g)
    assert opt.steps == 4
    assert counted.summary == {**dict.fromkeys(counted.summary, 0), "launches": 12 + 3}


@pytest.mark.parametrize(("leaves", "copies"), [(1, 0), (100, 0), (1000, 1)])
def test_new_gradients_cost_at_most_one_copy_of_addresses_and_no_wait(
    leaves: int, copies: int, cupy_space: Space, count: Any
) -> None:
    opt, make = many(cupy_space, leaves, RULES)
    with cupy_space.use():
        gradients = [make() for _ in range(4)]
    settled(cupy_space, opt, gradients[0])
    with count() as counted:
        for g in gradients[1:]:
            opt.step(g)
    assert counted.summary == {**dict.fromkeys(counted.summary, 0), "launches": 3, "h2d": 3 * copies}
    settled(cupy_space, opt)
    some = [k for i, k in enumerate(gradients[0]) if i % 2]
    with count() as counted:
        opt.step(gradients[-1] | dict.fromkeys(some))
    assert (counted.summary["launches"], counted.summary["syncs"], counted.summary["blocking_memcpy"]) == (1, 0, 0)


def test_gradients_that_are_cast_or_laid_out_otherwise_cost_no_wait(cupy_space: Space, count: Any) -> None:
    with cupy_space.use():
        w = cupy_space.xp.ones((30, 40), "f4")
        gradients = [cupy_space.xp.ones((40, 30), "f8").T for _ in range(4)]
    opt = gpuopt.Optimizer(w, gpuopt.Adam(), engine="fused")
    settled(cupy_space, opt, *gradients[:2])
    with count() as counted:
        for g in gradients:
            opt.step(g)
    assert (counted.summary["syncs"], counted.summary["blocking_memcpy"], counted.summary["d2h"]) == (0, 0, 0)


def test_a_second_optimizer_compiles_nothing(cupy_space: Space, count: Any) -> None:
    first, make = many(cupy_space, 6, RULES)
    with cupy_space.use():
        settled(cupy_space, first, make())
    kernels = cache.function.cache_info().misses
    with count() as counted:
        for leaves in (6, 12):
            opt, make = many(
                cupy_space, leaves, [RULES[0], gpuopt.SGD(lr=lambda step: 0.1, momentum=0.5), HeavyBall(lr=1)]
            )
            with cupy_space.use():
                opt.step(make())
            opt.tune(lr=lambda step: 0.5)
            with cupy_space.use():
                opt.step(make())
    assert cache.function.cache_info().misses == kernels
    assert counted.summary["compiles"] == 0


def test_a_step_runs_on_the_stream_of_the_caller(cupy_space: Space) -> None:
    import cupy

    with cupy_space.use():
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            w = cupy.zeros(100_000, "f4")
            opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0))
            for k in range(1, 5):
                opt.step(cupy.full(100_000, k, "f4"))  # new each time, and gone at once
            got = w.get()
        stream.synchronize()
    assert np.all(got == -10)


@pytest.mark.parametrize("clip", [None, gpuopt.clip_by_norm(1e9)])
def test_an_optimizer_made_on_one_stream_steps_on_another(cupy_space: Space, clip: Any) -> None:
    import cupy

    with cupy_space.use():
        w, g = cupy.ones(100_000, "f4"), cupy.ones(100_000, "f4")
        cupy.cuda.Device().synchronize()
        opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0, momentum=0.5), clip=clip)
        for _ in range(3):
            stream = cupy.cuda.Stream(non_blocking=True)
            with stream:
                opt.step(g)
            stream.synchronize()
        assert np.all(w.get() == -3.25)


def test_gradients_may_be_overwritten_right_after_the_step(cupy_space: Space) -> None:
    with cupy_space.use():
        w, g = cupy_space.xp.zeros(50_000), cupy_space.xp.ones(50_000, "f4")
        opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=lambda step: float(step + 1)))
        for _ in range(4):
            g[...] = 1
            opt.step(g)
            g[...] = 1000
        assert cupy_space.get(w).tolist() == [-10.0] * 50_000


def test_leaves_of_all_sizes_of_many_rules_agree_to_the_bit(cupy_space: Space) -> None:
    random = np.random.RandomState(0)
    values = {f"{row.id}.{n}": random.standard_normal(n).astype("f4") for row in ROWS for n in (1, 4095, 4096, 20_001)}
    rules = {f"{row.id}.*": row.make() for row in ROWS}
    opt = gpuopt.Optimizer({k: cupy_space.put(x) for k, x in values.items()}, rules)
    host = gpuopt.Optimizer({k: x.copy() for k, x in values.items()}, rules)
    for k in range(5):
        g = {name: x * np.float32(k) for name, x in values.items()}
        opt.step({name: cupy_space.put(x) for name, x in g.items()})
        host.step(g)
    (numpy,) = opened("numpy")
    assert_same_bits(cupy_space.got(opt), numpy.got(host))


@pytest.mark.parametrize("engine", ["auto", "array", "fused"])
def test_integers_are_refused(cupy_space: Space, engine: Any) -> None:
    with cupy_space.use():
        params = {"good": cupy_space.xp.ones(3, "f4"), "whole": cupy_space.xp.ones(3, "i4")}
    with pytest.raises(TypeError, match=r"params\['whole'\]: dtype int32, expected float32"):
        gpuopt.Optimizer(params, gpuopt.Adam(), engine=engine)


# Several devices


@pytest.fixture
def devices(cupy_space: Space) -> list[Any]:
    """Two devices."""
    import cupy

    if (found := cupy.cuda.runtime.getDeviceCount()) < 2:
        pytest.skip(f"{found} device, of 2")
    return [cupy.cuda.Device(0), cupy.cuda.Device(1)]


def test_one_optimizer_on_two_devices_and_the_host(devices: list[Any], count: Any) -> None:
    import cupy

    w = {"host": np.ones(5, "f4")}
    g = {"host": np.ones(5, "f4")}
    for i, device in enumerate(devices):
        with device:
            w[f"gpu{i}"], g[f"gpu{i}"] = cupy.ones(5, "f4"), cupy.ones(5, "f4")
            w[f"gpu{i} with gaps"], g[f"gpu{i} with gaps"] = cupy.ones(10, "f4")[::2], cupy.ones(5, "f4")
    opt = gpuopt.Optimizer(w, gpuopt.Adam(lr=0.1))
    for current in devices:
        with current:
            opt.step(g)
    for name, x in w.items():
        np.testing.assert_allclose(gpuopt.backends.to_numpy(x), 0.8, rtol=1e-6)
        for slot in opt.state_dict()["state"][name].values():
            assert gpuopt.backends.place(slot) == gpuopt.backends.place(x)
    del w["gpu0 with gaps"], w["gpu1 with gaps"], g["gpu0 with gaps"], g["gpu1 with gaps"]
    opt = gpuopt.Optimizer(w, gpuopt.Adam(lr=0.1), engine="fused")
    opt.step(g)
    with count() as counted:
        opt.step(g)
    assert counted.summary == {**dict.fromkeys(counted.summary, 0), "launches": 2}


@pytest.mark.parametrize("clip", [gpuopt.clip_by_norm(0.5), gpuopt.clip_by_global_norm(0.5)])
def test_clipping_over_two_devices_and_the_host(devices: list[Any], clip: Any) -> None:
    import cupy

    random = np.random.RandomState(0)
    host = {name: random.standard_normal(5000) for name in ("gpu0", "gpu1", "host")}
    grads = {name: x + 1 for name, x in host.items()}
    expected = {name: x.copy() for name, x in host.items()}

    def spread(values: dict[str, Any]) -> dict[str, Any]:
        moved: dict[str, Any] = {"host": values["host"].copy()}
        for i, device in enumerate(devices):
            with device:
                moved[f"gpu{i}"] = cupy.asarray(values[f"gpu{i}"])
        return moved

    w = spread(host)
    for params, g in ((expected, grads), (w, spread(grads))):
        opt = gpuopt.Optimizer(params, gpuopt.Adam(), clip=clip, nonfinite="skip")
        for _ in range(3):
            opt.step(g)
    assert_same_bits({name: gpuopt.backends.to_numpy(x) for name, x in w.items()}, expected)


def test_a_gradient_on_the_wrong_device(devices: list[Any]) -> None:
    import cupy

    with devices[1]:
        w, good = cupy.ones(3), cupy.ones(3)
    with devices[0]:
        bad = cupy.ones(3)
    for engine in ("array", "fused"):
        opt = gpuopt.Optimizer({"w": w}, gpuopt.SGD(lr=1.0), engine=engine)
        with pytest.raises(
            ValueError, match=r"grads\['w'\]: a cupy:0 array, expected a cupy:1 array like its parameter"
        ):
            opt.step({"w": bad})
        with pytest.raises(TypeError, match=r"grads\['w'\]: a numpy array, expected a cupy:1 array"):
            opt.step({"w": np.ones(3)})
        opt.step({"w": good})
    assert w.get().tolist() == [-1.0] * 3


def test_arrays_go_from_device_to_device_when_they_are_computed(devices: list[Any]) -> None:
    import cupy

    with devices[0], cupy.cuda.Stream(non_blocking=True) as stream:
        x = cupy.zeros(1000)
        stream.synchronize()
        x += 5
        y = gpuopt.backend(f"cupy:{devices[1].id}").asarray(x)
    assert y.device == devices[1]
    assert np.all(y.get() == 5)


def test_what_threads_fetch_first(count: Any) -> None:
    """In a fresh process: CuPy loads what that needs at its first use."""
    program = (
        "import cupy, gpuopt.backends as b\nfrom concurrent.futures import ThreadPoolExecutor\nx = cupy.arange(3)\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    jobs = [pool.submit(lambda: b.fetch([x])()[0].tolist()) for _ in range(400)]\n"
        "assert all(job.result() == [0, 1, 2] for job in jobs)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


def test_state_goes_from_device_to_device(devices: list[Any]) -> None:
    import cupy

    optimizers = []
    for device in devices:
        with device:
            w = cupy.zeros((3, 4))
            optimizers.append(gpuopt.Optimizer(w, gpuopt.Adam()))
    with devices[1]:
        optimizers[1].step(cupy.ones((3, 4)))
    optimizers[0].load_state_dict(optimizers[1].state_dict())
    for device, opt in zip(devices, optimizers, strict=True):
        with device:
            opt.step(cupy.ones((3, 4)))
    first, second = (opt.state_dict() for opt in optimizers)
    assert np.array_equal(first["params"][""].get(), second["params"][""].get())
    assert np.array_equal(first["state"][""]["v"].get(), second["state"][""]["v"].get())


# The other modes of the emulator


def test_in_other_modes(count: Any) -> None:
    """Late execution, threads in any order, and no access from the host or between devices: these tests once more."""
    modes = {"ASYNC": "1", "GUARD": "1", "PEER": "0", "THREAD_ORDER": "shuffle", "DEVICES": "2"}
    env = os.environ | {f"CUDASIM_{name}": value for name, value in modes.items()}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", "not modes"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(("nonfinite", "reports"), [("ignore", 0), ("skip", 0), ("raise", 10)])
def test_clipping_and_looking_cost_one_launch_more_and_no_wait(
    nonfinite: Any, reports: int, cupy_space: Space, count: Any
) -> None:
    with cupy_space.use():
        params = {f"leaf{i}": cupy_space.put(np.ones(100, np.float32)) for i in range(100)}
    clip = gpuopt.clip_by_global_norm(1.0)
    opt = gpuopt.Optimizer(params, gpuopt.Adam(), clip=clip, nonfinite=nonfinite)
    settled(cupy_space, opt, params)
    with count() as counted:
        for _ in range(10):
            opt.step(params)
    sent = counted.summary["d2h"]  # no report is sent while the one before is on its way
    assert counted.summary == {**dict.fromkeys(counted.summary, 0), "launches": 20, "d2h": sent}
    assert sent <= reports
