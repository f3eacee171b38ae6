"""Schedules: hyperparameters as pure functions of the step.

``inverse_time(1.0, decay=0.1)`` is a :class:`Schedule`: a frozen value that is called with a step. Any hyperparameter of
any rule may be one. Steps count from 0: the first update uses ``schedule(0)``. A schedule that has an end holds its last
value from there on.

A new schedule is its formula with `step` first, under the decorator that checks and remembers the other arguments:

>>> @schedule
... def square_root(step: int, initial: float, steps: Count) -> float:
...     return initial / (1 + step / steps) ** 0.5
>>> square_root(1.0, steps=10)(30)
0.5
"""

import ast
import functools
import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Annotated, Any, Concatenate, NoReturn, ParamSpec, get_args

from gpuopt.suggest import did_you_mean

__all__ = [
    "SCHEDULES",
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "from_dict",
    "inverse_time",
    "join",
    "linear_warmup",
    "one_cycle",
    "parse",
    "piecewise",
    "plateau",
    "polynomial",
    "scaled",
    "schedule",
    "step",
]

P = ParamSpec("P")


@dataclass(frozen=True, repr=False)
class Schedule:
    """A schedule with its arguments: callable with a step (0, 1, 2, ...), immutable, hashable, picklable.

    Made by the functions of this module. Two schedules are equal if their names and arguments are.

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
    def turns(self) -> set[int]:
        """Steps at which the formula may change: where a piece ends and an inner schedule begins or turns.

        >>> sorted(join([constant(1.0), step(1.0, factor=0.5, every=10)], boundaries=[100]).turns)
        [100, 110]
        """
        found: set[int] = set()
        waiting: list[tuple[Schedule, int]] = [(self, 0)]
        while waiting:
            schedule, begin = waiting.pop()
            flat = [x for value in schedule.values for x in (value if isinstance(value, tuple) else (value,))]
            own = sorted(begin + x for x in flat if type(x) is int)
            inner = [x for x in flat if isinstance(x, Schedule)]
            found.update(own)
            waiting += zip(inner, [begin, *own][-len(inner) :], strict=False)  # the last one where the last piece does
        return found

    @property
    def listens(self) -> bool:
        """Whether `told` makes a difference."""
        flat = [x for value in self.values for x in (value if isinstance(value, tuple) else (value,))]
        return self.name in _LISTENERS or any(x.listens for x in flat if isinstance(x, Schedule))

    def told(self, metric: float) -> "Schedule":
        """The schedule that knows of one more value of a metric: another one where a `plateau` is in it, else itself.

        >>> plateau(1.0, factor=0.5, patience=0).told(3.0).told(3.0)(0)
        0.5
        """

        def heard(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(heard, value))
            return value.told(metric) if isinstance(value, Schedule) else value

        if self.name in _LISTENERS:
            return SCHEDULES[self.name](**self.arguments | _LISTENERS[self.name](metric, **self.arguments))
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

_LISTENERS: dict[str, Callable[..., dict[str, Any]]] = {}
"""Of the schedules that are told a metric, what becomes of their arguments."""


@dataclass(frozen=True)
class Domain:
    """The values that an argument may have, stated in its annotation: ``Annotated[float, Domain(...)]``."""

    words: str
    convert: Callable[[Any], Any]
    """Returns the value as plain Python; raises TypeError, ValueError or OverflowError."""
    accepts: Callable[[Any, Mapping[str, Any]], bool] = lambda _, __: True
    """Called with the converted value and the arguments before it."""


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError
    if not math.isfinite(number := float(value)):
        raise ValueError
    return number


def _integer(value: Any) -> int:
    if (number := _real(value)) != int(number):  # 1e4 is an integer too
        raise ValueError
    return int(value)


def _schedule(value: Any) -> Schedule:
    if not isinstance(value, Schedule):
        raise TypeError
    return value


def _real_or_schedule(value: Any) -> float | Schedule:
    return value if isinstance(value, Schedule) else _real(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _real_or_none(value: Any) -> float | None:
    return None if value is None else _real(value)


def _each(convert: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def converted(values: Any) -> tuple[Any, ...]:
        if isinstance(values, str):
            raise TypeError
        return tuple(convert(value) for value in values)

    return converted


def _increasing(values: Sequence[int]) -> bool:
    return all(low < high for low, high in zip((0, *values), values, strict=False))


NonNegative = Annotated[float, Domain("a finite number >= 0", _real, lambda x, _: x >= 0)]
Positive = Annotated[float, Domain("a finite number > 0", _real, lambda x, _: x > 0)]
Fraction = Annotated[float, Domain("a number between 0 and 1, both excluded", _real, lambda x, _: 0 < x < 1)]
Count = Annotated[int, Domain("a positive integer", _integer, lambda n, _: n > 0)]
Natural = Annotated[int, Domain("an integer >= 0", _integer, lambda n, _: n >= 0)]
Flag = Annotated[bool, Domain("True or False", _boolean)]
_PLAIN = {float: Domain("a finite number", _real), int: Domain("an integer", _integer)}


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
            checked[argument] = _check(f"{name}: {argument}", domains[argument], value, checked)
        return Schedule(name, tuple(checked.values()), function)

    make.__signature__ = signature  # type: ignore[attr-defined]
    SCHEDULES[name] = make
    return make


def _domain(name: str, parameter: inspect.Parameter) -> Domain:
    for mark in (*get_args(parameter.annotation), _PLAIN.get(parameter.annotation)):
        if isinstance(mark, Domain):
            return mark
    raise TypeError(f"{name}: annotate {parameter.name!r} with float, int or Annotated[..., Domain(...)]")


def _check(what: str, domain: Domain, value: Any, earlier: Mapping[str, Any]) -> Any:
    error: type[Exception] = ValueError
    try:
        converted = domain.convert(value)
        if domain.accepts(converted, earlier):
            return converted
    except (TypeError, ValueError, OverflowError) as refused:
        error = TypeError if isinstance(refused, TypeError) else ValueError
    raise error(f"{what} must be {domain.words}, got {value!r}")


def _blend(first: float, last: float, weight: float) -> float:
    """`first` at weight 1, `last` at weight 0: exact at both ends, which `last + weight * (first - last)` is not."""
    return weight * first + (1 - weight) * last


def _half_cosine(fraction: float) -> float:
    """From 1 at 0 down to 0 at 1, level at both ends."""
    return (1 + math.cos(math.pi * fraction)) / 2


@schedule
def constant(step: int, value: float) -> float:
    """The same value at every step.

    Examples
    --------
    >>> constant(0.1)(1000)
    0.1
    """
    return value


@schedule
def inverse_time(step: int, initial: float, decay: NonNegative) -> float:
    """Inverse-time decay: ``initial / (1 + decay * step)``.

    Parameters
    ----------
    initial
        Value at step 0.
    decay
        >= 0, per step; after ``1 / decay`` steps the value has halved.

    Examples
    --------
    >>> inverse_time(1.0, decay=0.1)(1)
    0.9090909090909091
    """
    return initial / (1 + decay * step)


@schedule
def exponential(step: int, initial: float, decay: Positive, every: Count = 1) -> float:
    """Exponential decay: ``initial * decay ** (step / every)``.

    Parameters
    ----------
    initial
        Value at step 0.
    decay
        > 0, the factor over `every` steps; above 1 the value grows.
    every
        Steps in which the value is multiplied by `decay`.

    Examples
    --------
    >>> exponential(1.0, decay=0.5, every=10)(20)
    0.25
    """
    return float(initial * decay ** (step / every))


@schedule
def step(step: int, initial: float, factor: Positive, every: Count) -> float:
    """Stairs: ``initial * factor ** (step // every)``.

    Parameters
    ----------
    initial
        Value of the first `every` steps.
    factor
        > 0, from one stair to the next.
    every
        Width of a stair in steps.

    Examples
    --------
    >>> halving = step(1.0, factor=0.5, every=10)
    >>> halving(9), halving(10), halving(20)
    (1.0, 0.5, 0.25)
    """
    return initial * factor ** (step // every)


@schedule
def piecewise(
    step: int,
    initial: float,
    boundaries: Annotated[
        Sequence[int], Domain("increasing positive integers", _each(_integer), lambda v, _: _increasing(v))
    ],
    values: Annotated[
        Sequence[float],
        Domain("finite numbers, one a boundary", _each(_real), lambda v, earlier: len(v) == len(earlier["boundaries"])),
    ],
) -> float:
    """Constant pieces: `initial`, then ``values[i]`` from step ``boundaries[i]`` on.

    Parameters
    ----------
    initial
        Value before the first boundary.
    boundaries
        Steps at which the value changes, increasing.
    values
        As many as boundaries.

    Examples
    --------
    >>> pieces = piecewise(0.1, boundaries=[100, 200], values=[0.03, 0.01])
    >>> pieces(99), pieces(100), pieces(200)
    (0.1, 0.03, 0.01)
    """
    piece = bisect_right(boundaries, step)
    return values[piece - 1] if piece else initial


@schedule
def polynomial(step: int, initial: float, steps: Count, final: float = 0.0, power: Positive = 1.0) -> float:
    """Polynomial decay: ``final + (initial - final) * (1 - step / steps) ** power``, then `final`.

    Parameters
    ----------
    initial, final
        Values at step 0 and from step `steps` on.
    steps
        Number of steps in which the value gets from one to the other.
    power
        > 0; 1 is a straight line.

    Examples
    --------
    >>> polynomial(1.0, steps=100)(25)
    0.75
    """
    return _blend(initial, final, (max(steps - step, 0) / steps) ** power)


@schedule
def linear_warmup(
    step: int,
    peak: Annotated[float | Schedule, Domain("a finite number or a schedule", _real_or_schedule)],
    warmup: Count,
    start: float = 0.0,
) -> float:
    """A straight line up, ``start + (peak - start) * step / warmup``, then `peak`.

    Parameters
    ----------
    peak
        Value from step `warmup` on; or a schedule, which starts there, counting from 0.
    warmup
        Number of steps of the line.
    start
        Value at step 0. With the default the first step changes nothing; ``start = peak / warmup`` uses it.

    Examples
    --------
    >>> linear_warmup(1.0, warmup=4)(1)
    0.25
    >>> warm_cosine = linear_warmup(cosine(1.0, steps=100), warmup=4)
    >>> warm_cosine(2), warm_cosine(4), warm_cosine(54)
    (0.5, 1.0, 0.5)
    """
    if step < warmup:
        return _blend(peak(0) if isinstance(peak, Schedule) else peak, start, step / warmup)
    return peak(step - warmup) if isinstance(peak, Schedule) else peak


@schedule
def cosine(
    step: int,
    initial: float,
    steps: Count,
    final: float = 0.0,
    cycles: Annotated[
        int, Domain("a positive integer, at most steps", _integer, lambda n, earlier: 0 < n <= earlier["steps"])
    ] = 1,
    growth: Annotated[
        int,
        Domain(
            "a positive integer that leaves the first cycle at least a step",
            _integer,
            lambda n, earlier: n > 0 and (earlier["cycles"] - 1) * math.log(n) <= math.log(earlier["steps"]),
        ),
    ] = 1,
) -> float:
    """Cosine annealing with warm restarts: ``final + (initial - final) * (1 + cos(pi * fraction)) / 2``, then `final`.

    `fraction` runs from 0 to 1 within each cycle, and the next cycle starts at `initial` again.

    Parameters
    ----------
    initial, final
        Values at the start and at the end of each cycle.
    steps
        Number of steps of all cycles together.
    cycles
        How many there are; 1 means no restart.
    growth
        How many times longer than the cycle before it each one is.

    Examples
    --------
    >>> cosine(1.0, steps=100)(50)
    0.5
    >>> restarts = cosine(1.0, steps=70, cycles=3, growth=2)  # of 10, 20 and 40 steps
    >>> restarts(10), restarts(20), restarts(30)
    (1.0, 0.5, 1.0)

    References
    ----------
    I. Loshchilov, F. Hutter, "SGDR: Stochastic gradient descent with warm restarts", 2017, arXiv:1608.03983 (there
    ``T_0`` is the length of the first cycle and ``T_mult`` is `growth`).
    """
    if step >= steps:
        return final
    # In units of 1 / (1 + growth + growth**2 + ...) step the first cycle lasts `steps`: integers, so restarts are exact.
    if growth == 1:
        elapsed, length = step * cycles % steps, steps
    else:
        elapsed, length = step * (growth**cycles - 1) // (growth - 1), steps
        while elapsed >= length:
            elapsed, length = elapsed - length, length * growth
    return _blend(initial, final, _half_cosine(elapsed / length))


@schedule
def one_cycle(
    step: int,
    peak: float,
    steps: Count,
    pct_start: Fraction = 0.3,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
) -> float:
    """One cycle: half a cosine from ``peak / div_factor`` up to `peak`, half a cosine down to almost nothing.

    With ``top = pct_start * steps``, ``start = peak / div_factor`` and ``final = start / final_div_factor``, up to `top` it is
    ``peak + (start - peak) * (1 + cos(pi * step / top)) / 2``, and then
    ``final + (peak - final) * (1 + cos(pi * (step - top) / (steps - top))) / 2``; `final` from step `steps` on.

    This is the two-phase form of fast.ai and torch's ``OneCycleLR`` (which reaches both ends one step earlier), not the
    paper's three straight lines; momentum is not cycled.

    Parameters
    ----------
    peak
        Highest value.
    steps
        Number of steps of the cycle.
    pct_start
        Fraction of the steps on the way up, between 0 and 1.
    div_factor, final_div_factor
        > 0, as above.

    Examples
    --------
    >>> cycle = one_cycle(1.0, steps=100)
    >>> cycle(0), cycle(30)
    (0.04, 1.0)

    References
    ----------
    L. N. Smith, N. Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2018,
    arXiv:1708.07120.
    """
    top = pct_start * steps
    start = peak / div_factor
    if step < top:
        return _blend(start, peak, _half_cosine(step / top))
    return _blend(peak, start / final_div_factor, _half_cosine((min(step, steps) - top) / (steps - top)))


@schedule
def join(
    step: int,
    schedules: Annotated[
        Sequence[Schedule], Domain("one or more schedules", _each(_schedule), lambda v, _: len(v) > 0)
    ],
    boundaries: Annotated[
        Sequence[int],
        Domain(
            "increasing positive integers, one fewer than schedules",
            _each(_integer),
            lambda v, earlier: _increasing(v) and len(v) == len(earlier["schedules"]) - 1,
        ),
    ],
) -> float:
    """One schedule after another: ``schedules[0]``, then ``schedules[i + 1]`` from step ``boundaries[i]`` on.

    Each one counts its steps from its own beginning.

    Parameters
    ----------
    schedules
        One or more.
    boundaries
        Steps at which the next schedule takes over, increasing; one fewer than schedules.

    Examples
    --------
    >>> both = join([linear_warmup(1.0, warmup=10), inverse_time(1.0, decay=0.1)], boundaries=[10])
    >>> both(5), both(10), both(20)
    (0.5, 1.0, 0.5)
    """
    piece = bisect_right(boundaries, step)
    return schedules[piece](step - boundaries[piece - 1] if piece else step)


@schedule
def scaled(step: int, schedule: Annotated[Schedule, Domain("a schedule", _schedule)], factor: float) -> float:
    """Another schedule times a factor.

    Parameters
    ----------
    schedule
        The other one.
    factor
        Any number.

    Examples
    --------
    >>> scaled(inverse_time(1.0, decay=1.0), factor=0.5)(1)
    0.25
    """
    return schedule(step) * factor


@schedule
def plateau(
    step: int,
    initial: float,
    factor: Fraction = 0.1,
    patience: Natural = 10,
    threshold: NonNegative = 1e-4,
    cooldown: Natural = 0,
    final: float = 0.0,
    maximize: Flag = False,
    falls: Natural = 0,
    best: Annotated[float | None, Domain("a finite number or None", _real_or_none)] = None,
    waited: Natural = 0,
    cooling: Natural = 0,
) -> float:
    """Fall when a metric no longer gets better: ``max(initial * factor ** falls, final)``.

    It is told the metric by `Optimizer.tell`, mostly once an epoch. Once the metric has not got better for more than
    `patience` times in a row, the value falls by `factor`. What it knows is in its last four arguments, so it is a
    value like any other schedule: what it was told is saved and loaded with the optimizer.

    Parameters
    ----------
    initial
        Value at the beginning.
    factor
        Between 0 and 1.
    patience
        Times that the metric may fail to get better.
    threshold
        >= 0; to be better is to be below ``best - threshold * |best|``. A NaN is never better.
    cooldown
        Times after a fall for which nothing is counted.
    final
        The value never falls below.
    maximize
        Whether larger metrics are better.
    falls, best, waited, cooling
        Falls so far, the best metric, times without a better one, times that cooling will last.

    Examples
    --------
    >>> falling = plateau(1.0, factor=0.5, patience=1)
    >>> for loss in (3.0, 2.0, 2.0, 2.5):
    ...     falling = falling.told(loss)
    >>> falling(0)
    0.5

    References
    ----------
    torch's ``ReduceLROnPlateau``, whose ``min_lr`` is `final`; its thresholds of the mode "abs" are not here.
    """
    return max(initial * factor**falls, final)


def _heard(
    metric: float,
    patience: int,
    threshold: float,
    cooldown: int,
    maximize: bool,
    falls: int,
    best: float | None,
    waited: int,
    cooling: int,
    **_: Any,
) -> dict[str, Any]:
    """What a `plateau` knows after one more metric."""
    better = math.isfinite(metric)
    if best is not None:
        gain = metric - best if maximize else best - metric
        better = better and gain > threshold * abs(best)
    waited = 0 if better or cooling else waited + 1
    cooling = max(cooling - 1, 0)
    if waited > patience:
        falls, waited, cooling = falls + 1, 0, cooldown
    return {"best": metric if better else best, "falls": falls, "waited": waited, "cooling": cooling}


_LISTENERS["plateau"] = _heard


def from_dict(data: Mapping[str, Any]) -> Schedule:
    """The schedule that :meth:`Schedule.to_dict` wrote. ValueError if there is no such schedule or its arguments do not fit.

    Examples
    --------
    >>> from_dict({"schedule": "inverse_time", "arguments": {"initial": 1.0, "decay": 0.1}})
    inverse_time(initial=1.0, decay=0.1)
    """
    match data:
        case {"schedule": str(name), "arguments": dict(arguments), **rest} if not rest:
            try:
                return _make(name, **{str(argument): _restored(value) for argument, value in arguments.items()})
            except RecursionError:
                raise ValueError(f"{name}: too many schedules, one within the other") from None
    raise ValueError(f'a schedule is written {{"schedule": NAME, "arguments": {{...}}}}, got {data!r}')


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping):
        return from_dict(value)
    return [_restored(item) for item in value] if isinstance(value, list) else value


def parse(text: str, *, initial: float, steps: int) -> Schedule:
    """The schedule that a command line names.

    ``cosine``, ``inverse_time:decay=1e-3`` and ``inverse_time(decay=1e-3)`` are understood; lists stand in brackets, and
    schedules within schedules are written in the second way:
    ``piecewise:boundaries=[100,200],values=[0.03,0.01]``, ``linear_warmup(cosine(steps=900), warmup=100)``.

    Parameters
    ----------
    text
        The schedule; the `repr` of any schedule is one.
    initial
        The starting or highest value (arguments `initial`, `peak`, `value`) where `text` gives none.
    steps
        The argument `steps` of the outermost schedule where `text` gives none.

    Raises
    ------
    ValueError
        For what cannot be read, an unknown schedule or argument (the nearest name is suggested), a bad value.

    Examples
    --------
    >>> parse("inverse_time:decay=1e-3", initial=1.0, steps=500)
    inverse_time(initial=1.0, decay=0.001)
    >>> parse("polynomial:power=2", initial=1.0, steps=500)
    polynomial(initial=1.0, steps=500, final=0.0, power=2.0)
    """
    head, colon, tail = text.partition(":")
    try:
        tree = ast.parse((f"{head}({tail})" if colon else text).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        _unreadable(text)
    return _build(tree, {"initial": initial, "peak": initial, "value": initial, "steps": steps})


def _unreadable(text: str) -> NoReturn:
    raise ValueError(
        f"cannot read the schedule {text!r}: write NAME, NAME:ARGUMENT=NUMBER,... or NAME(ARGUMENT=NUMBER, ...)"
    )


def _build(tree: ast.expr, defaults: Mapping[str, float]) -> Schedule:
    """The schedule of a syntax tree: names, calls and literals only, nothing is evaluated."""
    call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
    if not isinstance(call.func, ast.Name):
        _unreadable(ast.unparse(tree))
    inner = {name: value for name, value in defaults.items() if name != "steps"}

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Call) or (isinstance(node, ast.Name) and node.id in SCHEDULES):
            return _build(node, inner)
        if isinstance(node, ast.List | ast.Tuple):
            return [value(item) for item in node.elts]
        try:
            return ast.literal_eval(node)
        except ValueError:
            return ast.unparse(node)  # for the check of the argument to refuse

    names = list(inspect.signature(_known(call.func.id)).parameters)
    given = {keyword.arg: value(keyword.value) for keyword in call.keywords if keyword.arg}
    if len(given) < len(call.keywords):  # **arguments, or the same argument twice
        _unreadable(ast.unparse(tree))
    open_names = [name for name in names[len(call.args) :] if name in defaults]
    return _make(call.func.id, *map(value, call.args), **{name: defaults[name] for name in open_names} | given)


def _make(name: str, /, *args: Any, **kwargs: Any) -> Schedule:
    try:
        return _known(name)(*args, **kwargs)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _known(name: str) -> Callable[..., Schedule]:
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}{did_you_mean(name, SCHEDULES)}; known: {', '.join(SCHEDULES)}")
    return SCHEDULES[name]
