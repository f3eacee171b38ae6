"""Helper threads: the same bits with any number of them, and none of their work outlives the call."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spaces import assert_same_bits

import gpuopt
from gpuopt.engines.cpu import threads
from gpuopt.engines.cpu.threads_code import ALONE, ROUND, TRIES, WARM

LARGE = 700_001
"""Elements that are worth several threads."""


@pytest.fixture(autouse=True)
def number_of_threads() -> Iterator[None]:
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    head = "import os, sys, threading, numpy as np, gpuopt\nfrom gpuopt.engines.cpu import threads\n"
    env = os.environ | environment
    return subprocess.run([sys.executable, "-c", head + code], env=env, capture_output=True, text=True, check=False)


def once_asleep(pool: threads.Pool) -> bool:
    """Wait until the first helper sleeps, and return whether it does."""
    deadline = time.monotonic() + 10
    while not pool._sleeping[0].value and time.monotonic() < deadline:
        time.sleep(1e-4)
    return bool(pool._sleeping[0].value)


def stepped(count: int, **options: Any) -> dict[str, Any]:
    threads.set_num_threads(count)
    random = np.random.RandomState(0)
    params = [random.standard_normal(LARGE).astype("f4"), random.standard_normal(5), random.standard_normal(300_000)]
    opt = gpuopt.Optimizer(params, gpuopt.Adam(), **options)
    for _ in range(3):
        opt.step([random.standard_normal(p.shape).astype(p.dtype) for p in params])
    held = opt.state_dict()
    params_found: dict[str, Any] = held["params"]
    return params_found | {f"{path}/{slot}": s for path, own in held["state"].items() for slot, s in own.items()}


@pytest.mark.parametrize("options", [{}, {"clip": gpuopt.clip_by_global_norm(0.1)}], ids=["plain", "clipped"])
@pytest.mark.parametrize("count", [2, 3, 7, 64, 1000])
def test_any_number_of_threads_gives_the_same_bits(count: int, options: dict[str, Any]) -> None:
    assert_same_bits(stepped(count, **options), stepped(1, **options))


def test_steps_in_several_threads_at_once() -> None:
    threads.set_num_threads(2)
    params = [np.zeros(LARGE, "f4") for _ in range(3)]

    def steps(p: np.ndarray[Any, Any]) -> None:
        opt = gpuopt.Optimizer(p, gpuopt.SGD(lr=1.0))
        for _ in range(20):
            opt.step(np.ones_like(p))

    running = [threading.Thread(target=steps, args=(p,)) for p in params]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert [np.unique(p).tolist() for p in params] == [[-20.0]] * 3


def test_no_helper_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
import _thread
start = _thread.start_new_thread
def refuse(*_): raise RuntimeError("can't start new thread")
threads.set_num_threads(4)
w = np.zeros({LARGE}, np.float32)
opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), nonfinite="skip")
_thread.start_new_thread = refuse
opt.step(np.ones_like(w))
_thread.start_new_thread = start
opt.step(np.ones_like(w))
print(opt.steps, np.unique(w))
"""
    done = run(code)
    assert done.stdout.split() == ["2", "[-2.]"], done.stderr


SLEEP = 2e-3


@pytest.mark.parametrize(("slow", "woken"), [("to wake", False), ("alone", True), ("neither, but long", True)], ids=str)
def test_helpers_are_woken_for_short_jobs_that_take_less_time_with_them(slow: str, woken: bool) -> None:
    threads.set_num_threads(2)
    pool, wakings, items = threads.pool(), list[None](), 16
    pool.start(2)
    assert once_asleep(pool)
    time.sleep(0.05)  # until it sleeps indeed

    def release(_: object) -> None:
        wakings.append(None)
        if slow == "to wake":
            time.sleep(SLEEP)

    def work(_: object, begin: int, end: int) -> None:
        if slow == "alone" and end - begin == items:
            time.sleep(SLEEP)

    job = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(work)
    releasing = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(release)
    words = {name: pool._words[name].value for name in ("release", "short")}
    times, count = threads.no_times(), ROUND if woken else ALONE

    def run() -> int:
        wakings.clear()
        pool._sleeping[0].value = 1
        pool.run(ctypes.cast(job, ctypes.c_void_p), 0, items, 2, times.ctypes.data)
        return len(wakings)

    pool._words["release"].value = ctypes.cast(releasing, ctypes.c_void_p).value or 0  # nobody wakes up indeed
    pool._words["short"].value = 0 if slow == "neither, but long" else 10**9
    try:
        found = [run() for _ in range(WARM + 2 * count)]
    finally:
        for name, value in words.items():
            pool._words[name].value = value
        pool._sleeping[0].value = 1
        pool._wake(0)
    tried = [1] * TRIES + [int(slow == "neither, but long")] * TRIES
    assert found == [1] * WARM + 2 * (tried + (count - 2 * TRIES) * [int(woken)])


@pytest.mark.parametrize("workers", [2, 3, 64])
@pytest.mark.parametrize("items", [0, 1, 2, 31, 32, 33, 1000])
def test_every_item_of_a_job_is_done_once(items: int, workers: int) -> None:
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    done: list[int] = []
    job = function(lambda _, begin, end: done.extend(range(begin, end)))
    threads.set_num_threads(workers)
    pool = threads.pool()
    pool.start(3)
    times = threads.no_times()
    for _ in range(2):
        done.clear()
        pool.run(ctypes.cast(job, ctypes.c_void_p), 0, items, workers, times.ctypes.data)
        assert sorted(done) == list(range(items))


