"""Helper threads that share in a step, and how many.

The helpers run machine code. For some microseconds after a job a helper spins, so that it is there at once for the next
one; then it sleeps. Whoever prepares a job may rouse the helpers before it. A job is published in a block of memory
that lives as long as the process; its shares are given out by atomic counters. The calling thread works too. When all
shares are given out, it closes the job: a helper that comes later finds nothing, and the call ends as soon as the
helpers that did come are done with their last shares. So no helper works on a job after the call has returned, whatever
happens to the threads, and where no helper comes the calling thread does it all.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import ctypes
import os
import re
import threading
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpuopt.engines.cpu import machine
from gpuopt.engines.cpu.threads_code import FIELDS, PROCESSORS, TIMES, source

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

MOST = 64
"""Threads of one job."""
WORTH_A_THREAD = 2 << 20
"""Bytes of memory traffic: a thread is woken in the time that moves so many."""
SPIN_SECONDS = 20e-6
SHORT_SECONDS = 200e-6
"""A job that takes less with helpers may take still less without: of longer ones the waking is a small part."""


class Pool:
    """The helper threads of this process.

    Attributes
    ----------
    run
        Machine code ``run(work, context, items, workers, times)``: calls ``work(context, begin, end)`` for all items, in at most
        so many threads; ``work`` is the address of a function, ``times`` the one of what the job keeps (`no_times`).
    rouse
        Machine code ``rouse(times, workers)``: wakes the helpers for such a job, which is about to come.

    """

    def __init__(self) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        run, rouse, self._serve, pauses = machine.compiled(
            source(),
            run=ctypes.CFUNCTYPE(None, pointer, pointer, pointer, number, number, pointer),
            rouse=ctypes.PYFUNCTYPE(None, pointer, pointer, number),  # keeps the GIL, which others would take
            serve=ctypes.CFUNCTYPE(None, pointer, number),
            pauses=ctypes.CFUNCTYPE(None, number),
        )
        self._control = np.zeros(FIELDS["size"] + 64, np.uint8)
        address = self._control.ctypes.data
        address += -address % 64
        machine.immortal(self._control)
        self._words = {name: ctypes.c_int64.from_address(address + at) for name, at in FIELDS.items() if name != "size"}
        self._address = ctypes.c_void_p(address)
        self.run, self.rouse = partial(run, self._address), partial(rouse, self._address)
        for name in ("acquire", "release"):
            function = getattr(ctypes.pythonapi, f"PyThread_{name}_lock")
            self._words[name].value = ctypes.cast(function, ctypes.c_void_p).value or 0
        library = ctypes.CDLL(None) if os.name == "posix" else ctypes.WinDLL("kernel32")  # type: ignore[attr-defined, unused-ignore]
        self._words["clock"].value = _address(library, "clock_gettime")
        self._words["short"].value = int(SHORT_SECONDS * 1e9)
        self._words["yield"].value = _address(library, "sched_yield" if os.name == "posix" else "SwitchToThread")
        if len(processors := _usable()) > 1:
            self._words["processor"].value = -1
            self._words["getcpu"].value = _address(library, "sched_getcpu")
            self._words["setaffinity"].value = _address(library, "sched_setaffinity")
            usable = np.zeros(PROCESSORS, bool)
            usable[[processor for processor in processors if processor < PROCESSORS]] = True
            ctypes.memmove(
                address + FIELDS["processors"], np.packbits(usable, bitorder="little").ctypes.data, PROCESSORS // 8
            )
        self._words["spins"].value = _pauses_in(SPIN_SECONDS, pauses)
        self._lock = threading.Lock()
        self._sleeping = [ctypes.c_int64.from_address(address + FIELDS["sleeping"] + 64 * k) for k in range(MOST)]
        self._locks = [ctypes.c_int64.from_address(address + FIELDS["sleeping"] + 64 * k + 8) for k in range(MOST)]
        ctypes.pythonapi.PyThread_allocate_lock.restype = ctypes.c_void_p
        self._helpers = 0
        self.limit(get_num_threads())
        atexit.register(self._stop)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_anew)

    def limit(self, threads: int) -> None:
        """Set the number of threads that share in a job from now on, the calling one included."""
        self._words["limit"].value = threads

    def start(self, threads: int) -> None:
        """Start the helpers that a job of so many threads can use, unless they are there or cannot be had."""
        wanted = min(threads, self._words["limit"].value) - 1
        if self._helpers >= wanted or not self._lock.acquire(blocking=False):
            return
        try:
            while self._helpers < wanted:
                k = self._helpers
                if not self._locks[k].value:
                    self._locks[k].value = ctypes.pythonapi.PyThread_allocate_lock()
                _thread.start_new_thread(self._serve, (self._address, k))
                self._helpers = k + 1
        except RuntimeError:  # no further thread may be started, now; or the interpreter is ending
            pass
        finally:
            self._lock.release()

    def _stop(self) -> None:
        """End the helpers with the interpreter."""
        self._words["limit"].value = 1
        self._words["stop"].value = 1
        for k in range(self._helpers):
            self._wake(k)

    def _wake(self, k: int) -> None:
        if self._sleeping[k].value and self._locks[k].value:
            self._sleeping[k].value = 0
            ctypes.pythonapi.PyThread_release_lock(ctypes.c_void_p(self._locks[k].value))

    def _begin_anew(self) -> None:
        """Forget the helpers in a forked process, which has none of them."""
        for name in ("state", "busy", "roused"):
            self._words[name].value = 0
        for k in range(MOST):
            self._sleeping[k].value = self._locks[k].value = 0
        self._helpers = 0
        self._lock = threading.Lock()


@cache
def pool() -> Pool:
    """Return the helper threads of this process; none is started yet.

    Raises
    ------
    MachineCodeUnavailable
        If no machine code can be made here.

    """
    return Pool()


def no_times() -> NDArray[np.int64]:
    """Return what a job keeps from run to run, before the first one: how long it took with helpers and without."""
    return np.zeros(TIMES, np.int64)


def workers_for(traffic: int) -> int:
    """Return how many threads are worth their waking for so many bytes of memory traffic."""
    return max(1, min(MOST, traffic // WORTH_A_THREAD))


_chosen: int | None = None


def get_num_threads() -> int:
    """Return how many threads of this processor share in a large step.

    Returns
    -------
    int
        What `set_num_threads` set; else the environment variable GPUOPT_NUM_THREADS; else OMP_NUM_THREADS; else the
        number of processors that this process may use (its affinity, and the quota of its control group).

    Raises
    ------
    ValueError
        If GPUOPT_NUM_THREADS is no whole number from 1 on.

    Examples
    --------
    >>> import gpuopt
    >>> gpuopt.get_num_threads() >= 1
    True

    """
    return _chosen if _chosen is not None else _default()


def set_num_threads(threads: int) -> None:
    """Set how many threads share in a large step, the calling one included; the bits do not depend on it.

    Parameters
    ----------
    threads
        At least 1; more than 64 are as good as 64.

    Raises
    ------
    TypeError, ValueError
        If it is no such number.

    Examples
    --------
    >>> import gpuopt
    >>> before = gpuopt.get_num_threads()
    >>> gpuopt.set_num_threads(1)
    >>> gpuopt.get_num_threads()
    1
    >>> gpuopt.set_num_threads(1000)
    >>> gpuopt.get_num_threads()
    64
    >>> gpuopt.set_num_threads(before)

    """
    global _chosen  # noqa: PLW0603
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer):
        raise TypeError(f"set_num_threads: {threads!r} ({type(threads).__name__}), expected a whole number from 1 on")
    if threads < 1:
        raise ValueError(f"set_num_threads: {threads}, expected a whole number from 1 on")
    _chosen = min(MOST, int(threads))
    if pool.cache_info().currsize:
        pool().limit(_chosen)


@cache
def _default() -> int:
    given = os.environ.get("GPUOPT_NUM_THREADS", "").strip()
    if given:
        if not re.fullmatch(r"[0-9]{1,9}", given) or int(given) < 1:
            raise ValueError(
                f"GPUOPT_NUM_THREADS={given!r}: expected a whole number from 1 on; unset it for all processors"
            )
        return min(MOST, int(given))
    # A list gives the number at each depth of nesting; what OpenMP would ignore is ignored here.
    openmp = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if re.fullmatch(r"[0-9]{1,9}", openmp) and int(openmp) >= 1:
        return min(MOST, int(openmp))
    return max(1, min(MOST, _processors(), _quota()))


def _processors() -> int:
    """Count the processors that this process may run on."""
    return len(_usable()) or os.cpu_count() or 1


def _usable() -> Collection[int]:
    """The processors that this process may run on; none where the system does not tell."""
    try:
        return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    except OSError:  # a sandbox that lets no process ask
        return ()


def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many processors' time the control group of this process may use, rounded up."""
    least = MOST
    with contextlib.suppress(OSError, ValueError):
        group = own.read_text().strip().rpartition(":")[2].strip("/") if own.exists() else ""
        folders = [root / group, *(root / group).parents] if group else [root]
        for folder in folders:
            if root != folder and root not in folder.parents:
                break
            with contextlib.suppress(OSError, ValueError):  # version 2
                quota, period = (folder / "cpu.max").read_text().split()
                least = min(least, -(-int(quota) // int(period)))
    with contextlib.suppress(OSError, ValueError):  # version 1
        allowed, every = (int((root / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        if allowed > 0:
            least = min(least, -(-allowed // every))
    return max(1, least)


def _address(library: ctypes.CDLL, name: str) -> int:
    """The address of a function of the system; 0 where there is none."""
    function = getattr(library, name, None)
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0


def _pauses_in(seconds: float, pause: Callable[[int], None]) -> int:
    """Count the pauses of this processor that take so long."""
    from time import perf_counter

    def time() -> float:
        start = perf_counter()
        pause(1000)
        return perf_counter() - start

    return int(1000 * seconds / max(1e-7, min(time() for _ in range(3))))
