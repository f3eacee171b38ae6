"""Numbers of whole leaves, where a table has only parts of them: other processes have the rest.

A reduction pass over the parts gives the sums of their chunks. Whoever has the sums of all chunks, in the order of the
leaves, works the numbers out as a table of the whole leaves would, with the same compiled code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import to_numpy
from gpuopt.engines.table import CHUNK, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.place import Place
    from gpuopt.engines.table import Segment


@dataclass(frozen=True)
class Parts:
    """Which parts of whole leaves a step has.

    Attributes
    ----------
    leaf_of
        For each part, the index of its leaf. Each leaf has at least one part, perhaps without elements; the parts of a leaf
        share its slots that are numbers.
    sizes
        For each leaf, the number of its elements.
    starts
        For each part, the index of its first element in the leaf.

    """

    leaf_of: Sequence[int]
    sizes: Sequence[int]
    starts: Sequence[int]

    def of(self, members: Sequence[int]) -> Parts:
        """Return a selection of the parts."""
        return Parts([self.leaf_of[i] for i in members], self.sizes, [self.starts[i] for i in members])


class WholeLeaves:
    """Works out the numbers of leaves, of which a table has parts.

    Parameters
    ----------
    segments, slots
        The parts in the table, and of each its slots that are numbers.
    leaf_of, sizes
        As in `Parts`; leaves are counted as they first come among them, in order.
    host
        The place that works them out.
    place
        Where the slots are.

    """

    def __init__(
        self,
        segments: Sequence[Segment],
        slots: Sequence[Sequence[Any]],
        parts: Parts,
        host: Place,
        place: Place,
    ) -> None:
        self._leaves = sorted(set(parts.leaf_of))
        first = {leaf: parts.leaf_of.index(leaf) for leaf in self._leaves}
        self._row_of = np.searchsorted(self._leaves, parts.leaf_of)
        self._kept = [slots[first[leaf]] for leaf in self._leaves]
        self._new = [[np.zeros(()) for _ in own] for own in self._kept]
        whole = []
        for leaf, new in zip(self._leaves, self._new, strict=True):
            segment = segments[first[leaf]]
            unused = (0,) * (len(segment.pointers) - len(new))
            pointers = (*unused, *host.pointers(new))
            whole.append(segment._replace(length=parts.sizes[leaf], pointers=pointers))
        self._table = Table(whole)
        self._kernel: Any = host.kernel(self._table, None)
        chunks = np.concatenate([[0], np.cumsum([-(-size // CHUNK) for size in parts.sizes])])
        self._chunks = np.concatenate([np.arange(*chunks[leaf : leaf + 2]) for leaf in self._leaves])
        self._place = place

    def begin(self, scalars: Sequence[Mapping[str, float]], present: Sequence[bool]) -> None:
        """Before the first pass: the scalars of the step, and whether each of all leaves has a gradient."""
        self._table.set_coefficients(scalars)
        self._table.gradients[:] = [int(present[leaf]) for leaf in self._leaves]
        for kept, new in zip(self._kept, self._new, strict=True):
            for x, own in zip(kept, new, strict=True):
                own[...] = to_numpy(x)

    def numbers(self, k: int, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the numbers of each part that are known after pass ``k``, from the sums of all chunks of all leaves."""
        found: NDArray[np.float64] = self._kernel.numbers(k, sums[self._chunks])
        return found[self._row_of]

    def keeping(self) -> list[Callable[[], object]]:
        """Return what writes the slots that are numbers, after the last pass: functions written in C."""
        pairs = [pair for kept, new in zip(self._kept, self._new, strict=True) for pair in zip(kept, new, strict=True)]
        return [call for kept, new in pairs for call in self._place.copying(kept, new)]
