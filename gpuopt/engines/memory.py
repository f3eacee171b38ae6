"""Where arrays lie in memory: layouts, addresses and overlaps, alike for NumPy and CuPy."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpuopt.arrays import current, is_cupy, is_numpy, namespace
from gpuopt.engines.cpu import lookup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ALIGNMENT = 128
"""Alignment of arrays in a buffer, in bytes: that of CUDA's memory transactions, and more than a CPU's vector registers."""


FEW = 16
"""Largest number of arrays in one stretch of memory that are compared pair by pair."""


class Layout(NamedTuple):
    """Shape, dtype and strides (in bytes) of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...]


def is_dense(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether the elements fill their memory without gaps, with the axes in any order."""
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):  # nearly always in C order
        if stride != expected and size != 1:
            break
        expected *= size
    else:
        return True
    expected = itemsize
    for stride, size in sorted((stride, size) for size, stride in zip(shape, strides, strict=True) if size != 1):
        if stride != expected:
            return 0 in shape
        expected *= size
    return True


def is_without_gaps(array: Any) -> bool:
    """Whether the elements of ``array`` fill their memory."""
    return array.flags.forc or is_dense(array.shape, array.strides, array.dtype.itemsize)


def dense_layout(array: Any, dtype: Any = None, shape: tuple[int, ...] | None = None) -> Layout:
    """The layout of ``array`` if it is dense, else that of a C-ordered array like it; of another dtype or shape, if given.

    Of another shape the axes lie in the same order in memory.
    """
    return _dense(Layout(array.shape, np.dtype(array.dtype), array.strides), dtype, shape)


@lru_cache(1024)  # of many leaves few are unlike the others
def _dense(array: Layout, dtype: Any, shape: tuple[int, ...] | None) -> Layout:
    own = array.dtype
    dtype, shape = np.dtype(dtype or own), array.shape if shape is None else shape
    if shape == array.shape and is_dense(array.shape, array.strides, own.itemsize):
        return Layout(shape, dtype, tuple(s // own.itemsize * dtype.itemsize for s in array.strides))
    is_like = len(shape) == len(array.shape) and is_dense(array.shape, array.strides, own.itemsize)
    return laid_out(shape, dtype, order_of(array) if is_like else range(len(shape)))


def laid_out(shape: tuple[int, ...], dtype: Any, order: Sequence[int]) -> Layout:
    """The layout of a dense array with its axes in this order in memory."""
    step, strides = np.dtype(dtype).itemsize, [0] * len(shape)
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return Layout(shape, np.dtype(dtype), tuple(strides))


def order_of(array: Any) -> tuple[int, ...]:
    """The axes of a dense array or layout, in the order in which they lie in memory."""
    return tuple(sorted(range(len(array.strides)), key=lambda axis: -array.strides[axis]))


def same_strides(a: Any, b: Any) -> bool:
    """Whether two arrays of one shape run through memory alike; an axis of length 1 has no say."""
    return a.strides == b.strides or all(
        x == y for x, y, size in zip(a.strides, b.strides, a.shape, strict=True) if size != 1
    )


def in_memory_order(array: Any, like: Any) -> NDArray[Any]:
    """The elements of a NumPy array as a flat one, in the order in which ``like`` has its own (C's if it has gaps)."""
    axes = order_of(dense_layout(like)) if hasattr(like, "strides") else ()
    return np.asarray(array.transpose(axes) if axes else array).reshape(-1)


def laid_out_like(array: Any, like: Any) -> Any:
    """An array with its axes in memory as ``like`` has them (in C's order if that has gaps), copied if need be.

    Of other libraries than NumPy and CuPy it is the array itself.
    """
    if not (is_numpy(array) or is_cupy(array)) or same_strides(array, wanted := dense_layout(like)):
        return array
    order = order_of(wanted)
    with current(array):
        new = namespace(array).empty([array.shape[axis] for axis in order], dtype=array.dtype)
        new = new.transpose(np.argsort(order).tolist())
        new[...] = array
    return new


def side_by_side(layouts: Sequence[Layout]) -> tuple[list[int], int]:
    """Offsets at which the arrays of these layouts fit into one buffer, and the size of that buffer, in bytes."""
    rooms = {
        id(a): -(-a.dtype.itemsize * math.prod(a.shape) // ALIGNMENT) for a in {id(a): a for a in layouts}.values()
    }
    *offsets, end = accumulate((rooms[id(a)] * ALIGNMENT for a in layouts), initial=0)
    return offsets, end


def shadow(array: Any) -> NDArray[Any]:
    """A NumPy array with the addresses of ``array``. Never read it: its memory may be a GPU's."""
    interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    keys = ("data", "shape", "strides", "typestr")
    return np.asarray(type("Shadow", (), {"__array_interface__": {"version": 3} | {k: interface[k] for k in keys}})())


def addresses_of(arrays: Sequence[Any]) -> list[int]:
    """Where the first elements of arrays of one place are."""
    if arrays and isinstance(arrays[0], np.ndarray):
        return lookup.addresses_of(arrays)
    return [array.data.ptr for array in arrays]


def byte_bounds(array: Any) -> tuple[int, int]:
    """First and one past the last byte that ``array`` reaches."""
    (first,) = addresses_of([array])
    start, last = first, first + array.dtype.itemsize
    for size, stride in zip(array.shape, array.strides, strict=True):
        if size == 0:
            return first, first
        if stride > 0:
            last += stride * (size - 1)
        else:
            start += stride * (size - 1)
    return start, last


def bounds(arrays: Sequence[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and one past the last byte of each of many arrays of one place."""
    starts = np.array(addresses_of(arrays), np.int64)
    ends = starts + np.array([array.nbytes for array in arrays], np.int64)
    for i, array in enumerate(arrays):
        if not array.flags.forc:
            starts[i], ends[i] = byte_bounds(array)
    return starts, ends


def geometries(arrays: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Where each array is and what it is: address and strides where the library tells them, shape and dtype."""
    if all(isinstance(array, np.ndarray) for array in arrays):
        return [
            (address, array.shape, array.strides, array.dtype)
            for address, array in zip(addresses_of(arrays), arrays, strict=True)
        ]
    return [
        (*addresses_of([array]), array.shape, array.strides, array.dtype)
        if is_numpy(array) or is_cupy(array)
        else (None, tuple(array.shape), None, array.dtype)
        for array in arrays
    ]


class Overlaps:
    """Which of some arrays of one device another array reaches into.

    Parameters
    ----------
    arrays
        Arrays that do not overlap each other.

    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        starts, ends = bounds([array for array in arrays if array.size])
        if not len(starts):
            starts, ends = np.zeros((2, 1), np.int64)
        order = np.argsort(starts)
        self._starts = starts[order]
        # An array with gaps may enclose others: an end counts for all that start after it, too.
        self._ends = np.maximum.accumulate(ends[order])

    def __call__(self, starts: Any, ends: Any) -> NDArray[np.bool_]:
        """Whether the bytes from a start to its end belong to any of these arrays, for many starts and ends at once."""
        before = np.searchsorted(self._starts, ends)
        return np.asarray((before > 0) & (self._ends[before - 1] > starts) & (ends > starts))


def _is_spread(a: Any) -> bool:
    """Whether each axis steps over all that the axes with smaller strides reach, as in every ordinary view."""
    reach = a.dtype.itemsize
    for stride, size in sorted(
        (abs(stride), size) for stride, size in zip(a.strides, a.shape, strict=True) if size > 1
    ):
        if stride < reach:
            return False
        reach += stride * (size - 1)
    return True


def first_overlap(arrays: Sequence[Any]) -> tuple[int, int] | None:
    """Return the indices of two arrays that share an element, the same index twice if one does so with itself, or None."""
    for i, a in enumerate(arrays):
        if a.size and not a.flags.forc and not _is_spread(a):
            return i, i
    members = [i for i, a in enumerate(arrays) if a.size]
    starts, ends = bounds([arrays[i] for i in members])
    order = np.argsort(starts)
    if (np.maximum.accumulate(ends[order])[:-1] <= starts[order][1:]).all():
        return None
    for cluster in _clusters(sorted(zip(starts.tolist(), ends.tolist(), members, strict=True))):
        marks = _Marks([arrays[i] for i in cluster]) if len(cluster) > FEW else None
        for k, i in enumerate(cluster):
            if marks is None or marks.meet(k):
                for j in cluster[:k]:
                    if np.shares_memory(shadow(arrays[i]), shadow(arrays[j])):
                        return min(i, j), max(i, j)
    return None


def _clusters(extents: Sequence[tuple[int, int, int]]) -> list[list[int]]:
    """Gather arrays of which one begins before another one ends: their numbers, from (first byte, end, number), sorted."""
    clusters: list[list[int]] = [[]]
    reach = 0
    for start, end, i in extents:
        if start >= reach and clusters[-1]:
            clusters.append([])
        clusters[-1].append(i)
        reach = max(end, reach)
    return clusters


class _Marks:
    """Marks the memory of one array after the other: the columns of a matrix are too many to be compared in pairs."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        limits = [byte_bounds(a) for a in arrays]
        first, end = min(start for start, _ in limits), max(end for _, end in limits)
        self._arrays, self._offsets = arrays, [address - first for address in addresses_of(arrays)]
        steps = (s for a in arrays for s, size in zip(a.strides, a.shape, strict=True) if size > 1)
        self._unit = math.gcd(*self._offsets, *steps, *{a.dtype.itemsize for a in arrays})
        self._marks = np.zeros((end - first) // self._unit, np.bool_)

    def meet(self, k: int) -> bool:
        """Mark array ``k``; return whether any of its memory was marked."""
        a, unit = self._arrays[k], self._unit
        strides = [s // unit if size > 1 else 0 for s, size in zip(a.strides, a.shape, strict=True)]
        shape, offset = (*a.shape, a.dtype.itemsize // unit), self._offsets[k] // unit
        own: NDArray[np.bool_] = np.ndarray(shape, np.bool_, self._marks, offset, (*strides, 1))
        met = bool(own.any())
        own[...] = True
        return met
