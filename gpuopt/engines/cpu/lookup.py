"""Looking up a step's NumPy arrays, in machine code that reads CPython's and NumPy's structures.

A loop makes new gradients at every step, and a leaf may have been replaced, resized or made read-only: all of them are
looked at in every step, a thousand times as fast as Python could. The layout of the structures is no public interface,
so it is tried out first. Where it is another one, as in a free-threaded Python, every array gets the full check in Python.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache, partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.engines.cpu import machine
from gpuopt.engines.cpu.ir import Function

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

HEADER = object.__basicsize__
"""Bytes that every Python object begins with; the last word of them is the type."""

# Behind the header come, in a list, its length and the address of its items; in a NumPy array these fields.
_ITEMS = 8
_DATA, _NDIM, _SHAPE, _STRIDES, _DTYPE, _FLAGS = 0, 8, 16, 24, 40, 48
_WRITEABLE = 0x0400  # NPY_ARRAY_WRITEABLE, of the flags

# In a dtype come the type of its scalars, then a word with kind, character, byte order and number.
_KIND, _NUMBER = HEADER, HEADER + 8

RECORD = np.dtype([(name, np.int64) for name in ("object", "data", "ndim", "dtype", "gradient", "axes")])
"""What is known of a leaf: addresses (of the dtype of its gradient, too), number of axes, and where in the table of axes its own begin."""
AXIS = np.dtype([(name, np.int64) for name in ("size", "leaf_stride", "gradient_stride")])


class Lookup:
    """See `gpuopt.engines.place.Lookup`."""

    def __init__(self, leaves: Sequence[Any], parameters: Sequence[Any], addresses: NDArray[np.int64]) -> None:
        self._addresses = addresses
        self._leaves = list(leaves)  # kept alive: an object is known by its address
        self._dtypes = [leaf.dtype for leaf in leaves], [p.dtype for p in parameters]  # kept alive, too
        self._others = np.empty(len(leaves), np.int64)
        self._look: Callable[[int, int], int] | None = None
        if structures_are_known():
            self._known = self._tables(parameters)
            context = ctypes.c_void_p(*addresses_of(self._known[-1:]))
            self._look = partial(_bind(), context, ctypes.c_int64(len(leaves)))

    def __call__(self, gradients: list[Any], leaves: list[Any]) -> list[int] | None:
        """See `gpuopt.engines.place.Lookup`."""
        if self._look is None:
            self._addresses[:] = 0
            return list(range(len(gradients)))
        others = self._look(id(gradients), id(leaves))
        return None if others < 0 else self._others[:others].tolist()

    def record(self, row: int, gradient: Any, *, once: bool = False) -> None:  # noqa: ARG002 - looked up in every step
        """See `gpuopt.engines.place.Lookup`."""
        (self._addresses[row],) = addresses_of([gradient])

    def _tables(self, parameters: Sequence[Any]) -> tuple[NDArray[Any], ...]:
        """Return the tables that the machine code reads, the last one with the addresses of the others."""
        leaves = self._leaves
        shapes = [leaf.shape for leaf in leaves]
        ndims = np.array(list(map(len, shapes)), np.int64)
        records = np.zeros(len(leaves), RECORD)
        records["object"] = list(map(id, leaves))
        records["data"] = addresses_of(leaves)
        records["ndim"] = ndims
        records["dtype"], records["gradient"] = (list(map(id, dtypes)) for dtypes in self._dtypes)
        records["axes"] = np.cumsum(ndims) - ndims
        axes = np.zeros(int(ndims.sum()), AXIS)
        for field, values in (
            ("size", shapes),
            ("leaf_stride", [leaf.strides for leaf in leaves]),
            ("gradient_stride", [p.strides for p in parameters]),
        ):
            axes[field] = list(chain.from_iterable(values))
        tables = (records, axes, self._addresses, self._others)
        return *tables, np.array([id(None), id(np.ndarray), *addresses_of(tables)], np.int64)


def addresses_of(arrays: Iterable[NDArray[Any]]) -> list[int]:
    """Where the first elements of NumPy arrays are; NumPy's public way makes a dict for each array, which takes 1 us."""
    if not structures_are_known():
        return [array.__array_interface__["data"][0] for array in arrays]
    word, offset = ctypes.c_size_t.from_address, HEADER + _DATA
    return [word(id(array) + offset).value for array in arrays]


