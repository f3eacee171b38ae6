"""Nested containers of arrays: leaves, their paths and their names, through optree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optree


@dataclass(frozen=True)
class Tree:
    """The shape of a nesting: what is needed to take others like it apart, and to put one together.

    Attributes
    ----------
    paths
        Of each leaf, dotted: ``"dense.w"``; ``""`` for a bare array.
    accessors
        Of each leaf, to be spelt as Python: ``['dense']['w']``.

    """

    paths: tuple[str, ...]
    accessors: tuple[optree.PyTreeAccessor, ...]
    spec: optree.PyTreeSpec

    def name(self, i: int, root: str) -> str:
        """Leaf ``i`` in Python's spelling: ``grads['dense']['w']``."""
        return self.accessors[i].codify(root)

    def leaves_of(self, tree: Any, root: str) -> list[Any]:
        """Return the leaves of a tree of this shape; None counts as a leaf.

        Raises
        ------
        ValueError
            If the tree has another shape; the message names what is missing and what is too much.

        """
        try:
            return self.spec.flatten_up_to(tree)  # much faster than to flatten and to compare
        except (RecursionError, TypeError, ValueError):
            pass
        # Other containers (an OrderedDict, a tuple for a list) with the same paths are as good.
        given, leaves = flatten(tree, root)
        found = dict(zip(given.paths, leaves, strict=True))
        missing = [self.name(i, root) for i, path in enumerate(self.paths) if path not in found]
        extra = [given.name(i, root) for i, path in enumerate(given.paths) if path not in self.paths]
        if missing or extra:
            said = [
                f"{what} {_listed(names)}" for what, names in (("missing", missing), ("unexpected", extra)) if names
            ]
            raise ValueError(
                f"{root}: another structure than params: {', '.join(said)}; for a leaf without gradient, give None"
            )
        return [found[path] for path in self.paths]

    def build(self, leaves: list[Any]) -> Any:
        """Put a tree of this shape together."""
        return optree.tree_unflatten(self.spec, leaves)


def flatten(tree: Any, root: str = "params") -> tuple[Tree, list[Any]]:
    """Take a nesting of dicts, lists, tuples (and whatever is registered with optree) apart; None counts as a leaf.

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
    try:
        accessors, leaves, spec = optree.tree_flatten_with_accessor(tree, none_is_leaf=True)
    except RecursionError:
        raise ValueError(
            "a nesting that is too deep, or holds itself; expected arrays in a few dicts, lists and tuples"
        ) from None
    paths = tuple(".".join(map(str, accessor.path)) for accessor in accessors)
    shape = Tree(paths, tuple(accessors), spec)
    seen: dict[str, int] = {}
    for i, path in enumerate(paths):
        if path in seen:
            names = f"{shape.name(seen[path], root)} and {shape.name(i, root)}"
            raise ValueError(f"{names} have the same path '{path}'; rename a key")
        seen[path] = i
    return shape, leaves


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
