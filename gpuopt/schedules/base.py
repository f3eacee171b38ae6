"""What a schedule is, and the decorator that makes one of a formula."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, get_args

from gpuopt.schedules.domains import PLAIN, Domain
from gpuopt.suggest import did_you_mean

P = ParamSpec("P")


@dataclass(frozen=True, repr=False)
class Schedule:
    """A schedule with its arguments: callable with a step (0, 1, 2, ...), immutable, hashable, picklable.

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
        if type(step) is int and step < 0:  # one that is traced is not known yet
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
        """Every argument, and in place of a list of them what is in it."""
        return [x for value in self.values for x in (value if isinstance(value, tuple) else (value,))]

    @property
    def turns(self) -> set[int]:
        """Steps at which the formula may change: where a piece ends and an inner schedule begins or turns.

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
            waiting += zip(inner, [begin, *own][-len(inner) :], strict=False)  # the last one where the last piece does
        return found

    @property
    def listens(self) -> bool:
        """Whether `told` makes a difference."""
        return self.name in LISTENERS or any(x.listens for x in self._items if isinstance(x, Schedule))

    def told(self, metric: float) -> "Schedule":
        """The schedule that knows of one more value of a metric: another one where a `plateau` is in it, else itself.

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
"""Every schedule by name; ``inspect.signature`` tells its arguments."""

LISTENERS: dict[str, Callable[..., dict[str, Any]]] = {}
"""For each schedule that is told a metric, by name: a function of the metric and its arguments that returns those that change."""


def schedule(function: Callable[Concatenate[int, P], float]) -> Callable[P, Schedule]:
    """Turn a formula ``function(step, ...)`` into a maker of :class:`Schedule` and register it under its name.

    The annotations say what is allowed: ``float`` (any finite number), ``int``, or one of `NonNegative`, `Positive`,
    `Fraction`, `Count`; others are written ``Annotated[type, Domain(...)]``. Arguments are checked once, when the schedule
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
    usage = f"{name}({', '.join(domains)})"

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Schedule:
        for argument in kwargs:
            if argument not in domains:
                raise TypeError(
                    f"{name}: unknown argument {argument!r}{did_you_mean(argument, domains)}; usage: {usage}"
                )
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}; usage: {usage}") from None
        bound.apply_defaults()
        checked: dict[str, Any] = {}
        for argument, value in bound.arguments.items():
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
