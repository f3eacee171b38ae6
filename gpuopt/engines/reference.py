"""The namespace that the array engine hands to an update: that of the arrays, which also reduces."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gpuopt.arrays import to_numpy
from gpuopt.engines import memory
from gpuopt.engines.norms import ordered_sum, parts_of, root, sums_of_squares, with_infinities
from gpuopt.engines.numbers import Number, is_number, is_truth, plain, scalar
from gpuopt.engines.reductions import Reductions
from gpuopt.rules.pairs import Pair

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

Partial = Any
"""What one leaf adds to a total over all leaves."""


class Unknown(BaseException):
    """Raised where an update needs a total over leaves of which not all have been seen; no error."""


class Total(Number):
    """A total over all leaves of a group: known once every leaf has told its part, until then NaN."""

    __slots__ = ("is_known",)
    is_known: bool

    def __new__(cls, known: float | None) -> Self:
        """Make one, of which nothing may be known yet."""
        new = super().__new__(cls, math.nan if known is None else known)
        new.is_known = known is not None
        return new

    @property
    def value(self) -> float:
        """The total; asked for too early, it ends this run of the update."""
        if not self.is_known:
            raise Unknown
        return float.__float__(self)


@dataclass
class Group:
    """Totals over the leaves of a group.

    All leaves run their update until they need a total; then they run it again, knowing more. An update has no effects,
    so all runs agree as far as they get.
    """

    rule: str
    """Name of the rule, for messages."""
    known: list[float] = field(default_factory=list)
    partials: list[list[tuple[str, Partial]]] = field(default_factory=list)
    """For each leaf, in this round: what it adds to each total that its update asks for, in order."""

    def settle(self) -> bool:
        """Work out the totals that all leaves have come by; return whether any is new."""
        if not any(len(own) > len(self.known) for own in self.partials):
            return False
        counts = {len(own) for own in self.partials}
        kinds = {tuple(kind for kind, _ in own) for own in self.partials}
        if len(counts) != 1 or len(kinds) != 1:
            raise TypeError(
                f"{self.rule}.update asks for other totals over leaves (xp.total...) for one leaf than for another"
            )
        for k in range(len(self.known), counts.pop()):
            self.known.append(COMBINE[self.partials[0][k][0]]([own[k][1] for own in self.partials]))
        self.partials = []
        return True


def _in_order(partials: Sequence[float]) -> float:
    with np.errstate(all="ignore"):
        return float(0.0 + np.cumsum(np.array(partials, np.float64))[-1])


COMBINE: dict[str, Callable[[Sequence[Partial]], float]] = {
    "sum": _in_order,
    "max": lambda partials: float(np.max(partials)),
    "norm": lambda partials: root(np.cumsum(np.array(partials), axis=0)[-1]),
}
"""From the leaves' parts in order, the total."""


