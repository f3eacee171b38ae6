"""What must not be torn: by an exception of a signal handler, by one that another thread sends, or by a fork."""

from __future__ import annotations

import _thread
import os
import threading
from collections import deque
from functools import partial
from operator import call
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")


_exhaust = deque[object](maxlen=0).extend
"""A deque that keeps nothing goes through an iterator in C."""


def in_one_go(calls: Iterable[Callable[[], object]], at_last: Iterable[Callable[[], object]] = ()) -> None:
    """Call functions that are written in C, one after the other, with no chance for Python to raise in between.

    Signal handlers run, and exceptions from other threads arrive, only between two instructions of Python code; here
    there is none. Only an error of one of the functions ends the series early; the functions of ``at_last`` are called all the
    same.

    Examples
    --------
    >>> from functools import partial
    >>> seen = []
    >>> in_one_go([partial(seen.append, 1), partial(seen.append, 2)])
    >>> seen
    [1, 2]

    """
    at_last = tuple(at_last)
    try:
        _exhaust(map(call, (*calls, *at_last)))
    except BaseException:
        _exhaust(map(call, at_last))
        raise


def each(function: Callable[..., object], *arguments: Iterable[Any]) -> Callable[[], object]:
    """Return a call of a function with the items of iterables, for as many as there are: in C if the function is, and once."""
    return partial(_exhaust, map(function, *arguments))


def shielded(function: Callable[[], T]) -> T:
    """Call a function to its end, whatever exception arrives meanwhile; the exception is raised afterwards.

    The function runs in a thread of its own, which no signal handler and no exception that is meant for this thread
    reaches. Where no thread can be started, the function runs in this one.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []
    ended = _thread.allocate_lock()
    ended.acquire()

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again where the function was asked for
            failure.append(error)
        finally:
            ended.release()

    started: list[bool] = []
    arrived: list[BaseException] = []
    try:
        in_one_go([partial(_thread.start_new_thread, run, ()), partial(started.append, True)])
    except RuntimeError:  # no further thread, or the interpreter is ending
        return function()
    except BaseException as error:
        if not started:
            raise
        arrived.append(error)
    while not (outcome or failure):
        try:
            ended.acquire()
        except BaseException as error:  # noqa: BLE001 - the first one is raised below
            arrived.append(error)
    for raised in arrived[:1] or failure:
        raise raised
    return outcome[0]


class Forks:
    """Delay a fork until no registered object is in the middle of an operation, so that the child inherits no held lock.

    Each object has a reentrant lock ``_lock``, which it holds during its operations.
    """

    def __init__(self) -> None:
        self._objects: WeakSet[Any] = WeakSet()
        self._lock = threading.RLock()
        self._held: list[list[Any]] = []
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._hold, after_in_parent=self._release, after_in_child=self._release)

    def register(self, thing: Any) -> None:
        """From now on wait for this object's lock before a fork, for as long as the object lives."""
        with self._lock:
            self._objects.add(thing)

    def _hold(self) -> None:
        """Hold the locks of all objects.

        An operation may begin inside of another one, so there is no order in which locks could be waited for. Wait for
        one lock at a time, then try the others; where one of these is held, let go of all and wait for that one.
        """
        self._lock.acquire()
        self._held.append([])
        locks = [thing._lock for thing in self._objects]
        locks.reverse()
        while locks:
            locks[0].acquire()
            busy = next((i for i, lock in enumerate(locks[1:], 1) if not lock.acquire(blocking=False)), None)
            if busy is None:
                break
            for lock in locks[:busy]:
                lock.release()
            locks.insert(0, locks.pop(busy))
        self._held[-1] = locks

    def _release(self) -> None:
        for lock in self._held.pop():
            lock.release()
        self._lock.release()


forks = Forks()
