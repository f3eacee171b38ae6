"""What happens beside a training: what fails there is a warning, and the training goes on.

Printing, the report and the live page are secondary: a closed terminal, a full disk behind the standard output, a reader that
leaves, a process that cannot be started must not cost a run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuopt.backends import gpu_failure
from gpuopt.runs.loop import Callback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Secondary", "background", "beside", "environment", "interpreter", "warn", "warned"]

LOG = logging.getLogger("gpuopt")
INTERPRETER = re.compile(r"(python|pypy)[\w.-]*", re.IGNORECASE)


def warn(message: str, *values: object) -> None:
    """Log a warning; a log that fails is not told anywhere."""
    with contextlib.suppress(Exception):
        LOG.warning(message, *values)


@contextlib.contextmanager
def warned(message: str, failed: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Turn what fails inside into a warning, whose ``%s`` becomes the error, unless a GPU failed; call `failed` before."""
    try:
        yield
    except (Exception, SystemExit) as error:  # SystemExit: so rich leaves when nobody reads on
        if gpu_failure(error) is not None:
            raise
        failed()
        warn(message, f"{type(error).__name__}: {error}")


def beside(do: Callable[[], object], name: str) -> threading.Thread | None:
    """Start a thread that does not keep the process alive; None if no further one can be started, as where a container limits them."""
    thread = threading.Thread(target=do, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def background(job: Callable[[], None], name: str) -> Future[None]:
    """Do a job in such a thread, or at once where none can be started; what it raises is raised by the result."""
    done: Future[None] = Future()

    def work() -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001  (see above)
            done.set_exception(error)
        else:
            done.set_result(None)

    if beside(work, name) is None:
        work()
    return done


class Secondary(Callback):
    """A callback that may fail: its failure is a warning, which calls it by `name`, and it is not called again but to end."""

    def __init__(self, callback: Callback, name: str) -> None:
        self._message = f"{name} failed (%s); the training goes on without"
        self._works = True
        for hook in ("start", "step", "epoch", "reported", "event", "end"):
            setattr(self, hook, partial(self._call, hook, getattr(callback, hook)))

    def _call(self, hook: str, method: Callable[..., None], *arguments: Any) -> None:
        self._works |= hook == "start"  # on another device once more
        if self._works:
            with warned(self._message, failed=partial(setattr, self, "_works", False)):
                method(*arguments)
        elif hook == "end":
            with contextlib.suppress(Exception, SystemExit):  # it was told already
                method(*arguments)


def interpreter() -> str | None:
    """The Python interpreter that can be started for a process of our own; None if there is none.

    ``sys.executable`` is the application itself where that is frozen (PyInstaller, cx_Freeze) or embeds Python (uWSGI, say): it
    would be started again, train again, and so on.
    """
    path = sys.executable
    frozen = getattr(sys, "frozen", False) or not isinstance(path, str)
    return None if frozen or not INTERPRETER.fullmatch(Path(path).name) else path


def environment(**more: str) -> dict[str, str]:
    """The environment for such a process: it finds the packages that this one finds, and draws no report of its own."""
    given: list[Any] = list(sys.path)  # Python tolerates anything there
    paths = [os.fsdecode(path) for path in given if isinstance(path, str | os.PathLike)]
    found = os.pathsep.join(map(os.path.abspath, paths))  # "" is here
    return os.environ | {"PYTHONPATH": found, "GPUOPT_REPORT": "0"} | more
