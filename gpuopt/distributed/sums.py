"""Sums in one fixed binary tree: the bits do not depend on which process has which parts.

The left branch of a node has the largest power of two of parts that is smaller than the node: parts are added in pairs, then
pairs in pairs, and so on. A process adds the nodes that lie within its own parts; the owner of a share adds the rest.
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
    """A sum of the tree: its first part, and the part after its last."""


def middle(node: Node) -> int:
    """Return the first part of a node's right branch."""
    first, last = node
    return first + (1 << ((last - first - 1).bit_length() - 1))


def whole_within(node: Node, first: int, last: int) -> list[Node]:
    """Return the largest sums of the tree below ``node`` that lie within ``first`` to ``last``.

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
    """Add the gradients of parts, leaf by leaf, in the order of `Optimizer.step`.

    Parameters
    ----------
    parts
        The gradients of each part: an array, or any nesting of arrays, all of the same shapes and dtypes. A leaf is None
        in all parts or in none.

    Returns
    -------
    array or nesting of arrays
        The sums, in new arrays.

    Raises
    ------
    TypeError, ValueError
        If there is no part, or if the nestings differ.

    Examples
    --------
    A single process takes the same step, to the last bit, as many processes together:

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
    """A rule for the last of several gradients: add it, and divide by their number."""

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
    """Adds arrays into others by one of these rules, in the engine of the optimizers.

    So a sum is one call on the CPU, in several threads, or one launch on a GPU, with the same bits on both.
    """

    def __init__(self, targets: Sequence[Any], rule: Rule) -> None:
        self._targets = list(targets)
        groups = [0] * len(self._targets)
        self._step = Step(self._targets, self._targets, groups, [rule], [{} for _ in groups], "auto")
        self._scalars = [rule.at(0)]

    def __call__(self, sources: Sequence[Any]) -> None:
        """Write into the targets; a target whose source is None stays."""
        sources = list(sources)
        self._step.bind(sources, self._targets, lambda _i, g, _p: g)
        self._step(sources, self._scalars, _counted)


_counted: Callable[[], Any] = int
"""The commit of a step, which has nothing to count here; `int` is code in C, which no signal interrupts."""


def plan(nodes: Sequence[tuple[Node, bool]], root: Node) -> list[tuple[int, int]]:
    """Return the additions that make ``root`` from ``nodes``, in order, as pairs of indices (target, source).

    Parameters
    ----------
    nodes
        Sums that exist, from first to last, and whether each may be written to; of two that are added, one must be.
    root
        The sum of all parts.

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
