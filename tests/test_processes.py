"""Several threads, forked and spawned processes: the same bits, and nobody hangs."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conformance import ROWS
from spaces import assert_same_bits

import gpuopt

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


PROGRAM = """
import multiprocessing
import os
import pickle
import sys
import threading
import numpy as np
import gpuopt

SIZE = 1 << 20

def optimizer():
    return gpuopt.Optimizer(np.ones(SIZE, "f4"), gpuopt.Adam(lr=0.1), engine="fused")

def after(opt, steps):
    for k in range(steps):
        opt.step(np.full(SIZE, k + 1, "f4"))
    return opt

def child(opt, connection):
    connection.send_bytes(after(opt, 3).params.tobytes())

if __name__ == "__main__":
    opt = after(optimizer(), 2)
    if sys.argv[1] == "busy":  # somebody else is in the middle of steps while this process forks
        other, stop = optimizer(), threading.Event()
        def work():
            while not stop.is_set():
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


@pytest.mark.parametrize("method", ["fork", "busy", "spawn"])
def test_processes(method: str, tmp_path: Path) -> None:
    if method != "spawn" and not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(program), method]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=200)
    assert (done.stdout, done.stderr) == ("as it should be\n", "")