class Namespace(Reductions):
    """The array API namespace of a leaf, and sums over that leaf and over all leaves of its group.

    Functions of numbers alone compute in float64.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    like
        The parameter.
    group
        Totals over its group.

    """

    def __init__(self, xp: Any, like: Any, group: Group) -> None:
        self._xp, self._like, self._group = xp, like, group
        self._own: list[tuple[str, Partial]] = []
        group.partials.append(self._own)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._xp, name)
        if not callable(function) or isinstance(function, type):
            return function
        is_of_elements = isinstance(getattr(np, name, None), np.ufunc) or name in ("clip", "round")

        def with_numbers(*args: Any, **options: Any) -> Any:
            if is_of_elements and args and all(map(is_number, args)):
                with np.errstate(all="ignore"):
                    value = getattr(np, name)(
                        *[x if is_truth(x) else np.float64(x) for x in map(plain, args)], **options
                    )
                return scalar(value) if is_truth(value) else Number(value)
            return function(*map(plain, args), **{key: plain(x) for key, x in options.items()})

        return with_numbers

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """Choose for each element; among numbers, if the condition is one truth value."""
        for value in (x, y):
            plain(value)  # of a total that is not known yet this ends the run, for each leaf at the same total
        if is_number(condition):
            chosen, other = (x, y) if condition else (y, x)
            if not is_number(chosen):
                return chosen
            return Number(chosen) if is_number(other) else self._xp.full_like(other, float(chosen))
        values = [float(value) if is_number(value) else value for value in (x, y)]
        if all(map(is_number, (x, y))):
            values[0] = self._xp.full_like(self._like, values[0])
        return self._xp.where(condition, *values)

    def whole(self, f: Callable[..., Any], *args: Any) -> Any:
        """``f(xp, *args)`` of whole arrays, such as matrix products; ``xp`` is the library's own namespace.

        What `f` computes has the bits of the library.
        """
        return f(self._xp, *args)

    def _sum_along(self, u: Any, axes: tuple[int, ...], *, keepdims: bool) -> Any:
        if u.dtype == self._xp.bool:  # whose sum is another truth value
            raise self._no_numbers("truth values")
        return sum_along(self._xp, u, axes, keepdims=keepdims)

    def _of_library(self, name: str, u: Any, options: dict[str, Any]) -> Any:
        return getattr(self._xp, name)(u, **options)

    def _reduced(self, kind: str, over: str, *u: Any) -> Number:
        reduce: Any = {"number": float, "sum": self._sum, "dot": self._dot, "norm": self._squares, "max": self._max}[
            kind
        ]
        partial = reduce(*u)
        if over == "group":
            return self._total("sum" if kind in ("dot", "number") else kind, partial)
        return Number(root(partial) if kind == "norm" else partial)

    def _is_number(self, u: Any) -> bool:
        return isinstance(u, Number)

    def _sum(self, u: Any) -> float:
        return ordered_sum(self._flat(u).astype(np.float64))

    def _dot(self, u: Any, v: Any) -> float:
        with np.errstate(all="ignore"):
            parts = zip(parts_of(self._flat(u)), parts_of(self._flat(v)), strict=True)
            products = [a.astype(np.float64) * b.astype(np.float64) for a, b in parts]
            return ordered_sum(products[0] + products[1] if len(products) == 2 else products[0])

    def _squares(self, u: Any) -> Any:
        return with_infinities(sums_of_squares(self._flat(u))[None])[0]

    def _max(self, u: Any) -> float:
        flat = self._flat(u)
        return float(np.max(flat)) + 0.0 if flat.size else -math.inf

    def _flat(self, u: Any) -> NDArray[Any]:
        """The elements as a flat array on the host, in the order in which the parameter's elements lie in memory."""
        if isinstance(u, Pair):
            re, im = (np.asarray(self._flat(part)) for part in (u.re, u.im))
            both = np.empty(re.shape, np.result_type(re.dtype, np.complex64))
            both.real[...], both.imag[...] = re, im
            return both
        if is_number(u):
            raise TypeError(f"{self._group.rule}.update reduces {u!r}, expected an array like the parameter")
        try:
            values = to_numpy(u)
        except (RuntimeError, TypeError):  # of a library that leaves the way to the host to the caller
            try:
                values = np.from_dlpack(u, device="cpu")
            except TypeError as error:
                raise TypeError(
                    f"{self._group.rule} takes a norm or a sum of an array whose values are not known yet; expected an "
                    "elementwise rule inside of jit, or an update outside of it"
                ) from error
        if values.dtype.kind != "f":
            raise self._no_numbers("truth values" if values.dtype.kind == "b" else f"an array of {values.dtype}")
        if values.shape != tuple(self._like.shape):  # sums along axes: each of them once
            return np.ravel(values)
        return memory.in_memory_order(values, self._like)

    def _no_numbers(self, given: str) -> TypeError:
        expected = "numbers, as xp.where(condition, 1, 0) gives"
        return TypeError(f"{self._group.rule}.update reduces {given}, expected {expected}")

    def _total(self, kind: str, partial: Partial) -> Total:
        k = len(self._own)
        self._own.append((kind, partial))
        return Total(self._group.known[k] if k < len(self._group.known) else None)


def sum_along(xp: Any, u: Any, axes: Sequence[int], *, keepdims: bool) -> Any:
    """The sum along axes, by halves; see `Reductions.sum`."""
    for axis in axes:
        u = _summed(xp, u, axis)
    kept = tuple(n for axis, n in enumerate(u.shape) if axis not in axes)
    return u if keepdims else xp.reshape(u, kept)


def _summed(xp: Any, u: Any, axis: int) -> Any:
    """The sum along an axis, of which one element is left; see `Reductions.sum`."""

    def part(first: int, last: int) -> Any:
        return u[(*[slice(None)] * axis, slice(first, last), ...)]

    n = u.shape[axis]
    if n == 0:
        return xp.sum(u, axis=axis, keepdims=True)
    k = 1 << (n.bit_length() - 1)
    if k < n:
        u = xp.concat([part(0, n - k) + part(k, n), part(n - k, k)], axis=axis)
    while k > 1:
        k //= 2
        u = part(0, k) + part(k, 2 * k)
    return u
