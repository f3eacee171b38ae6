"""Sums along an axis, as far as one loop goes: the table's numbers for them, alike on the CPU and on the GPU.

By halves, the axis of ``n`` elements is first cut to the largest power of two, ``k``: what lies beyond is added to the first elements. Then
the second half is added to the first one, a few times: of ``lanes`` numbers each is the sum of ``parts`` elements that lie ``lanes`` apart,
added by halves. What is left, `gpuopt.engines.reference.sum_along` adds up in the same order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

PARTS = 16
"""Elements at most of which a loop makes one number: as many as there are registers for."""


class Fold(NamedTuple):
    """How a leaf is added up along an axis.

    Attributes
    ----------
    lanes
        Numbers that come out of each stretch of memory along the axis.
    parts
        Elements that each of them is made of, but for those beyond the power of two.
    whole, every
        Elements of a stretch up to the power of two, and all.

    """

    lanes: int
    parts: int
    whole: int
    every: int


def fold(shape: Sequence[int], order: Sequence[int], axis: int) -> tuple[Fold, int]:
    """Return how a leaf of this shape, with its axes in this order in memory, is added up, and how long the axis is then."""
    n = shape[axis]
    if not n:
        return Fold(1, 1, 1, 1), 0
    inner = math.prod(shape[own] for own in order[order.index(axis) + 1 :])
    k = 1 << (n.bit_length() - 1)
    count = min(k, PARTS)
    return Fold(max(1, k // count * inner), count, k * inner, n * inner), k // count


def length(outputs: int) -> int:
    """What stands in the table for the elements: a chunk of so many is as much work as one of any other loop."""
    return outputs * PARTS
