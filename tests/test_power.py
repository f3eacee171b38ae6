"""A loop of one's own whose machine loses power, or that is killed, at every operation on its files: nothing that was saved is lost.

``--soak`` tries forty states of the disk before and after each operation.
"""

import json
import os
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any

import numpy as np
import pytest
from power import Contents, Disk, watched
from running import rows

import gpuopt
from gpuopt import checkpoint
from gpuopt.runs.loop import Callback
from gpuopt.runs.record.metrics import whole

pytestmark = pytest.mark.skipif(os.name != "posix", reason="files as POSIX has them")

STEPS, TUNED = 24, 13


class Hand(Callback):
    """Changes two hyperparameters in one request, as from another terminal, after one step of a run that has not had it."""

    def __init__(self) -> None:
        self.answers: Any = SimpleQueue()

    def step(self, run: Any) -> None:
        if run.optimizer.steps == TUNED:
            run._callbacks[-1]._requests.put(({"tune": {"lr": 0.02, "beta1": 0.7}}, self.answers))


def solve(folder: Path, hand: Hand | None = None) -> None:
    random = np.random.RandomState(0)
    a = random.rand(20, 5)
    b = a @ random.rand(5)
    x = np.zeros(5)
    opt = gpuopt.Optimizer({"x": x}, gpuopt.chain(gpuopt.Adam(lr=0.05), gpuopt.NonNegative()))
    callbacks = [] if hand is None else [hand]
    with gpuopt.Run(folder, opt, checkpoint_every=5, keep=2, callbacks=callbacks, report=False) as run:
        mean = run.remember("mean", np.zeros(5))
        own = run.remember("own", {"steps": []})
        batches = run.batches(20, 6)
        for step in run.steps(STEPS):
            chosen = next(batches)
            error = a[chosen] @ x - b[chosen] + 1e-3 * run.random.standard_normal(len(chosen))
            run.step({"x": 2 * a[chosen].T @ error}, loss=float(error @ error))
            mean += x / STEPS
            own["steps"].append(step)
            run.image("x", x)


def ended(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": [{**row, "seconds": 0} for row in rows(folder)]}
    found["tuned"] = [(row["step"], row["name"], row["new"]) for row in rows(folder, "tune")]
    arrays, about = checkpoint.verified(folder / "checkpoint.safetensors")
    found |= {path: x.tobytes() for path, x in arrays.items()}
    found["summary"] = json.loads((folder / "summary.json").read_text()) | {"seconds": 0, "folder": ""}
    return found | {key: about["extra"]["position"][key] for key in ("drawn", "generators", "values")}


def put(folder: Path, contents: Contents) -> Path:
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def test_power_fails_at_every_operation(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    hand, is_long = Hand(), request.config.getoption("--soak")
    random, moments = Random(7), 0
    states: dict[str, tuple[Contents, bool]] = {}

    def each(disk: Disk) -> None:
        nonlocal moments
        moments += 1
        is_answered = not hand.answers.empty()
        found = [disk.after_a_kill(), *(disk.after_a_failure(random) for _ in range(40 if is_long else 1))]
        for contents in found:
            states.setdefault(f"{is_answered} {sorted(contents.items())}", (contents, is_answered))

    (tmp_path / "run").mkdir()
    with watched(tmp_path / "run", each):
        solve(tmp_path / "run", hand)
    whole = ended(tmp_path / "run")
    assert len(whole["tuned"]) == 2
    solve(tmp_path / "untuned")
    untuned = ended(tmp_path / "untuned")
    ends = {"tuned": 0, "untuned": 0}
    tried = list(states.values())[:: 1 if is_long else max(1, len(states) // 16)]
    for number, (contents, is_answered) in enumerate(tried):
        folder = put(tmp_path / str(number), contents)
        solve(folder)
        found = ended(folder)
        assert found in (whole, untuned), sorted(contents)
        ends["tuned" if found == whole else "untuned"] += 1
        assert not is_answered or found == whole, "a change that was answered is lost"
        assert not list(folder.glob("*.tmp"))
    print(f"{moments} moments, {len(tried)} different states of the disk, {ends}")
    assert ends["tuned"]
    assert ends["untuned"]


def test_rows_that_were_written_together_count_together(tmp_path: Path) -> None:
    lines = b'{"step": 1}\n{"event": "a"} \n{"event": "b"}\n'
    for size in range(len(lines) + 1):
        rows, taken = whole(lines[:size])
        assert (len(rows), taken) == ((3, len(lines)) if size == len(lines) else (1, 12) if size >= 12 else (0, 0))
