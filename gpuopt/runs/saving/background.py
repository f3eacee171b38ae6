"""One job at a time, beside the training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.runs.secondary import beside

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

__all__ = ["Background"]


class Background:
    """Runs jobs in a thread of its own, one after the other; what one of them raises is raised by the next call.

    The thread does not keep the process alive: who leaves at once leaves at once. Where none can be started, the job is done at once.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Start a job, as soon as the one before is done."""
        self.wait()

        def run() -> None:
            try:
                job()
            except BaseException as error:  # noqa: BLE001  (raised in `wait`)
                self._error = error

        self._thread = beside(run, "gpuopt checkpoint")
        if self._thread is None:
            run()

    def look(self) -> None:
        """Raise what a job raised that is done."""
        if self._thread is None or not self._thread.is_alive():
            self.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the job that runs, so long at most."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
