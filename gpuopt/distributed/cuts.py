"""How leaves are cut into buckets, the units of an exchange, and each bucket into one share for each process.

Everything here is plain integers, the same on every process. The elements of a leaf are numbered in the order of memory. Cuts
are between chunks of a leaf, so that each sum over a chunk is computed by one process, with the bits of a single process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpuopt.engines.table import CHUNK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

LARGEST = 1 << 22
"""Elements of a bucket: enough to hide the latency of a message, few enough for the memory."""
MESSAGE = 1 << 16
"""Least elements of one process's share of a full bucket, to hide latency: with many processes, buckets are larger."""
LARGE = 1 << 18
"""Elements from which on a leaf is sent from its own memory; smaller leaves are packed into one bucket."""


@dataclass(frozen=True)
class Piece:
    """Elements ``start`` to ``stop`` of a leaf, which lie at ``offset`` in a bucket."""

    leaf: int
    start: int
    stop: int
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start

    @property
    def place(self) -> slice:
        """The elements of the bucket that hold the piece."""
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True)
class Bucket:
    """Pieces of leaves of one dtype, side by side.

    Attributes
    ----------
    dtype
        Name of the dtype.
    pieces
        Pieces in order. A bucket with a piece of a large leaf has no other.
    cuts
        The first element of each process's share, then the size of the bucket.

    """

    dtype: str
    pieces: tuple[Piece, ...]
    cuts: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.cuts[-1]

    def share(self, rank: int) -> slice:
        """The elements of a process's share."""
        return slice(*self.cuts[rank : rank + 2])

    def pieces_of(self, rank: int) -> list[Piece]:
        """The pieces of a process's share, with offsets in the bucket."""
        begin, end = self.cuts[rank : rank + 2]
        found = []
        for piece in self.pieces:
            first, last = max(begin, piece.offset), min(end, piece.offset + piece.size)
            if first < last:
                shift = piece.start - piece.offset
                found.append(Piece(piece.leaf, first + shift, last + shift, first))
        return found


def buckets_of(sizes: Sequence[int], dtypes: Sequence[str], processes: int) -> list[Bucket]:
    """Cut leaves into buckets, and buckets into shares of nearly the same number of chunks.

    Examples
    --------
    >>> [bucket] = buckets_of([5000, 10], ["float32", "float32"], 2)
    >>> bucket.cuts, [piece.offset for piece in bucket.pieces]
    ((0, 4096, 5010), [0, 5000])

    """
    buckets: list[Bucket] = []
    for dtype in dict.fromkeys(dtypes):
        members = [i for i, own in enumerate(dtypes) if own == dtype and sizes[i]]
        most = max(LARGEST, MESSAGE * processes)
        buckets += [Bucket(dtype, pieces, _cuts(pieces, processes)) for pieces in _filled(members, sizes, most)]
    return buckets


@dataclass(frozen=True)
class Traffic:
    """The traffic of the busiest process in a step: once for the sums of gradients, and as much again for the parameters.

    Attributes
    ----------
    messages, nbytes
        Sent to all others together, if each process has one part or a power of two of parts.
    memory
        Bytes of the sums that it receives at once, besides the gradients of its own share.

    """

    messages: int
    nbytes: int
    memory: int


def traffic(buckets: Sequence[Bucket], processes: int) -> Traffic:
    """Count messages and bytes of a step.

    Examples
    --------
    >>> traffic(buckets_of([10_000_000], ["float32"], 2), 2)
    Traffic(messages=3, nbytes=20004864, memory=8388608)

    """
    shares = np.array([np.diff(bucket.cuts) for bucket in buckets]).reshape(len(buckets), processes)
    sizes = np.array([np.dtype(bucket.dtype).itemsize for bucket in buckets])[:, None] * shares
    messages = (shares > 0).sum() - (shares > 0).sum(axis=0)
    return Traffic(
        int(messages.max()),
        int((sizes.sum() - sizes.sum(axis=0)).max()),
        int(sizes.max(axis=0).max()) * (processes - 1),
    )


def _filled(members: Sequence[int], sizes: Sequence[int], most: int) -> Iterator[tuple[Piece, ...]]:
    """Yield the pieces of each bucket; a large leaf has separate buckets, small leaves share one."""
    small: list[Piece] = []
    offset = 0
    for i in members:
        if sizes[i] >= LARGE:
            for start in range(0, sizes[i], most):
                yield (Piece(i, start, min(start + most, sizes[i]), 0),)
            continue
        if offset + sizes[i] > most:
            yield tuple(small)
            small, offset = [], 0
        small.append(Piece(i, 0, sizes[i], offset))
        offset += sizes[i]
    if small:
        yield tuple(small)


def _cuts(pieces: Sequence[Piece], processes: int) -> tuple[int, ...]:
    starts = [piece.offset + k for piece in pieces for k in range(0, piece.size, CHUNK)]
    ends = [*starts, pieces[-1].offset + pieces[-1].size]
    return tuple(ends[len(starts) * rank // processes] for rank in range(processes + 1))


def order_of_chunks(buckets: Sequence[Bucket], processes: int, leaves: int) -> tuple[NDArray[np.int64], list[int]]:
    """Return the order that sorts chunks by leaf, and the number of chunks of each leaf.

    The chunks to sort are listed by process, and within a process by bucket.
    """
    found = [
        (piece.leaf, piece.start + k)
        for rank in range(processes)
        for bucket in buckets
        for piece in bucket.pieces_of(rank)
        for k in range(0, piece.size, CHUNK)
    ]
    order = sorted(range(len(found)), key=found.__getitem__)
    counts = np.bincount([leaf for leaf, _ in found], minlength=leaves) if found else np.zeros(leaves, np.int64)
    return np.array(order, np.int64), counts.tolist()
