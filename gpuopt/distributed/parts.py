"""The gradients of this process's parts, added up to the largest sums of the tree that lie within them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuopt.distributed.reduction import Store
from gpuopt.distributed.sums import whole_within

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpuopt.distributed.cuts import Bucket
    from gpuopt.distributed.sums import Node


class OwnParts:
    """Adds the gradients of this process's parts, in order.

    Parameters
    ----------
    mine
        The parts of this process.
    parts
        Number of parts of all processes.
    buckets, example
        As for `Store`.
    name
        Function that names a leaf's gradient in messages.

    Attributes
    ----------
    present : list of bool
        Whether each leaf has a gradient; empty before the first part.

    """

    def __init__(
        self, mine: range, parts: int, buckets: Sequence[Bucket], example: Any, name: Callable[[int], str]
    ) -> None:
        self._mine, self._parts, self._name = mine, parts, name
        self._buckets, self._example = buckets, example
        self._stores: list[Store] = []
        self.forget()

    def forget(self) -> None:
        """Drop the added gradients."""
        self._nodes: list[tuple[Node, Store]] = []
        self._count = 0
        self.present: list[bool] = []

    def add(self, flat: list[Any]) -> None:
        """Add the flat gradients of the next part, by leaf; they are copied."""
        if self._count == len(self._mine):
            raise ValueError(
                f"add: called more often than the {len(self._mine)} parts of this process, expected once for each i of mine"
            )
        self._see(flat)
        part, root = self._mine[self._count], (0, self._parts)
        self._count += 1
        node = (part, part + 1)
        if self._nodes and _is_whole(whole := (self._nodes[-1][0][0], part + 1), root):
            self._nodes[-1][1].add(flat)  # added into the sum before it, without another store
            self._nodes[-1] = (whole, self._nodes[-1][1])
        else:
            store = self._store(len(self._nodes))
            store.copy(flat)
            self._nodes.append((node, store))
        while len(self._nodes) > 1 and _is_whole(whole := (self._nodes[-2][0][0], part + 1), root):
            store = self._nodes[-2][1]
            store.merge(self._nodes[-1][1], self.present)
            self._nodes[-2:] = [(whole, store)]

    def added(self) -> list[tuple[Node, list[Any]]]:
        """Return the sums of all parts of this process, each a flat array for each bucket."""
        if self._count != len(self._mine):
            raise ValueError(
                f"step: {self._count} of this process's {len(self._mine)} parts were added, expected one `add` for each "
                "i of mine"
            )
        return [(node, store.buckets) for node, store in self._nodes]

    def only(self, flat: list[Any]) -> list[tuple[Node, list[Any]]]:
        """As `add` and `added` for the only part of this process, without a copy of large leaves."""
        if self._count:
            raise ValueError("step: gradients, but others were added; expected one or the other")
        self._see(flat)
        return [((self._mine[0], self._mine[0] + 1), self._store(0).borrowed(flat))]

    def _see(self, flat: list[Any]) -> None:
        """Record which leaves have gradients; raise ValueError if the part before differs."""
        present = [g is not None for g in flat]
        for i, (now, before) in enumerate(zip(present, self.present or present, strict=True)):
            if now != before:
                was, has = ("None", "an array") if now else ("an array", "None")
                raise ValueError(
                    f"{self._name(i)}: {has} in part {self._mine[self._count]}, expected {was} as in the part before"
                )
        self.present = present

    def _store(self, depth: int) -> Store:
        if depth == len(self._stores):
            self._stores.append(Store(self._buckets, self._example))
        return self._stores[depth]


def _is_whole(node: Node, root: Node) -> bool:
    """Whether these parts are a node of the tree."""
    return whole_within(root, *node) == [node]
