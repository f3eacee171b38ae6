"""Hyperparameters: their allowed values, and the check of a given value or of the value of a schedule at a step."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import Field, dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from gpuopt.cached import cached_property
from gpuopt.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    Hyper: TypeAlias = float | Callable[[int], float]
    """A hyperparameter: a number, or a schedule ``step -> number``."""
else:
    Hyper = Any

LONGEST = 2**53
"""Largest number of steps: float64 cannot count further one by one."""


def as_float(number: Any) -> float:
    """Return a real number as a float: what is too large for one as an infinity."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def as_index(value: Any) -> int | None:
    """Return an integer of Python, NumPy or another library as Python's; None for what is none, booleans too."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


class Kind(Protocol):
    """The allowed values of a hyperparameter."""

    @property
    def scheduled(self) -> bool:
        """Whether a schedule may be given."""

    def checked(self, value: Any, where: str, step: int | None = None) -> Any:
        """Return a value in the type that is stored.

        Parameters
        ----------
        value
            A given value, or the value of a schedule.
        where
            Beginning of error messages.
        step
            Step at which a schedule returned the value; None for a given value.

        Raises
        ------
        TypeError, ValueError
            If the value is not allowed.

        """


@dataclass(frozen=True)
class Number:
    """Finite numbers in ``[low, high)``, stored as float."""

    low: float = -math.inf
    high: float = math.inf
    scheduled = True

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"bounded: low {self.low}, high {self.high}, expected low < high")

    def __str__(self) -> str:
        return f"a number in {'(' if self.low == -math.inf else '['}{self.low}, {self.high})"

    def checked(self, value: Any, where: str, step: int | None = None) -> float:
        """See `Kind.checked`."""
        if type(value) is float and self.low <= value < self.high and value != -math.inf:
            return value  # the usual case at every step, before any message is put together
        where += _when(step)
        if isinstance(value, bool) or not isinstance(value, Real):
            expected = "a number" if step is not None else f"a number or a schedule{_hint_for_many(value, where)}"
            raise TypeError(f"{where}: got {value!r:.80} ({type(value).__name__}), expected {expected}")
        number = as_float(value)
        if not self.low <= number < self.high or number == -math.inf:
            raise ValueError(f"{where}: got {number}, expected {self}")
        return number


def hint_for_parameters(value: Any) -> str:
    """Where parameters go that were given in place of a hyperparameter, as to the optimizers of torch."""
    if isinstance(value, Real | str | bytes) or getattr(value, "shape", None) == ():
        return ""
    is_many = isinstance(value, Iterable) or callable(getattr(value, "parameters", None))
    return "; parameters go to gpuopt.Optimizer(params, rule)" if is_many else ""


def _hint_for_many(value: Any, where: str) -> str:
    """What to give in place of several numbers."""
    if getattr(value, "shape", None) == ():
        return "; float(x) is one"
    of_parameters = hint_for_parameters(value) if where.endswith(": lr") else ""
    if not hasattr(value, "__len__") or isinstance(value, str | bytes | dict):
        return of_parameters
    of_elements = "; for one rate an element, Scale(rates) in a chain" if where.endswith(": lr") else ""
    return f"; for one value a step, values.__getitem__ is a schedule{of_elements}{of_parameters}"


@dataclass(frozen=True)
class Flag:
    """True or False."""

    scheduled = False

    def checked(self, value: Any, where: str, step: int | None = None) -> bool:
        """See `Kind.checked`."""
        if not isinstance(value, bool):
            raise TypeError(f"{where}{_when(step)}: got {value!r:.80}, expected True or False")
        return value


@dataclass(frozen=True)
class Count:
    """Integers from 1 on. They change the program of a formula, so they cannot be schedules."""

    scheduled = False

    def __str__(self) -> str:
        return "a positive integer"

    def checked(self, value: Any, where: str, step: int | None = None) -> int:
        """See `Kind.checked`."""
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{where}{_when(step)}: got {value!r:.80} ({type(value).__name__}), expected {self}")
        number = as_float(value)
        if not (math.isfinite(number) and number >= 1 and number == math.floor(number)):
            raise ValueError(f"{where}{_when(step)}: got {number:.17g}, expected {self}")
        return int(number)


@dataclass(frozen=True)
class End:
    """The first or the last axis, or None."""

    scheduled = False

    def __str__(self) -> str:
        return "0, -1 or None"

    def checked(self, value: Any, where: str, step: int | None = None) -> int | None:
        """See `Kind.checked`."""
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, Real) or as_float(value) not in (0, -1):
            raise ValueError(f"{where}{_when(step)}: got {value!r:.80}, expected {self}")
        return int(as_float(value))


@dataclass(frozen=True)
class Arrays:
    """Arrays of the caller: one like the leaf, or a tree like the parameters; with ``or_number`` also a number."""

    or_number: bool = False

    @property
    def scheduled(self) -> bool:
        """Whether a schedule is allowed: where a number is."""
        return self.or_number

    def __str__(self) -> str:
        return (
            "a number, " if self.or_number else ""
        ) + "an array like the leaf or a tree of arrays like the parameters"

    def checked(self, value: Any, where: str, step: int | None = None) -> Any:
        """See `Kind.checked`."""
        if step is None and (hasattr(value, "shape") or isinstance(value, dict | list | tuple)):
            return value
        if self.or_number:
            return Number().checked(value, where, step)
        raise TypeError(f"{where}: got {value!r:.80} ({type(value).__name__}), expected {self}")


@dataclass(frozen=True)
class Hyperparameter:
    """A checked number, flag or schedule.

    Attributes
    ----------
    where
        Name in messages: ``"Adam: lr"``.
    value
        The number as float, the flag, or the schedule.
    kind
        Allowed values, also for the value of a schedule.

    Raises
    ------
    TypeError, ValueError
        If the value is not allowed.

    Examples
    --------
    >>> Hyperparameter("Adam: lr", 1, Number(0)).value
    1.0

    """

    where: str
    value: Any
    kind: Kind

    def __post_init__(self) -> None:
        if not self.is_schedule:
            object.__setattr__(self, "value", self.kind.checked(self.value, self.where))

    @cached_property
    def is_schedule(self) -> bool:
        """Whether the value depends on the step."""
        return self.kind.scheduled and callable(self.value)

    def at(self, step: int) -> Any:
        """Return the value at a step (steps count from 0).

        Raises
        ------
        TypeError, ValueError
            If a schedule fails or returns a value that is not allowed.

        """
        if not self.is_schedule:
            return self.value
        try:
            value = self.value(step)
        except Exception as error:
            if is_traced(step):
                raise untraceable(self.where, error) from error
            if str(error).startswith(f"{self.where}{_when(step)}: "):  # of a schedule that steps its own optimizer
                raise
            failed = TypeError if isinstance(error, TypeError) else ValueError
            said = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise failed(f"{self.where}{_when(step)}: {said}; expected {self.kind}") from error
        if is_traced(step):
            return value
        if type(value) is not float and getattr(value, "shape", None) == ():  # a 0-dimensional array
            value = value.item()
        return self.kind.checked(value, self.where, step)


def is_traced(step: Any) -> bool:
    """Whether a step is a traced integer, whose value is unknown as inside of ``jax.jit``."""
    return type(step) is not int and hasattr(step, "dtype") and getattr(step, "shape", None) == ()


def is_traced_integer(step: Any) -> bool:
    """Whether a step is traced, and no number with a fraction."""
    return is_traced(step) and "int" in str(step.dtype)


def untraceable(where: str, error: Exception) -> TypeError:
    """Return the error for a schedule or coefficient that cannot be computed from a traced step."""
    said = str(error).partition("\n")[0]
    return TypeError(
        f"{where}: cannot be traced, the step is not known yet ({type(error).__name__}: {said:.80}); expected arithmetic on "
        "the step, such as lambda step: 0.1 / (1 + 0.01 * step), or an update outside of jit"
    )


def _when(step: int | None) -> str:
    return "" if step is None else f" at step {step}, by its schedule"


def bounded(default: float, low: float = -math.inf, high: float = math.inf) -> Any:
    """Declare a hyperparameter that must lie in ``[low, high)``.

    Parameters
    ----------
    default
        The value when none is given.
    low, high
        The range; ``high`` itself is excluded, so the default ``inf`` means "finite".

    Raises
    ------
    TypeError, ValueError
        If the range is empty, or the default outside of it.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import gpuopt
    >>> @dataclass(frozen=True)
    ... class Halving(gpuopt.Rule):
    ...     lr: gpuopt.Hyper = gpuopt.bounded(0.5, 0, 1)
    ...     def update(self, xp, p, g, s, h):
    ...         return p - h.lr * g, {}
    >>> Halving().lr
    0.5

    """
    kind = Number(low, high)
    return field(default=Hyperparameter("bounded: default", default, kind).value, metadata={"kind": kind})


def kind_of(declared: Field[Any]) -> Kind:
    """Return the allowed values of a dataclass field: as declared, else a flag for bool and any finite number otherwise."""
    if "kind" in declared.metadata:
        kind: Kind = declared.metadata["kind"]
        return kind
    return Flag() if declared.type in ("bool", bool) else Number()


def unknown(where: str, name: str, known: Iterable[str]) -> TypeError:
    """Return the error for an unknown hyperparameter."""
    names = list(known)
    return TypeError(
        f"{where}: unknown hyperparameter {name!r}{did_you_mean(name, names)}, expected {', '.join(names) or 'none'}"
    )
