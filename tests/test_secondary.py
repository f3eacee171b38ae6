"""What happens beside a training does not decide over it: printing, the report, child processes, the folder's sync."""

import errno
import logging
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import checkpoint
from gpuopt.runs.control.live import Page
from gpuopt.runs.record.history import History
from gpuopt.runs.secondary import Secondary, environment, interpreter
from gpuopt.training import Callback, Config, Training, UsageError, train

SHORT = Config(epochs=20, hidden=(4,), device="cpu", report_every=1)
COMMAND = [sys.executable, "-m", "gpuopt.cli", "train", "--no-report"]
posix = pytest.mark.skipif(os.name != "posix", reason="descriptors, signals and folders as POSIX has them")


class Failing(Callback):
    """Fails in one of its hooks, and counts how often it is called and ended."""

    def __init__(self, hook: str, error: BaseException) -> None:
        self.hook, self.error = hook, error
        self.failures = self.ends = 0

    def _fail(self, hook: str) -> None:
        if hook == self.hook:
            self.failures += 1
            raise self.error

    def start(self, training: Training) -> None:
        self._fail("start")

    def step(self, training: Training) -> None:
        self._fail("step")
        if training.optimizer.steps == 5:
            training.tell({"event": "mine"})

    def epoch(self, training: Training) -> None:
        self._fail("epoch")

    def reported(self, training: Training, row: Any) -> None:
        self._fail("reported")

    def event(self, training: Training, event: Mapping[str, Any]) -> None:
        self._fail("event")

    def end(self, training: Training) -> None:
        self.ends += 1
        self._fail("end")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    "error", [BrokenPipeError(errno.EPIPE, "nobody reads"), ValueError("closed"), SystemExit(1)], ids=repr
)
@pytest.mark.parametrize("hook", ["start", "step", "epoch", "reported", "event", "end"])
def test_a_secondary_callback_fails_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, hook: str, error: BaseException
) -> None:
    failing = Failing(hook, error)
    result = train(SHORT, out=tmp_path / "run", callbacks=[Secondary(failing, "something")])
    assert (result.epochs, failing.failures, failing.ends) == (20, 1, 1)
    (told,) = warnings(caplog)
    assert told.startswith(f"something failed ({type(error).__name__}: ")


def test_a_log_that_fails_ends_nothing(tmp_path: Path) -> None:
    class Full(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError(errno.ENOSPC, "no space")

    handler = Full()
    logging.getLogger("gpuopt").addHandler(handler)
    try:
        callback = Secondary(Failing("step", ValueError("x")), "something")
        assert train(SHORT, out=tmp_path / "run", callbacks=[callback]).epochs == 20
    finally:
        logging.getLogger("gpuopt").removeHandler(handler)


def test_a_callback_of_ones_own_may_end_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"):
        train(SHORT, out=tmp_path / "run", callbacks=[Failing("step", ValueError("mine"))])


# Standard output and standard error


@posix
@pytest.mark.parametrize(
    ("how", "code"),
    [
        (">&-", 0),
        ("> /dev/full", 0),
        ("| true; exit ${PIPESTATUS[0]}", 0),
        ("2>&-", 0),
        ("0<&- >&- 2>&-", 0),
        ("> /dev/full 2> /dev/full", 0),
        ("2>&1 | true; exit ${PIPESTATUS[0]}", 0),
        ("--hidden x > /dev/full 2> /dev/full", 2),
    ],
)
def test_what_cannot_be_printed_does_not_end_a_training(tmp_path: Path, how: str, code: int) -> None:
    line = f"{' '.join(COMMAND)} --epochs 100 --hidden 4 --out run {how}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if code == 0:
        run = History.read(tmp_path / "run")
        assert run.summary is not None
        assert (run.summary["epochs"], len(run.rows)) == (100, 100)


@posix
@pytest.mark.parametrize(
    ("command", "how", "code"),
    [("info", ">&-", 0), ("info", "> /dev/full", 1), ("--help", "> /dev/full", 1), ("predict run x.npy", ">&-", 2)],
)
def test_commands_whose_output_cannot_be_printed(tmp_path: Path, command: str, how: str, code: int) -> None:
    line = f"{sys.executable} -m gpuopt {command} {how}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == (code != 0)


@posix
def test_a_terminal_that_goes_away_does_not_end_a_training(tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    command = [*COMMAND, "--epochs", "3000", "--hidden", "4", "--out", str(tmp_path / "run")]
    env = {**os.environ, "TERM": "xterm"}
    run = subprocess.Popen(command, stdout=terminal, stderr=subprocess.PIPE, env=env)
    os.close(terminal)
    os.read(main, 10)
    os.close(main)
    _, told = run.communicate(timeout=100)
    assert run.returncode == 0, told
    assert b"Traceback" not in told
    assert (tmp_path / "run" / "summary.json").exists()


@posix
@pytest.mark.parametrize("ignored", [False, True], ids=["", "nohup"])
def test_a_closed_terminal_stops_and_saves(tmp_path: Path, ignored: bool) -> None:
    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    command = [
        *COMMAND,
        "-q",
        "--epochs",
        "3000" if ignored else "100000000",
        "--hidden",
        "4",
        "--out",
        str(tmp_path / "run"),
    ]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=prepare)  # noqa: PLW1509
    while not (tmp_path / "run" / "control.json").exists() and run.poll() is None:
        time.sleep(0.005)
    run.send_signal(signal.SIGHUP)
    _, told = run.communicate(timeout=100)
    assert run.returncode == (0 if ignored else 128 + signal.SIGHUP)
    assert ("stopped by SIGHUP" in told) != ignored
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()


# Processes beside it


@pytest.mark.parametrize(
    ("executable", "frozen", "usable"),
    [
        ("/usr/bin/python3.11", False, True),
        ("/opt/pypy3", False, True),
        ("/Library/Python", False, True),
        ("/usr/bin/python3.11", True, False),
        ("/opt/app/app", False, False),
        ("/usr/bin/uwsgi", False, False),
        ("", False, False),
        (None, False, False),
    ],
)
def test_which_interpreter_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, executable: str | None, frozen: bool, usable: bool
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "frozen", frozen, raising=False)
    assert interpreter() == (executable if usable else None)
    if not usable:  # the report is drawn all the same, here
        started: list[Any] = []
        monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **_: started.append(arguments))
        train(SHORT, out=tmp_path / "run", report=True)
        assert (tmp_path / "run" / "report.html").exists()
        with pytest.raises(
            UsageError, match=r"--live: (.* expected one to start the page with|NiceGUI is not installed)"
        ):
            Page()
        assert started == []


