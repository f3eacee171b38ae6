"""Signals that stop a loop after its current step."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from gpuopt.runs.loop import Loop

__all__ = ["stopping"]


@contextlib.contextmanager
def stopping(run: Loop) -> Iterator[list[signal.Signals]]:
    """Let Ctrl-C, SIGTERM and a terminal that closes stop a loop after the current step; a second one leaves at once."""
    caught: list[signal.Signals] = []
    run.signals = caught

    def handle(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
        caught.append(signal.Signals(signum))
        run.stop(caught[0].name)
        restore()

    def restore() -> None:
        for known, before in handlers.items():
            signal.signal(known, before)

    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other one may set handlers
        known = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
            known.append(signal.SIGHUP)
        handlers = {one: signal.signal(one, handle) for one in known}
    try:
        yield caught
    finally:
        restore()
