"""Signals that stop a loop after its current step."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["first_signal"]


@contextlib.contextmanager
def first_signal(act: Callable[[signal.Signals], None], *, hangup: bool = False) -> Iterator[None]:
    """Act on the first Ctrl-C or SIGTERM, or hangup of the terminal; a second one leaves at once, as it did before."""

    def handle(signum: int, frame: Any) -> None:  # noqa: ARG001
        act(signal.Signals(signum))
        restore()

    def restore() -> None:
        for known, before in handlers.items():
            signal.signal(known, before)

    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other one may set handlers
        known = [signal.SIGINT, signal.SIGTERM]
        # nohup has the signal ignored; Windows has none.
        if hangup and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            known.append(signal.SIGHUP)
        handlers = {one: signal.signal(one, handle) for one in known}
    try:
        yield
    finally:
        restore()
