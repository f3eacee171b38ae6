"""The class of all schedules, and the decorator that makes one from a function of the step."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, get_args

from gpuopt.schedules.domains import PLAIN, Domain
from gpuopt.suggest import bound

P = ParamSpec("P")


@dataclass(frozen=True, repr=False)
class Schedule:
    """A function of the step (0, 1, 2, ...) with its arguments: immutable, hashable, picklable.

    Made by the functions of `gpuopt.schedules`. Two schedules are equal if their names and arguments are.

    >>> halving = step(0.1, factor=0.5, every=10)
    >>> halving
    step(initial=0.1, factor=0.5, every=10)
    >>> halving(9), halving(10)
    (0.1, 0.05)
    """

    name: str
    values: tuple[Any, ...]
    function: Callable[..., float] = field(compare=False)

    def __call__(self, step: int) -> float:
        if type(step) is int and step < 0:  # the value of a traced step is unknown
            raise ValueError(f"{self.name}: steps count from 0, got step {step}")
        try:
            return self.function(step, *self.values)
        except ArithmeticError:
            raise ValueError(f"{self.name}: beyond the floats at step {step}") from None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by name, defaults included."""
        return dict(zip(inspect.signature(SCHEDULES[self.name]).parameters, self.values, strict=True))

    @property
    def _items(self) -> list[Any]:
        """All arguments, with the items of tuples in place of the tuples."""
        return [x for value in self.values for x in (value if isinstance(value, tuple) else (value,))]

    @property
    def turns(self) -> set[int]:
        """Steps at which the formula may change: ends of pieces, and the turns of inner schedules.

        >>> sorted(join([constant(1.0), step(1.0, factor=0.5, every=10)], boundaries=[100]).turns)
        [100, 110]
        """
        found: set[int] = set()
        waiting: list[tuple[Schedule, int]] = [(self, 0)]
        while waiting:
            schedule, begin = waiting.pop()
            own = sorted(begin + x for x in schedule._items if type(x) is int)
            inner = [x for x in schedule._items if isinstance(x, Schedule)]
            found.update(own)
            waiting += zip(inner, [begin, *own][-len(inner) :], strict=False)  # the last two begin together
        return found

    @property
    def listens(self) -> bool:
        """Whether `told` may return another schedule."""
        return self.name in LISTENERS or any(x.listens for x in self._items if isinstance(x, Schedule))

    def told(self, metric: float) -> "Schedule":
        """Return the schedule after one more value of a metric: a new one if it contains a `plateau`, else itself.

        >>> plateau(1.0, factor=0.5, patience=0).told(3.0).told(3.0)(0)
        0.5
        """

        def heard(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(heard, value))
            return value.told(metric) if isinstance(value, Schedule) else value

        if self.name in LISTENERS:
            return SCHEDULES[self.name](**self.arguments | LISTENERS[self.name](metric, **self.arguments))
        values = heard(self.values)
        return self if values == self.values else SCHEDULES[self.name](*values)

    def to_dict(self) -> dict[str, Any]:
        """``{"schedule": name, "arguments": {...}}``, ready for JSON; :func:`from_dict` is the way back."""

        def plain(value: Any) -> Any:
            if isinstance(value, Schedule):
                return value.to_dict()
            return [plain(item) for item in value] if isinstance(value, tuple) else value

        return {"schedule": self.name, "arguments": {name: plain(value) for name, value in self.arguments.items()}}

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"

    def __reduce__(self) -> tuple[Callable[..., "Schedule"], tuple[Any, ...]]:
        return SCHEDULES[self.name], self.values


SCHEDULES: dict[str, Callable[..., Schedule]] = {}
"""Functions that make schedules, by name; ``inspect.signature`` gives their arguments."""

LISTENERS: dict[str, Callable[..., dict[str, Any]]] = {}
"""For schedules that follow a metric, by name: a function of the metric and the arguments, which returns the changed arguments."""


def schedule(function: Callable[Concatenate[int, P], float]) -> Callable[P, Schedule]:
    """Turn ``function(step, ...)`` into a function that makes a :class:`Schedule`, and register it under its name.

    Annotations declare the allowed arguments: ``float`` (any finite number), ``int``, `NonNegative`, `Positive`,
    `Fraction` or `Count`; others are written ``Annotated[type, Domain(...)]``. Arguments are checked once, when the schedule
    is made: TypeError for a missing or unknown argument or a wrong type, ValueError for a value out of range.

    Examples
    --------
    >>> @schedule
    ... def halved(step: int, initial: float, after: Count) -> float:
    ...     return initial if step < after else initial / 2
    >>> halved(1.0, after=10)(10)
    0.5
    >>> del SCHEDULES["halved"]
    """
    name = function.__name__
    if name in SCHEDULES and SCHEDULES[name].__module__ != function.__module__:
        raise ValueError(f"a schedule called {name!r} exists already, in {SCHEDULES[name].__module__}")
    _, *parameters = inspect.signature(function, eval_str=True).parameters.values()
    signature = inspect.Signature(parameters, return_annotation=Schedule)
    domains = {parameter.name: _domain(name, parameter) for parameter in parameters}

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        given = bound(name, signature, args, kwargs)
        given.apply_defaults()
        checked: dict[str, Any] = {}
        for argument, value in given.arguments.items():
            checked[argument] = domains[argument].checked(f"{name}: {argument}", value, checked)
        return Schedule(name, tuple(checked.values()), function)

    make.__signature__ = signature  # type: ignore[attr-defined]
    SCHEDULES[name] = make
    return make


def _domain(name: str, parameter: inspect.Parameter) -> Domain:
    for mark in (*get_args(parameter.annotation), PLAIN.get(parameter.annotation)):
        if isinstance(mark, Domain):
            return mark
    raise TypeError(f"{name}: annotate {parameter.name!r} with float, int or Annotated[..., Domain(...)]")
