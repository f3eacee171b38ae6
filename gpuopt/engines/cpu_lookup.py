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

from gpuopt.engines import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

HEADER = object.__basicsize__
"""Bytes that every Python object begins with; the last word of them is the type."""

# Behind the header come, in a list, its length and the address of its items; in a NumPy array these fields.
_ITEMS = 8
_DATA, _NDIM, _SHAPE, _STRIDES, _DTYPE, _FLAGS = 0, 8, 16, 24, 40, 48
_WRITEABLE = 0x0400  # NPY_ARRAY_WRITEABLE, of the flags

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
    if not (is_list and is_array):
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


_BIND = """
define i64 @bind(ptr %context, i64 %count, ptr %g.list, ptr %p.list) {{
entry:
{context}
  %gs.at = getelementptr i8, ptr %g.list, i64 {items}
  %ps.at = getelementptr i8, ptr %p.list, i64 {items}
  %gs = load ptr, ptr %gs.at
  %ps = load ptr, ptr %ps.at
  %any = icmp sgt i64 %count, 0
  br i1 %any, label %leaf, label %exit
leaf:
  %i = phi i64 [ 0, %entry ], [ %i.next, %next ]
  %n = phi i64 [ 0, %entry ], [ %n.next, %next ]
  %moved = phi i1 [ false, %entry ], [ %moved.next, %next ]
  %g.at = getelementptr ptr, ptr %gs, i64 %i
  %p.at = getelementptr ptr, ptr %ps, i64 %i
  %address.at = getelementptr ptr, ptr %addresses, i64 %i
  %g = load ptr, ptr %g.at
  %p = load ptr, ptr %p.at
  %record = getelementptr [{record} x i64], ptr %records, i64 %i
{record_fields}
  %same.object = icmp eq ptr %p, %known.object
  br i1 %same.object, label %p.look, label %other
p.look:
{p_fields}
  %p.ndim64 = zext i32 %p.ndim to i64
  %same.data = icmp eq ptr %p.data, %known.data
  %same.ndim = icmp eq i64 %p.ndim64, %known.ndim
  %same.dtype = icmp eq ptr %p.dtype, %known.dtype
  %writeable = and i32 %p.flags, {WRITEABLE}
  %may.write = icmp ne i32 %writeable, 0
  %same.place = and i1 %same.data, %same.ndim
  %same.kind = and i1 %same.dtype, %may.write
  %p.same = and i1 %same.place, %same.kind
  %axes.own = getelementptr [{axis} x i64], ptr %axes, i64 %known.axes
  br i1 %p.same, label %p.axis, label %other
p.axis:
  %pk = phi i64 [ 0, %p.look ], [ %pk.next, %p.compare ]
  %p.left = icmp slt i64 %pk, %known.ndim
  br i1 %p.left, label %p.compare, label %gradient
p.compare:
  %pa.size.at = getelementptr [{axis} x i64], ptr %axes.own, i64 %pk
  %pa.stride.at = getelementptr i64, ptr %pa.size.at, i64 1
  %p.size.at = getelementptr i64, ptr %p.shape, i64 %pk
  %p.stride.at = getelementptr i64, ptr %p.strides, i64 %pk
  %pa.size = load i64, ptr %pa.size.at
  %pa.stride = load i64, ptr %pa.stride.at
  %p.size = load i64, ptr %p.size.at
  %p.stride = load i64, ptr %p.stride.at
  %p.same.size = icmp eq i64 %p.size, %pa.size
  %p.same.stride = icmp eq i64 %p.stride, %pa.stride
  %p.same.axis = and i1 %p.same.size, %p.same.stride
  %pk.next = add nuw nsw i64 %pk, 1
  br i1 %p.same.axis, label %p.axis, label %other
gradient:
  %left.alone = icmp eq ptr %g, %none
  br i1 %left.alone, label %next, label %type
type:
  %g.type.at = getelementptr i8, ptr %g, i64 {type}
  %g.type = load ptr, ptr %g.type.at
  %is.array = icmp eq ptr %g.type, %array
  br i1 %is.array, label %g.look, label %other
g.look:
{g_fields}
  %g.ndim64 = zext i32 %g.ndim to i64
  %g.same.ndim = icmp eq i64 %g.ndim64, %known.ndim
  %g.same.dtype = icmp eq ptr %g.dtype, %known.gradient
  %g.same = and i1 %g.same.ndim, %g.same.dtype
  br i1 %g.same, label %g.axis, label %other
g.axis:
  %gk = phi i64 [ 0, %g.look ], [ %gk.next, %g.compare ]
  %g.left = icmp slt i64 %gk, %known.ndim
  br i1 %g.left, label %g.compare, label %next
g.compare:
  %ga.size.at = getelementptr [{axis} x i64], ptr %axes.own, i64 %gk
  %ga.stride.at = getelementptr i64, ptr %ga.size.at, i64 2
  %g.size.at = getelementptr i64, ptr %g.shape, i64 %gk
  %g.stride.at = getelementptr i64, ptr %g.strides, i64 %gk
  %ga.size = load i64, ptr %ga.size.at
  %ga.stride = load i64, ptr %ga.stride.at
  %g.size = load i64, ptr %g.size.at
  %g.stride = load i64, ptr %g.stride.at
  %g.same.size = icmp eq i64 %g.size, %ga.size
  %g.same.stride = icmp eq i64 %g.stride, %ga.stride
  %g.same.axis = and i1 %g.same.size, %g.same.stride
  %gk.next = add nuw nsw i64 %gk, 1
  br i1 %g.same.axis, label %g.axis, label %other
other:
  %other.at = getelementptr i64, ptr %others, i64 %n
  store i64 %i, ptr %other.at
  %n.more = add nuw nsw i64 %n, 1
  br label %next
next:
  %n.next = phi i64 [ %n, %gradient ], [ %n, %g.axis ], [ %n.more, %other ]
  %address = phi ptr [ null, %gradient ], [ %g.data, %g.axis ], [ null, %other ]
  %before = load ptr, ptr %address.at
  %moves = icmp ne ptr %address, %before
  %moved.next = or i1 %moved, %moves
  store ptr %address, ptr %address.at
  %i.next = add nuw nsw i64 %i, 1
  %more = icmp slt i64 %i.next, %count
  br i1 %more, label %leaf, label %exit
exit:
  %n.found = phi i64 [ 0, %entry ], [ %n.next, %next ]
  %any.moved = phi i1 [ false, %entry ], [ %moved.next, %next ]
  %any.other = icmp ne i64 %n.found, 0
  %any.news = or i1 %any.moved, %any.other
  %result = select i1 %any.news, i64 %n.found, i64 -1
  ret i64 %result
}}
"""


