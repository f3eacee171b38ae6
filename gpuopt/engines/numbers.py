"""Numbers that the array engine hands to an update, beside arrays.

An array keeps its dtype beside these numbers, as it does beside Python's, also after a function of NumPy: ``numpy.sqrt(h.lr) * g``
has the dtype of ``g``. A comparison of two of them gives a `Truth`: ``~`` is its opposite, where ``~True`` of Python is -2. So an
update is the same formula on arrays as in a trace.
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from functools import cache
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gpuopt.rules.pairs import COMPARISONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    name: getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
}
BITWISE: dict[str, Callable[[Any, Any], Any]] = {
    name: getattr(operator, f"{name}_" if name in ("and", "or") else name)
    for name in ("and", "or", "xor", "lshift", "rshift")
}


def plain(x: Any) -> Any:
    """Return a number of this module as a number of Python; anything else unchanged."""
    return x.value if isinstance(x, Weak) else x


def scalar(x: Any) -> Any:
    """Return a number of Python as a number of this module; anything else, such as a traced number, unchanged."""
    kind = KINDS.get(type(x))
    return x if kind is None else kind(x)


def is_number(x: Any) -> bool:
    """Whether this is one number, or one truth value, and no array."""
    return isinstance(x, Real | np.bool_ | Truth)


def is_truth(x: Any) -> bool:
    """Whether this is one truth value."""
    return isinstance(x, bool | np.bool_ | Truth)


class Weak:
    """A number that arrays take for one of Python's."""

    __slots__ = ()

    @property
    @abstractmethod
    def value(self) -> Any:
        """The number as one of Python's."""

    def of(self, value: Any, *given: Any) -> Any:
        """Wrap the result of a function of such numbers; NumPy decides the type where its own numbers take part."""
        return value if any(isinstance(x, np.generic) for x in given) else scalar(value)

    def __array_ufunc__(self, function: Any, method: str, *given: Any, **options: Any) -> Any:
        """Apply NumPy's elementwise functions, in place or not, to the plain number."""
        return self.of(getattr(function, method)(*map(plain, given), **options), *given)

    def __array_function__(self, function: Any, types: Any, given: Any, options: Any) -> Any:
        """The same of NumPy's other functions, such as ``numpy.where``."""
        return self.of(function(*map(plain, given), **{name: plain(x) for name, x in options.items()}), *given)

    def __cupy_override_elementwise_kernel__(self, function: Any, *given: Any, **options: Any) -> Any:
        """The same of CuPy."""
        return self.__array_ufunc__(function, "__call__", *given, **options)


class Float(Weak, float):
    """A number of the step, such as a hyperparameter, with Python's own arithmetic."""

    __slots__ = ()
    __hash__ = float.__hash__

    @property
    def value(self) -> float:
        """See `Weak.value`."""
        return float.__float__(self)


class Int(Weak, int):
    """An integer of the step, with Python's own arithmetic."""

    __slots__ = ()
    __hash__ = int.__hash__

    @property
    def value(self) -> int:
        """See `Weak.value`."""
        return int.__int__(self)

    def __invert__(self) -> Any:
        return scalar(~self.value)


class Truth(Weak):
    """A truth value, 1 or 0 in arithmetic. It is no number of Python's, so that arrays of every library leave operators to it."""

    __slots__ = ("_holds",)

    def __init__(self, holds: object) -> None:
        self._holds = bool(holds)

    @property
    def value(self) -> bool:
        """See `Weak.value`."""
        return self._holds

    def __bool__(self) -> bool:
        return self._holds

    def __index__(self) -> int:
        return int(self._holds)

    def __float__(self) -> float:
        return float(self._holds)

    def __repr__(self) -> str:
        return repr(self._holds)

    def __hash__(self) -> int:
        return hash(self._holds)

    def __invert__(self) -> Truth:
        return Truth(not self._holds)


class Number(Float):
    """A float64 of a leaf or of a group.

    Arithmetic on numbers is that of float64, without errors: ``1 / 0`` is infinity. In an expression with an array it is
    one of Python's numbers, rounded once to the array's dtype.
    """

    __slots__ = ()
    __hash__ = object.__hash__

    def of(self, value: Any, *given: Any) -> Any:  # noqa: ARG002 - all of them are numbers of it
        """See `Weak.of`."""
        return Number(value) if isinstance(value, np.float64) else scalar(value)

    def __float__(self) -> float:
        return self.value

    def __bool__(self) -> bool:
        raise TypeError("an update branches on a number (if, and, or, not, min, max); it needs xp.where, & or |")

    def __pos__(self) -> Self:
        return self


KINDS: Mapping[type, Callable[[Any], Any]] = {
    bool: Truth,
    np.bool_: Truth,
    int: Int,
    np.int64: Int,
    float: Float,
    np.float64: Float,
}
"""The type in which the array engine hands each type of number to an update."""


def _power(a: Any, b: Any) -> Any:
    """A power; NumPy's own square and root of a number may differ in the last bit."""
    if is_number(a) and is_number(b) and b in (2, 0.5):
        return a * a if b == 2 else np.sqrt(a)
    return a**b


def _install_operators() -> None:
    def operating(function: Callable[[Any, Any], Any], *, swapped: bool = False) -> Callable[[Any, Any], Any]:
        def method(self: Weak, other: Any) -> Any:
            if isinstance(other, Number):
                return NotImplemented  # which knows better
            own, x = self.value, plain(other)
            value = function(x, own) if swapped else function(own, x)
            return value if isinstance(x, np.generic) else scalar(value)

        return method

    def of_leaf(function: Callable[[Any, Any], Any], *, swapped: bool = False) -> Callable[[Any, Any], Any]:
        def method(self: Number, other: Any) -> Any:
            number = is_number(other)
            own: Any = np.float64(self.value) if number else self.value
            other = np.float64(plain(other)) if number else other
            with np.errstate(all="ignore"):
                return self.of(function(other, own) if swapped else function(own, other))

        return method

    def install(
        kind: type, made: Callable[..., Callable[[Any, Any], Any]], operators: dict[str, Callable[[Any, Any], Any]]
    ) -> None:
        for name, function in operators.items():
            setattr(kind, f"__{name}__", made(function))
            if name not in COMPARISONS:
                setattr(kind, f"__r{name}__", made(function, swapped=True))

    install(Float, operating, ARITHMETIC | COMPARISONS)
    for own in (Int, Truth):
        install(own, operating, ARITHMETIC | COMPARISONS | BITWISE)
    install(Number, of_leaf, ARITHMETIC | COMPARISONS | {"pow": _power})

    def alone(function: Callable[[Any], Any], kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda self: kind(function(self.value))

    signs: dict[str, Callable[[Any], Any]] = {"neg": operator.neg, "pos": operator.pos, "abs": operator.abs}
    for name, function in signs.items():
        for kind in (Float, Int, Truth):
            setattr(kind, f"__{name}__", alone(function, scalar))
        if name != "pos":  # a total over leaves may not be known yet
            setattr(Number, f"__{name}__", alone(function, Number))


_install_operators()


@cache
def _takes_them(xp: Any) -> bool:
    try:
        xp.ones(1) * Float(1.0)
    except TypeError:
        return False
    return True


def of_step(xp: Any, h: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a step as an update computes with them: as they are for a library that insists on Python's own types."""
    return {name: scalar(x) for name, x in h.items()} if _takes_them(xp) else {**h}
