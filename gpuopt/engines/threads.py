"""Helper threads for large work, and when work is large."""

from __future__ import annotations

# Without the enums of the signal module, which cost more than a small step.
import _signal  # type: ignore[import-not-found]
import os
import threading
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

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
        _pool = _executor()(max(1, _processors() - 1), thread_name_prefix="gpuopt")
    return _pool


@cache
def _executor() -> type[ThreadPoolExecutor]:
    from concurrent.futures import ThreadPoolExecutor  # with logging, a tenth of the import of this package

    # It holds a lock during a fork, too, which a step needs to end: what is registered last comes before.
    whole_forks.register()
    return ThreadPoolExecutor


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
            self._hold = lambda *args: self._held.append(args)
            self._handler = _signal.signal(_signal.SIGINT, self._hold)

    def __exit__(self, *_: object) -> None:
        """Deliver it, to another handler if one was set meanwhile, by that of another signal."""
        if self._handler is None:
            return
        if _signal.getsignal(_signal.SIGINT) is self._hold:
            _signal.signal(_signal.SIGINT, self._handler)
        if self._held and callable(handler := _signal.getsignal(_signal.SIGINT)):
            handler(*self._held[0])


class WholeForks:
    """Has a fork wait until no object is in the middle of something, so that the child gets whole ones that nobody holds.

    Each object has a reentrant lock ``_lock``, which is free between what it does.
    """

    def __init__(self) -> None:
        self._objects: WeakSet[Any] = WeakSet()
        self._lock = threading.RLock()
        self._held: list[list[Any]] = []
        self.register()

    def register(self) -> None:
        """Come before all that is registered for a fork so far; may be called again."""
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._hold, after_in_parent=self._release, after_in_child=self._release)

    def add(self, thing: Any) -> None:
        """Look after an object, as long as it lives."""
        with self._lock:
            self._objects.add(thing)

    def _hold(self) -> None:
        self._lock.acquire()
        self._held.append(list(self._objects))
        for thing in self._held[-1]:
            thing._lock.acquire()

    def _release(self) -> None:
        for thing in self._held.pop():
            thing._lock.release()
        self._lock.release()


whole_forks = WholeForks()
