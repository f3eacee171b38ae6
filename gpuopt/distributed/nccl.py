"""Transport over NCCL, from GPU to GPU; the only file that uses NCCL."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from gpuopt.arrays import is_cupy
from gpuopt.distributed.agreement import RankError
from gpuopt.distributed.mpi import LAPSE_OF_LONG, LONG, Staged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gpuopt.distributed.transport import Message, Transport


class NCCL(Staged):
    """Transport for CuPy arrays over NCCL, on the current stream; host arrays are sent over MPI."""

    way = "nccl"

    def __init__(self, comm: Any, timeout: float | None, device: int) -> None:
        super().__init__(comm, timeout)
        import cupy
        from cupy.cuda import nccl

        self._nccl, self._cupy = nccl, cupy
        self._device = cupy.cuda.Device(device)
        unique = self.told(nccl.get_unique_id() if self.rank == 0 else None)[0]
        with self._device:
            self._nodes = nccl.NcclCommunicator(self.size, unique, self.rank)

    def reserve(self, example: Any, nbytes: int) -> None:
        """See :meth:`Transport.reserve`; nothing to do, since arrays stay on their devices."""

    def exchange(self, sends: Iterable[Message], receives: Iterable[Message]) -> None:
        """See :meth:`Transport.exchange`."""
        sends, receives = list(sends), list(receives)
        if not any(is_cupy(x) for _, x in (*sends, *receives)):
            super().exchange(sends, receives)
            return
        with self._group() as stream:
            for rank, x in sends:
                self._nodes.send(x.data.ptr, x.nbytes, self._nccl.NCCL_UINT8, rank, stream)
            for rank, x in receives:
                self._nodes.recv(x.data.ptr, x.nbytes, self._nccl.NCCL_UINT8, rank, stream)

    def gather(self, flat: Any, cuts: Sequence[int]) -> None:
        """See :meth:`Transport.gather`."""
        if not is_cupy(flat):
            super().gather(flat, cuts)
            return
        with self._group() as stream:
            for rank, (first, last) in enumerate(pairwise(cuts)):
                if first < last:
                    share = flat[first:last]
                    self._nodes.bcast(share.data.ptr, share.nbytes, self._nccl.NCCL_UINT8, rank, stream)

    def broadcast(self, flat: Any) -> None:
        """See :meth:`Transport.broadcast`."""
        if is_cupy(flat):
            self.gather(flat, [0, *[len(flat)] * self.size])  # rank 0 owns all of it
        else:
            super().broadcast(flat)

    def leave(self, patience: float = 0.0) -> None:
        """See :meth:`Transport.leave`."""
        super().leave(patience)
        with suppress(Exception):
            self._nodes.abort()

    @contextmanager
    def _group(self) -> Iterator[int]:
        """Group the calls of NCCL on the stream that is yielded, and wait for them at the end."""
        with self._device:
            stream = self._cupy.cuda.get_current_stream()
            self._nccl.groupStart()
            try:
                yield stream.ptr
            finally:
                self._nccl.groupEnd()
            self._arrive(stream)

    def _arrive(self, stream: Any) -> None:
        """Wait for the stream, with a time-out and checks for a lost process; NCCL itself would wait for ever."""
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record(stream)
        start = time.monotonic()
        while not event.done:
            waited = time.monotonic() - start
            try:
                self._nodes.check_async_error()
            except self._nccl.NcclError as error:
                self._stuck = [error]
            if self._stuck or (self._timeout is not None and waited > self._timeout):
                self._stuck.append(waited)
                self._nodes.abort()
                raise RankError(
                    f"rank {self.rank} waited {waited:.1f} s for another process in the middle of an exchange by NCCL",
                    everywhere=False,
                )
            time.sleep(0 if waited < LONG else LAPSE_OF_LONG)


def connected(staged: Staged, comm: Any, timeout: float | None, device: int) -> NCCL:
    """Return a transport over NCCL; raise ValueError on all processes if NCCL refuses."""
    from cupy.cuda.nccl import NcclError

    try:
        return NCCL(comm, timeout, device)
    except NcclError as error:
        shared = shared_device(staged, device)
        cause = f"{error}: {shared}" if shared else str(error)
        raise ValueError(
            f"transport: 'nccl', but NCCL refuses, {cause}; expected a GPU for each process, or transport='host'"
        ) from error


def why_unavailable() -> str | None:
    """Return why CuPy has no NCCL and the cure, or None if it has."""
    cure = "`pip install gpuopt[nccl]` installs it"
    try:
        from cupy.cuda import nccl
    except ImportError as error:
        return f"CuPy finds no NCCL ({error}); {cure}"
    return None if nccl.available else f"CuPy finds no NCCL; {cure}"


def shared_device(transport: Transport, device: int) -> str | None:
    """Return a message that names the processes on this one's GPU, or None if there is no other; collective."""
    import platform

    from cupy.cuda import runtime

    own = (platform.node(), runtime.deviceGetPCIBusId(device))
    same = [str(rank) for rank, other in enumerate(transport.told(own)) if other == own]
    return f"ranks {' and '.join(same)} use the same GPU, {own[1]} of {own[0]}" if len(same) > 1 else None
