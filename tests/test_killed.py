"""Runs that are killed at any moment go on to the same bits. ``--soak`` kills a hundred times."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from gpuopt import checkpoint, tensorfile

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes as POSIX has them")

COMMAND = [sys.executable, "-m", "gpuopt.cli", "train", "--quiet"]

# What a run does, and how it is saved; each one takes about a second.
RUNS = {
    "batches": ["--data", "data.npz", "--epochs", "150", "--batch-size", "17", "--schedule", "cosine"],
    "full batch": ["--epochs", "900", "--report-every", "7"],
    "rollback": ["--optimizer", "SGD", "--lr", "50", "--epochs", "900", "--on-explosion", "rollback"],
}
EVERY = {"batches": "0.01s", "full batch": "13", "rollback": "40"}


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUOPT_BACKEND", "numpy")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    random = np.random.RandomState(0)
    np.savez("data.npz", x_train=random.randn(150, 4), y_train=random.randint(3, size=150), x_test=random.randn(30, 4),
             y_test=random.randint(3, size=30))  # fmt: skip


def started(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(folder: str) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": 0} for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def result(folder: str) -> dict[str, Any]:
    """All that is the same in a run that was not interrupted."""
    summary = json.loads(Path(folder, "summary.json").read_text()) | {"seconds": 0, "folder": ""}
    files: dict[str, bytes] = {}
    for name in ("checkpoint", "best"):
        arrays, _ = tensorfile.read(Path(folder, f"{name}.safetensors"))
        files |= {f"{name}/{path}": x.tobytes() for path, x in arrays.items()}
    return {"summary": summary, "rows": rows(folder), **files}


def killed(name: str, folder: str, random: Random, longest: float, most: int) -> Iterator[str]:
    """Start a run, kill it, resume it, kill it ..., so often at most; yield what stood on the disk after each kill."""
    arguments = [*RUNS[name], "--checkpoint-every", EVERY[name], "--out", folder]
    while True:
        run = started(*arguments)
        if most % 2:  # soon after a checkpoint
            while not Path(folder, "checkpoint.safetensors").exists() and run.poll() is None:
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.3))
        elif most:
            time.sleep(random.uniform(0, longest))
        else:
            run.wait()
        most -= 1
        over = run.poll() is not None
        run.kill()
        _, errors = run.communicate()
        if over:
            assert run.returncode == 0, errors
            return
        for file in Path(folder).glob("*.safetensors"):
            checkpoint.verified(file)
        yield "checkpoint" if Path(folder, "checkpoint.safetensors").exists() else "none yet"
        if Path(folder, "config.json").exists():
            arguments = ["--resume", folder]
            if Path(folder, "summary.json").exists():
                return  # killed after its last act


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_runs_end_like_others(name: str, request: pytest.FixtureRequest) -> None:
    begin = time.perf_counter()
    whole = started(*RUNS[name], "--out", "whole")
    _, errors = whole.communicate()
    assert whole.returncode == 0, errors
    longest = 1.5 * (time.perf_counter() - begin)
    expected, random, runs = result("whole"), Random(name), 0
    kills: list[str] = []
    wanted = 34 if request.config.getoption("--soak") else 3
    while len(kills) < wanted:
        kills += killed(name, f"run{runs}", random, longest, wanted - len(kills))
        assert result(f"run{runs}") == expected
        assert not list(Path(f"run{runs}").glob("*.tmp"))
        runs += 1
    assert "checkpoint" in kills
    print(f"{name}: {len(kills)} kills in {runs} runs, {kills.count('checkpoint')} with a checkpoint on the disk; "
          f"{time.perf_counter() - begin:.0f} s")  # fmt: skip
