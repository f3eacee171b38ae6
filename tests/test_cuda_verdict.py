"""What a GPU has decided on its own belongs to the state: nothing that replaces a kernel drops or inherits it."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spaces import Space, assert_same_bits, opened

import gpuopt
from gpuopt.rules import Hyper, Rule


def optimizer(space: Space, nonfinite: Any, momentum: float = 0.0) -> gpuopt.Optimizer:
    return gpuopt.Optimizer(space.put(np.zeros(3)), gpuopt.SGD(lr=1.0, momentum=momentum), nonfinite=nonfinite)


def good(space: Space) -> Any:
    return space.put(np.ones(3))


def bad(space: Space) -> Any:
    return space.put(np.asarray([math.nan, 1.0, 1.0]))


def after(space: Space, steps: int, momentum: float = 0.0) -> gpuopt.Optimizer:
    opt = optimizer(space, "raise", momentum)
    for _ in range(steps):
        opt.step(good(space))
    return opt


def step_badly(opt: gpuopt.Optimizer, space: Space, times: int = 1) -> None:
    """Take steps that are left out; the error of NumPy's comes at once, and is not waited for on a GPU."""
    for _ in range(times):
        try:
            opt.step(bad(space))
        except FloatingPointError:
            continue


# Ways to another state: an optimizer that took a bad step goes on from where another one is.


def by_state_dict(opt: gpuopt.Optimizer, other: gpuopt.Optimizer, _: Path) -> None:
    opt.load_state_dict(other.state_dict())


def by_file(opt: gpuopt.Optimizer, other: gpuopt.Optimizer, folder: Path) -> None:
    gpuopt.save(folder / "state.safetensors", other)
    gpuopt.load(folder / "state.safetensors", opt)


@pytest.mark.parametrize("momentum", [0.0, 0.5], ids=["same program", "recompiled"])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("load", [by_state_dict, by_file])
def test_a_state_that_is_loaded_knows_of_no_bad_step(
    load: Callable[..., None], times: int, momentum: float, fused_space: Space, tmp_path: Path
) -> None:
    opt, other = optimizer(fused_space, "raise"), after(fused_space, 10)
    if momentum:
        other.tune(momentum=momentum)
    step_badly(opt, fused_space, times)
    load(opt, other, tmp_path)
    for _ in range(3):
        opt.step(good(fused_space))
        other.step(good(fused_space))
    assert opt.state_dict()["steps"] == other.steps == 13
    assert fused_space.get(opt.params).tolist() == fused_space.get(other.params).tolist()
    step_badly(opt, fused_space)
    if fused_space.name == "cupy":  # it looks on
        with pytest.raises(FloatingPointError, match="NaN or infinity at step 13"):
            opt.state_dict()
    assert opt.steps == 13


@pytest.mark.parametrize("recompile", [False, True])
@pytest.mark.parametrize("bad_steps", [1, 3])
def test_tune_drops_no_error(bad_steps: int, recompile: bool, cupy_space: Space) -> None:
    opt = optimizer(cupy_space, "raise")
    for _ in range(4):
        opt.step(good(cupy_space))

    def go_on() -> None:
        for _ in range(bad_steps):
            opt.step(bad(cupy_space))
        opt.tune(**{"momentum": 0.5} if recompile else {"lr": 0.5})
        for _ in range(5):
            opt.step(good(cupy_space))
        opt.state_dict()

    with pytest.raises(FloatingPointError, match="NaN or infinity at step 4; that step changed nothing"):
        go_on()
    assert (opt.steps, cupy_space.get(opt.params).tolist()) == (4, [-4.0] * 3)
    opt.step(good(cupy_space))
    assert opt.state_dict()["steps"] == 5


def test_steps_left_out_are_counted_once(fused_space: Space, tmp_path: Path) -> None:
    opt = optimizer(fused_space, "skip")
    count = 0

    def skip() -> None:
        nonlocal count
        opt.step(bad(fused_space))
        opt.step(good(fused_space))
        opt.step(bad(fused_space))
        count += 2

    skip()
    assert opt.skipped == count
    for k in range(1, 4):  # the program changes each time
        opt.tune(momentum=0.5 * (k % 2))
        assert opt.skipped == count
        skip()
        assert opt.skipped == count
    opt.tune(lr=0.25)
    assert opt.skipped == count
    with fused_space.use():  # where pickle puts the arrays
        twins = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)), copy.deepcopy(copy.deepcopy(opt))]
    for twin in twins:
        assert twin.skipped == count
        twin.step(bad(fused_space))
        assert (twin.skipped, opt.skipped) == (count + 1, count)
        twin.tune(momentum=0.25)
        assert twin.skipped == count + 1
        before = fused_space.get(twin.params)
        twin.step(good(fused_space))  # the verdict on the step before does not bind this one
        assert twin.skipped == count + 1
        assert np.all(fused_space.get(twin.params) < before)
    gpuopt.save(tmp_path / "state.safetensors", opt)
    gpuopt.load(tmp_path / "state.safetensors", opt)
    assert opt.skipped == count


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_a_copy_raises_the_error_that_is_due_and_then_inherits_nothing(
    duplicate: Callable[[gpuopt.Optimizer], gpuopt.Optimizer], cupy_space: Space
) -> None:
    opt = optimizer(cupy_space, "raise")
    opt.step(good(cupy_space))
    opt.step(bad(cupy_space))
    with pytest.raises(FloatingPointError, match="at step 1"):
        duplicate(opt)
    with cupy_space.use():  # where pickle puts the arrays
        twin = duplicate(opt)
    for each in (twin, opt):
        each.step(good(cupy_space))
        assert (each.state_dict()["steps"], each.skipped) == (2, 0)
        assert cupy_space.get(each.params).tolist() == [-2.0] * 3


