"""The array API's functions on symbols; see `gpuopt.engines.program.trace`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.engines.numbers import is_number, plain, scalar
from gpuopt.engines.program.program import ON_HOST, entering, on_host
from gpuopt.engines.program.symbols import OPERATIONS, Expression, Extent, Number, Scalar, Symbol
from gpuopt.engines.reductions import Reductions
from gpuopt.rules.pairs import Pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuopt.engines.program.symbols import Tape


class Namespace(Reductions):
    """The array API's elementwise functions, on symbols."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def __getattr__(self, name: str) -> Callable[..., Symbol]:
        op = OPERATIONS.get(name)
        if op is None:
            derived = [n for n in dir(Namespace) if not n.startswith("_")]
            known = ", ".join(sorted([*OPERATIONS, *derived]))
            raise self._tape.error(f"calls xp.{name}", f"elementwise functions ({known})")

        def function(*args: Any) -> Any:
            if op not in ON_HOST and not any(isinstance(a, Symbol | Extent | Number) for a in args):
                raise self._tape.error(f"calls xp.{name} on numbers alone", "Rule.coefficients")
            if all(map(is_number, args)):  # constants, or, for `xp.whole`, numbers of the step
                return scalar(on_host(op, *map(plain, args)))
            return self._tape.apply(op, *args)

        return function

    def square(self, x: Symbol) -> Symbol:
        """``x*x``."""
        return x * x  # type: ignore[operator, no-any-return]

    def isnan(self, x: Symbol) -> Symbol:
        """Only NaN differs from itself."""
        return self.not_equal(x, x)

    def isfinite(self, x: Symbol) -> Symbol:
        """Less than infinity in size; false for NaN."""
        return self.less(self.abs(x), float("inf"))

    def isinf(self, x: Symbol) -> Symbol:
        """Infinity in size."""
        return self.equal(self.abs(x), float("inf"))

    def minimum(self, x: Any, y: Any) -> Symbol:
        """The smaller one; NaN if either is."""
        return self._pick("lt", x, y)

    def maximum(self, x: Any, y: Any) -> Symbol:
        """The larger one; NaN if either is."""
        return self._pick("gt", x, y)

    def clip(self, x: Symbol, min: Any = None, max: Any = None) -> Symbol:
        """``minimum(maximum(x, min), max)``."""
        x = x if min is None else self.maximum(x, min)
        return x if max is None else self.minimum(x, max)

    def sign(self, x: Symbol) -> Symbol:
        """-1, 0 or 1; NaN for NaN."""
        zero_or_nan = self.where(self.equal(x, 0), 0, x)
        return self.where(self.greater(x, 0), 1, self.where(self.less(x, 0), -1, zero_or_nan))

    def whole(self, f: Callable[..., Any], *args: Any) -> Symbol:
        """``f`` of whole arrays, called between two stages; what it returns is taken for an array like the leaf."""
        is_held = [isinstance(a, Expression) and not isinstance(a, Scalar) for a in args]
        given = tuple(self._held(a) if held else None for a, held in zip(args, is_held, strict=True))
        self._tape.functions.append((f, args))
        self._tape.writes = True  # perhaps
        result = Extent(self._tape, (), "whole", len(self._tape.functions) - 1, *given)
        return Symbol(self._tape, "load", entering(result.index))

    def _sum_along(self, u: Any, axes: tuple[int, ...], *, keepdims: bool) -> Any:
        if not axes:
            return u
        kept = [own for own in range(len(u.shape)) if own not in axes and u.shape[own] != 1]
        if not keepdims and len(kept) > 1 and max(axes) > min(kept):  # they would be other axes, of any order in memory
            raise self._tape.error("sums along an axis behind others that are kept", "keepdims=True")
        left = [1 if own in axes else n for own, n in enumerate(u.shape) if keepdims or own not in axes]
        found = Extent(self._tape, tuple(left), "sum", self._held(u), axes, keepdims)
        return self._tape.element(found) if found.shape == self._tape.shape else found

    def _of_library(self, name: str, u: Any, options: dict[str, Any]) -> Any:  # noqa: ARG002
        raise self._tape.error(f"calls xp.{name} with {', '.join(options)}", f"xp.{name} of the whole leaf")

    def _held(self, u: Expression) -> tuple[str, int]:
        """What between two stages is an array: elements that are stored there, or an extent."""
        if not isinstance(u, Symbol | Extent) or u.is_mask:
            what = "a truth value" if u.is_mask else "a number of the leaf"
            raise self._tape.error(f"gives {what} to what is of whole arrays", "arrays of numbers")
        return ("element" if isinstance(u, Symbol) else "extent"), u.index

    def finfo(self, dtype: Any) -> Any:
        """What NumPy knows of a dtype."""
        return np.finfo(dtype)

    def _is_number(self, u: Any) -> bool:
        return isinstance(u, Number) and not u.is_mask

    def _reduced(self, kind: str, over: str, *given: Any) -> Number:
        if kind == "number":
            given = (self._tape.element(given[0]),)
        values = [part for value in given for part in ((value.re, value.im) if isinstance(value, Pair) else (value,))]
        for value in values:
            if isinstance(value, Extent):
                raise self._tape.error("reduces sums along axes to a number", "sums of every element")
            if not isinstance(value, Symbol) or value.is_mask:
                if getattr(value, "is_mask", False):
                    numbers = "numbers, as xp.where(condition, 1, 0) gives"
                    raise self._tape.error("reduces truth values", numbers, runs_on_arrays=False)
                raise self._tape.error(f"reduces {value!r:.40}", "numbers of every element")
        return Number(self._tape, "reduce", kind, over, *[value.index for value in values])

    def zeros_like(self, x: Symbol, *, dtype: Any = None) -> Symbol:
        """An array of zeros: the constant 0 for every element."""
        return self._constant(x, 0, dtype)

    def ones_like(self, x: Symbol, *, dtype: Any = None) -> Symbol:
        """An array of ones: the constant 1 for every element."""
        return self._constant(x, 1, dtype)

    def _constant(self, x: Any, value: int, dtype: Any) -> Symbol:
        if isinstance(x, Extent):
            raise self._tape.error("makes an array like sums along axes", "numbers")
        if dtype is not None and dtype != x.dtype:
            raise self._tape.error(f"makes an array of {dtype}", f"one of {x.dtype} like the leaf")
        return self._tape.element(value)

    def _pick(self, comparison: str, x: Any, y: Any) -> Symbol:
        """Choose the first value where the comparison with the second holds or the first is NaN, else the second."""
        compare = {"lt": self.less, "gt": self.greater}[comparison]
        return self.where(self.logical_or(compare(x, y), self.isnan(x)), x, y)
