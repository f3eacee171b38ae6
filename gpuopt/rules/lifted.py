"""The namespace that the update of a complex leaf is given: its functions take pairs as well as real numbers."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from gpuopt.rules.pairs import Pair, RealOnlyError, apart, parts, refused, together

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Lifted", "RealNumbers", "applied"]


class _Apart:
    """The slots, with every pair turned into independent parts by `apart`."""

    def __init__(self, slots: Any) -> None:
        self._slots = slots

    def __getattr__(self, name: str) -> Any:
        return apart(getattr(self._slots, name))


def applied(member: Any, function: Callable[..., Any], xp: Any, *given: Any) -> Any:
    """Call a method of a rule or a transform, with complex numbers as pairs or, if it has ``components``, as independent parts.

    Parameters
    ----------
    member
        The rule or the transform.
    function
        Its method ``update``, ``before``, ``after`` or ``evaluation``.
    xp, *given
        Its arguments, with the slots and the hyperparameters at the end.

    Raises
    ------
    ComplexError
        If the member is for real numbers only, or does something ambiguous with complex values.

    """
    if not isinstance(xp, Lifted):
        return function(xp, *given)
    if member.real_only:
        raise RealOnlyError(f"{member.name} is for real leaves only; {member.real_only}")
    if not member.components:
        return function(xp, *given)
    *arrays, slots, h = given
    found = function(xp, *map(apart, arrays), _Apart(slots), h)
    if not isinstance(found, tuple):
        return together(found)
    return tuple({k: together(x) for k, x in x.items()} if isinstance(x, dict) else together(x) for x in found)


class RealNumbers:
    """Functions on real numbers for formulas that are written for complex numbers, too."""

    def abs2(self, x: Any) -> Any:
        """``x*x``."""
        return x * x

    def real(self, x: Any) -> Any:
        """The number itself."""
        return x

    def conj(self, x: Any) -> Any:
        """The number itself."""
        return x

    def imag(self, x: Any) -> Any:
        """0 everywhere."""
        return self.zeros_like(x)  # type: ignore[attr-defined]


class Lifted:
    """A namespace of real numbers whose functions take pairs, too.

    Parameters
    ----------
    xp
        The namespace of the parts; its products and norms take pairs.

    """

    add = staticmethod(operator.add)
    subtract = staticmethod(operator.sub)
    multiply = staticmethod(operator.mul)
    divide = staticmethod(operator.truediv)
    negative = staticmethod(operator.neg)

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._xp, name)
        if not callable(function) or isinstance(function, type):
            return function

        def lifted(*args: Any, **options: Any) -> Any:
            pairs = [x for x in args if isinstance(x, Pair)]
            if not pairs:
                return function(*args, **options)
            if any(pair.apart for pair in pairs):
                first, second = zip(*map(parts, args), strict=True)
                return Pair(function(*first, **options), function(*second, **options), apart=True)
            raise refused(f"calls xp.{name} of a complex value")

        return lifted

    def square(self, x: Any) -> Any:
        """``x * x``."""
        return x * x

    def real(self, x: Any) -> Any:
        """The real part."""
        return x if not isinstance(x, Pair) or x.apart else x.re

    def imag(self, x: Any) -> Any:
        """The imaginary part."""
        return x.im if isinstance(x, Pair) and not x.apart else self.zeros_like(x)

    def conj(self, x: Any) -> Any:
        """The complex conjugate."""
        return Pair(x.re, -x.im) if isinstance(x, Pair) and not x.apart else x

    def abs2(self, x: Any) -> Any:
        """The square of the modulus, a real number."""
        return x.re * x.re + x.im * x.im if isinstance(x, Pair) and not x.apart else x * x

    def abs(self, x: Any) -> Any:
        """The modulus, a real number; no square overflows or vanishes on the way."""
        if not isinstance(x, Pair):
            return self._xp.abs(x)
        first, second = self._xp.abs(x.re), self._xp.abs(x.im)
        return Pair(first, second, apart=True) if x.apart else self._hypotenuse(first, second)

    def sign(self, x: Any) -> Any:
        """``x / |x|``, and 0 for 0."""
        if not isinstance(x, Pair):
            return self._xp.sign(x)
        if x.apart:
            return Pair(self._xp.sign(x.re), self._xp.sign(x.im), apart=True)
        size = self.abs(x)
        return x / self._xp.where(size > 0, size, 1)

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """Choose for each element; beside a complex number a real one has no imaginary part."""
        values = (condition, x, y)
        if not any(isinstance(value, Pair) for value in values):
            return self._xp.where(condition, x, y)
        if any(isinstance(value, Pair) and value.apart for value in values):
            (a, b), (c, d), (e, f) = map(parts, values)
            return Pair(self._xp.where(a, c, e), self._xp.where(b, d, f), apart=True)
        if isinstance(condition, Pair):
            raise refused("takes a complex value for a truth value")
        (a, b), (c, d) = (parts(value, both=False) for value in (x, y))
        return Pair(self._xp.where(condition, a, c), self._xp.where(condition, b, d))

    def zeros_like(self, x: Any) -> Any:
        """0 everywhere."""
        if not isinstance(x, Pair):
            return self._xp.zeros_like(x)
        return Pair(self._xp.zeros_like(x.re), self._xp.zeros_like(x.im), apart=x.apart)

    def ones_like(self, x: Any) -> Any:
        """1 everywhere."""
        if not isinstance(x, Pair):
            return self._xp.ones_like(x)
        like = self._xp.ones_like if x.apart else self._xp.zeros_like
        return Pair(self._xp.ones_like(x.re), like(x.im), apart=x.apart)

    def _hypotenuse(self, a: Any, b: Any) -> Any:
        """``sqrt(a*a + b*b)`` of numbers from 0 on; NaN if either is."""
        long, short = self._xp.maximum(a, b), self._xp.minimum(a, b)
        slope = short / long
        return self._xp.where((long > 0) & (long < float("inf")), long * self._xp.sqrt(slope * slope + 1), long)

    def _sum(self, name: str, u: Any, **options: Any) -> Any:
        """The sum of complex numbers is one; of parts that are apart, one number, or along an axis an array of such parts."""
        function = getattr(self._xp, name)
        if not isinstance(u, Pair):
            return function(u, **options)
        first, second = function(u.re, **options), function(u.im, **options)
        return first + second if u.apart and not options else Pair(first, second, apart=u.apart)

    def _dot(self, name: str, u: Any, v: Any) -> Any:
        """``<u,v>``, the real part of the sum of ``conj(u)*v``: the product of both as vectors of real numbers."""
        if isinstance(u, Pair) != isinstance(v, Pair):
            raise refused(f"takes xp.{name} of a complex value and a real one")
        return getattr(self._xp, name)(u, v)

    def _norm(self, name: str, u: Any) -> Any:
        """The Euclidean norm of the moduli."""
        return getattr(self._xp, name)(u)

    def _largest(self, name: str, u: Any, **options: Any) -> Any:
        function = getattr(self._xp, name)
        if not isinstance(u, Pair):
            return function(u, **options)
        if not u.apart:
            raise refused(f"calls xp.{name} of a complex value")
        first, second = function(u.re, **options), function(u.im, **options)
        return Pair(first, second, apart=True) if options else self._xp.maximum(first, second)


def _install_reductions() -> None:
    kinds: dict[tuple[str, ...], Callable[..., Any]] = {
        ("sum", "total"): Lifted._sum,
        ("dot", "total_dot"): Lifted._dot,
        ("norm", "total_norm"): Lifted._norm,
        ("max", "total_max"): Lifted._largest,
    }

    def method(kind: Callable[..., Any], name: str) -> Callable[..., Any]:
        return lambda self, *args, **options: kind(self, name, *args, **options)

    for names, kind in kinds.items():
        for name in names:
            setattr(Lifted, name, method(kind, name))


_install_reductions()
