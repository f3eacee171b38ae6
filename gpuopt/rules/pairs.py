"""Complex numbers as pairs of real ones: what an update sees of a complex leaf.

Every engine computes with the two parts, by the operations of real numbers alone, so that the bits are the same everywhere;
libraries differ in how they multiply and divide complex numbers. What is ambiguous is refused: a formula that was written
for real numbers means either the modulus (`xp.abs2`) or both components on their own (``components = True``), and which of
them cannot be seen in ``g*g``.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "COMPARISONS",
    "ComplexError",
    "Lifted",
    "Pair",
    "RealNumbers",
    "RealOnlyError",
    "apart",
    "applied",
    "together",
]

CURE = (
    "xp.abs2, xp.abs, xp.real and xp.imag make real numbers of it, `components = True` has both parts treated as such"
)
SUMS = ("sum", "total")
PRODUCTS = ("dot", "total_dot")
NORMS = ("norm", "total_norm")
LARGEST = ("max", "total_max")
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    name: getattr(operator, name) for name in ("lt", "le", "gt", "ge", "eq", "ne")
}


BRANCHES = "branches on a value (if, and, or, not, min, max)"
SELECTIONS = "xp.where, & , |, xp.minimum or xp.maximum"
"""What an update may not do with the values of elements, and what it has in place of that; for messages."""
OF_XP = "the functions of xp, which it is given"


class ComplexError(TypeError):
    """An update does something with complex values that has no one meaning."""


class RealOnlyError(ComplexError):
    """Something is for real numbers alone."""


def refused(what: str) -> ComplexError:
    """Return the error for an update that does this."""
    return ComplexError(f"{what}; {CURE}")


class Pair:
    """A complex number: its real and imaginary part, which are whatever an engine computes with.

    Attributes
    ----------
    re, im
        The parts.
    apart
        Whether they are two real numbers that have nothing to do with each other: all operations are of each of them.

    """

    __slots__ = ("apart", "im", "re")
    __hash__ = object.__hash__

    def __init__(self, re: Any, im: Any, *, apart: bool = False) -> None:
        self.re, self.im, self.apart = re, im, apart

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parts."""
        return self.re.shape  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of complex numbers."""
        return math.prod(self.shape)

    def __neg__(self) -> Pair:
        return Pair(-self.re, -self.im, apart=self.apart)

    def __pos__(self) -> Pair:
        return self

    def __invert__(self) -> Pair:
        return Pair(~self.re, ~self.im, apart=self.apart)

    def __abs__(self) -> Pair:
        if not self.apart:
            raise refused("calls Python's abs of a complex value")
        return Pair(abs(self.re), abs(self.im), apart=True)

    def __getitem__(self, key: Any) -> Pair:
        return Pair(self.re[key], self.im[key], apart=self.apart)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a complex value of an update has no {name}; {CURE}")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise ComplexError(f"makes an array of a complex value, expected {OF_XP}")

    def __array_ufunc__(self, function: Any, method: str, *given: Any, **options: Any) -> Any:
        """Arithmetic with NumPy's arrays and numbers; its functions are refused."""
        if function.__name__ not in OPERATORS_OF_NUMPY or method != "__call__" or options:
            return self.__array_function__(function)
        kind, op = OPERATORS[OPERATORS_OF_NUMPY[function.__name__]]
        return _operate(op, kind, *given)

    def __array_function__(self, function: Any, *_: Any) -> NoReturn:
        raise ComplexError(f"calls numpy.{function.__name__} of a complex value, expected {OF_XP}")

    def __bool__(self) -> NoReturn:
        raise TypeError(f"an update {BRANCHES}; it needs xp.where, & or |")


def _parts(x: Any, *, both: bool = True) -> tuple[Any, Any]:
    """Of a pair its parts; of a real number itself, as the real part alone or as ``both``."""
    return (x.re, x.im) if isinstance(x, Pair) else (x, x if both else 0.0)


def _operate(op: Callable[[Any, Any], Any], kind: str, x: Any, y: Any) -> Any:
    """One of Python's operators on two values of which one is a pair at least."""
    if any(isinstance(value, Pair) and value.apart for value in (x, y)):
        (a, b), (c, d) = _parts(x), _parts(y)
        return Pair(op(a, c), op(b, d), apart=True)
    both = isinstance(x, Pair) and isinstance(y, Pair)
    if kind == "sum" and both:
        return Pair(op(x.re, y.re), op(x.im, y.im))
    if kind == "sum":
        (a, b), (c, d) = _parts(x, both=False), _parts(y, both=False)
        return Pair(op(a, c), b if isinstance(x, Pair) else op(0.0, d))
    if kind == "product" and not both:
        (a, b), (c, d) = _parts(x), _parts(y)
        return Pair(op(a, c), op(b, d))
    if kind == "quotient" and isinstance(x, Pair) and not both:
        return Pair(op(x.re, y), op(x.im, y))
    raise refused(
        {
            "product": "multiplies a complex value by a complex one",
            "quotient": "divides by a complex value",
            "power": "raises a complex value to a power",
            "comparison": "compares complex values",
            "logic": "takes a complex value for a truth value",
        }[kind]
    )


