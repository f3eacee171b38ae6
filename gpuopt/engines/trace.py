"""Tracing: a rule's ``update``, run once on symbols, becomes a straight-line program.

Three kinds of symbols meet in an update. A `Scalar` is arithmetic on hyperparameters alone: it is evaluated on the host,
in float64, once a step. A `Symbol` is a value of every element (or, from a comparison, a truth value): it becomes an
operation of the fused loop. A `Number` is a float64 of a leaf or of its group, made of sums over elements and of slots that
are numbers: it is worked out where the arrays are, between two passes over them (`gpuopt.engines.passes`). Where a scalar
meets a symbol, it enters the loop as a coefficient, a number as a number; both are rounded there, once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from gpuopt.rules.formula import named, returned
from gpuopt.rules.pairs import ComplexError, Lifted, Pair, RealNumbers, applied
from gpuopt.rules.slots import Columns, Rows, Shared, is_number, starts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gpuopt.rules.base import Rule

ARITHMETIC = ("add", "sub", "mul", "truediv")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
LOGIC = ("and", "or", "not")
LEAVES_OF_NUMBERS = ("slot", "scalar", "literal", "reduce")
"""Numbers that are not made of others."""
SCALE = "_scale"
"""The scalar that differs from leaf to leaf: by it a gradient is multiplied whose norm is clipped."""
INEXACT = ("exp", "log", "tanh")
"""Functions of the mathematical library, which differ in the last bits from one platform to the next."""

_ON_HOST = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "truediv": "{} / {}",
    "pow": "{} ** {}",
    "neg": "-{}",
    "abs": "abs({})",
    "sqrt": "sqrt({})",
    "lt": "{} < {}",
    "le": "{} <= {}",
    "gt": "{} > {}",
    "ge": "{} >= {}",
    "eq": "{} == {}",
    "ne": "{} != {}",
    "and": "{} and {}",
    "or": "{} or {}",
    "not": "not {}",
    "where": "{1} if {0} else {2}",
}
_FUNCTIONS_ON_HOST = {"sqrt": lambda x: math.sqrt(x) if x >= 0 else math.nan}


class TraceError(TypeError):
    """A rule's ``update`` does something that cannot be fused."""


@dataclass(frozen=True)
class Node:
    """One operation; ``args`` are indices of earlier nodes, or what an input is (a name, a number as `float.hex`)."""

    op: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Program:
    """What a rule does to one element: inputs, operations in source order, outputs; and its scalars on the host."""

    slots: tuple[str, ...]
    """Those that are arrays."""
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    """Nodes of the new parameter and the new slots; of complex ones, of their real and imaginary parts."""
    scalars: tuple[Node, ...]
    coefficients: tuple[int, ...]
    """Scalars that enter the loop: the node ``coefficient k`` is ``scalars[coefficients[k]]``."""
    number_slots: tuple[str, ...] = ()
    """Slots that are numbers."""
    shared: frozenset[str] = frozenset()
    """Of these, the ones of all leaves of the group together."""
    numbers: tuple[Node, ...] = ()
    """Operations on numbers, in float64."""
    number_outputs: tuple[int, ...] = ()
    """Of `numbers`, those that the number slots become."""
    number_scalars: tuple[int, ...] = ()
    """Scalars that numbers are made of: the number ``scalar k`` is ``scalars[number_scalars[k]]``."""
    pairs: frozenset[str] = frozenset()
    """Arrays of complex numbers, among "p", "g" and the slots: nodes load their parts, ``("p", 0)`` and ``("p", 1)``."""

    @property
    def stores(self) -> list[tuple[str, tuple[int, ...], int]]:
        """Of each output the array, the part (none, of real numbers) and the node."""
        parts: list[tuple[str, tuple[int, ...]]] = []
        for name in ("p", *self.slots):
            parts += [(name, (0,)), (name, (1,))] if name in self.pairs else [(name, ())]
        return [(*part, node) for part, node in zip(parts, self.outputs, strict=True)]

    @property
    def exact(self) -> bool:
        """Whether every engine gives the same bits."""
        return not any(node.op in INEXACT for node in self.nodes)

    @property
    def is_elementwise(self) -> bool:
        """Whether no element has a say in what becomes of another one."""
        return not self.numbers

    @property
    def has_totals(self) -> bool:
        """Whether something is added up over all leaves of a group."""
        return any(node.op == "reduce" and node.args[1] == "group" for node in self.numbers)

    @cached_property
    def evaluate(self) -> Callable[[Mapping[str, float]], list[float]]:
        """A function from the scalars of a step (`Rule.at`) to the coefficients, in float64."""
        return self._evaluating(self.coefficients)

    @cached_property
    def evaluate_for_numbers(self) -> Callable[[Mapping[str, float]], list[float]]:
        """The same for the scalars that numbers are made of."""
        return self._evaluating(self.number_scalars)

    def _evaluating(self, wanted: tuple[int, ...]) -> Callable[[Mapping[str, float]], list[float]]:
        formulas: list[str] = []
        for node in self.scalars:
            match node:
                case Node("hyper", (name,)):
                    formulas.append(f"h[{name!r}]")
                case Node("literal", (number,)):
                    value = float.fromhex(number)
                    formulas.append(repr(value) if math.isfinite(value) else f"float('{value}')")
                case Node(op, args):
                    formulas.append(f"({_ON_HOST[op].format(*[formulas[i] for i in args])})")
        # Compiled, since it runs at every step: an interpreter of the nodes takes ten times as long.
        code = f"lambda h: [{', '.join(formulas[i] for i in wanted)}]"
        return eval(code, {**_FUNCTIONS_ON_HOST})  # type: ignore[no-any-return]


