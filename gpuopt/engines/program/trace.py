"""Tracing: a rule's ``update``, run once on symbols, becomes a straight-line program.

Four kinds of symbols meet in an update. A `Scalar` is arithmetic on hyperparameters alone: it is evaluated on the host,
in float64, once a step. A `Symbol` is a value of every element (or, from a comparison, a truth value): it becomes an
operation of the fused loop. A `Number` is a float64 of a leaf or of its group, made of sums over elements and of slots that
are numbers: it is worked out where the arrays are, between two passes over them (`gpuopt.engines.program.passes`). An `Extent` is an array of
another shape than the leaf's, made of sums along axes: it is worked out in loops of its own, in a stage before
(`gpuopt.engines.program.stages`). Where a scalar meets a symbol, it enters the loop as a coefficient, a number as a number; both are rounded
there, once.
"""

from __future__ import annotations

from dataclasses import fields
from numbers import Real
from typing import TYPE_CHECKING, Any

from gpuopt.engines.numbers import scalar
from gpuopt.engines.program.functions import Namespace
from gpuopt.engines.program.program import LEAVES_OF_NUMBERS, SCALE, Node, Program
from gpuopt.engines.program.symbols import Extent, Kind, Number, Scalar, ShapeNeededError, Symbol, Tape, TraceError
from gpuopt.rules.formula import Formula, named, returned
from gpuopt.rules.lifted import Lifted, applied
from gpuopt.rules.pairs import ComplexError, Pair, RealOnlyError
from gpuopt.rules.slots import Columns, Rows, Shared, is_number, shape_of, starts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpuopt.rules.base import Rule


def trace(rule: Rule, *, is_complex: bool = False, kind: Kind | None = None, twice: bool = False) -> Program:
    """Run ``rule.update`` on symbols. A formula of the package alone, which reads nothing but its fields, is run once for all that are alike.

    Parameters
    ----------
    is_complex
        Whether the parameters are complex numbers.
    kind
        Shape and dtype of the leaf, for an update that looks at them.
    twice
        Whether to trace again and compare: an update that draws random numbers would be fused with the first ones for good.

    Raises
    ------
    TraceError
        If the second trace differs from the first, branches on a value, calls what cannot be fused, or does not return its slots.
    ComplexError
        If the update does something with complex numbers that is ambiguous.

    """
    own = _fields(rule)
    key = own and (own, *sorted(rule.at(0)), is_complex, kind)
    if key in _known:
        return _known[key]
    program = recorded(rule, is_complex=is_complex, kind=kind)
    if own:
        if len(_known) == MOST:
            _known.clear()
        _known[key] = program
    elif twice and recorded(rule, is_complex=is_complex, kind=kind) != program:
        raise TraceError(
            f"{rule.name}.update does something else each time that it is called (random numbers? a count of its own?); "
            "to be fused it needs to be the same formula; engine='array' runs it as it is"
        )
    return program


MOST = 256
"""Largest number of programs in the cache."""
_known: dict[Any, Program] = {}


def _fields(value: Any) -> Any:
    """Return the fields that the program of a formula depends on; None if code or data outside of the package can change it."""
    if isinstance(value, Formula):
        if type(value).__module__.partition(".")[0] != __name__.partition(".")[0]:
            return None
        given = {field.name: getattr(value, field.name) for field in fields(value)}
        scheduled = {name for name in value.hyperparameters() if callable(given.get(name))}
        found = [
            "schedule" if name in scheduled else _fields(own) for name, own in given.items()
        ]  # a number, whichever it is
    elif isinstance(value, tuple):
        found = [*map(_fields, value)]
    elif value is None or type(value) in (bool, int, float, str):
        found = [repr(value)]  # 0.0 and -0.0 are equal, and not alike
    else:
        return None
    return None if None in found else (type(value), *found)


def recorded(rule: Rule, *, is_complex: bool, kind: Kind | None = None, seen: Any = None) -> Program:
    """Trace once. ``seen`` is the rule as the update sees it; the rule itself is asked for its scalars alone."""
    scalars, rule = rule.at(0), seen or rule
    tape = Tape(rule.name, kind)
    # sorted: alike, whichever are schedules
    h: dict[str, Any] = {name: Scalar(tape, "hyper", name) for name in sorted(scalars)}
    return _recorded(rule, tape, h, is_complex=is_complex)