@cache
def structures_are_known() -> bool:
    """Whether Python's and NumPy's structures are laid out as the machine code reads them."""
    import sysconfig

    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return False
    probe = np.zeros((2, 3), np.float32)[:, 1:]
    held = [None, probe]

    def word(address: int) -> int:
        return ctypes.c_size_t.from_address(address).value

    at = id(probe) + HEADER
    is_list = word(word(id(held) + HEADER + _ITEMS) + 8) == id(probe)
    is_array = (
        word(at - 8) == id(np.ndarray)
        and word(at + _DATA) == probe.__array_interface__["data"][0]
        and ctypes.c_int.from_address(at + _NDIM).value == probe.ndim
        and [word(word(at + _SHAPE) + 8 * k) for k in range(2)] == [2, 2]
        and [word(word(at + _STRIDES) + 8 * k) for k in range(2)] == [12, 4]
        and word(at + _DTYPE) == id(probe.dtype)
    )
    dtype = probe.dtype
    is_dtype = (
        word(id(dtype) + _KIND) == id(dtype.type)
        and ctypes.string_at(id(dtype) + _NUMBER, 3) == f"{dtype.kind}{dtype.char}=".encode()
        and ctypes.c_int.from_address(id(dtype) + _NUMBER + 4).value == dtype.num
    )
    if not (is_list and is_array and is_dtype):
        return False
    writeable = ctypes.c_int.from_address(at + _FLAGS).value & _WRITEABLE
    probe.flags.writeable = False
    return bool(writeable) and not ctypes.c_int.from_address(at + _FLAGS).value & _WRITEABLE


@cache
def _bind() -> Callable[..., int]:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    signature = ctypes.PYFUNCTYPE(
        number, pointer, number, pointer, pointer
    )  # keeps the GIL: nobody may change an array
    (bind,) = machine.compiled(source(), optimize=False, bind=signature)
    return bind


def source() -> str:
    """LLVM IR of ``bind(context, count, gradients, leaves)``; the last two are the addresses of lists.

    It records the addresses of the gradients, lists the rows that need a full check, and returns how many there are, or -1 if
    there are none and all addresses are as they were.
    """
    f = Function("bind", "i8** context, i64 count, i8* gradients, i8* leaves", "i64")
    none, array, records, axes, addresses, others = (f.given["context"][k] for k in range(6))
    addresses, others = addresses.bits("i8**"), others.bits("i64*")
    is_other = f.room("i64", 1)

    def field(x: Any, offset: int, kind: str = "i8*") -> Any:
        return x.at(offset).bits(f"{kind}*")[0]

    def known(name: str, kind: str = "i8*") -> Any:
        return field(record, 8 * _names(RECORD).index(name), kind)

    def is_an_array_like(x: Any, dtype: str) -> Any:
        ndim = field(x, HEADER + _NDIM, "i32").cast("i64")
        own, expected = field(x, HEADER + _DTYPE), known(dtype)
        # Of an array that was pickled the dtype is equal, but another object.
        kind, number = (field(own, at, "i64") == field(expected, at, "i64") for at in (_KIND, _NUMBER))
        return (ndim == known("ndim", "i64")) & (kind & number)

    def has_axes(x: Any, stride: str) -> Any:
        shape, strides = (field(x, HEADER + offset, "i64*") for offset in (_SHAPE, _STRIDES))
        first = axes.at(known("axes", "i64") * AXIS.itemsize)
        with f.loop(0, known("ndim", "i64"), f.whole(0)) as k:
            axis = first.at(k * AXIS.itemsize)
            size, step = (field(axis, 8 * _names(AXIS).index(name), "i64") for name in ("size", stride))
            k.carried = [k.carried[0] | (shape[k] ^ size) | (strides[k] ^ step)]
        return k.carried[0] == 0

    gradients, leaves = (field(f.given[name], HEADER + _ITEMS, "i8**") for name in ("gradients", "leaves"))
    with f.loop(0, f.given["count"], f.whole(0), f.whole(0)) as i:
        g, p, record, address = gradients[i], leaves[i], records.at(i * RECORD.itemsize), addresses.at(i)
        before = address[0]
        is_other[0], address[0] = 1, None
        with f.when(p == known("object")):
            may_write = field(p, HEADER + _FLAGS, "i32") & _WRITEABLE != 0
            same = is_an_array_like(p, "dtype") & (field(p, HEADER + _DATA) == known("data"))
            with f.when(same & may_write), f.when(has_axes(p, "leaf_stride")):
                is_other[0] = (g != none).cast("i64")
                with (
                    f.when(g != none),
                    f.when(field(g, HEADER - 8) == array),
                    f.when(is_an_array_like(g, "gradient")),
                    f.when(has_axes(g, "gradient_stride")),
                ):
                    is_other[0], address[0] = 0, field(g, HEADER + _DATA)
        found, moved = i.carried
        others[found] = i
        i.carried = [found + is_other[0], moved | (address[0] != before).cast("i64")]
    found, moved = i.carried
    return f.text(f.where(found | moved == 0, f.whole(-1), found))


def _names(dtype: np.dtype[Any]) -> tuple[str, ...]:
    return dtype.names or ()