def trace(rule: Rule, *, is_complex: bool = False, twice: bool = False) -> Program:
    """Run ``rule.update`` on symbols.

    Parameters
    ----------
    is_complex
        Whether the parameters are complex numbers.
    twice
        Whether to do so again, and compare: an update that draws random numbers would be fused with the first ones for good.

    Raises
    ------
    TraceError
        If the update is another one the second time, branches on a value, calls what cannot be fused, or does not return its slots.
    ComplexError
        If the update does with complex numbers what is refused.

    """
    program = recorded(rule, is_complex=is_complex)
    if twice and recorded(rule, is_complex=is_complex) != program:
        raise TraceError(
            f"{rule.name}.update does something else each time that it is called (random numbers? a count of its own?); "
            "to be fused it needs to be the same formula; engine='array' runs it as it is"
        )
    return program


def recorded(rule: Rule, *, is_complex: bool, seen: Any = None) -> Program:
    """As `trace`, once; ``seen`` is what stands for the rule wherever it is not asked for its scalars."""
    scalars, rule = rule.at(0), seen or rule
    tape = _Tape(rule.name)
    declared = starts(rule.slots)
    if {"p", "g"} & set(declared):
        raise tape.error(f"has the slots {tuple(declared)}", "slots of other names than p and g")
    if extents := [name for name, start in declared.items() if isinstance(start, Rows | Columns)]:
        raise tape.error(f"has the slots {', '.join(extents)} of rows and columns", "slots like the leaf")
    of_numbers = [name for name, start in declared.items() if is_number(start)]
    of_arrays = [name for name in declared if name not in of_numbers]
    pairs = {"p", "g", *(name for name in of_arrays if rule.part(name) != "real")} if is_complex else set()
    real = Namespace(tape)
    xp: Any = Lifted(real) if is_complex else real

    def load(name: str) -> Symbol | Pair:
        return Pair(*[Symbol(tape, "load", name, k) for k in range(2)]) if name in pairs else tape.load(name)

    slots = {name: Number(tape, "slot", name) if name in of_numbers else load(name) for name in declared}
    # sorted: alike, whichever are schedules
    h: dict[str, Scalar | Symbol] = {name: Scalar(tape, "hyper", name) for name in sorted(scalars)}
    if SCALE in h:
        h[SCALE] = Symbol(tape, "scale")
    try:
        found = applied(rule, rule.update, xp, load("p"), load("g"), *named(rule.name, slots, h))
    except ComplexError as error:
        raise ComplexError(f"{rule.name}.update {error}") from None
    try:
        new_p, new_slots = returned(f"{tape.rule}.update", found, "p", "slots")
    except TypeError as error:
        raise TraceError(str(error)) from None
    if set(new_slots) != set(slots):
        raise TraceError(f"{tape.rule}.update returned the slots {sorted(new_slots)}, expected {sorted(slots)}")
    outputs: list[Symbol] = []
    for name, value in {"p": new_p, **{name: new_slots[name] for name in of_arrays}}.items():
        if isinstance(value, Real | Scalar | Number):
            raise TraceError(f"{tape.rule}.update returned {name}: a number, expected an array like the parameter")
        if name in pairs:
            outputs += [tape.element(x) for x in ((value.re, value.im) if isinstance(value, Pair) else (value, 0.0))]
        elif isinstance(value, Pair):
            raise ComplexError(f"{rule.name}.update returns complex numbers for {name}, expected real ones")
        else:
            outputs.append(tape.element(value))
    numbers: list[Number] = [tape.number(new_slots[name]) for name in of_numbers]
    if any(output.is_mask for output in (*outputs, *numbers)):
        raise tape.error("returns a truth value", "a number, as xp.where(condition, 1, 0) gives")
    program = Program(
        tuple(of_arrays),
        tuple(tape.nodes),
        tuple(output.index for output in outputs),
        tuple(tape.scalars),
        tuple(tape.coefficients),
        tuple(of_numbers),
        frozenset(name for name in of_numbers if isinstance(declared[name], Shared)),
        tuple(tape.numbers),
        tuple(number.index for number in numbers),
        tuple(tape.number_scalars),
        frozenset(pairs),
    )
    _check_shared(tape, program)
    return program