def source() -> str:
    """LLVM IR of ``bind(context, count, gradients, leaves)``; the last two are the addresses of lists.

    It records the addresses of the gradients, lists the rows that need a full check, and returns how many there are, or -1 if
    there are none and all addresses are as they were.
    """

    def load(name: str, kind: str, base: str, offset: int) -> str:
        return (
            f"  %{name}.field = getelementptr i8, ptr %{base}, i64 {offset}\n  %{name} = load {kind}, ptr %{name}.field"
        )

    def array_fields(x: str) -> str:
        fields = {"data": _DATA, "shape": _SHAPE, "strides": _STRIDES, "dtype": _DTYPE}
        lines = [load(f"{x}.{name}", "ptr", x, HEADER + offset) for name, offset in fields.items()]
        lines += [load(f"{x}.{name}", "i32", x, HEADER + at) for name, at in {"ndim": _NDIM, "flags": _FLAGS}.items()]
        return "\n".join(lines)

    kinds = {"object": "ptr", "data": "ptr", "ndim": "i64", "dtype": "ptr", "gradient": "ptr", "axes": "i64"}
    pointers = ("none", "array", "records", "axes", "addresses", "others")
    return _BIND.format(
        context="\n".join(load(name, "ptr", "context", 8 * i) for i, name in enumerate(pointers)),
        record_fields="\n".join(
            load(f"known.{name}", kind, "record", 8 * i) for i, (name, kind) in enumerate(kinds.items())
        ),
        p_fields=array_fields("p"),
        g_fields=array_fields("g"),
        record=RECORD.itemsize // 8,
        axis=AXIS.itemsize // 8,
        type=HEADER - 8,
        items=HEADER + _ITEMS,
        WRITEABLE=_WRITEABLE,
    )
