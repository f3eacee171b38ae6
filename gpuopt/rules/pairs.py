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
    "FUNCTIONS",
    "ComplexError",
    "Pair",
    "RealOnlyError",
    "apart",
    "parts",
    "together",
]

CURE = (
    "xp.abs2, xp.abs, xp.real and xp.imag make real numbers of it, `components = True` has both parts treated as such"
)
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    name: getattr(operator, name) for name in ("lt", "le", "gt", "ge", "eq", "ne")
}


BRANCHES = "branches on a value (if, and, or, not, min, max)"
SELECTIONS = "xp.where, & , |, xp.minimum or xp.maximum"
"""What an update may not do with the values of elements, and what it has in place of that; for messages."""
OF_XP = "the functions of xp, which it is given"


class ComplexError(TypeError):
    """An update does something ambiguous with complex values."""


class RealOnlyError(ComplexError):
    """Something is for real numbers alone."""


def refused(what: str) -> ComplexError:
    """Return the error for an update that does this."""
    return ComplexError(f"{what}; {CURE}")


class Pair:
    """A complex number: its real and imaginary part, which are arrays or symbols.

    Attributes
    ----------
    re, im
        The parts.
    apart
        Whether the parts are two independent real numbers: each operation is then done on each part.

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


def parts(x: Any, *, both: bool = True) -> tuple[Any, Any]:
    """Return the parts of a pair. A real number is the real part alone (the other is 0), or ``both`` parts."""
    return (x.re, x.im) if isinstance(x, Pair) else (x, x if both else 0.0)


def _operate(op: Callable[[Any, Any], Any], kind: str, x: Any, y: Any) -> Any:
    """Apply one of Python's operators to two values, at least one of which is a pair."""
    if any(isinstance(value, Pair) and value.apart for value in (x, y)):
        (a, b), (c, d) = parts(x), parts(y)
        return Pair(op(a, c), op(b, d), apart=True)
    both = isinstance(x, Pair) and isinstance(y, Pair)
    if kind == "sum" and both:
        return Pair(op(x.re, y.re), op(x.im, y.im))
    if kind == "sum":
        (a, b), (c, d) = parts(x, both=False), parts(y, both=False)
        return Pair(op(a, c), b if isinstance(x, Pair) else op(0.0, d))
    if kind == "product" and not both:
        (a, b), (c, d) = parts(x), parts(y)
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
FUNCTIONS = {
    "add": "add",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "truediv",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
    "equal": "eq",
    "not_equal": "ne",
}
"""Operators by the names of the functions that NumPy and the array API have for them."""
OPERATORS_OF_NUMPY = {**FUNCTIONS, "power": "pow", "bitwise_and": "and", "bitwise_or": "or"}


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
    """Return a pair whose parts are two independent real numbers; anything but a pair unchanged."""
    return Pair(x.re, x.im, apart=True) if isinstance(x, Pair) else x


def together(x: Any) -> Any:
    """Undo `apart`."""
    return Pair(x.re, x.im) if isinstance(x, Pair) else x