def traced(rule: Rule, *, twice: bool = False) -> Program | None:
    """The program of a rule, or None if it cannot be traced; see `trace`."""
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


def _check_shared(tape: _Tape, program: Program) -> None:
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


class _Recorder(dict[Node, int]):
    """Nodes in the order of their first use; asking again for the same operation gives the same node."""

    def index(self, op: str, *args: Any) -> int:
        return self.setdefault(Node(op, args), len(self))


@dataclass
class _Tape:
    """What has been recorded so far."""

    rule: str
    nodes: _Recorder = field(default_factory=_Recorder)
    scalars: _Recorder = field(default_factory=_Recorder)
    coefficients: dict[int, int] = field(default_factory=dict)
    numbers: _Recorder = field(default_factory=_Recorder)
    number_scalars: dict[int, int] = field(default_factory=dict)

    def load(self, name: str) -> Symbol:
        return Symbol(self, "load", name)

    def scalar(self, value: Any) -> Scalar:
        return value if isinstance(value, Scalar) else Scalar(self, "literal", float(value).hex())

    def element(self, value: Any) -> Symbol:
        """A symbol for anything that may stand in an expression."""
        match value:
            case Symbol():
                return value
            case Scalar():
                index = self.coefficients.setdefault(value.index, len(self.coefficients))
                number = Symbol(self, "coefficient", index)  # of a truth value, 0 or 1
                return number._apply("ne", number, 0.0) if value.is_mask else number
            case Number():
                number = Symbol(self, "number", value.index)
                return number._apply("ne", number, 0.0) if value.is_mask else number
            case Real():
                return Symbol(self, "literal", float(value).hex())
            case _:
                raise self.error(f"uses {value!r} ({type(value).__name__})", "a number, a hyperparameter or an array")

    def number(self, value: Any) -> Number:
        """A number for anything that may stand among numbers."""
        match value:
            case Number():
                return value
            case Scalar():
                index = self.number_scalars.setdefault(value.index, len(self.number_scalars))
                number = Number(self, "scalar", index)  # of a truth value, 0 or 1
                return number._apply("ne", number, 0.0) if value.is_mask else number
            case Real():
                return Number(self, "literal", float(value).hex())
            case _:
                raise self.error(
                    f"makes a number of {value!r} ({type(value).__name__})", "sums, slots or hyperparameters"
                )

    def check_kinds(self, op: str, args: Sequence[_Expression]) -> None:
        """Raise TraceError where an operation gets numbers for truth values, or the reverse."""
        wants_masks = {"where": (True, False, False)}.get(op, (op in LOGIC,) * len(args))
        for arg, wanted in zip(args, wants_masks, strict=True):
            if arg.is_mask != wanted:
                kinds = ("numbers", "truth values")
                raise self.error(f"gives {kinds[arg.is_mask]} to '{op}'", kinds[wanted])

    def error(self, what: str, expected: str) -> TraceError:
        return TraceError(
            f"{self.rule}.update {what}; to be fused it needs {expected}; engine='array' runs it as it is"
        )