OPERATORS: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "add": ("sum", operator.add),
    "sub": ("sum", operator.sub),
    "mul": ("product", operator.mul),
    "truediv": ("quotient", operator.truediv),
    "pow": ("power", operator.pow),
    "and": ("logic", operator.and_),
    "or": ("logic", operator.or_),
    **{name: ("comparison", op) for name, op in COMPARISONS.items()},
}
OPERATORS_OF_NUMPY = {
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "truediv",
    "power": "pow",
    "bitwise_and": "and",
    "bitwise_or": "or",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
    "equal": "eq",
    "not_equal": "ne",
}


def _install_operators() -> None:
    def method(op: Callable[[Any, Any], Any], kind: str, *, swapped: bool = False) -> Callable[[Pair, Any], Any]:
        return lambda self, other: _operate(op, kind, *((other, self) if swapped else (self, other)))

    def in_place(op: Callable[[Any, Any], Any], kind: str) -> Callable[[Pair, Any], Pair]:
        def method(self: Pair, other: Any) -> Pair:
            new = _operate(op, kind, self, other)
            self.re, self.im = new.re, new.im  # under every name that the value has: as arrays do it
            return self

        return method

    for name, (kind, op) in OPERATORS.items():
        setattr(Pair, f"__{name}__", method(op, kind))
        if kind != "comparison":
            setattr(Pair, f"__i{name}__", in_place(op, kind))
            setattr(Pair, f"__r{name}__", method(op, kind, swapped=True))


_install_operators()


def apart(x: Any) -> Any:
    """Of a complex number, the two parts as real numbers of their own; anything else as it is."""
    return Pair(x.re, x.im, apart=True) if isinstance(x, Pair) else x


def together(x: Any) -> Any:
    """Undo `apart`."""
    return Pair(x.re, x.im) if isinstance(x, Pair) else x


class _Apart:
    """Slots whose pairs are apart."""

    def __init__(self, slots: Any) -> None:
        self._slots = slots

    def __getattr__(self, name: str) -> Any:
        return apart(getattr(self._slots, name))


def applied(member: Any, function: Callable[..., Any], xp: Any, *given: Any) -> Any:
    """Call a method of a rule or a transform, which sees the parts of complex numbers as it says.

    Parameters
    ----------
    member
        The rule or the transform.
    function
        Of it: ``update``, ``before``, ``after`` or ``evaluation``.
    xp, *given
        Its arguments, with the slots and the hyperparameters at the end.

    Raises
    ------
    ComplexError
        If it is for real numbers only, or does what is refused.

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
    """What a namespace of real numbers has for formulas that are for complex ones, too."""

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
                first, second = zip(*map(_parts, args), strict=True)
                return Pair(function(*first, **options), function(*second, **options), apart=True)
            raise refused(f"calls xp.{name} of a complex value")

        return lifted

    def add(self, x: Any, y: Any) -> Any:
        """``x + y``."""
        return x + y

    def subtract(self, x: Any, y: Any) -> Any:
        """``x - y``."""
        return x - y

    def multiply(self, x: Any, y: Any) -> Any:
        """``x * y``."""
        return x * y

    def divide(self, x: Any, y: Any) -> Any:
        """``x / y``."""
        return x / y

    def negative(self, x: Any) -> Any:
        """``-x``."""
        return -x

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
        """With the other sign of the imaginary part."""
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
            (a, b), (c, d), (e, f) = map(_parts, values)
            return Pair(self._xp.where(a, c, e), self._xp.where(b, d, f), apart=True)
        if isinstance(condition, Pair):
            raise refused("takes a complex value for a truth value")
        (a, b), (c, d) = (_parts(value, both=False) for value in (x, y))
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
        """Of the moduli."""
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
        SUMS: Lifted._sum,
        PRODUCTS: Lifted._dot,
        NORMS: Lifted._norm,
        LARGEST: Lifted._largest,
    }

    def method(kind: Callable[..., Any], name: str) -> Callable[..., Any]:
        return lambda self, *args, **options: kind(self, name, *args, **options)

    for names, kind in kinds.items():
        for name in names:
            setattr(Lifted, name, method(kind, name))


_install_reductions()
