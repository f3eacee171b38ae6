"""Allowed values of the arguments of a schedule."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any


@dataclass(frozen=True, repr=False)
class Domain:
    """The allowed values of an argument, in its annotation: ``Annotated[float, Domain(...)]``."""

    words: str
    convert: Callable[[Any], Any]
    """Returns the value as plain Python; raises TypeError, ValueError or OverflowError."""
    accepts: Callable[[Any, Mapping[str, Any]], bool] = lambda _, __: True
    """Called with the converted value and the arguments before it."""

    def __repr__(self) -> str:  # seen in signatures, as in `help(gpuopt.schedules.piecewise)`
        return repr(self.words)

    def checked(self, what: str, value: Any, earlier: Mapping[str, Any]) -> Any:
        """Return the converted value; raise TypeError or ValueError if it is not allowed."""
        error: type[Exception] = ValueError
        try:
            converted = self.convert(value)
            if self.accepts(converted, earlier):
                return converted
        except (TypeError, ValueError, OverflowError) as refused:
            error = TypeError if isinstance(refused, TypeError) else ValueError
        raise error(f"{what} must be {self.words}, got {value!r:.80}")


def real(value: Any) -> float:
    """A finite number as a float; no boolean."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    if not math.isfinite(number := float(value)):
        raise ValueError
    return number


def integer(value: Any) -> int:
    """A whole number as an int."""
    if (number := real(value)) != int(number):  # 1e4 is an integer too
        raise ValueError
    return int(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def each(convert: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that converts every item of a sequence (not of a string) into a tuple."""

    def converted(values: Any) -> tuple[Any, ...]:
        if isinstance(values, str):
            raise TypeError
        return tuple(convert(value) for value in values)

    return converted


def increasing(values: Sequence[int]) -> bool:
    """Whether integers are positive and each is larger than the one before."""
    return all(low < high for low, high in zip((0, *values), values, strict=False))


NonNegative = Annotated[float, Domain("a finite number >= 0", real, lambda x, _: x >= 0)]
Positive = Annotated[float, Domain("a finite number > 0", real, lambda x, _: x > 0)]
Fraction = Annotated[float, Domain("a number between 0 and 1, both excluded", real, lambda x, _: 0 < x < 1)]
Count = Annotated[int, Domain("a positive integer", integer, lambda n, _: n > 0)]
Natural = Annotated[int, Domain("an integer >= 0", integer, lambda n, _: n >= 0)]
Flag = Annotated[bool, Domain("True or False", _boolean)]
PLAIN = {float: Domain("a finite number", real), int: Domain("an integer", integer)}
