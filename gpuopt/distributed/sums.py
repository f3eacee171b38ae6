"""Sums in one fixed binary tree: the bits do not depend on who adds what, nor on where the parts are.

The tree over parts ``a`` to ``b`` splits where the largest power of two fits that is smaller than their number; so parts
are added two by two, then pairs two by two, and so on. A process adds what is whole within its own parts, and the owner
of a segment the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuopt.engines.step import Step
from gpuopt.rules.base import Hyper, Rule, bounded
from gpuopt.trees import flatten

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Node = tuple[int, int]
    """A sum of the tree, by its first part and the one after its last."""


def middle(node: Node) -> int:
    """The first part of the right one of the two sums that a sum of the tree is made of."""
    first, last = node
    return first + (1 << ((last - first - 1).bit_length() - 1))


def whole_within(node: Node, first: int, last: int) -> list[Node]:
    """The largest sums of the tree below ``node`` that lie within ``first`` to ``last``.

    Examples
    --------
    >>> whole_within((0, 8), 3, 6)
    [(3, 4), (4, 6)]

    """
    a, b = node
    if b <= first or last <= a:
        return []
    if first <= a and b <= last:
        return [node]
    return [*whole_within((a, middle(node)), first, last), *whole_within((middle(node), b), first, last)]


def tree_sum(parts: Sequence[Any]) -> Any:
    """Add gradients of parts up, leaf by leaf, in the order in which the processes do it together.

    Parameters
    ----------
    parts
        Of each part the gradients: an array, or any nesting of arrays, all of the same shapes and dtypes; None where all
        have None.

    Returns
    -------
    The same nesting of new arrays.

    Examples
    --------
    One process that has all parts takes the same step, to the last bit, as many processes together:

    >>> import numpy as np
    >>> import gpuopt.distributed
    >>> gpuopt.distributed.tree_sum([np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([5.0, 6.0])]) / 3
    array([3., 4.])

    """
    if not parts:
        raise ValueError("parts: none, expected the gradients of at least one part")
    tree, _ = flatten(parts[0], "parts[0]")
    leaves = [tree.leaves_of(part, f"parts[{i}]") for i, part in enumerate(parts)]

    def added(node: Node) -> list[Any]:
        if node[1] - node[0] == 1:
            return leaves[node[0]]
        left, right = added((node[0], middle(node))), added((middle(node), node[1]))
        return [None if a is None else a + b for a, b in zip(left, right, strict=True)]

    return tree.build(added((0, len(parts))))


@dataclass(frozen=True)
class Sum(Rule):
    """A rule that adds: the parameter is the sum of the gradients so far."""

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Rule.update`."""
        return p + g, {}


@dataclass(frozen=True)
class Mean(Rule):
    """A rule for the last one of several gradients: add it, and divide by their number."""

    parts: Hyper = bounded(1.0, 1)

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Rule.update`."""
        return (p + g) / h.parts, {}


@dataclass(frozen=True)
class Share(Rule):
    """Divide the gradient."""

    parts: Hyper = bounded(1.0, 1)

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Rule.update`."""
        return g / h.parts, {}


class Into:
    """Arrays that are written to from others like them, by one of these rules, in the engine that runs steps.

    So a sum is one call on the CPU, in several threads, one launch on a GPU, and the same bits on both.
    """

    def __init__(self, targets: Sequence[Any], rule: Rule) -> None:
        self._targets = list(targets)
        groups = [0] * len(self._targets)
        self._step = Step(self._targets, self._targets, groups, [rule], [{} for _ in groups], "auto")
        self._scalars = [rule.at(0)]

    def __call__(self, sources: Sequence[Any]) -> None:
        """Write; a source that is None leaves its target as it is."""
        sources = list(sources)
        self._step.bind(sources, self._targets, lambda _i, g, _p: g)
        self._step(sources, self._scalars, _counted)


_counted: Callable[[], Any] = int
"""Written in C, as a step wants it."""


def plan(nodes: Sequence[tuple[Node, bool]], root: Node) -> list[tuple[int, int]]:
    """Return the additions that make the sum of all out of ``nodes``: into which node which one is added, in order.

    Parameters
    ----------
    nodes
        Sums that are there, from first to last, and whether each may be written to: not two neighbours of a pair may not.
    root
        The sum of all.

    Examples
    --------
    >>> plan([((0, 1), False), ((1, 2), True), ((2, 4), True)], (0, 4))
    [(1, 0), (1, 2)]

    """
    there = {node: k for k, (node, _) in enumerate(nodes)}
    additions: list[tuple[int, int]] = []

    def added(node: Node) -> int:
        if node in there:
            return there[node]
        left, right = added((node[0], middle(node))), added((middle(node), node[1]))
        target, source = (left, right) if nodes[left][1] else (right, left)
        additions.append((target, source))
        return target

    added(root)
    return additions