class _Expression:
    """Python's operators, handed to ``_apply``."""

    __hash__ = object.__hash__
    tape: _Tape
    is_mask: bool

    def _apply(self, op: str, *args: Any) -> Any:
        raise NotImplementedError

    def __bool__(self) -> bool:
        raise self.tape.error(
            "branches on a value (if, and, or, not, min, max)", "xp.where, & , |, xp.minimum or xp.maximum"
        )

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.tape.error(f"uses .{name} of a value", "elementwise operations")

    def __float__(self) -> float:
        raise self.tape.error(
            "takes a value as a Python number (float, int, math.*)", "array API functions such as xp.sqrt"
        )

    __int__ = __index__ = __float__

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Refuse NumPy's own functions; arithmetic with one of NumPy's numbers comes here, too, and is recorded."""
        op = Namespace._OPERATIONS.get(ufunc.__name__)
        with_number = sum(isinstance(x, _Expression) for x in inputs) == 1 < len(inputs)
        if op is None or method != "__call__" or options or not with_number:
            raise self.tape.error(f"calls numpy.{ufunc.__name__}", "the functions of xp, which it is given")
        return self._apply(op, *inputs)

    def __neg__(self) -> Any:
        return self._apply("neg", self)

    def __abs__(self) -> Any:
        return self._apply("abs", self)

    def __pos__(self) -> Any:
        return self


def _install_operators() -> None:
    def binary(op: str, *, swapped: bool = False) -> Callable[[_Expression, Any], Any]:
        def method(self: _Expression, other: Any) -> Any:
            if isinstance(other, Pair):
                return NotImplemented  # which knows better
            return self._apply(op, other, self) if swapped else self._apply(op, self, other)

        return method

    for op in (*ARITHMETIC, "pow", "and", "or"):
        setattr(_Expression, f"__{op}__", binary(op))
        setattr(_Expression, f"__r{op}__", binary(op, swapped=True))
    for op in COMPARISONS:
        setattr(_Expression, f"__{op}__", binary(op))

    def refused(op: str) -> Callable[..., NoReturn]:
        def method(self: _Expression, *_: Any) -> NoReturn:
            raise self.tape.error(f"uses Python's {op} of a value", "elementwise operations")

        return method

    for op in ("floordiv", "rfloordiv", "mod", "rmod", "matmul", "rmatmul", "xor", "rxor", "lshift", "rshift"):
        setattr(_Expression, f"__{op}__", refused(op))
    for op in ("round", "getitem", "setitem", "len", "iter", "complex"):
        setattr(_Expression, f"__{op}__", refused(op))


_install_operators()


class Scalar(_Expression):
    """A number of the step, known on the host; ``is_mask`` if it is a truth value."""

    def __init__(self, tape: _Tape, op: str, *args: Any) -> None:
        self.tape = tape
        self.index = tape.scalars.index(op, *args)
        self.is_mask = op in (*COMPARISONS, *LOGIC)

    def _apply(self, op: str, *args: Any) -> Any:
        if any(isinstance(a, Symbol) for a in args):
            return self.tape.element(self)._apply(op, *args)
        if any(isinstance(a, Number) for a in args):
            return self.tape.number(self)._apply(op, *args)
        scalars = [self.tape.scalar(a) for a in args]
        self.tape.check_kinds(op, scalars)
        return Scalar(self.tape, op, *[scalar.index for scalar in scalars])

    def __invert__(self) -> Scalar:
        return self._apply("not", self)  # type: ignore[no-any-return]


class Number(_Expression):
    """A float64 of the leaf or of its group; ``is_mask`` if it is a truth value."""

    def __init__(self, tape: _Tape, op: str, *args: Any) -> None:
        self.tape = tape
        self.index = tape.numbers.index(op, *args)
        self.is_mask = op in (*COMPARISONS, *LOGIC)

    def _apply(self, op: str, *args: Any) -> Any:
        if any(isinstance(a, Symbol) for a in args):
            return self.tape.element(self)._apply(op, *args)
        if op == "pow":
            base, exponent = args
            if isinstance(exponent, Real) and exponent == 2:
                return self._apply("mul", base, base)
            raise self.tape.error("raises a number to a power other than 2", "products or xp.sqrt")
        numbers = [self.tape.number(a) for a in args]
        self.tape.check_kinds(op, numbers)
        return Number(self.tape, op, *[number.index for number in numbers])

    def __invert__(self) -> Number:
        return self._apply("not", self)  # type: ignore[no-any-return]


class Symbol(_Expression):
    """A value of every element; ``is_mask`` if it is a truth value."""

    def __init__(self, tape: _Tape, op: str, *args: Any) -> None:
        self.tape = tape
        self.index = tape.nodes.index(op, *args)
        self.is_mask = op in (*COMPARISONS, *LOGIC)

    def _apply(self, op: str, *args: Any) -> Symbol:
        if op == "pow":
            return self._power(*args)
        symbols = [self.tape.element(a) for a in args]
        self.tape.check_kinds(op, symbols)
        return Symbol(self.tape, op, *[symbol.index for symbol in symbols])

    def _power(self, base: Any, exponent: Any) -> Symbol:
        if isinstance(exponent, Real) and exponent == 2:
            return self._apply("mul", base, base)
        raise self.tape.error("raises to a power other than 2", "products or xp.sqrt")

    def __invert__(self) -> Symbol:
        return self._apply("not", self)


class Namespace(RealNumbers):
    """The array API's elementwise functions, on symbols."""

    _OPERATIONS: ClassVar[Mapping[str, str]] = {
        **{name: name for name in ("sqrt", "abs", "where", *INEXACT)},
        "add": "add",
        "subtract": "sub",
        "multiply": "mul",
        "divide": "truediv",
        "negative": "neg",
        "less": "lt",
        "less_equal": "le",
        "greater": "gt",
        "greater_equal": "ge",
        "equal": "eq",
        "not_equal": "ne",
        "logical_and": "and",
        "logical_or": "or",
        "logical_not": "not",
    }

    def __init__(self, tape: _Tape) -> None:
        self._tape = tape

    def __getattr__(self, name: str) -> Callable[..., Symbol]:
        op = self._OPERATIONS.get(name)
        if op is None:
            derived = [n for n in (*vars(Namespace), *vars(RealNumbers)) if not n.startswith("_")]
            known = ", ".join(sorted([*self._OPERATIONS, *derived]))
            raise self._tape.error(f"calls xp.{name}", f"elementwise functions ({known})")

        def function(*args: Any) -> Any:
            if any(isinstance(a, Symbol) for a in args):
                return self._tape.element(args[0])._apply(op, *args)
            if any(isinstance(a, Number) for a in args):
                return self._tape.number(args[0])._apply(op, *args)
            if op not in _ON_HOST:
                raise self._tape.error(f"calls xp.{name} on numbers alone", "Rule.coefficients")
            return self._tape.scalar(args[0])._apply(op, *args)

        return function

    def square(self, x: Symbol) -> Symbol:
        """``x*x``."""
        return x * x  # type: ignore[operator, no-any-return]

    def isnan(self, x: Symbol) -> Symbol:
        """Only NaN differs from itself."""
        return self.not_equal(x, x)

    def isfinite(self, x: Symbol) -> Symbol:
        """Less than infinity in size; false for NaN."""
        return self.less(self.abs(x), float("inf"))

    def isinf(self, x: Symbol) -> Symbol:
        """Infinity in size."""
        return self.equal(self.abs(x), float("inf"))

    def minimum(self, x: Any, y: Any) -> Symbol:
        """The smaller one; NaN if either is."""
        return self._pick("lt", x, y)

    def maximum(self, x: Any, y: Any) -> Symbol:
        """The larger one; NaN if either is."""
        return self._pick("gt", x, y)

    def clip(self, x: Symbol, min: Any = None, max: Any = None) -> Symbol:
        """``minimum(maximum(x, min), max)``."""
        x = x if min is None else self.maximum(x, min)
        return x if max is None else self.minimum(x, max)

    def sign(self, x: Symbol) -> Symbol:
        """-1, 0 or 1; NaN for NaN."""
        zero_or_nan = self.where(self.equal(x, 0), 0, x)
        return self.where(self.greater(x, 0), 1, self.where(self.less(x, 0), -1, zero_or_nan))

    def whole(self, f: Any, *args: Any) -> NoReturn:  # noqa: ARG002 - see `gpuopt.engines.reference`
        """Not fused."""
        raise self._tape.error("calls xp.whole", "what is elementwise, and sums")

    def sum(self, u: Any, **options: Any) -> Number:
        """Sum of the leaf's elements."""
        if options:
            raise self._tape.error("sums along an axis", "sums over the leaf")
        return self._reduced("sum", "leaf", u)

    def dot(self, u: Any, v: Any) -> Number:
        """Sum of the products of the leaf's elements."""
        return self._reduced("dot", "leaf", u, v)

    def norm(self, u: Any) -> Number:
        """Euclidean norm of the leaf."""
        return self._reduced("norm", "leaf", u)

    def max(self, u: Any) -> Number:
        """The largest element of the leaf."""
        return self._reduced("max", "leaf", u)

    def total(self, u: Any) -> Number:
        """Sum of the elements of all leaves of the group."""
        return self._reduced("sum", "group", u)

    def total_dot(self, u: Any, v: Any) -> Number:
        """Sum of the products of the elements of all leaves of the group."""
        return self._reduced("dot", "group", u, v)

    def total_norm(self, u: Any) -> Number:
        """Euclidean norm of all leaves of the group together."""
        return self._reduced("norm", "group", u)

    def total_max(self, u: Any) -> Number:
        """The largest element of all leaves of the group."""
        return self._reduced("max", "group", u)

    def _reduced(self, kind: str, over: str, *given: Any) -> Number:
        values = [part for value in given for part in ((value.re, value.im) if isinstance(value, Pair) else (value,))]
        for value in values:
            if not isinstance(value, Symbol) or value.is_mask:
                what = "truth values" if getattr(value, "is_mask", False) else f"{value!r:.40}"
                raise self._tape.error(f"reduces {what}", "numbers of every element")
        return Number(self._tape, "reduce", kind, over, *[value.index for value in values])

    def zeros_like(self, x: Symbol) -> Symbol:
        """An array of zeros: the constant 0 for every element."""
        return x.tape.element(0)

    def ones_like(self, x: Symbol) -> Symbol:
        """An array of ones: the constant 1 for every element."""
        return x.tape.element(1)

    def _pick(self, comparison: str, x: Any, y: Any) -> Symbol:
        """Choose the first value where the comparison with the second holds or the first is NaN, else the second."""
        compare = {"lt": self.less, "gt": self.greater}[comparison]
        return self.where(self.logical_or(compare(x, y), self.isnan(x)), x, y)
