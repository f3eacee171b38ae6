"""The exchange of gradients: each process keeps its sums in buckets, and the owner of each share adds those of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import current, namespace
from gpuopt.distributed.sums import Into, Mean, Share, Sum, plan, whole_within
from gpuopt.engines.complexes import SMALL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuopt.distributed.agreement import Failure
    from gpuopt.distributed.cuts import Bucket
    from gpuopt.distributed.sums import Node
    from gpuopt.distributed.transport import Transport
    from gpuopt.rules.base import Rule


def empty(example: Any, size: int, dtype: Any) -> Any:
    """Return a new flat array of the library and device of ``example``."""
    with current(example):
        return namespace(example).empty(size, dtype=np.dtype(dtype))


class Store:
    """Memory for one sum of gradients, bucket by bucket.

    Attributes
    ----------
    buckets
        One flat array for each bucket.

    """

    def __init__(self, buckets: Sequence[Bucket], example: Any) -> None:
        self._buckets, self._example = buckets, example
        self._memory: list[Any] = [None] * len(buckets)
        self._pieces = [piece for bucket in buckets for piece in bucket.pieces]
        self._own: list[Any] = []
        self._adder: Into | None = None

    @property
    def buckets(self) -> list[Any]:
        """See the class."""
        return self._memory

    def copy(self, flat: Sequence[Any]) -> None:
        """Copy gradients, given by leaf."""
        for k in range(len(self._buckets)):
            self._allocate(k)
        if not self._own:
            self._own = [x[piece.place] for b, x in zip(self._buckets, self._memory, strict=True) for piece in b.pieces]
        for piece, own in zip(self._pieces, self._own, strict=True):
            if flat[piece.leaf] is not None:
                own[:] = flat[piece.leaf][piece.start : piece.stop]

    def add(self, flat: Sequence[Any]) -> None:
        """Add gradients, given by leaf; None for the same leaves as in `copy`."""
        self._add(
            [None if flat[piece.leaf] is None else flat[piece.leaf][piece.start : piece.stop] for piece in self._pieces]
        )

    def merge(self, other: Store, present: Sequence[bool]) -> None:
        """Add another store, for the leaves that have gradients."""
        self._add([x if present[piece.leaf] else None for piece, x in zip(self._pieces, other._own, strict=True)])

    def borrowed(self, flat: Sequence[Any]) -> list[Any]:
        """Return gradients by bucket, those of large leaves without a copy."""
        found: list[Any] = []
        for k, bucket in enumerate(self._buckets):
            if len(bucket.pieces) == 1:
                (piece,) = bucket.pieces
                found.append(None if flat[piece.leaf] is None else flat[piece.leaf][piece.start : piece.stop])
                continue
            self._allocate(k)
            for piece in bucket.pieces:
                if flat[piece.leaf] is not None:
                    self._memory[k][piece.place] = flat[piece.leaf]
            found.append(self._memory[k])
        return found

    def _allocate(self, k: int) -> None:
        if self._memory[k] is None:
            self._memory[k] = empty(self._example, self._buckets[k].size, self._buckets[k].dtype)

    def _add(self, pieces: list[Any]) -> None:
        if self._adder is None:
            self._adder = Into(self._own, Sum())
        self._adder(pieces)


class Reduction:
    """The sum of all parts: each process sends its sums to the owners of the shares, who add them.

    Parameters
    ----------
    transport, buckets
        The processes, and the units of the exchange.
    parts
        Number of parts of the batch.
    example
        An array of the leaves' library and device.
    average
        Whether to divide by ``parts``.
    everywhere
        Whether each process needs all sums, or those of its share only.

    """

    def __init__(
        self,
        transport: Transport,
        buckets: Sequence[Bucket],
        parts: int,
        example: Any,
        *,
        average: bool,
        everywhere: bool,
    ) -> None:
        self._transport, self._buckets, self._example = transport, buckets, example
        self._everywhere = everywhere
        self._parts, self._average = parts, average and parts > 1
        size, root = transport.size, (0, parts)
        self._nodes = [
            (rank, node)
            for rank in range(size)
            for node in whole_within(root, parts * rank // size, parts * (rank + 1) // size)
        ]
        writable = [(node, rank != transport.rank) for rank, node in self._nodes]
        self._additions = plan(writable, root)
        self._result = self._additions[-1][0] if self._additions else 0
        self._scratch: dict[str, list[Any]] = {}
        self._made: dict[int, tuple[Any, dict[int, Any], list[tuple[Into, list[int]]]]] = {}

    def reserve(self) -> None:
        """Allocate the memory of a step, before other processes rely on this one."""
        if self._transport.size == 1:
            return
        own = sum(rank == self._transport.rank for rank, _ in self._nodes)
        moved = 0
        for k, bucket in enumerate(self._buckets):
            share = bucket.share(self._transport.rank)
            n = share.stop - share.start
            elements = own * (bucket.size - n) + (len(self._nodes) - own) * n
            moved = max(moved, elements * np.dtype(bucket.dtype).itemsize)
            self._rows(k)
        self._transport.reserve(self._example, moved)

    def __call__(self, nodes: Sequence[tuple[Node, list[Any]]], buckets: Sequence[int], failure: Failure) -> list[Any]:
        """Add up buckets of all processes; collective.

        Parameters
        ----------
        nodes
            The sums of this process's own parts, each a flat array for each bucket.
        buckets
            Indices of the buckets.
        failure
            Keeps an error of this process, which still sends and receives all buckets.

        Returns
        -------
        list of Shifted
            By bucket; None for the others.

        """
        found: list[Any] = [None] * len(self._buckets)
        for k in buckets:
            with failure:
                found[k] = self._sum(k, [own[k] for _, own in nodes])
            if self._everywhere and self._transport.size > 1:
                self._transport.gather(self._rows(k)[0].whole, self._buckets[k].cuts)
        return found

    def _sum(self, k: int, own: list[Any]) -> Any:
        if self._transport.size == 1:
            (total,) = own
            if self._average:
                if k not in self._made:
                    self._made[k] = (total, {}, [(Into([total], Share(float(self._parts))), [])])
                self._made[k][2][0][0]([total])
            return Shifted(total, 0)
        rank, bucket = self._transport.rank, self._buckets[k]
        share = bucket.share(rank)
        result, rows, additions = self._rows(k)
        sends = [
            (other, flat[bucket.share(other)])
            for flat in own
            for other in range(self._transport.size)
            if other != rank and bucket.cuts[other] < bucket.cuts[other + 1]
        ]
        receives = [(self._nodes[n][0], x) for n, x in rows.items() if x.size]
        self._transport.exchange(sends, receives)
        if share.start < share.stop:
            mine = iter(own)
            there = [next(mine)[share] if n not in rows else rows[n] for n in range(len(self._nodes))]
            for into, sources in additions:
                into([there[n] for n in sources])
        return result

    def _rows(self, k: int) -> tuple[Any, dict[int, Any], list[tuple[Into, list[int]]]]:
        """For a bucket: the array of the sum, the arrays of received sums, and the additions, level by level."""
        if k in self._made:
            return self._made[k]
        bucket = self._buckets[k]
        share = bucket.share(self._transport.rank)
        n = share.stop - share.start
        whole = empty(self._example, bucket.size if self._everywhere else n, bucket.dtype)
        result = Shifted(whole, 0 if self._everywhere else share.start)
        others = [i for i, (rank, _) in enumerate(self._nodes) if rank != self._transport.rank and i != self._result]
        rows = {i: x[:n] for i, x in zip(others, self._scratch_rows(bucket.dtype, len(others)), strict=True)}
        rows[self._result] = result[share]
        rows = dict(sorted(rows.items()))
        levels: dict[int, int] = {}
        grouped: dict[int, list[tuple[int, int]]] = {}
        for target, source in self._additions:
            level = max(levels.get(target, 0), levels.get(source, 0)) + 1
            levels[target] = level
            grouped.setdefault(level, []).append((target, source))
        last = len(grouped)
        additions = [
            (
                Into(
                    [rows[target] for target, _ in pairs], self._rule(last=level == last and bucket.dtype not in SMALL)
                ),
                [source for _, source in pairs],
            )
            for level, pairs in sorted(grouped.items())
            if n
        ]
        if (
            n and self._average and bucket.dtype in SMALL
        ):  # the sum is rounded before it is divided, as in 16-bit arrays
            additions.append((Into([rows[self._result]], Share(float(self._parts))), [self._result]))
        self._made[k] = (result, rows, additions)
        return self._made[k]

    def _rule(self, *, last: bool) -> Rule:
        return Mean(float(self._parts)) if last and self._average else Sum()

    def _scratch_rows(self, dtype: str, count: int) -> list[Any]:
        """Arrays that all buckets of a dtype use in turn."""
        if dtype not in self._scratch:
            rank = self._transport.rank
            longest = max(b.cuts[rank + 1] - b.cuts[rank] for b in self._buckets if b.dtype == dtype)
            self._scratch[dtype] = [empty(self._example, longest, dtype) for _ in range(count)]
        return self._scratch[dtype]


class Shifted:
    """A part of a bucket, indexed as the whole bucket."""

    def __init__(self, x: Any, start: int) -> None:
        self.whole, self._start = x, start

    def __getitem__(self, place: slice) -> Any:
        return self.whole[place.start - self._start : place.stop - self._start]