def functions(
    rule: Rule, h: Mapping[str, float], *, is_complex: bool, kind: Kind | None
) -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Return what `xp.whole` is called with in a step, each time: the function and its arguments.

    They may be made of hyperparameters, so that each step has its own.
    """
    tape = Tape(rule.name, kind)
    _recorded(rule, tape, {name: scalar(x) for name, x in h.items()}, is_complex=is_complex)
    return tape.functions


def _recorded(rule: Rule, tape: Tape, h: dict[str, Any], *, is_complex: bool) -> Program:
    declared = starts(rule.slots)
    if {"p", "g"} & set(declared):
        raise tape.error(f"has the slots {tuple(declared)}", "slots of other names than p and g")
    of_numbers = [name for name, start in declared.items() if is_number(start)]
    of_extents = {name: shape for name, start in declared.items() if (shape := _shape_apart(tape, start)) is not None}
    of_arrays = [name for name in declared if name not in (*of_numbers, *of_extents)]
    pairs = {"p", "g", *(name for name in of_arrays if rule.part(name) != "real")} if is_complex else set()
    real = Namespace(tape)
    xp: Any = Lifted(real) if is_complex else real

    def load(name: str) -> Any:
        if name in of_numbers:
            return Number(tape, "slot", name)
        if name in of_extents:
            return Extent(tape, of_extents[name], "slot", name)
        if name in pairs:
            return Pair(*[Symbol(tape, "load", name, k) for k in range(2)])
        return Symbol(tape, "load", name)

    slots = {name: load(name) for name in declared}
    if SCALE in h:
        h[SCALE] = Symbol(tape, "scale")
    new_p, new_slots = _updated(rule, tape, xp, load("p"), load("g"), slots, h)
    stores: list[tuple[str, tuple[int, ...], int]] = []
    for name, value in {"p": new_p, **{name: new_slots[name] for name in of_arrays}}.items():
        parts = (value.re, value.im) if isinstance(value, Pair) else (value,)
        _check_arrays(f"{tape.rule}.update returned {name}", parts)
        if name in pairs:
            stores += [(name, (k,), _output(tape, x)) for k, x in enumerate((*parts, 0.0)[:2])]
        elif isinstance(value, Pair):
            raise ComplexError(f"{rule.name}.update returns complex numbers for {name}, expected real ones")
        else:
            stores.append((name, (), _output(tape, value)))
    for name, shape in of_extents.items():
        if not isinstance(new := new_slots[name], Extent) or new.shape != shape or new.is_mask:
            raise tape.error(f"returns {name} of another shape", f"an array of {shape}")
    numbers = [tape.number(new_slots[name]) for name in of_numbers]
    if any(number.is_mask for number in numbers):
        raise _truth_returned(tape)
    program = Program(
        tuple(of_arrays),
        tuple(tape.nodes),
        tuple(stores),
        tuple(tape.scalars),
        tuple(tape.coefficients),
        tuple(of_numbers),
        frozenset(name for name in of_numbers if isinstance(declared[name], Shared)),
        tuple(tape.numbers),
        tuple(number.index for number in numbers),
        tuple(tape.number_scalars),
        frozenset(pairs),
        extents=tuple(tape.extents),
        extent_shapes=tuple(tape.extent_shapes.values()),
        extent_scalars=tuple(tape.extent_scalars),
        extent_slots=tuple((name, new_slots[name].index) for name in of_extents),
        writes=tape.writes,
    )
    _check_shared(tape, program)
    return program


def _check_arrays(what: str, parts: tuple[Any, ...]) -> None:
    """Raise TraceError unless the parts are arrays like the leaf; one part of a complex array may be a number."""
    given = next((f"an array of {x.shape}" for x in parts if isinstance(x, Extent)), "")
    if not given and all(isinstance(x, Real | Scalar | Number) for x in parts):
        given = "a number"
    if given:
        raise TraceError(f"{what}: {given}, expected an array like the parameter")


def _updated(
    rule: Rule, tape: Tape, xp: Any, p: Any, g: Any, slots: dict[str, Any], h: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Call the update and check that it returns a parameter and its slots."""
    try:
        found = applied(rule, rule.update, xp, p, g, *named(rule.name, slots, h))
    except RealOnlyError:
        raise
    except ComplexError as error:
        raise ComplexError(f"{rule.name}.update {error}") from None
    if tape.refused:
        raise tape.refused
    try:
        new_p, new_slots = returned(f"{rule.name}.update", found, "p", "slots")
    except TypeError as error:
        raise TraceError(str(error)) from None
    if set(new_slots) != set(slots):
        raise TraceError(f"{rule.name}.update returned the slots {sorted(new_slots)}, expected {sorted(slots)}")
    return new_p, new_slots


def traced(rule: Rule, *, twice: bool = False) -> Program | None:
    """The program of a rule, or None if it cannot be traced, or only of a leaf of known shape; see `trace`."""
    try:
        return trace(rule, twice=twice)
    except Exception:  # noqa: BLE001 - whatever a user's code raises when it is run on symbols
        return None


def refusal_of_complex(rule: Rule) -> str:
    """Return why the rule is not for complex leaves, as far as tracing shows it."""
    try:
        trace(rule, is_complex=True)
    except ComplexError as error:
        return str(error)
    except Exception:  # noqa: BLE001 - whatever a user's code raises when it is run on symbols
        return ""
    return ""


def _shape_apart(tape: Tape, slot: Any) -> tuple[int, ...] | None:
    """The shape of a slot of rows or columns; None of one like the leaf."""
    if not isinstance(slot, Rows | Columns):
        return None
    if tape.kind is None:
        raise ShapeNeededError(str(tape.error("has slots of rows and columns", "slots like the leaf")))
    shape = shape_of(slot, tape.shape)
    return shape if shape != tape.shape else None


def _output(tape: Tape, value: Any) -> int:
    symbol = tape.element(value)
    if symbol.is_mask:
        raise _truth_returned(tape)
    return symbol.index


def _truth_returned(tape: Tape) -> TraceError:
    return tape.error("returns a truth value", "a number, as xp.where(condition, 1, 0) gives")


def _check_shared(tape: Tape, program: Program) -> None:
    """Raise TraceError where a number of all leaves is made of what one leaf has for itself."""
    own: list[bool] = []
    for node in program.numbers:
        match node:
            case Node("slot", (name,)):
                own.append(name not in program.shared)
            case Node("reduce", (_, over, *_)):
                own.append(over == "leaf")
            case Node(op, args):
                own.append(op not in LEAVES_OF_NUMBERS and any(own[a] for a in args))
    for name, index in zip(program.number_slots, program.number_outputs, strict=True):
        if name in program.shared and own[index]:
            raise tape.error(f"makes the shared number {name} of sums over one leaf", "totals over all leaves")
