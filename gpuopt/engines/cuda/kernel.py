"""The fused engine for CuPy: traced programs as one CUDA kernel, one launch a step.

The kernel is compiled so that it computes as the CPU does, bit for bit: see `gpuopt.nvrtc`.
"""

from __future__ import annotations

from functools import partial
from operator import setitem
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import assign, fetch
from gpuopt.engines import table as tables
from gpuopt.engines.cuda import cache, code, preamble, reductions
from gpuopt.engines.cuda import verdict as cuda_verdict
from gpuopt.engines.cuda.lookup import Lookup, address
from gpuopt.engines.interrupts import in_one_go
from gpuopt.engines.memory import side_by_side
from gpuopt.engines.norms import LANES
from gpuopt.engines.place import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.memory import Layout
    from gpuopt.engines.norms import DynamicScale
    from gpuopt.engines.table import Table


class CUDA(Place):
    """CuPy arrays of one device."""

    def __init__(self, device: int) -> None:
        self.name = f"cupy:{device}"
        self._device = device

    def pointers(self, arrays: Sequence[Any]) -> list[int]:
        """See :meth:`Place.pointers`."""
        return list(map(address, arrays))

    def zeros(self, layouts: Sequence[Layout]) -> list[Any]:
        """See :meth:`Place.zeros`."""
        import cupy

        offsets, nbytes = side_by_side(layouts)
        with cupy.cuda.Device(self._device):
            return _laid_out(layouts, offsets, cupy.zeros(nbytes, np.uint8).data)

    def room(self, layouts: Sequence[Layout], offsets: Sequence[int], nbytes: int) -> tuple[list[Any], int]:
        """See :meth:`Place.room`."""
        import cupy

        with cupy.cuda.Device(self._device):
            memory = cupy.cuda.alloc(nbytes)
            return _laid_out(layouts, offsets, memory), memory.ptr

    def stand_in(self, layout: Layout) -> Any:
        """See :meth:`Place.stand_in`."""
        import cupy

        with cupy.cuda.Device(self._device):
            return cupy.ndarray(layout.shape, layout.dtype, cupy.cuda.alloc(1), layout.strides)

    def lookup(self, leaves: Sequence[Any], parameters: Sequence[Any], addresses: NDArray[np.int64]) -> Lookup:
        """See :meth:`Place.lookup`."""
        return Lookup(leaves, parameters, addresses)

    def kernel(self, table: Table, before: Any, updating: Any = None) -> CUDAKernel:
        """See :meth:`Place.kernel`."""
        return CUDAKernel(table, self._device, before, updating)

    def copying(self, target: Any, source: Any) -> list[Callable[[], object]]:
        """See :meth:`Place.copying`."""
        return [partial(assign, target, source)]  # makes the device the current one

    def restoring(self) -> tuple[Callable[[], object]]:
        """See :meth:`Place.restoring`; what is put back is CUDA's current device, the one that it is now."""
        from cupy.cuda import runtime

        return (partial(runtime.setDevice, runtime.getDevice()),)


def _laid_out(layouts: Sequence[Layout], offsets: Sequence[int], memory: Any) -> list[Any]:
    """Arrays on the current device, each so many bytes behind the beginning of some memory."""
    import cupy

    return [
        cupy.ndarray(a.shape, a.dtype, memory + offset, a.strides) for a, offset in zip(layouts, offsets, strict=True)
    ]


