"""Steps on a GPU that an exception meets: between two launches there is no Python in which it could arrive."""

import signal
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import numpy as np
import pytest
import test_interrupts
from spaces import Space

import gpuopt
from gpuopt import optimizer, stateful
from gpuopt.engines import interrupts, step
from gpuopt.engines.cuda import kernel as cuda

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip and skip": {"clip": gpuopt.clip_by_global_norm(0.5), "nonfinite": "skip"},
    "raise": {"nonfinite": "raise"},
}


def optimizer_of(space: Space, leaves: int, **options: Any) -> tuple[gpuopt.Optimizer, list[list[Any]]]:
    """An optimizer, and two sets of gradients."""
    params = [space.put(np.ones(5, ["f4", "f8"][i % 2])) for i in range(leaves)]
    grads = [[space.put(np.full(5, k + i, ["f4", "f8"][i % 2])) for i in range(leaves)] for k in (1, 2)]
    return gpuopt.Optimizer(params, gpuopt.Adam(), engine="fused", **options), grads


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions in Python that run while something is done in one go."""
    seen: list[str] = []

    def watched(calls: Iterable[Callable[[], object]], at_last: Iterable[Callable[[], object]] = ()) -> None:
        def profile(frame: FrameType, event: str, _: object) -> None:
            if event == "call":
                seen.append(frame.f_code.co_qualname)

        calls, at_last = list(calls), list(at_last)
        sys.setprofile(profile)
        try:
            interrupts.in_one_go(calls, at_last)
        finally:
            sys.setprofile(None)
        assert seen.pop(0) == "in_one_go"

    for module in (step, optimizer, stateful):
        monkeypatch.setattr(module, "in_one_go", watched)
    return seen


@pytest.mark.parametrize("leaves", [1, 600])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_step_is_launched_without_python(
    options: dict[str, Any], leaves: int, cupy_space: Space, frames: list[str]
) -> None:
    opt, grads = optimizer_of(cupy_space, leaves, **options)
    for g in (*grads, *grads):
        opt.step(g)
    assert opt.steps == 4
    assert not frames


def test_a_step_that_was_left_out_is_pardoned_without_python(cupy_space: Space, frames: list[str]) -> None:
    opt, grads = optimizer_of(cupy_space, 2, nonfinite="raise")
    opt.step(grads[0])
    opt.step([cupy_space.put(np.full(5, np.nan, dtype)) for dtype in ("f4", "f8")])
    with pytest.raises(FloatingPointError, match="NaN or infinity at step 1"):
        opt.state_dict()
    assert opt.steps == 1
    opt.step(grads[1])
    assert opt.state_dict()["steps"] == 2
    assert not frames


@pytest.mark.parametrize("again", ["the same gradients", "others"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_exception_at_every_line_of_a_step(options: dict[str, Any], again: str, cupy_space: Space) -> None:
    def make(_: int, **options: Any) -> gpuopt.Optimizer:
        return optimizer_of(cupy_space, 2, **options)[0]

    _, grads = optimizer_of(cupy_space, 2)
    with cupy_space.use(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_interrupts, "optimizer", make)
        patch.setattr(test_interrupts, "gradients", lambda _: grads)
        test_interrupts._interrupt_every_line(signal.SIGINT, options, again)


@pytest.mark.parametrize("number", [1, 2])
def test_the_current_device_stays_and_nothing_changes_if_a_launch_fails(number: int, cupy_space: Space) -> None:
    cudasim = pytest.importorskip("cudasim")
    import cupy

    opt, grads = optimizer_of(cupy_space, 2, nonfinite="skip")
    opt.step(grads[0])
    before = cupy_space.got(opt)
    with cupy.cuda.Device(0):
        cudasim.fail_launch(number)
        with pytest.raises(Exception, match="LAUNCH_OUT_OF_RESOURCES"):
            opt.step(grads[1])
        assert cupy.cuda.runtime.getDevice() == 0
        assert opt.steps == 1
        after = cupy_space.got(opt)
        assert {name: x.tobytes() for name, x in after.items()} == {name: x.tobytes() for name, x in before.items()}
        opt.step(grads[1])
        assert cupy.cuda.runtime.getDevice() == 0
    assert opt.steps == 2


def test_what_comes_last_comes_even_after_an_error() -> None:
    seen: list[str] = []
    fail = "x".index

    interrupts.in_one_go([lambda: seen.append("first")], [lambda: seen.append("last")])
    with pytest.raises(TypeError):
        interrupts.in_one_go([fail, lambda: seen.append("never")], [lambda: seen.append("last")])  # type: ignore[list-item]
    assert seen == ["first", "last", "last"]


def test_addresses_that_could_not_be_sent_are_sent_by_the_next_step(
    cupy_space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more leaves than pass by value."""
    opt, grads = optimizer_of(cupy_space, 600)
    reference, _ = optimizer_of(cupy_space, 600)
    opt.step(grads[0])

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cuda, "in_one_go", fail)
        with pytest.raises(KeyboardInterrupt):
            opt.step(grads[1])
    opt.step(grads[1])
    for g in grads:
        reference.step(g)
    found, expected = cupy_space.got(opt), cupy_space.got(reference)
    assert {name: x.tobytes() for name, x in found.items()} == {name: x.tobytes() for name, x in expected.items()}