ENTRIES = [Path("somewhere"), "", "relative", None, b"bytes", 3]


@pytest.mark.parametrize("entry", ENTRIES, ids=repr)
def test_whatever_stands_in_the_search_path(monkeypatch: pytest.MonkeyPatch, entry: Any) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, entry])
    found = environment()["PYTHONPATH"].split(os.pathsep)
    assert all(map(os.path.isabs, found))
    assert (
        (found[-1] == str(Path(entry).absolute()))
        if isinstance(entry, str | Path)
        else (len(found) == len(sys.path) - 1)
    )


def test_a_report_is_drawn_whatever_stands_in_the_search_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, *ENTRIES])
    train(SHORT, out=tmp_path / "run", report=True)
    assert warnings(caplog) == []
    assert (tmp_path / "run" / "report.html").exists()


def test_a_process_beside_it_draws_no_report_of_its_own() -> None:
    assert environment()["GPUOPT_REPORT"] == "0"


# The folder


@posix
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_folder_that_cannot_be_synchronized_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    original = os.open

    def fail(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise OSError(code, os.strerror(code))
        return original(path, *arguments, **options)

    optimizer = gpuopt.Optimizer(np.ones(3), gpuopt.Adam())
    monkeypatch.setattr(os, "open", fail)
    for _ in range(2):
        gpuopt.save(tmp_path / "x.safetensors", optimizer)
    assert gpuopt.load(tmp_path / "x.safetensors", optimizer) == {}
    (told,) = warnings(caplog)
    assert told.startswith(f"{tmp_path}: the folder cannot be synchronized ({os.strerror(code)})")


@pytest.mark.parametrize("since", [0, 3])
def test_where_no_thread_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: int) -> None:
    """As in a container that allows so many: checkpoints are written, pictures drawn, by whoever trains."""

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def go(folder: Path, since: int | None) -> dict[str, Any]:
        w = np.ones(3)
        with monkeypatch.context() as patched:
            if since == 0:
                patched.setattr(threading.Thread, "start", fail)
            with gpuopt.Run(folder, gpuopt.Optimizer(w, gpuopt.Adam()), checkpoint_every=2, report=False) as run:
                for step in run.steps(6):
                    if step == since:
                        patched.setattr(threading.Thread, "start", fail)
                    run.step(w, loss=w.sum())
                    run.image("w", w)
        arrays, _ = checkpoint.verified(folder / "checkpoint-4.safetensors")
        return {"image": (folder / "image-w.png").read_bytes(), **{name: x.tolist() for name, x in arrays.items()}}

    assert go(tmp_path / "run", since) == go(tmp_path / "other", None)
