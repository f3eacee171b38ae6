"""Several threads, forked and spawned processes: the same bits, and nobody hangs."""

import copy
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import ROWS
from spaces import Space, assert_same_bits

import gpuopt
from gpuopt import checkpoint, tensorfile

SIZE = 1 << 20  # enough for every step to be shared among threads


def run(seed: int, steps: int = 6) -> dict[str, np.ndarray]:
    random = np.random.RandomState(seed)
    p, g = random.standard_normal((2, SIZE)).astype("f4")
    opt = gpuopt.Optimizer({"a": p[: SIZE // 2], "b": p[SIZE // 2 :]}, ROWS[seed % len(ROWS)].make(), engine="fused")
    for _ in range(steps):
        opt.step({"a": g[: SIZE // 2], "b": g[SIZE // 2 :]})
    state = opt.state_dict()["state"]
    return {"p": p, **{f"{k}/{slot}": x for k, own in state.items() for slot, x in own.items()}}


def test_threads_that_step_different_optimizers() -> None:
    seeds = range(8)
    found: dict[int, dict[str, np.ndarray]] = {}
    threads = [threading.Thread(target=lambda seed=seed: found.update({seed: run(seed)})) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for seed in seeds:
        assert_same_bits(found[seed], run(seed))


def replayed(space: Space, engine: Any, steps: int) -> dict[str, Any]:
    opt = small(space, engine)
    for _ in range(steps):
        opt.step(constant(space))
    return space.got(opt)


def small(space: Space, engine: Any) -> gpuopt.Optimizer:
    params = {"a": space.put(np.ones(50, "f4")), "b": space.put(np.ones((2, 3)))}
    return gpuopt.Optimizer(params, gpuopt.Adam(lr=0.1), engine=engine)


def constant(space: Space) -> dict[str, Any]:
    return {"a": space.put(np.full(50, 2, "f4")), "b": space.put(np.full((2, 3), -1.0))}


def together(*jobs: Callable[[], None]) -> None:
    """Run them at the same time, each in a thread; raise what one of them raises."""
    with ThreadPoolExecutor(len(jobs)) as threads:
        for done in [threads.submit(job) for job in jobs]:
            done.result(timeout=60)


STEPS = 40


def test_threads_that_step_small_optimizers(fused_space: Space) -> None:
    for engine in fused_space.engines:
        optimizers = [small(fused_space, engine) for _ in range(4)]

        def steps(opt: gpuopt.Optimizer) -> None:
            for _ in range(STEPS):
                opt.step(constant(fused_space))

        together(*(partial(steps, opt) for opt in optimizers))
        for opt in optimizers:
            assert_same_bits(fused_space.got(opt), replayed(fused_space, engine, STEPS))


def test_threads_that_step_the_same_optimizer(fused_space: Space) -> None:
    """One waits for the other; with equal gradients their order does not matter."""
    for engine in fused_space.engines:
        opt = small(fused_space, engine)

        def steps(opt: gpuopt.Optimizer = opt) -> None:
            for _ in range(STEPS):
                opt.step(constant(fused_space))

        together(*[steps] * 3)
        assert opt.steps == 3 * STEPS
        assert_same_bits(fused_space.got(opt), replayed(fused_space, engine, 3 * STEPS))


@pytest.mark.parametrize("size", [50, 1 << 18])
def test_a_thread_that_saves_while_another_one_steps(tmp_path: Path, size: int) -> None:
    """Every file is of one moment: all elements of a plain sum have seen as many steps as the file says."""
    params = {name: np.zeros(size) for name in "abc"}
    opt, done = gpuopt.Optimizer(params, gpuopt.SGD(lr=1.0)), threading.Event()
    grads = {name: np.full(size, -1.0) for name in params}

    def steps() -> None:
        while not done.is_set():
            opt.step(grads)

    def saves() -> None:
        try:
            for _ in range(20):
                gpuopt.save(tmp_path / "file", opt)
                arrays, metadata = tensorfile.read(tmp_path / "file")
                count = json.loads(metadata["gpuopt"])["steps"]
                for x in arrays.values():
                    assert (x == count).all()
                checkpoint.load(tmp_path / "file", opt)
        finally:
            done.set()

    together(steps, saves)


@pytest.mark.parametrize("engine", ["fused", "array"])
def test_a_thread_that_copies_while_another_one_steps(engine: Any) -> None:
    """Every copy is of one moment."""
    size = 1 << 17
    opt = gpuopt.Optimizer({"w": np.zeros(size)}, gpuopt.SGD(lr=1.0), engine=engine)
    grads, begun, done = {"w": np.full(size, -1.0)}, threading.Event(), threading.Event()

    def steps() -> None:
        while not done.is_set():
            opt.step(grads)
            begun.set()

    def copies() -> None:
        try:
            begun.wait(60)
            for _ in range(20):
                other = copy.deepcopy(opt)
                assert (other.params["w"] == other.steps).all()
        finally:
            done.set()

    together(steps, copies)


def test_threads_that_tune_while_another_one_steps() -> None:
    opt, done = gpuopt.Optimizer({"w": np.ones(50)}, gpuopt.SGD(lr=0.0)), threading.Event()

    def steps() -> None:
        while not done.is_set():
            opt.step({"w": np.ones(50)})

    def tunes() -> None:
        for k in range(100):
            opt.tune(momentum=0.5 * (k % 2))  # another program each time
        done.set()

    together(steps, tunes)
    assert (opt.params["w"] == 1).all()


PROGRAM = """
import multiprocessing
import os
import pickle
import sys
import threading
import numpy as np
import gpuopt

SIZE, ENGINE = 1 << 20, sys.argv[2]

def optimizer():
    return gpuopt.Optimizer(np.ones(SIZE, "f4"), gpuopt.Adam(lr=0.1), engine=ENGINE)

def after(opt, steps):
    for k in range(steps):
        opt.step(np.full(SIZE, k + 1, "f4"))
    return opt

def child(opt, connection):
    connection.send_bytes(after(opt, 3).params.tobytes())

if __name__ == "__main__":
    opt = after(optimizer(), 2)
    if sys.argv[1] == "busy":  # somebody else is in the middle of steps while this process forks
        other = optimizer()
        def work():
            while True:
                after(other, 5)
        threading.Thread(target=work, daemon=True).start()
    method = sys.argv[1].replace("busy", "fork")
    context = multiprocessing.get_context(method)
    results = []
    for _ in range(2):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(opt, theirs))
        process.start()
        assert ours.poll(60), "the child hangs"
        results.append(ours.recv_bytes())
        process.join(60)
        assert process.exitcode == 0, process.exitcode
    expected = after(after(optimizer(), 2), 3).params.tobytes()
    assert results == [expected] * 2
    assert after(opt, 3).params.tobytes() == expected
    print("as it should be")
    sys.stdout.flush()
    os._exit(0)
"""


FORKS = """
import os
import sys
import threading
import numpy as np
import gpuopt

def whole(opt, steps):
    return all((p == opt.steps).all() for p in opt.params) and opt.steps >= steps

size = int(sys.argv[1])
opt = gpuopt.Optimizer([np.zeros(size), np.zeros(size)], gpuopt.SGD(lr=1.0), engine=sys.argv[2])
grads = [np.full(size, -1.0)] * 2
begun = threading.Event()

def work():
    while True:
        opt.step(grads)
        begun.set()

threading.Thread(target=work, daemon=True).start()
begun.wait()
for _ in range(20):
    if (child := os.fork()) == 0:
        good = whole(opt, 1)
        opt.step(grads)
        os._exit(0 if good and whole(opt, 2) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
print("as it should be", flush=True)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("engine", ["fused", "array"])
@pytest.mark.parametrize("size", [50, 1 << 20])
def test_a_fork_while_a_thread_steps_the_same_optimizer(size: int, engine: str) -> None:
    """The child has the optimizer between two steps, and can go on."""
    assert_as_it_should_be("-c", FORKS, str(size), engine)


@pytest.mark.parametrize("engine", ["fused", "array"])
@pytest.mark.parametrize("method", ["fork", "busy", "spawn"])
def test_processes(method: str, engine: str, tmp_path: Path) -> None:
    if method != "spawn" and not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    assert_as_it_should_be(str(program), method, engine)


def assert_as_it_should_be(*arguments: str) -> None:
    """Run a program that forks while a thread works, and expect it to say so."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", *arguments]
    # Without coverage, whose own lock the thread may hold at the fork: the child would wait for it for ever.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS_")}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=200)
    assert (done.stdout, done.stderr) == ("as it should be\n", "")
