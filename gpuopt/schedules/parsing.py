"""Schedules from text and from plain values."""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from gpuopt.schedules.base import SCHEDULES, Schedule
from gpuopt.suggest import did_you_mean


def from_dict(data: Mapping[str, Any]) -> Schedule:
    """Return the schedule that :meth:`Schedule.to_dict` wrote; raise ValueError for an unknown schedule or bad arguments.

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
    """Return the schedule that a text describes, as on the command line.

    The forms are ``cosine``, ``inverse_time:decay=1e-3`` and ``inverse_time(decay=1e-3)``; lists stand in brackets, and
    schedules within schedules take the last form:
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
    """Return the schedule of a syntax tree of names, calls and literals; nothing is evaluated."""
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
            return ast.unparse(node)  # left to the check of the argument, which refuses it

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