class CUDAKernel:
    """The step over a table of CuPy arrays of one device, on the current stream."""

    def __init__(
        self, table: Table, device: int, before: CUDAKernel | None = None, updating: CUDAKernel | None = None
    ) -> None:
        import cupy

        self._table = table
        self._device = cupy.cuda.Device(device)
        with self._device:
            step = cache.function(code.source(table.variants), "step", device)
            reducing = [
                cache.function(reductions.source(k, table.variants), "reduce", device)
                for k in range(tables.reduction_passes(table.variants))
            ]
            self._rows, self._chunks = cupy.asarray(table.rows), cupy.asarray(table.chunks)
            self._gradients = cupy.asarray(table.gradients)
            # What the device has decided belongs to the state, and outlives a kernel.
            kept = before is not None and len(before._table.rows) == len(table.rows)
            knowing = updating or (before if kept else None)
            self._verdict: Any = knowing._verdict if knowing else cupy.zeros(preamble.SCALES + len(table.rows))
            width = max((sum(tables.widths(k, table.variants)) for k in range(len(reducing))), default=0)
            # What passes find, until the next step.
            numbers, totals = (
                cupy.zeros((len(table.rows), max(table.numbers, 1))),
                cupy.zeros((table.groups, 1 + width)),
            )
            found = (
                np.int64(table.groups),
                cupy.asarray(table.first_chunks),
                cupy.zeros((len(table.chunks), width)),
                cupy.zeros((len(table.rows), width)),
                cupy.zeros(1, np.uint32),
            )
            self._settle()
        self._report: tuple[Any, Any] | None = before._report if before and kept else None
        self._measured: tuple[Any, ...] | None = before._measured if before and kept else None
        self._has_report: bool = before is not None and kept and before._has_report
        self._judging: Callable[[], object] | None = None
        self._unjudging: tuple[Callable[[], object], ...] = ()
        self._sent = table.gradients.copy()
        # Passed by value: CUDA copies it at the launch, so the host may write the next step's at once.
        self._values = (
            np.int32(table.gradients_at),
            table.values.view(np.dtype((np.void, tables.VALUE_BYTES))),
        )
        self._choose = partial(cupy.cuda.runtime.setDevice, device)
        shared = (self._rows, self._gradients, self._chunks, self._verdict, np.int64(len(table.rows)), numbers, totals)
        self._numbers, self._totals, self._partials = numbers, totals, found[2]
        self._launches = (*(self._launch(one, *shared, *found) for one in reducing), self._launch(step, *shared))

    @staticmethod
    def _settle() -> None:
        """Wait, once, until what was made on this stream is there, the state too: a step may come on any other."""
        import cupy

        cupy.cuda.get_current_stream().synchronize()

    def expect(self) -> None:
        """See :meth:`gpuopt.engines.place.Kernel.expect`."""

    def judging(self) -> tuple[Callable[[], object], ...]:
        """See :meth:`gpuopt.engines.place.Kernel.judging`."""
        judging, self._judging = self._judging, None
        self._unjudging = ()
        if judging is None or not len(self._chunks):
            return ()
        self._send_addresses()
        now, was = (self._verdict.data + 8 * k for k in (0, preamble.BEFORE))
        self._unjudging = self._choose, partial(now.copy_from_device_async, was, 8 * preamble.BEFORE)
        return self._choose, judging

    def unjudging(self) -> tuple[Callable[[], object], ...]:
        """See :meth:`gpuopt.engines.place.Kernel.unjudging`."""
        return self._unjudging

    def prepare(self) -> tuple[Callable[[], object], ...]:
        """See :meth:`gpuopt.engines.place.Kernel.prepare`."""
        if not len(self._chunks):
            return ()  # of empty leaves there is nothing to update, and CuPy would launch one block all the same
        self._send_addresses()
        return (self._choose, *self._launches)

    def updating(self) -> tuple[Callable[[], object], ...]:
        """See :meth:`gpuopt.engines.place.Kernel.updating`."""
        calls = self.prepare()
        return (calls[0], calls[-1]) if calls else ()

    def reduce(self, k: int) -> NDArray[np.float64]:
        """See :meth:`gpuopt.engines.place.Kernel.reduce`; waits for the device."""
        chunks, width = len(self._table.chunks), sum(tables.widths(k, self._table.variants))
        if not chunks:
            return np.zeros((0, width))
        with self._device:
            self._send_addresses()
            self._launches[k]()
            found: NDArray[np.float64] = self._partials.reshape(-1)[: chunks * width].get()
        return found.reshape(chunks, width)

    def know(self, numbers: NDArray[np.float64]) -> None:
        """See :meth:`gpuopt.engines.place.Kernel.know`."""
        with self._device:
            self._numbers.set(numbers)
            self._totals.fill(0)  # no group of its own has a gradient: the step leaves slots that are numbers alone

    def advancing(self, moves: NDArray[np.int64]) -> Callable[[], Sequence[Callable[[], object]]]:
        """See :meth:`gpuopt.engines.place.Kernel.advancing`: copies on the device, and the update where they are."""
        from cupy.cuda import get_current_stream, runtime

        table = self._table
        lengths = table.rows[:, tables.LENGTH].tolist()

        def prepare() -> Sequence[Callable[[], object]]:
            if not len(self._chunks):
                return ()
            with self._device:
                stream = get_current_stream().ptr
            copies = [
                partial(runtime.memcpyAsync, target, source, length * size, runtime.memcpyDeviceToDevice, stream)
                for row, own, length, gradient in zip(
                    table.rows[:, tables.PARAMETER :].tolist(), moves.tolist(), lengths, table.gradients, strict=True
                )
                for target, (source, size) in zip(row, own, strict=True)
                if gradient and length * size
            ]
            return (self._choose, *copies, *self.moved(), *self.prepare())

        return prepare

    def moved(self) -> Sequence[Callable[[], object]]:
        """See :meth:`gpuopt.engines.place.Kernel.moved`."""
        # From pageable memory, which CUDA stages before it returns: the addresses may change again at once.
        rows = self._table.rows
        return self._choose, partial(self._rows.data.copy_from_host_async, rows.ctypes.data, rows.nbytes)

    def judge(
        self, clip: str | None, limit: float, *, sticky: bool, skip: bool, scale: DynamicScale | None = None
    ) -> None:
        """Have the device decide on the gradients when the next step comes; the host is not told.

        Parameters
        ----------
        clip, limit
            How and to which norm gradients are scaled down.
        sticky, skip
            Whether to leave out a step with a gradient that is not finite, and with ``sticky`` all that follow, too.
        scale
            How the number that gradients are divided by goes on.

        """
        self._judging = self._measuring(clip, limit, cuda_verdict.STICKY if sticky else int(skip), scale)

    def loss_scale(self) -> Any:
        """Return an array on the device: what gradients are divided by, and for how many good steps that is so."""
        with self._device:
            return self._verdict[preamble.LOSS_SCALE : preamble.BEFORE]

    def setting_scale(self, numbers: NDArray[np.float64]) -> tuple[Callable[[], object], ...]:
        """Return what sets `loss_scale`: functions written in C, with `Place.restoring` after them."""
        self._scale_to_send = numbers  # kept alive; CUDA stages what comes from pageable memory before it returns
        there = self._verdict.data + 8 * preamble.LOSS_SCALE
        return self._choose, partial(there.copy_from_host_async, numbers.ctypes.data, numbers.nbytes)

    def _measuring(
        self, clip: str | None, limit: float, skip: int, scale: DynamicScale | None = None
    ) -> Callable[[], object]:
        """Return the launch that measures the gradients and decides whether they are used, and by how much they are scaled."""
        import cupy

        if self._measured is None:
            with self._device:
                function = cache.function(cuda_verdict.source(), "measure", self._device.id)
                first_chunk = np.searchsorted(self._table.chunks[:, 0], np.arange(len(self._table.rows) + 1))
                partials = cupy.zeros((len(self._table.chunks), 3))
                finished = cupy.zeros(1, np.uint32)
                self._measured = (
                    function,
                    cupy.asarray(first_chunk),
                    partials,
                    cupy.zeros((len(first_chunk) - 1, 3)),
                    finished,
                )
                self._settle()
        function, first_chunk, partials, sums, finished = self._measured
        segments_, columns = (np.int64(n) for n in self._table.rows.shape)
        arrays = (self._gradients, self._chunks, first_chunk, partials, sums, self._verdict, finished)
        growth = (scale.factor, scale.every) if scale else (0, 0)
        decision = (
            np.int32(cuda_verdict.CLIPS.index(clip)),
            np.float64(limit),
            np.int32(skip),
            *map(np.float64, growth),
        )
        return self._launch(function, self._rows, columns, segments_, *arrays, *decision)

    def sums(self) -> NDArray[np.float64]:
        """Return the sums of squares of every segment's gradient, of shape (segments, 3); waits for the device."""
        self._measure()
        return self.sums_found()

    def chunk_sums(self) -> NDArray[np.float64]:
        """See :meth:`gpuopt.engines.place.Kernel.chunk_sums`; waits for the device."""
        self._measure()
        return self._measured[2].get() if self._measured else np.zeros((0, 3))

    def _measure(self) -> None:
        if len(self._chunks):
            measure = self._measuring(None, 0.0, 0)
            with self._device:
                self._send_addresses()
                measure()

    def sums_found(self) -> NDArray[np.float64]:
        """Return the sums that the last verdict was based on; waits for the device."""
        return self._measured[3].get() if self._measured else np.zeros((len(self._table.rows), 3))

    def verdict(self) -> Callable[[], tuple[int, float]]:
        """Ask how many steps were left out, and for the norm of the last gradients; what is returned waits for the device."""
        with self._device:
            arrive = fetch([self._verdict[preamble.SKIPPED : preamble.LOSS_SCALE]])

        def found() -> tuple[int, float]:
            skipped, norm = arrive()[0].tolist()
            return int(skipped), norm

        return found

    def report(self) -> None:
        """Have the number of steps left out sent to the host without waiting, unless a report is still on its way."""
        import cupy

        with self._device:
            if self._report is None:
                self._report = (cupy.cuda.alloc_pinned_memory(8), cupy.cuda.Event(disable_timing=True))
            elif not self._report[1].done:
                return  # the memory is the device's until then, a pardon or not
            memory, event = self._report
            (self._verdict.data + 8 * preamble.SKIPPED).copy_to_host_async(memory.ptr, 8)
            event.record()
            self._has_report = True

    def reported(self) -> int | None:
        """How many steps were left out by the time of the report; None if there is none, or it is still on its way."""
        if self._report is None or not self._has_report or not self._report[1].done:
            return None
        return int(np.frombuffer(self._report[0], np.float64, 1)[0])

    def pardoning(self) -> tuple[Callable[[], object], ...]:
        """Return functions that set the count of skipped steps to 0; they are written in C, and `Place.restoring` belongs after them."""
        forget = partial(self._verdict.data.memset_async, 0, 8 * preamble.NORM)
        return self._choose, forget, partial(setattr, self, "_has_report", False)

    def scale(self, factors: NDArray[np.float64]) -> None:
        """See :meth:`gpuopt.engines.place.Kernel.scale`."""
        with self._device:
            self._verdict[preamble.SCALES :].set(factors)

    def _launch(self, function: Any, *arguments: Any) -> Callable[[], object]:
        """Return what launches a CUDA function with one block for each chunk; the device must be the current one then."""
        return partial(function, (len(self._chunks),), (LANES,), (*arguments, *self._values))

    def _send_addresses(self) -> None:
        """Have the device know where the gradients are, if they are too many to be passed by value."""
        table = self._table
        if table.gradients_at >= 0 or np.array_equal(self._sent, table.gradients):
            return
        # From pageable memory, which CUDA stages before it returns: the addresses may change again at once.
        send = partial(self._gradients.data.copy_from_host_async, table.gradients.ctypes.data, table.gradients.nbytes)
        with self._device:
            in_one_go([send, partial(setitem, self._sent, ..., table.gradients)])
