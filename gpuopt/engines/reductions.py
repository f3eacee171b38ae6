"""Sums and largest elements, as an update asks for them, alike on arrays and on symbols."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from numpy.lib.array_utils import normalize_axis_tuple

from gpuopt.rules.lifted import RealNumbers


class Reductions(RealNumbers):
    """The reductions of a namespace, over a leaf and over all leaves of its group."""

    @abstractmethod
    def _reduced(self, kind: str, over: str, *u: Any) -> Any:
        """Reduce to a number. ``kind`` is "sum", "dot", "norm" or "max", ``over`` "leaf" or "group"; a "number" of each leaf is summed over the group."""

    @abstractmethod
    def _is_number(self, u: Any) -> bool:
        """Whether this is a number of the leaf, and no truth value."""

    @abstractmethod
    def _of_library(self, name: str, u: Any, options: dict[str, Any]) -> Any:
        """Call the function of this name of the arrays' library."""

    @abstractmethod
    def _sum_along(self, u: Any, axes: tuple[int, ...], *, keepdims: bool) -> Any:
        """Return the array of sums along axes, which are distinct and not negative."""

    def sum(self, u: Any, *, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Any:
        """Sum of the leaf's elements, a number; along an axis or several of them, an array.

        Along an axis of ``n`` elements it is by halves: with ``k`` the largest power of two up to ``n``, what lies beyond
        ``k`` is added to the first elements, then the second half to the first one, until one is left. These are
        operations of elements alone, so the bits are the same in every library.
        """
        if axis is None:
            return self._reduced("sum", "leaf", u)
        return self._sum_along(u, normalize_axis_tuple(axis, len(u.shape)), keepdims=keepdims)

    def dot(self, u: Any, v: Any) -> Any:
        """Sum of the products of the leaf's elements; of pairs, of the products of their parts."""
        return self._reduced("dot", "leaf", u, v)

    def norm(self, u: Any) -> Any:
        """Euclidean norm of the leaf; neither squares that overflow nor that vanish spoil it."""
        return self._reduced("norm", "leaf", u)

    def max(self, u: Any, **options: Any) -> Any:
        """The largest element of the leaf; minus infinity if it has none, NaN if it has a NaN. Along an axis the library's own."""
        return self._of_library("max", u, options) if options else self._reduced("max", "leaf", u)

    def total(self, u: Any) -> Any:
        """Sum of the elements of all leaves of the group; of a number of each leaf, the sum of these."""
        return self._reduced("number" if self._is_number(u) else "sum", "group", u)

    def total_dot(self, u: Any, v: Any) -> Any:
        """Sum of the products of the elements of all leaves of the group."""
        return self._reduced("dot", "group", u, v)

    def total_norm(self, u: Any) -> Any:
        """Euclidean norm of all leaves of the group together."""
        return self._reduced("norm", "group", u)

    def total_max(self, u: Any) -> Any:
        """The largest element of all leaves of the group."""
        return self._reduced("max", "group", u)
