"""Nested containers of arrays: leaves, their paths and their names, through optree."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import optree

from gpuopt.cached import cached_property

MOST_ORDERS = 8
"""Largest number of other container types whose order of leaves is cached."""


@dataclass(frozen=True)
class Tree:
    """The shape of a nesting: what is needed to find the leaves of others like it, and to build one from leaves.

    Attributes
    ----------
    paths
        Of each leaf, dotted: ``"dense.w"``; ``""`` for a bare array.

    """

    paths: tuple[str, ...]
    spec: optree.PyTreeSpec
    _orders: dict[optree.PyTreeSpec, list[int]] = field(default_factory=dict, compare=False, repr=False)
    """The positions of the leaves in other containers with the same paths."""
    _last: list[tuple[optree.PyTreeSpec, list[int]]] = field(default_factory=list, compare=False, repr=False)
    """The other containers that came last, which are expected to come again: to flatten and to look them up takes several times as long."""

    @cached_property
    def _accessors(self) -> list[optree.PyTreeAccessor]:
        """The path of each leaf as optree's accessor, for messages."""
        return optree.treespec_accessors(self.spec)

    def name(self, i: int, root: str) -> str:
        """Leaf ``i`` in Python's spelling: ``grads['dense']['w']``."""
        return self._accessors[i].codify(root)

    def leaves_of(self, tree: Any, root: str) -> list[Any]:
        """Return the leaves of a tree of this shape; None counts as a leaf.

        Raises
        ------
        ValueError
            If the tree has another shape; the message names what is missing and what is too much.

        """
        for spec, order in [*self._last]:
            kind: object = spec.type
            if kind is type(tree):
                with contextlib.suppress(RecursionError, TypeError, ValueError):
                    leaves = spec.flatten_up_to(tree)
                    return [leaves[k] for k in order]
        if self._orders:  # the refusal of `flatten_up_to` shows all containers, slowly
            leaves, spec = flattened(tree)
            if (known := self._orders.get(spec)) is not None:
                self._last[:] = [(spec, known)]
                return [leaves[k] for k in known]
        try:
            return self.spec.flatten_up_to(tree)  # much faster than to flatten and to compare
        except (RecursionError, TypeError, ValueError):
            pass
        if isinstance(tree, Iterator):
            return self.leaves_of(list(tree), root)
        # Other containers (an OrderedDict, a tuple for a list) with the same paths are as good.
        given, leaves = flatten(tree, root)
        there = {path: k for k, path in enumerate(given.paths)}
        own = set(self.paths)
        missing = [self.name(i, root) for i, path in enumerate(self.paths) if path not in there]
        extra = [given.name(i, root) for i, path in enumerate(given.paths) if path not in own]
        if missing or extra:
            both = (("missing", missing), ("unexpected", extra))
            said = ", ".join(f"{what} {_listed(names)}" for what, names in both if names)
            if root == "params":
                raise ValueError(f"params: another structure than when the optimizer was made: {said}; make a new one")
            cure = "; for a leaf without gradient, give None" if root.startswith("grad") else ""
            if given.paths == ("",) and tree is not None and not hasattr(tree, "shape"):
                cure = f"; a {type(tree).__name__} is no nesting, as dicts, lists and tuples are"
            raise ValueError(f"{root}: another structure than params: {said}{cure}")
        if len(self._orders) == MOST_ORDERS:
            self._orders.clear()
        order = self._orders[given.spec] = [there[path] for path in self.paths]
        self._last[:] = [(given.spec, order)]
        return [leaves[k] for k in order]

    def build(self, leaves: list[Any]) -> Any:
        """Put a tree of this shape together."""
        return self.spec.unflatten(leaves)

    def by_name(self, names: Iterable[str]) -> optree.PyTreeSpec:
        """Return the containers of a dict of trees of this shape; their leaves are in the order of the sorted names."""
        return optree.treespec_dict(dict.fromkeys(names, self.spec), none_is_leaf=True)


def flatten(tree: Any, root: str = "params") -> tuple[Tree, list[Any]]:
    """Find the leaves of a nesting of dicts, lists, tuples and whatever is registered with optree; None counts as a leaf.

    Messages call it ``root``.

    Raises
    ------
    ValueError
        If two leaves have the same dotted path, or the nesting is very deep or holds itself.

    Examples
    --------
    >>> tree, leaves = flatten({"dense": {"w": 1, "b": 2}})
    >>> tree.paths, leaves, tree.name(0, "params")
    (('dense.b', 'dense.w'), [2, 1], "params['dense']['b']")

    """
    leaves, spec = flattened(tree)
    paths = tuple(".".join(map(str, path)) for path in optree.treespec_paths(spec))
    shape = Tree(paths, spec)
    if len(set(paths)) < len(paths):
        seen: dict[str, int] = {}
        k, i = next((k, i) for i, path in enumerate(paths) if (k := seen.setdefault(path, i)) != i)
        raise ValueError(
            f"{shape.name(k, root)} and {shape.name(i, root)} have the same path '{paths[i]}'; rename a key"
        )
    return shape, leaves


def flattened(tree: Any) -> tuple[list[Any], optree.PyTreeSpec]:
    """Return the leaves of a nesting and its containers; None counts as a leaf."""
    try:
        return optree.tree_flatten(tree, none_is_leaf=True)
    except RecursionError:
        raise ValueError(
            "a nesting that is too deep, or holds itself; expected arrays in a few dicts, lists and tuples"
        ) from None


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
