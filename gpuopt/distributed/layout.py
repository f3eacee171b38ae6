"""Leaves as flat arrays, the elements that each process owns, and the exchange that makes them whole again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import current, read_into
from gpuopt.distributed.agreement import Failure, agreed
from gpuopt.distributed.cuts import Piece, buckets_of, order_of_chunks
from gpuopt.distributed.reduction import empty
from gpuopt.engines.table import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.distributed.transport import Transport

NO_BUCKET = -1
"""Number of the bucket of a segment without elements."""


class Layout:
    """Which elements of the leaves each process owns.

    Parameters
    ----------
    transport
        The processes.
    arrays
        The leaves, without gaps, of one library and device.
    shard
        Whether each process owns a share of each bucket, or all own everything.

    Attributes
    ----------
    flat : list
        A view of each leaf's elements, in the order of memory.
    buckets : list of Bucket
        Units of the exchange.
    segments : list of (int, Piece)
        What this process owns: number of the bucket, and piece of a leaf. Each leaf has at least one segment, an empty one if
        need be, so that all processes compile the same programs and have the numbers of all leaves.
    own : list
        Views of the segments.

    """

    def __init__(self, transport: Transport, arrays: Sequence[Any], *, shard: bool) -> None:
        self._transport, self._arrays, self._shard = transport, arrays, shard
        size = transport.size
        self.flat = [flat_like(a, a) for a in arrays]
        self.buckets = buckets_of([a.size for a in arrays], [str(a.dtype) for a in arrays], size)
        shares = [
            [(k, piece) for k, bucket in enumerate(self.buckets) for piece in bucket.pieces_of(rank)]
            for rank in range(size)
        ]
        self.segments = list(shares[transport.rank]) if shard else [one for own in shares for one in own]
        there = {piece.leaf for _, piece in self.segments}
        self.segments += [(NO_BUCKET, Piece(i, 0, 0, 0)) for i in range(len(arrays)) if i not in there]
        self.own = [self.flat[piece.leaf][piece.start : piece.stop] for _, piece in self.segments]
        self._first = {piece.leaf: s for s, (_, piece) in reversed(list(enumerate(self.segments)))}
        self._chunk_order, self._chunk_counts = order_of_chunks(self.buckets, size, len(arrays))
        self._chunk_cuts = np.cumsum(
            [0, *(sum(-(-piece.size // CHUNK) for _, piece in own) for own in shares)]
        ).tolist()
        self._chunks = np.empty(0)

    @property
    def leaf_of(self) -> list[int]:
        """The leaf of each segment."""
        return [piece.leaf for _, piece in self.segments]

    def first_segment(self, leaf: int) -> int:
        """The first segment of a leaf, which has the leaf's slots that are numbers; other segments share these."""
        return self._first[leaf]

    def reserve(self, width: int) -> None:
        """Allocate memory for `of_chunks` with this width."""
        if self._chunks.size < width * self._chunk_cuts[-1]:
            self._chunks = np.empty(width * self._chunk_cuts[-1])

    def of_chunks(
        self, width: int, own: Callable[[], Sequence[NDArray[np.float64]]], failure: Failure
    ) -> NDArray[np.float64]:
        """Return ``width`` numbers for each chunk, ordered by leaf; collective.

        ``own`` computes the numbers of this process's chunks. After an error, which ``failure`` keeps, the process still
        takes part in the exchange, in the memory that `reserve` has allocated.
        """
        chunks = self._chunks[: width * self._chunk_cuts[-1]].reshape(-1, width)
        rank = self._transport.rank
        share = chunks[slice(*self._chunk_cuts[rank : rank + 2])] if self._shard else chunks
        share[:] = 0
        with failure:
            if found := own():
                share[:] = np.concatenate(found)
        if self._shard:
            self._transport.gather(chunks.reshape(-1), [width * cut for cut in self._chunk_cuts])
        with failure:
            return chunks[self._chunk_order]
        return chunks  # after an error, which all processes raise at their next agreement

    def by_leaf(self, chunks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add the numbers of each leaf's chunks, in order."""
        sums = np.zeros((len(self._arrays), chunks.shape[1]))
        with np.errstate(all="ignore"):
            np.add.at(sums, np.repeat(np.arange(len(sums)), self._chunk_counts), chunks)
        return sums

    def room(self, flat: Mapping[int, Any]) -> dict[Any, Any]:
        """Allocate the memory in which `spread` packs small leaves: one bucket for each dtype."""
        most: dict[Any, int] = {}
        moved = 0
        for bucket in self.buckets if self._transport.size > 1 else ():
            for dtype in dict.fromkeys(flat[piece.leaf].dtype for piece in bucket.pieces if piece.leaf in flat):
                moved = max(moved, bucket.size * dtype.itemsize)
                if len(bucket.pieces) > 1:
                    most[dtype] = max(most.get(dtype, 0), bucket.size)
        self._transport.reserve(self._arrays[0], moved)
        return {dtype: empty(self._arrays[0], size, dtype) for dtype, size in most.items()}

    def spread(self, flat: Mapping[int, Any], room: Mapping[Any, Any], *, from_first: bool = False) -> None:
        """Send each process's share of these leaves (with ``from_first`` all of rank 0's) to all others; collective."""
        if self._transport.size == 1:
            return
        move = self._transport.broadcast if from_first else self._transport.gather
        for bucket in self.buckets:
            pieces = [piece for piece in bucket.pieces if piece.leaf in flat]
            if not pieces:
                continue
            cuts = () if from_first else (bucket.cuts,)
            if len(bucket.pieces) == 1:
                move(flat[pieces[0].leaf][pieces[0].start : pieces[0].stop], *cuts)
                continue
            for dtype in dict.fromkeys(
                flat[piece.leaf].dtype for piece in pieces
            ):  # slots of one bucket may have several dtypes
                own = [piece for piece in pieces if flat[piece.leaf].dtype == dtype]
                packed = room[dtype][: bucket.size]
                for piece in own:
                    packed[piece.place] = flat[piece.leaf][piece.start : piece.stop]
                move(packed, *cuts)
                for piece in own:
                    flat[piece.leaf][piece.start : piece.stop] = packed[piece.place]

    def whole(self, make: Callable[[], dict[int, Any]], segments: Sequence[Any]) -> dict[int, Any]:
        """Return whole arrays by leaf, which ``make`` allocates, filled from the segments of all processes; collective."""

        def own() -> tuple[dict[int, Any], dict[int, Any], dict[Any, Any]]:
            made = make()
            flat = {i: flat_like(x, x) for i, x in made.items()}
            for (_, piece), x in zip(self.segments, segments, strict=True):
                if piece.leaf in flat:
                    flat[piece.leaf][piece.start : piece.stop] = x
            return made, flat, self.room(flat) if self._shard else {}

        made, flat, room = agreed(self._transport, own)
        if self._shard:
            self.spread(flat, room)
        return made

    def whole_at_first(
        self, make: Callable[[], dict[int, Any]], segments: Sequence[Any], leaves: Collection[int], dtype: Any
    ) -> dict[int, Any]:
        """As `whole`, for some leaves of one dtype, on rank 0 alone and in the host's memory; collective."""
        rank = self._transport.rank
        buckets = [(k, b) for k, b in enumerate(self.buckets) if any(piece.leaf in leaves for piece in b.pieces)]
        places = [
            bucket.share(rank) if rank else slice(0, bucket.size) for _, bucket in buckets
        ]  # rank 0 has room for all

        def own() -> tuple[dict[int, Any], dict[int, Any], NDArray[Any]]:
            made = {} if rank else make()
            most = max((place.stop - place.start for place in places), default=0)
            return made, {i: flat_like(x, x) for i, x in made.items()}, np.zeros(most, dtype)

        made, flat, room = agreed(self._transport, own)
        for (k, bucket), place in zip(buckets, places, strict=True):
            packed = room[: place.stop - place.start]
            for (owned, piece), x in zip(self.segments, segments, strict=True):
                if owned == k and piece.leaf in leaves:
                    read_into(packed[piece.offset - place.start :][: piece.size], x)
            self._transport.gather_at_first(packed, bucket.cuts)
            for piece in bucket.pieces:
                if piece.leaf in flat:
                    flat[piece.leaf][piece.start : piece.stop] = packed[piece.place]
        return made


def axes(a: Any) -> tuple[int, ...]:
    """Return the axes from the outermost to the innermost in memory."""
    return tuple(sorted(range(a.ndim), key=lambda axis: -a.strides[axis]))


def flat_like(a: Any, like: Any) -> Any:
    """Return the elements of ``a`` in the dtype and the memory order of ``like``: a view if ``a`` has both."""
    with np.errstate(all="ignore"), current(like):
        if a.dtype != like.dtype:
            a = a.astype(like.dtype)
        return a.transpose(axes(like)).reshape(-1)