def test_a_helper_that_was_roused_for_nothing_goes_back_to_sleep() -> None:
    threads.set_num_threads(2)
    pool = threads.pool()
    pool.start(2)
    assert once_asleep(pool)
    times = threads.no_times()
    pool.rouse(times.ctypes.data, 2)
    assert pool._words["roused"].value == 1
    assert once_asleep(pool)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks as POSIX has them")
def test_a_child_has_helpers_of_its_own() -> None:
    code = f"""
import warnings
warnings.simplefilter("ignore")
threads.set_num_threads(2)
w = np.zeros({LARGE}, np.float32)
opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0))
opt.step(np.ones_like(w))
if (pid := os.fork()) == 0:
    opt.step(np.ones_like(w))
    print(np.unique(w), threads.pool()._helpers, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
opt.step(np.ones_like(w))
print(np.unique(w), threads.pool()._helpers)
"""
    done = run(code)
    assert done.stdout.splitlines() == ["[-2.] 1", "[-2.] 1"], done.stderr


@pytest.mark.parametrize(
    "end",
    [
        "def work():\n    time.sleep(0.3); step()\nthreading.Thread(target=work).start()",
        "import atexit\nstep()\natexit.register(step)",
        "step()\ndef spin():\n    while True: step()\nthreading.Thread(target=spin, daemon=True).start(); time.sleep(0.1)",
    ],
    ids=["a thread that outlives the main one", "atexit", "a daemon"],
)
def test_a_step_while_the_interpreter_ends(end: str) -> None:
    code = f"""
import time
threads.set_num_threads(2)
w = np.zeros({LARGE}, np.float32)
opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0))
def step():
    opt.step(np.ones_like(w)); print(opt.steps, flush=True)
"""
    done = run(code + end)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "1"
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a compiler of C, and x86's control register")
def test_every_thread_has_the_callers_floating_point_mode(tmp_path: Path) -> None:
    import platform
    import shutil

    if platform.machine() != "x86_64" or shutil.which("gcc") is None:
        pytest.skip("needs a compiler of C, and x86's control register")
    source = "#include <xmmintrin.h>\nvoid set(int on){_mm_setcsr(on ? _mm_getcsr()|0x8040 : _mm_getcsr()&~0x8040);}\n"
    (tmp_path / "mode.c").write_text(source)
    subprocess.check_call(["gcc", "-O2", "-shared", "-fPIC", "-o", tmp_path / "mode.so", tmp_path / "mode.c"])
    library = ctypes.CDLL(str(tmp_path / "mode.so"))
    threads.set_num_threads(2)
    w = np.zeros(4_000_000, "f4")
    opt, g = gpuopt.Optimizer(w, gpuopt.SGD(lr=0.25)), np.full_like(w, 2e-38)
    for flushes, expected in ((1, 0.0), (0, np.float32(-0.25) * np.float32(2e-38))):
        w[:] = 0
        library.set(flushes)
        opt.step(g)
        library.set(0)
        assert np.unique(w).tolist() == [expected]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"GPUOPT_NUM_THREADS": "3"}, "3"),
        ({"GPUOPT_NUM_THREADS": " 3 ", "OMP_NUM_THREADS": "5"}, "3"),
        ({"OMP_NUM_THREADS": "5"}, "5"),
        ({"OMP_NUM_THREADS": "5,2"}, "5"),
        ({"GPUOPT_NUM_THREADS": "", "OMP_NUM_THREADS": "1"}, "1"),
        ({"GPUOPT_NUM_THREADS": "100000"}, "64"),
    ],
    ids=str,
)
def test_the_number_that_the_environment_names(environment: dict[str, str], expected: str) -> None:
    done = run("print(threads.get_num_threads())", **{"GPUOPT_NUM_THREADS": "", "OMP_NUM_THREADS": ""} | environment)
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "many", "1 2"])
def test_a_number_of_threads_that_is_none(value: str) -> None:
    done = run("gpuopt.Optimizer(np.zeros(3), gpuopt.Adam())", GPUOPT_NUM_THREADS=value)
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"ValueError: GPUOPT_NUM_THREADS={value!r}: expected a whole number from 1 on"), done.stderr


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError), ("2", TypeError)]
)
def test_set_num_threads_refuses(value: Any, error: type[Exception]) -> None:
    before = threads.get_num_threads()
    with pytest.raises(error, match=r"set_num_threads: .*expected a whole number from 1 on"):
        threads.set_num_threads(value)
    assert threads.get_num_threads() == before


CGROUPS = {
    "no limit": ({"cpu.max": "max 100000"}, "0::/\n", 64),
    "half a processor": ({"cpu.max": "50000 100000"}, "0::/\n", 1),
    "two and a half": ({"cpu.max": "250000 100000"}, "0::/\n", 3),
    "of the own group": ({"a/b/cpu.max": "200000 100000"}, "0::/a/b\n", 2),
    "of the group above": ({"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", 3),
    "version 1": ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, "", 2),
    "version 1 without": ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "", 64),
    "nonsense": ({"cpu.max": "what"}, "0::/\n", 64),
    "nothing": ({}, "", 64),
}


@pytest.mark.parametrize(("files", "group", "expected"), CGROUPS.values(), ids=CGROUPS)
def test_the_quota_of_a_control_group(files: dict[str, str], group: str, expected: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    (tmp_path / "own").write_text(group)
    assert threads._quota(tmp_path / "root", tmp_path / "own") == expected


@pytest.mark.parametrize("machine", ["x86_64", "arm64", "riscv64"])
def test_the_code_for_other_machines_is_valid(machine: str) -> None:
    llvm = pytest.importorskip("llvmlite.binding")
    from gpuopt.engines.cpu.threads_code import source

    llvm.parse_assembly(source(machine)).verify()
