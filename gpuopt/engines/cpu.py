"""The fused engine for NumPy: traced programs, compiled in memory by LLVM, one call a step.

LLVM is used directly, through llvmlite: a kernel takes some hundredths of a second to compile, so nothing is cached on
disk.
"""

from __future__ import annotations

import ctypes
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.engines import emit_llvm, threads
from gpuopt.engines.memory import side_by_side
from gpuopt.engines.segments import ITEMSIZE, LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.memory import Layout
    from gpuopt.engines.segments import Table, Variant


@cache
def _step(variants: tuple[Variant, ...]) -> Callable[..., None]:
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 5, *[ctypes.c_int64] * 2)
    return _compile(emit_llvm.source(variants), "step", signature)


@cache
def _bind() -> Callable[..., int]:
    arguments = *[ctypes.c_void_p] * 4, ctypes.c_int64, ctypes.c_void_p
    signature = ctypes.PYFUNCTYPE(ctypes.c_int64, *arguments)  # keeps the GIL: nobody may change an array meanwhile
    return _compile(emit_llvm.bind(_HEADER), "bind", signature, optimize=False)


@cache
def _measure() -> Callable[..., None]:
    pointers = [ctypes.c_void_p] * 3
    signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, *pointers, *[ctypes.c_int64] * 2)
    return _compile(emit_llvm.measure(), "measure", signature)


def _compile(text: str, name: str, signature: Any, *, optimize: bool = True) -> Callable[..., Any]:
    """Machine code for this processor; kept, with what owns it, for the life of the process.

    To optimize takes half of the time. It is for loops that become vectors.
    """
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    module = llvm.parse_assembly(text)
    if optimize:
        tuning = llvm.create_pipeline_tuning_options(speed_level=3)
        tuning.loop_vectorization = True
        builder = llvm.create_pass_builder(machine, tuning)
        builder.getModulePassManager().run(module, builder)
    code = llvm.create_mcjit_compiler(module, machine)
    code.finalize_object()
    function = signature(code.get_function_address(name))
    function.code = code
    return function  # type: ignore[no-any-return]


class CPUKernel:
    """The step over a table of NumPy arrays."""

    def __init__(self, table: Table) -> None:
        self._table = table
        arrays = (table.rows, table.gradients, table.scales, table.chunks, table.values)
        self._step = partial(_step(table.variants), *[_address(a) for a in arrays])
        self._workers = threads.workers_for(table.traffic)
        every = ctypes.c_int64(0), ctypes.c_int64(len(table.chunks))
        self.at_once = partial(self._step, *every) if self._workers == 1 else None

    def __call__(self) -> None:
        """Update every segment that has a gradient."""
        threads.share_out(self._step, len(self._table.chunks), self._workers)

    def sums(self) -> NDArray[np.float64]:
        """Return the sums of squares of every segment's gradient, of shape (segments, 3)."""
        table = self._table
        partials = np.empty((len(table.chunks), 3))
        arrays = (table.gradients, table.chunks, partials)
        measure = partial(_measure(), _address(table.rows), table.rows.shape[1], *[_address(a) for a in arrays])
        threads.share_out(
            measure, len(table.chunks), threads.workers_for(int(table.rows[:, LENGTH] @ table.rows[:, ITEMSIZE]))
        )
        sums = np.zeros((len(table.rows), 3))
        np.add.at(sums, table.chunks[:, 0], partials)  # in order, unlike other sums of NumPy
        return sums

    def impose(self, scales: NDArray[np.float64]) -> None:
        """Take factors for the gradients."""
        self._table.scales[:] = scales


class Lookup:
    """Finds the addresses of a step's gradients, all of them with one call, for a loop makes new arrays at every step.

    Parameters
    ----------
    parameters
        NumPy arrays.
    addresses
        int64 of shape (parameters,), written to at each call.

    """

    def __init__(self, parameters: Sequence[Any], addresses: NDArray[np.int64]) -> None:
        count = len(parameters)
        self._addresses = addresses
        self._others = np.empty(count, np.int64)
        self._parameters = parameters, np.array([id(p) for p in parameters], np.int64)
        none, arrays = ctypes.c_void_p(id(None)), (self._parameters[1], addresses, self._others)
        self._bind = (
            partial(_bind(), none, *[_address(a) for a in arrays], ctypes.c_int64(count)) if _IS_KNOWN else None
        )

    def __call__(self, gradients: list[Any]) -> list[int] | None:
        """Take the addresses of all gradients that are just like their parameter, and 0 for None; return the others.

        None if there are no others, and all addresses are those of the last time.
        """
        if self._bind is None:
            self._addresses[:] = 0
            return [row for row, g in enumerate(gradients) if g is not None]
        others = self._bind(id(gradients))
        return None if others < 0 else self._others[:others].tolist()

    def take(self, row: int, gradient: Any, *, once: bool = False) -> None:  # noqa: ARG002
        """Take the address of one of the others."""
        self._addresses[row] = pointer(gradient)


def pointer(array: Any) -> int:
    """Address of the first element."""
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    """Of the first element, as ctypes passes it on: to convert a number at every call takes as long as the call."""
    return ctypes.c_void_p(pointer(array))


def _word(address: int) -> int:
    """What is at an address."""
    return ctypes.c_size_t.from_address(address).value


# `emit_llvm.bind` reads a list and NumPy's arrays as the C structures that they are: a thousand times as fast as Python's way.
_HEADER = object.__basicsize__
_probe = np.zeros((2, 3), np.float32)[:, 1:]
_list = [None, _probe]
_IS_KNOWN = _word(id(_probe) + _HEADER) == pointer(_probe) and _word(_word(id(_list) + _HEADER + 8) + 8) == id(_probe)


def zeros(layouts: Sequence[Layout]) -> list[NDArray[Any]]:
    """Return zeroed arrays, side by side in one buffer."""
    offsets, nbytes = side_by_side(layouts)
    buffer = np.zeros(nbytes, np.uint8)
    return [np.ndarray(a.shape, a.dtype, buffer, offset, a.strides) for a, offset in zip(layouts, offsets, strict=True)]
