"""Exceptions in the middle of a step: the step happened or it did not, and the optimizer can be used as before."""

import contextlib
import linecache
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt.cached import cached_property
from gpuopt.engines.interrupts import in_one_go, shielded

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")

OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {},
    "array": {"engine": "array"},
    "clip and skip": {"clip": gpuopt.clip_by_global_norm(0.5), "nonfinite": "skip"},
    "raise": {"nonfinite": "raise"},
}


def optimizer(size: int, **options: Any) -> gpuopt.Optimizer:
    params = {"a": np.ones(size, "f4"), "b": np.ones((2, 3)), "c": np.ones((4, 4))[:, ::2]}
    return gpuopt.Optimizer(params, gpuopt.Adam(lr=gpuopt.schedules.inverse_time(0.1, 0.01)), **options)


def gradients(size: int) -> list[dict[str, Any]]:
    """Two buffers that take turns: a step must never use the other one's."""
    random = np.random.RandomState(0)
    return [{"a": random.randn(size).astype("f4"), "b": random.randn(2, 3), "c": random.randn(4, 2)} for _ in range(2)]


def content(opt: gpuopt.Optimizer) -> list[bytes]:
    state = opt.state_dict()
    arrays = [*state["params"].values(), *(x for slots in state["state"].values() for x in slots.values())]
    return [x.tobytes() for x in arrays]


def interrupted(opt: gpuopt.Optimizer, grads: dict[str, Any], line: int, number: signal.Signals) -> bool:
    """Whether a step has so many lines; the signal comes before that one."""
    package, left = str(Path(gpuopt.__file__).parent), line

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        nonlocal left
        if not frame.f_code.co_filename.startswith(package):
            return None
        # Before a `with` releases its lock Python looks for no signals, but for a tracer.
        code = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and not code.startswith("with "):
            left -= 1
            if left == 0:
                signal.raise_signal(number)
        return trace

    before = sys.gettrace()
    with contextlib.suppress(KeyboardInterrupt):
        sys.settrace(trace)
        try:
            opt.step(grads)
        finally:
            sys.settrace(before)
    return left <= 0


@pytest.mark.slow
@pytest.mark.parametrize("again", ["the same gradients", "others"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM], ids=lambda number: number.name)
def test_an_exception_at_every_line_of_a_step(number: signal.Signals, options: dict[str, Any], again: str) -> None:
    """Ctrl-C, and a handler of another signal that raises, as those that limit the time of a call do."""
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        _interrupt_every_line(number, options, again)
    finally:
        signal.signal(signal.SIGALRM, handler)


def _interrupt_every_line(number: signal.Signals, options: dict[str, Any], again: str) -> None:
    opt, reference, (one, other) = optimizer(50, **options), optimizer(50, **options), gradients(50)
    line, happened = 1, 0
    while True:
        for each in (opt, reference):
            each.step(other)
        before = opt.steps
        if not interrupted(opt, one, line, number):
            break
        if opt.steps == before + 1:
            reference.step(one)
            happened += 1
        elif again == "the same gradients":
            for each in (opt, reference):
                each.step(one)
        assert opt.steps == reference.steps, f"line {line}"
        assert content(opt) == content(reference), f"line {line}"
        line += 1
    assert line > 30
    assert happened > 0


class Timeout(BaseException):
    """What a handler of SIGALRM raises."""


def test_shielded_ends_before_the_exception_is_raised() -> None:
    ended: list[str] = []

    def work() -> int:
        time.sleep(0.2)
        ended.append("work")
        return 1

    def ring(*_: object) -> None:
        raise Timeout

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Timeout):
            shielded(work)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ended == ["work"]
    assert shielded(work) == 1


def test_shielded_raises_the_error_of_the_function() -> None:
    with pytest.raises(ZeroDivisionError):
        shielded(lambda: 1 // 0)


def test_shielded_without_a_further_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    assert shielded(lambda: 5) == 5


def test_in_one_go_stops_at_an_error_only() -> None:
    seen: list[int] = []
    in_one_go([partial(seen.append, 1), partial(int, "7"), partial(seen.append, 2)])  # whatever is returned
    with pytest.raises(ValueError, match="invalid literal"):
        in_one_go([partial(seen.append, 3), partial(int, "x"), partial(seen.append, 4)])
    assert seen == [1, 2, 3]


PROGRAM = """
import os, random, signal, sys, time

wanted, size, pause, options = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
if os.fork() == 0:  # a process of its own: a thread would wait for the other's steps
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(0.3)
    while os.getppid() == parent:
        time.sleep(random.uniform(0, pause))
        os.kill(parent, signal.SIGINT)
    os._exit(0)

awaited = False

def interrupt(*_):
    global awaited
    if awaited:
        awaited = False
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)

from test_interrupts import content, gradients, optimizer

opt, reference, grads = optimizer(size, **eval(options)), optimizer(size, **eval(options)), gradients(size)
interrupts = happened = 0
while interrupts < wanted:
    before = opt.steps
    try:
        awaited = True
        opt.step(grads[before % 2])
        awaited = False
    except KeyboardInterrupt:
        interrupts += 1
        happened += opt.steps - before
        while reference.steps < opt.steps:
            reference.step(grads[reference.steps % 2])
        assert content(opt) == content(reference), f"other bits after {opt.steps}"
print(interrupts, happened, opt.steps, flush=True)
os._exit(0)  # without signals on the way out
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "pause", "options"),
    [
        (50, 4e-3, {}),
        (50, 4e-3, {"engine": "array"}),
        (1 << 20, 20e-3, {}),
        (1 << 20, 20e-3, {"nonfinite": "raise"}),
    ],
    ids=["small", "small, arrays", "several threads", "several threads, guarded"],
)
def test_interrupts_at_random_moments(
    size: int, pause: float, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    wanted = 1000 if request.config.getoption("--soak") else 60 if size < 1000 else 15
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    env.pop("COVERAGE_PROCESS_CONFIG", None)  # an interrupt in coverage's tracer leaves its own lock taken, for ever
    arguments = [sys.executable, "-c", PROGRAM, str(wanted), str(size), str(pause), repr(options)]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    interrupts, happened, steps = map(int, done.stdout.split())
    print(f"{request.node.callspec.id}: {interrupts} interrupts in {steps} steps; {happened} of these steps happened")


class Waiting:
    """What is worked out waits."""

    def __init__(self, wait: Callable[[], object]) -> None:
        self.wait = wait

    @cached_property
    def done(self) -> bool:
        self.wait()
        return True


def test_what_is_worked_out_once_is_behind_no_lock_of_its_class() -> None:
    """A fork meanwhile would leave it locked in the child, for good."""
    gate, found = threading.Event(), []
    first = threading.Thread(target=lambda: Waiting(gate.wait).done, daemon=True)
    second = threading.Thread(target=lambda: found.append(Waiting(bool).done), daemon=True)
    first.start()
    second.start()
    second.join(30)
    gate.set()
    first.join(30)
    assert found == [True]
