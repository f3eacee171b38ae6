"""A process beside the training that draws its report when it ends.

To load what draws takes longer than to draw, and the first pictures of a process take several times as long as those that
follow. So the process is started with the training, gets ready while that runs, on what it leaves of the processors, and
then waits on its standard input for the word to rehearse, which comes shortly before the end, and for the word to draw. When
the training is killed that input ends, and so does the process.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import shlex
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from gpuopt.runs.loop import Callback
from gpuopt.runs.secondary import Secondary, environment, interpreter, warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuopt.runs.loop import Loop, Row
    from gpuopt.runs.record.folder import RunFolder

__all__ = ["DRAWING", "is_wanted", "reported"]

VARIABLE = "GPUOPT_REPORT"
PATIENCE = 60
"""Seconds that a report may take. The first one on a machine takes some, in which matplotlib looks for fonts."""
REHEARSAL = 0.6
"""Seconds that it takes, about."""
DRAWING = "gpuopt.runs.report.page"
"""The module that draws a run's folder."""


def is_wanted() -> bool:
    """Whether runs get a report: not if the environment variable GPUOPT_REPORT is 0, nor without what draws."""
    return os.environ.get(VARIABLE) != "0" and importlib.util.find_spec("matplotlib") is not None


@contextlib.contextmanager
def reported(run: Loop, folder: RunFolder, *, wanted: bool, drawing: str = DRAWING) -> Iterator[list[Callback]]:
    """Get ready to draw, and draw the report of the run that goes on inside, with these callbacks; what fails is a warning.

    It is drawn of a run that failed, too, unless that is left at once.
    """
    if not wanted:
        yield []
        return
    python = interpreter()
    command = [python or "", "-P", "-c", f"from {__name__} import main; main()", str(folder.path), drawing]
    # Nothing that decides what is computed or drawn elsewhere.
    env, pipe = environment(MPLBACKEND="agg", OPENBLAS_NUM_THREADS="1"), subprocess.PIPE
    artist: subprocess.Popen[str] | None = None
    try:
        if python is not None:
            artist = subprocess.Popen(
                command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, env=env, text=True, start_new_session=True
            )  # a session of its own: Ctrl-C is for the training
    except (OSError, ValueError) as error:
        _warn(folder, str(error))
        yield []
        return
    try:
        yield [] if artist is None else [Secondary(Prompter(artist), "getting ready for the report")]
    except BaseException as error:
        if isinstance(run.error or error, Exception):  # what breaks off a body closes the loop
            _draw(artist, folder, drawing)
        elif artist is not None:
            artist.kill()
            artist.communicate()
        raise
    _draw(artist, folder, drawing)


class Prompter(Callback):
    """Says when to rehearse: as late as possible, since what changes afterwards is drawn anew."""

    def __init__(self, artist: subprocess.Popen[str]) -> None:
        self._artist = artist
        self._is_done = False
        self._before = 0  # the step of the row before

    def reported(self, run: Loop, row: Row) -> None:
        step, interval = row["step"], row["step"] - self._before
        self._before = step
        after_next = (run.total - step - interval) / step * row["seconds"]
        if not self._is_done and step < run.total and after_next < REHEARSAL:
            self._is_done = True
            assert self._artist.stdin is not None
            with contextlib.suppress(OSError):  # if it is no more, that is told in the end
                os.write(self._artist.stdin.fileno(), b"rehearse\n")  # leaves nothing in a buffer, should it fail


def _draw(artist: subprocess.Popen[str] | None, folder: RunFolder, drawing: str) -> None:
    """Draw in the process for it, or in this one if there is none."""
    try:
        if artist is None:
            importlib.import_module(drawing).draw(folder.path)
            return
        with artist:
            try:
                _, errors = artist.communicate("draw\n", PATIENCE)
            except subprocess.TimeoutExpired:
                errors = f"not done after {PATIENCE} s"
            finally:
                artist.kill()  # unless it is done
    except Exception as error:  # noqa: BLE001  (whatever it is, the training is done)
        _warn(folder, f"{type(error).__name__}: {error}")
        return
    if artist.returncode:
        _warn(folder, errors.strip().rpartition("\n")[2] or f"the process that draws ended with {artist.returncode}")


def _warn(folder: RunFolder, why: str) -> None:
    warn("no report: %s. To draw it: gpuopt plot %s", why, shlex.quote(str(folder.path)))


def main() -> None:
    """Be the process that draws."""
    prompted, asked = threading.Event(), threading.Event()

    def listen() -> None:
        for word in sys.stdin:
            if word == "draw\n":
                asked.set()
            prompted.set()
        if not asked.is_set():
            os._exit(0)  # nobody is there any more

    threading.Thread(target=listen, daemon=True).start()
    gc.disable()  # in so short a life that only costs time
    with contextlib.suppress(AttributeError, OSError):  # Windows has no such thing
        os.nice(5)  # not more, or it would hardly get on where others work, and be waited for
    report = importlib.import_module(sys.argv[2])
    report.get_ready()
    prompted.wait()
    with contextlib.suppress(OSError, ValueError):  # whatever is wrong, it is told in the end
        report.rehearse(sys.argv[1], asked.is_set)
    asked.wait()
    report.draw(sys.argv[1])
    os._exit(0)  # to take everything apart takes longer than to draw it
