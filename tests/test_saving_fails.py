"""Disks that fail: the run stops with a message, the checkpoint before is whole, and the run goes on from there."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuopt import tensorfile
from gpuopt.runs.record.folder import RunFolder
from gpuopt.training import Callback, Config, SavingError, Training, UsageError, resume, train

pytestmark = pytest.mark.skipif(os.name != "posix", reason="files as POSIX has them")

CONFIG = Config(epochs=30, hidden=(8,), checkpoint_every=2, device="cpu", report_every=1)


class At(Callback):
    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self.step_, self.action = step, action

    def step(self, training: Training) -> None:
        if training.optimizer.steps == self.step_:
            self.action()


def failing(function: str, code: int, only: str = "") -> Callable[[pytest.MonkeyPatch], None]:
    """Let a function of `os` fail for all files, or for those whose name has `only` in it."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(os, function)

        def fail(*arguments: Any, **options: Any) -> Any:
            if only and only not in str(arguments[0]):
                return original(*arguments, **options)
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, function, fail)

    return plant


def without_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not grow beyond 300 bytes: written in part, then an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "fsync: no space": failing("fsync", errno.ENOSPC),
    "fsync: input/output error": failing("fsync", errno.EIO),
    "rename: no permission": failing("replace", errno.EACCES),
    "rename: read-only file system": failing("replace", errno.EROFS),
    "rename of the checkpoint alone": failing("replace", errno.EIO, "checkpoint.safetensors"),
    "no space": without_space,
}


@pytest.fixture(autouse=True)
def limit() -> Any:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def result(folder: Path) -> tuple[Any, ...]:
    arrays, _ = tensorfile.read(folder / "checkpoint.safetensors")
    rows = [json.loads(line) | {"seconds": 0} for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text()) | {"seconds": 0, "folder": ""}
    return {name: x.tobytes() for name, x in arrays.items()}, rows, summary


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The result where nothing fails."""
    folder = tmp_path_factory.mktemp("whole")
    train(CONFIG, out=folder / "run")
    return result(folder / "run")


@pytest.mark.parametrize("plant", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("step", [1, 12])
def test_the_checkpoint_before_is_whole(
    whole: tuple[Any, ...], tmp_path: Path, step: int, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        with pytest.raises(SavingError) as error:
            train(CONFIG, out=folder, callbacks=[At(step, lambda: plant(monkeypatch))])
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    last = 0
    if step == 12:
        _, metadata = tensorfile.read(folder / "checkpoint.safetensors")
        last = json.loads(metadata["gpuopt"])["steps"]
        assert last in (8, 10)  # the one after 10 steps may have been on its way
    told = re.search(
        rf"the last checkpoint is the one after (\d+) steps. To go on: .* --resume {folder}$", str(error.value)
    )
    assert told is not None
    assert int(told[1]) in {last, last - 2}  # of one that is there, but not sure to last, nothing is said
    assert str(error.value).startswith(str(folder))
    assert (folder / "checkpoint.safetensors").exists() == (last > 0)
    resume(folder)
    assert result(folder) == whole
    assert not list(folder.glob("*.tmp"))


def test_a_folder_that_is_moved_on_the_way(tmp_path: Path) -> None:
    move = At(6, lambda: (tmp_path / "run").rename(tmp_path / "moved"))
    with pytest.raises(SavingError, match="the folder was removed or moved"):
        train(CONFIG, out=tmp_path / "run", callbacks=[move], report=False)
    assert resume(tmp_path / "moved", report=False).steps == 30


def test_a_folder_without_permission() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # tmp_path lies where nobody else may look
        place = Path(name)
        place.chmod(0o555)
        try:
            if user == 0:  # who may write everywhere
                os.seteuid(65534)
            with pytest.raises(UsageError, match=r"--out .*: cannot be made: Permission denied"):
                train(CONFIG, out=place / "run")
        finally:
            os.seteuid(user)
            place.chmod(0o755)


KILLED = """
import os, signal, sys
from gpuopt.training import Config, train
original, calls = getattr(os, sys.argv[1]), 0

def kill(*arguments, **options):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        if sys.argv[3] == "after":
            original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(os, sys.argv[1], kill)