def test_a_step_that_is_left_out_after_another_rule_was_compiled(cupy_space: Space) -> None:
    """Clipping goes on as well: its buffers outlive the kernel."""
    opt = gpuopt.Optimizer(
        cupy_space.put(np.zeros(3)), gpuopt.SGD(lr=1.0), nonfinite="skip", clip=gpuopt.clip_by_norm(1.0)
    )
    opt.step(bad(cupy_space))
    opt.tune(momentum=0.5)
    opt.step(cupy_space.put(np.asarray([3.0, 0.0, 4.0])))
    assert (opt.skipped, opt.gradient_norm) == (1, 5.0)
    np.testing.assert_allclose(cupy_space.get(opt.params), [-0.6, 0, -0.8], rtol=1e-15)


@dataclass(frozen=True)
class Either(Rule):
    """A rule that can be fused or not."""

    lr: Hyper = 1.0
    whole: bool = False

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * (xp.asarray(g) if self.whole else g), {}


def test_steps_left_out_are_counted_by_whoever_decides(fused_space: Space) -> None:
    opt = gpuopt.Optimizer(fused_space.put(np.zeros(3)), Either(), nonfinite="skip")
    for k in range(1, 5):
        opt.step(bad(fused_space))
        opt.tune(whole=bool(k % 2))
        assert opt.skipped == k
        opt.step(good(fused_space))
        assert (opt.skipped, fused_space.get(opt.params).tolist()) == (k, [-k] * 3)


@pytest.mark.parametrize("whole", [False, True])
def test_an_error_is_not_dropped_where_another_engine_goes_on(whole: bool, cupy_space: Space) -> None:
    opt = gpuopt.Optimizer(cupy_space.put(np.zeros(3)), Either(whole=True), nonfinite="raise")
    opt.tune(whole=False)
    opt.step(good(cupy_space))
    opt.step(bad(cupy_space))
    with pytest.raises(FloatingPointError, match="at step 1"):
        opt.tune(whole=True)
    assert (opt.steps, opt.rule) == (1, Either(whole=False))
    opt.tune(whole=whole)
    opt.step(good(cupy_space))
    assert (opt.state_dict()["steps"], cupy_space.get(opt.params).tolist()) == (2, [-2.0] * 3)


CARRYING = [gpuopt.NAdam(0.1), gpuopt.ScheduleFreeSGD(0.1), gpuopt.chain(gpuopt.SGD(0.1), gpuopt.Accelerate())]


@pytest.mark.parametrize("rule", CARRYING, ids=lambda rule: rule.name)
def test_carried_numbers_go_back_with_the_steps(rule: Rule, fused_space: Space) -> None:
    opt, other = (gpuopt.Optimizer(fused_space.put(np.zeros(3)), rule, nonfinite="raise") for _ in range(2))
    for each in (opt, other):
        for _ in range(3):
            each.step(good(fused_space))
        if each is opt:
            step_badly(opt, fused_space, 3)
            step_badly(opt, fused_space, 1)
            try:
                opt.state_dict()
            except FloatingPointError:
                assert fused_space.name == "cupy"
        for _ in range(3):
            each.step(good(fused_space))
    assert opt.state_dict()["steps"] == 6
    assert_same_bits(fused_space.got(opt), fused_space.got(other))


@pytest.mark.parametrize("rule", CARRYING, ids=lambda rule: rule.name)
def test_carried_numbers_go_on_over_a_step_that_is_left_out(rule: Rule, cupy_space: Space) -> None:
    """Whoever decides: a GPU that leaves a step out does not tell."""
    (numpy,) = opened("numpy")
    found = []
    for space, engine in ((numpy, "array"), (numpy, "fused"), (cupy_space, "fused")):
        opt = gpuopt.Optimizer(space.put(np.zeros(3)), rule, nonfinite="skip", engine=engine)  # type: ignore[arg-type]
        for gradient in (good, bad, good):
            opt.step(gradient(space))
        found.append(space.got(opt))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])
