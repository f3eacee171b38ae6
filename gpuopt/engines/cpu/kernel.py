"""The fused engine for NumPy: traced programs, compiled to machine code, one call a step."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.engines import array
from gpuopt.engines import table as tables
from gpuopt.engines.cpu import code as cpu_code
from gpuopt.engines.cpu import machine, threads
from gpuopt.engines.cpu.elements import LINE
from gpuopt.engines.cpu.lookup import Lookup, addresses_of
from gpuopt.engines.memory import side_by_side
from gpuopt.engines.place import Place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.memory import Layout
    from gpuopt.engines.table import Table, Variant


HUGE = 2 << 20
"""Bytes of a huge page."""
LARGE = 1 << 14
"""Bytes from which on the system hands out memory that begins where a page does."""
NEAR, FAR = 1 << 10, 1 << 16
"""Bytes over which the beginnings of large memory are spread, for the first cache and, in huge pages, for the second one.

Elements of the same number in a dozen slots would else all be in one place of a cache, which has room for eight.
"""
_numbers = itertools.count(1)
"""Of the memories that were made, each of which begins elsewhere."""


class CPU(Place):
    """NumPy arrays in the memory of the host."""

    name = "numpy"

    @classmethod
    @cache
    def get(cls) -> CPU | None:
        """Return the one object, or None where no machine code can be made."""
        return None if machine.why_unavailable() else cls()

    def pointers(self, arrays: Sequence[Any]) -> list[int]:
        """See :meth:`Place.pointers`."""
        return addresses_of(arrays)

    def zeros(self, layouts: Sequence[Layout]) -> list[NDArray[Any]]:
        """See :meth:`Place.zeros`."""
        offsets, nbytes = side_by_side(layouts)
        buffer = _zeroed(nbytes)
        arrays: list[NDArray[Any]] = []
        for _, members in itertools.groupby(range(len(layouts)), [*map(id, layouts)].__getitem__):
            first, *others = members
            a, step = layouts[first], offsets[others[0]] - offsets[first] if others else 0
            # Of an array along its first axis: to make each of many by itself takes several times as long.
            stack: NDArray[Any] = np.ndarray(
                (1 + len(others), *a.shape), a.dtype, buffer, offsets[first], (step, *a.strides)
            )
            arrays.extend(stack if a.shape else (stack[k : k + 1].reshape(()) for k in range(len(stack))))
        return arrays

    def room(self, layouts: Sequence[Layout], offsets: Sequence[int], nbytes: int) -> tuple[list[NDArray[Any]], int]:
        """See :meth:`Place.room`."""
        buffer: Any = np.empty(nbytes + 1, np.uint8)  # ctypes finds its address fast, and refuses an empty one
        return _laid_out(layouts, offsets, buffer), ctypes.addressof(ctypes.c_char.from_buffer(buffer))

    def stand_in(self, layout: Layout) -> NDArray[Any]:
        """See :meth:`Place.stand_in`."""
        return np.lib.stride_tricks.as_strided(np.empty(1, layout.dtype), layout.shape, layout.strides)

    def lookup(self, leaves: Sequence[Any], parameters: Sequence[Any], addresses: NDArray[np.int64]) -> Lookup:
        """See :meth:`Place.lookup`."""
        return Lookup(leaves, parameters, addresses)

    def kernel(self, table: Table, before: Any, updating: Any = None) -> CPUKernel:  # noqa: ARG002 - nothing stays on the way
        """See :meth:`Place.kernel`."""
        return CPUKernel(table)

    def copying(self, target: Any, source: Any) -> list[Callable[[], object]]:
        """See :meth:`Place.copying`."""
        return [array.assigning(target, source)]


def _zeroed(nbytes: int) -> NDArray[np.uint8]:
    """Zeroed memory, in huge pages if there is much of it and the system has them.

    The processor looks up fewer addresses then. NumPy asks for huge pages from 4 MiB on, wherever they begin.
    """
    number = next(_numbers)
    start = number * LINE % NEAR
    if nbytes >= HUGE // 2 and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # NumPy raises what is usual
            size = -(-nbytes // HUGE) * HUGE
            pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):  # a system without
                pages.madvise(mmap.MADV_HUGEPAGE)
            start += number * tables.CHUNK * 4 % FAR
            return np.frombuffer(pages, np.uint8, nbytes, start if nbytes + start <= size else 0)
    if nbytes < LARGE:
        return np.zeros(nbytes, np.uint8)
    buffer = np.zeros(nbytes + NEAR, np.uint8)
    return buffer[(start - _address(buffer)) % NEAR :]


def _laid_out(layouts: Sequence[Layout], offsets: Sequence[int], buffer: NDArray[np.uint8]) -> list[NDArray[Any]]:
    """Arrays in a buffer, each so many bytes behind its beginning."""
    return [np.ndarray(a.shape, a.dtype, buffer, offset, a.strides) for a, offset in zip(layouts, offsets, strict=True)]


class CPUKernel:
    """The step over a table of NumPy arrays; see `gpuopt.engines.place.Kernel`."""

    def __init__(self, table: Table) -> None:
        threads.get_num_threads()  # where the environment names no number, now is the time to say so
        self._table = table
        self._workers = threads.workers_for(table.traffic)
        reducing = tables.reduction_passes(table.variants)
        width = 1 + max((sum(tables.widths(k, table.variants)) for k in range(reducing)), default=0)
        self._scratch = (  # what passes find, until the next step
            np.zeros((len(table.rows), max(table.numbers, 1))),
            np.empty((len(table.chunks) if reducing else 1, width)),
            np.empty((len(table.rows), width)),
            np.empty((table.groups, width)),
        )
        self._sizes = np.array([len(table.rows), table.groups], np.int64)
        arrays = (table.rows, table.gradients, table.scales, table.chunks, table.values, *self._scratch)
        self._context = np.array([_address(a) for a in (*arrays, table.first_chunks, self._sizes)], np.int64)
        step, *functions = _functions(table.variants)
        self._times: list[NDArray[np.int64]] = []
        self._calls = tuple(
            self._over_all_chunks(function, self._context, 1 if is_alone else self._workers)
            for function, is_alone in (*zip(functions, [False, True] * reducing, strict=True), (step, False))
        )
        self.expect: Callable[[], object] = tuple
        if self._workers > 1:
            times = ctypes.c_void_p(_address(self._times[-1]))
            self.expect = partial(threads.pool().rouse, times, ctypes.c_int64(self._workers))
        self._measured: tuple[Any, ...] | None = None

    def judging(self) -> Sequence[Callable[[], object]]:
        """See :meth:`gpuopt.engines.place.Kernel.judging`: the host judges."""
        return ()

    unjudging = moved = judging

    def prepare(self) -> Sequence[Callable[[], object]]:
        """See :meth:`gpuopt.engines.place.Kernel.prepare`."""
        if self._workers > 1:
            threads.pool().start(self._workers)
        return self._calls

    def updating(self) -> Sequence[Callable[[], object]]:
        """See :meth:`gpuopt.engines.place.Kernel.updating`."""
        return self.prepare()[-1:]

    def reduce(self, k: int) -> NDArray[np.float64]:
        """See :meth:`gpuopt.engines.place.Kernel.reduce`."""
        self.prepare()[2 * k]()
        return self._sums(k)

    def numbers(self, k: int, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the numbers of each row that are known after pass ``k``, whose sums are given; write the slots that are numbers."""
        self._sums(k)[:] = sums
        self._calls[2 * k + 1]()
        return self._scratch[0]

    def know(self, numbers: NDArray[np.float64]) -> None:
        """See :meth:`gpuopt.engines.place.Kernel.know`."""
        self._scratch[0][:] = numbers

    def _sums(self, k: int) -> NDArray[np.float64]:
        """Where pass ``k`` leaves the sums of chunks."""
        chunks, width = len(self._table.chunks), sum(tables.widths(k, self._table.variants))
        return self._scratch[1].reshape(-1)[: chunks * width].reshape(chunks, width)

    def advancing(self, moves: NDArray[np.int64]) -> Callable[[], Sequence[Callable[[], object]]]:
        """See :meth:`gpuopt.engines.place.Kernel.advancing`."""
        table = self._table
        arrays = (self._context, table.rows, table.gradients, table.chunks, moves)
        self._moving = np.array([_address(a) for a in arrays], np.int64)
        calls = (self._over_all_chunks(_advance(table.variants), self._moving, self._workers),)

        def prepare() -> Sequence[Callable[[], object]]:
            self.prepare()
            return calls

        return prepare

    def sums(self) -> NDArray[np.float64]:
        """See :meth:`gpuopt.engines.place.Kernel.sums`."""
        sums = np.zeros((len(self._table.rows), 3))
        np.add.at(sums, self._table.chunks[:, 0], self.chunk_sums())  # in order, unlike other sums of NumPy
        return sums

    def chunk_sums(self) -> NDArray[np.float64]:
        """See :meth:`gpuopt.engines.place.Kernel.chunk_sums`."""
        table = self._table
        workers = threads.workers_for(table.gradient_bytes)
        if self._measured is None:
            partials = np.empty((len(table.chunks), 3))
            columns = np.array([table.rows.shape[1]], np.int64)
            arrays = (table.rows, columns, table.gradients, table.chunks, partials)
            context = np.array([_address(a) for a in arrays], np.int64)
            self._measured = partials, columns, context, self._over_all_chunks(_measure(), context, workers)
        if workers > 1:
            threads.pool().start(workers)
        partials, *_, measure = self._measured
        measure()
        return np.asarray(partials)

    def scale(self, factors: NDArray[np.float64]) -> None:
        """See :meth:`gpuopt.engines.place.Kernel.scale`."""
        self._table.scales[:] = factors

    def _over_all_chunks(
        self, work: Callable[..., None], context: NDArray[np.int64], workers: int
    ) -> Callable[[], object]:
        """Return a call of ``work`` for all chunks, with arguments as ctypes passes them on, which converts no faster."""
        pointer, items = ctypes.c_void_p(_address(context)), ctypes.c_int64(len(self._table.chunks))
        if workers == 1:
            return partial(work, pointer, ctypes.c_int64(0), items)
        self._times.append(times := threads.no_times())
        given = _function_address(work), pointer, items, ctypes.c_int64(workers), ctypes.c_void_p(_address(times))
        return partial(threads.pool().run, *given)


_SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


@cache
def _functions(variants: tuple[Variant, ...]) -> tuple[Callable[..., None], ...]:
    """The step, then each reduction pass with the work on numbers after it."""
    names = ["step", *(f"{name}{k}" for k in range(tables.reduction_passes(variants)) for name in ("pass", "numbers"))]
    signatures: dict[str, Any] = dict.fromkeys(names, _SIGNATURE)
    return machine.compiled(cpu_code.source(variants), **signatures)


@cache
def _advance(variants: tuple[Variant, ...]) -> Callable[..., None]:
    (advance,) = machine.compiled(cpu_code.advance(variants), advance=_SIGNATURE)
    return advance


@cache
def _measure() -> Callable[..., None]:
    (measure,) = machine.compiled(cpu_code.measure(), measure=_SIGNATURE)
    return measure


def _function_address(function: Any) -> ctypes.c_void_p:
    return ctypes.cast(function, ctypes.c_void_p)


def _address(array: NDArray[Any]) -> int:
    return addresses_of([array])[0]
