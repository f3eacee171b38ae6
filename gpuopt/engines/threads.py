"""Helper threads for large work, and when work is large."""

from __future__ import annotations

# Without the enums of the signal module, which cost more than a small step.
import _signal  # type: ignore[import-not-found]
import os
import threading
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

_WORTH_A_THREAD = 4 << 20
"""Bytes of memory traffic: to wake a thread takes as long as to move about so many."""

_pool: ThreadPoolExecutor | None = None


def _threads() -> ThreadPoolExecutor:
    """Return the helpers of the calling thread, one for each further processor that this process may use."""
    global _pool  # noqa: PLW0603
    if _pool is None:
        from concurrent.futures import ThreadPoolExecutor  # with logging, a tenth of the import of this package

        _pool = ThreadPoolExecutor(max(1, _processors() - 1), thread_name_prefix="gpuopt")
    return _pool


def _forget_threads() -> None:
    global _pool  # noqa: PLW0603
    _pool = None


@cache
def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)  # threads do not survive a fork; their pool must not either


def workers_for(traffic: int) -> int:
    """Return how many threads are worth their waking for so many bytes of memory traffic."""
    return max(1, min(_processors(), traffic // _WORTH_A_THREAD))


def share_out(work: Callable[[int, int], None], items: int, workers: int) -> None:
    """Call ``work(begin, end)`` for all of ``items``, in the calling thread and in ``workers - 1`` more."""
    if workers == 1:
        work(0, items)
        return
    # Small shares taken in turn, so that a processor that is busy with other things holds nobody up.
    share = -(-items // (8 * workers))
    starts = count(0, share)

    def take_shares() -> None:
        while (begin := next(starts)) < items:
            work(begin, min(begin + share, items))

    helpers = [_threads().submit(take_shares) for _ in range(workers - 1)]
    take_shares()
    for helper in helpers:
        helper.result()


class uninterrupted:  # noqa: N801 - reads as what it does: ``with uninterrupted():``
    """Have Ctrl-C wait until the end of the block, so that what is in it happens as a whole or not at all."""

    def __enter__(self) -> None:
        """Hold the signal back; only the main thread ever sees it."""
        self._handler = None
        self._held: list[Any] = []
        if threading.current_thread() is threading.main_thread() and callable(_signal.getsignal(_signal.SIGINT)):
            self._handler = _signal.signal(_signal.SIGINT, lambda *args: self._held.append(args))

    def __exit__(self, *_: object) -> None:
        """Deliver it."""
        if self._handler is not None:
            _signal.signal(_signal.SIGINT, self._handler)
            if self._held and callable(self._handler):
                self._handler(*self._held[0])