train(Config(epochs=30, hidden=(8,), checkpoint_every=2, device="cpu", report_every=1), out="run")
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("function", "call"), [("replace", 1), ("replace", 6), ("replace", 7), ("fsync", 9), ("link", 3)]
)
def test_killed_between_writing_and_renaming(
    whole: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, call: int, when: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, "-c", KILLED, function, str(call), when], check=False)
    assert done.returncode == -signal.SIGKILL
    if Path("run/config.json").exists():
        resume("run")
    else:  # killed before it began: the same command starts it
        train(CONFIG, out="run")
    assert result(Path("run")) == whole
    assert not list(Path("run").glob("*.tmp"))


# What is kept


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    from dataclasses import replace

    train(replace(CONFIG, checkpoint_every=5, keep=3), out=tmp_path / "run")
    kept = {file.name for file in (tmp_path / "run").glob("*.safetensors")}
    assert kept == {f"{name}.safetensors" for name in ("checkpoint", "checkpoint-20", "checkpoint-25", "best")}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["loss"])
    _, metadata = tensorfile.read(tmp_path / "run" / "best.safetensors")
    assert json.loads(metadata["gpuopt"])["steps"] == best["step"]
    train(replace(CONFIG, keep=1), out=tmp_path / "one")
    assert {file.name for file in (tmp_path / "one").glob("*.safetensors")} == {
        "checkpoint.safetensors",
        "best.safetensors",
    }


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_a_clock_that_is_set_does_not_decide_what_is_kept(tmp_path: Path, hours: int) -> None:
    from dataclasses import replace

    folder = tmp_path / "run"

    def shift() -> None:
        for file in folder.glob("*.safetensors"):
            os.utime(file, (file.stat().st_mtime + hours * 3600,) * 2)

    changed = [At(step, shift) for step in (6, 11, 16)]
    train(replace(CONFIG, checkpoint_every=5, keep=3, epochs=100), out=folder, callbacks=changed)
    assert list(RunFolder(folder).kept()) == [90, 95]


def test_what_a_rollback_left_goes_first(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in ("9", "10", "100", "70", "80", "x", "007", "-5"):
        (tmp_path / f"checkpoint-{name}.safetensors").touch()
    assert list(folder.kept()) == [9, 10, 70, 80, 100]  # numbers, not texts
    for kept, left in ((4, [9, 10, 80, 100]), (3, [9, 10, 100]), (2, [9, 10]), (1, [10]), (0, [])):
        folder.forget_all_but(kept, steps=20)
        assert list(folder.kept()) == left
    assert len(list(tmp_path.iterdir())) == 3  # what we did not write is nobody's to remove


def test_an_earlier_checkpoint_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    train(CONFIG, out=tmp_path / "whole")
    folder = tmp_path / "run"

    class Stop(Callback):
        def step(self, training: Training) -> None:
            if training.optimizer.steps == 13:
                training.stop("enough")

    train(CONFIG, out=folder, callbacks=[Stop()])
    last = folder / "checkpoint.safetensors"
    last.write_bytes(last.read_bytes()[:-9])
    with pytest.raises(UsageError, match=r"checkpoint.safetensors: .*; there are earlier ones, .*: checkpoint-12"):
        resume(folder)
    (folder / "checkpoint-12.safetensors").rename(last)
    resume(folder)
    assert result(folder) == result(tmp_path / "whole")


# Two processes


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    refused: list[str] = []

    def second() -> None:
        for attempt in (lambda: resume(folder), lambda: train(CONFIG, out=folder)):
            with pytest.raises(UsageError) as error:
                attempt()  # type: ignore[no-untyped-call]
            refused.append(str(error.value))

    train(CONFIG, out=folder, callbacks=[At(3, second)])
    assert refused[0] == f"{folder}: another process is training in this folder, or another run of this process"
    assert "exists already" in refused[1]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    class Stop(Callback):
        def step(self, training: Training) -> None:
            training.stop("enough")

    train(CONFIG, out=tmp_path / "run", callbacks=[Stop()])
    for name in ("checkpoint.safetensors.12345678.tmp", "config.json.tmp", "checkpoint-5.safetensors.tmp"):
        (tmp_path / "run" / name).write_bytes(b"half")
    resume(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.tmp"))
