"""A loop of one's own, and `gpuopt train`, whose machine loses power, or that are killed, at every operation on their files.

Nothing that was saved is lost.

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
from gpuopt.runs.record.folder import RunFolder
from gpuopt.runs.record.metrics import whole
from gpuopt.training import Config, resume, train

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


def trained(folder: Path, hand: Hand | None = None) -> None:
    random = np.random.RandomState(0)
    data = random.rand(50, 3), random.randint(3, size=50)
    callbacks = [] if hand is None else [hand]
    if (folder / "summary.json").exists():
        return  # which comes last
    if (folder / "config.json").exists():
        resume(folder, data=data, callbacks=callbacks, report=False)
        return
    options: dict[str, Any] = {
        "hidden": (4,),
        "batch_size": 16,
        "validation": 0.2,
        "optimizer": "Adam",
        "device": "cpu",
    }
    config = Config(epochs=8, checkpoint_every=5, keep=3, report_every=1, **options)
    train(config, data=data, out=folder, callbacks=callbacks, report=False)


def ended(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": [{**row, "seconds": 0} for row in rows(folder)]}
    found["tuned"] = [(row["step"], row["name"], row["new"]) for row in rows(folder, "tune")]
    arrays, about = checkpoint.verified(folder / "checkpoint.safetensors")
    found |= {path: x.tobytes() for path, x in arrays.items()}
    found["summary"] = json.loads((folder / "summary.json").read_text()) | {"seconds": 0, "folder": ""}
    model = folder / "model.json"
    found["model"] = model.read_text() if model.exists() else ""
    return found | {"position": about["extra"]["position"] | {"seconds": 0}}


def put(folder: Path, contents: Contents) -> Path:
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("go", [solve, trained])
def test_power_fails_at_every_operation(tmp_path: Path, request: pytest.FixtureRequest, go: Any) -> None:
    """Each state of the disk is gone on with, is lost once more on the way, and gone on with to the end."""
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
        go(tmp_path / "run", hand)
    whole = ended(tmp_path / "run")
    assert len(whole["tuned"]) == 2
    go(tmp_path / "untuned")
    untuned = ended(tmp_path / "untuned")
    ends = {"tuned": 0, "untuned": 0}
    tried = list(states.values())[:: 1 if is_long else max(1, len(states) // 6)]
    for number, (contents, is_answered) in enumerate(tried):
        folder = put(tmp_path / str(number), contents)
        again: list[Contents] = []
        with watched(folder, lambda disk, found=again: found.append(disk.after_a_failure(random))):  # type: ignore[misc]
            go(folder)
        results = [ended(folder)]
        if again:
            folder = put(tmp_path / f"{number} again", random.choice(again))
            go(folder)
            results.append(ended(folder))
        for found in results:
            assert found in (whole, untuned), sorted(contents)
            assert not is_answered or found == whole, "a change that was answered is lost"
            ends["tuned" if found == whole else "untuned"] += 1
        left = {path.name for path in folder.glob("*.tmp")}
        assert all(
            name.startswith("summary.json.") for name in left
        )  # it stays beside a summary that came through, with which nothing goes on
    print(f"{moments} moments, {len(tried)} different states of the disk, {ends}")
    assert ends["tuned"]
    assert ends["untuned"]


def test_power_fails_while_an_optimizer_is_saved(tmp_path: Path) -> None:
    random, number = Random(1), 0
    opt = gpuopt.Optimizer(np.zeros(3), gpuopt.SGD(lr=1.0))
    found: list[tuple[int, Contents]] = []

    def each(disk: Disk) -> None:
        found.extend((number, disk.after_a_failure(random)) for _ in range(20))

    with watched(tmp_path, each) as disk:
        for number in range(1, 6):
            opt.step(-np.ones(3))
            gpuopt.save(tmp_path / "file", opt, {"number": number})
            found += [(number + 1, disk.after_a_failure(random)) for _ in range(20)]  # it was said to be saved
    for number, (saving, contents) in enumerate(found):
        folder = put(tmp_path / str(number), contents)
        if saving > 1 or (folder / "file").exists():
            extra = gpuopt.load(folder / "file", opt)
            assert extra["number"] in (saving - 1, saving)
            assert opt.params.tolist() == [extra["number"]] * 3


@pytest.mark.parametrize("make", [RunFolder.opened, lambda path: RunFolder.create(path, "name")])
def test_new_folders_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    make(tmp_path / "a" / "b" / "c")
    assert synced == [path.stat().st_ino for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")]


def test_rows_that_were_written_together_count_together(tmp_path: Path) -> None:
    lines = b'{"step": 1}\n{"event": "a"} \n{"event": "b"}\n'
    for size in range(len(lines) + 1):
        rows, taken = whole(lines[:size])
        assert (len(rows), taken) == ((3, len(lines)) if size == len(lines) else (1, 12) if size >= 12 else (0, 0))
