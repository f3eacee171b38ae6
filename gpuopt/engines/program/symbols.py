"""Symbols: what a rule's ``update`` computes with while it is recorded; see `gpuopt.engines.program.trace`."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

from gpuopt.engines.numbers import is_truth, plain
from gpuopt.engines.program.program import ARITHMETIC, COMPARISONS, INEXACT, LOGIC, Node, entering
from gpuopt.rules.pairs import BRANCHES, FUNCTIONS, OF_XP, SELECTIONS, Pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

E = TypeVar("E", bound="Expression")

OPERATIONS: Mapping[str, str] = {
    **{name: name for name in ("sqrt", "abs", "where", *INEXACT)},
    **FUNCTIONS,
    "negative": "neg",
    "logical_and": "and",
    "logical_or": "or",
    "logical_not": "not",
}
"""Functions of the array API that are one operation each."""


class TraceError(TypeError):
    """A rule's ``update`` does something that cannot be fused."""


class ShapeNeededError(TraceError):
    """The update looks at the shape or the dtype of a leaf, so it must be recorded for each kind of leaf."""


@dataclass(frozen=True)
class Kind:
    """What an update may see of a leaf beside its values.

    Attributes
    ----------
    shape
        Shape of the leaf; ``(1,)`` for a leaf without axes, as in the array engine.
    dtype
        The real dtype of the arithmetic.

    """

    shape: tuple[int, ...]
    dtype: str


class Recorder(dict[Node, int]):
    """Nodes in the order of their first use; asking again for the same operation gives the same node."""

    def index(self, op: str, *args: Any) -> int:
        return self.setdefault(Node(op, args), len(self))


@dataclass
class Tape:
    """What has been recorded so far."""

    rule: str
    kind: Kind | None = None
    nodes: Recorder = field(default_factory=Recorder)
    scalars: Recorder = field(default_factory=Recorder)
    coefficients: dict[int, int] = field(default_factory=dict)
    numbers: Recorder = field(default_factory=Recorder)
    number_scalars: dict[int, int] = field(default_factory=dict)
    extents: Recorder = field(default_factory=Recorder)
    extent_shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    extent_scalars: dict[int, int] = field(default_factory=dict)
    functions: list[tuple[Callable[..., Any], tuple[Any, ...]]] = field(default_factory=list)
    """The function and the arguments of each call of `xp.whole`."""
    refused: TraceError | None = None
    """Why the update cannot be fused; kept, because the update may catch the error and go on."""
    writes: bool = False
    """Whether the update writes into arrays that it is given or has made."""

    def apply(self, op: str, *args: Any) -> Any:
        """Record an operation on symbols of any kinds. Truth values can be compared, and are 1 and 0 beside arrays."""
        args = tuple(map(plain, args))
        if op in LOGIC or (op == "where" and is_truth(args[0])):
            args = tuple(self.scalar(a).apply("ne", a, 0.0) if is_truth(a) else a for a in args)
        masks = [isinstance(a, Expression) and a.is_mask for a in args]
        if op in ("eq", "ne") and all(masks):
            differ = self.apply("and", self.apply("or", *args), self.apply("not", self.apply("and", *args)))
            return differ if op == "ne" else self.apply("not", differ)
        if op in ARITHMETIC and any(isinstance(a, _Array) and not a.is_mask for a in args):
            args = tuple(self.apply("where", a, 1.0, 0.0) if mask else a for a, mask in zip(args, masks, strict=True))
        kind = next((kind for kind in KINDS if any(isinstance(a, kind) for a in args)), Scalar)
        if op == "pow" and kind is not Scalar:
            return self.power("a number " if kind is Number else "", *args)
        return kind.of(self, op, *args)

    def power(self, what: str, base: Any, exponent: Any) -> Any:
        """Record a square or a root; other powers are refused."""
        if isinstance(exponent, Real) and exponent == 2:
            return self.apply("mul", base, base)
        if isinstance(exponent, Real) and exponent == 0.5:
            return self.apply("sqrt", base)
        raise self.error(f"raises {what}to a power other than 2 and 0.5", "products or xp.sqrt")

    def scalar(self, value: Any) -> Scalar:
        if isinstance(value, np.float16 | np.float32 | np.longdouble):  # which rounds before anything else does
            raise self.error(
                f"uses {value!r} ({type(value).__name__}) beside numbers of the step", "a number of Python"
            )
        return value if isinstance(value, Scalar) else Scalar(self, "literal", float(value).hex())

    def element(self, value: Any) -> Symbol:
        """A symbol for anything that may stand in an expression."""
        match value:
            case Symbol():
                return value
            case Scalar():
                index = self.coefficients.setdefault(value.index, len(self.coefficients))
                return self._truth(value, Symbol(self, "coefficient", index))
            case Number():
                return self._truth(value, Symbol(self, "number", value.index))
            case Extent():
                if not _fits(value.shape, self.shape):
                    raise self.error(
                        f"has an array of {value.shape} beside one of {self.shape}", "what can be broadcast"
                    )
                if (of := value).is_mask:
                    value = value.apply("where", value, 1.0, 0.0)
                    return self._truth(of, Symbol(self, "load", entering(value.index)))
                return Symbol(self, "load", entering(value.index))
            case Real():
                return Symbol(self, "literal", float(value).hex())
            case _:
                raise self.error(
                    f"uses {value!r:.40} ({type(value).__name__})", "a number, a hyperparameter or an array"
                )

    def extent(self, value: Any) -> Extent:
        """An array of another shape than the leaf's, or a number that meets one."""
        match value:
            case Extent():
                return value
            case Scalar():
                index = self.extent_scalars.setdefault(value.index, len(self.extent_scalars))
                return self._truth(value, Extent(self, (), "scalar", index))
            case Real():
                return Extent(self, (), "literal", float(value).hex())
            case _:
                raise self.error(
                    f"uses {value!r:.40} ({type(value).__name__}) beside sums along axes", "hyperparameters or arrays"
                )

    def number(self, value: Any) -> Number:
        """A number for anything that may stand among numbers."""
        match value:
            case Number():
                return value
            case Scalar():
                index = self.number_scalars.setdefault(value.index, len(self.number_scalars))
                return self._truth(value, Number(self, "scalar", index))
            case Real():
                return Number(self, "literal", float(value).hex())
            case _:
                raise self.error(
                    f"makes a number of {value!r:.40} ({type(value).__name__})", "sums, slots or hyperparameters"
                )

    @staticmethod
    def _truth(of: Expression, value: E) -> E:
        """Return a value that is 0 or 1, turned into a truth value if ``of`` is a truth value."""
        return value.apply("ne", value, 0.0) if of.is_mask else value

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the leaf."""
        return self.seen("shape").shape

    def seen(self, what: str) -> Kind:
        """Return shape and dtype of the leaf, which the update looks at by the attribute ``what``."""
        if self.kind is None:
            raise ShapeNeededError(str(self.error(f"uses .{what} of a value", "elementwise operations")))
        return self.kind

    def check_kinds(self, op: str, args: Sequence[Expression]) -> None:
        """Raise TraceError where an operation gets numbers for truth values, or the reverse."""
        wants_masks = {"where": (True, False, False)}.get(op, (op in LOGIC,) * len(args))
        for arg, wanted in zip(args, wants_masks, strict=True):
            if arg.is_mask != wanted:
                kinds = ("numbers", "truth values")
                cure = ", as xp.where(condition, 1, 0) gives" if op in ARITHMETIC else ""
                raise self.error(f"gives {kinds[arg.is_mask]} to '{op}'", kinds[wanted] + cure)

    def error(self, what: str, expected: str, *, runs_on_arrays: bool = True) -> TraceError:
        """An error that says what to write, or else which engine does without."""
        needs = f", expected {expected}"
        if runs_on_arrays:
            needs = f"; to be fused it needs {expected}; engine='array' runs it as it is"
        self.refused = TraceError(f"{self.rule}.update {what}{needs}")
        return self.refused


def _fits(shape: tuple[int, ...], leaf: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, leaf) == leaf
    except ValueError:
        return False


class Expression:
    """Base class of the symbols: Python's operators record an operation on the tape.

    Attributes
    ----------
    tape, index
        Where the operation is recorded that gives this value, and its index there.
    is_mask
        Whether the value is a truth value.

    """

    __hash__ = object.__hash__
    recorder: str
    """The attribute of the tape that records operations of this kind."""
    converter: str
    """The method of the tape that makes a symbol of this kind from anything that may stand beside it."""

    def __init__(self, tape: Tape, op: str, *args: Any) -> None:
        self.tape = tape
        self.index: int = getattr(tape, self.recorder).index(op, *args)
        self.is_mask = op in (*COMPARISONS, *LOGIC)

    @classmethod
    def of(cls, tape: Tape, op: str, *args: Any) -> Any:
        """Record an operation whose arguments are all made symbols of this kind first."""
        given = [getattr(tape, cls.converter)(a) for a in args]
        tape.check_kinds(op, given)
        return cls(tape, op, *[a.index for a in given])

    def apply(self, op: str, *args: Any) -> Any:
        """Record an operation."""
        return self.tape.apply(op, *args)

    def __bool__(self) -> bool:
        raise self.tape.error(BRANCHES, SELECTIONS, runs_on_arrays=not isinstance(self, _Array))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.tape.error(f"uses .{name} of a value", "elementwise operations")

    def __float__(self) -> float:
        raise self.tape.error(
            "takes a value as a Python number (float, int, math.*)", "array API functions such as xp.sqrt"
        )

    __int__ = __index__ = __float__

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise self.tape.error("makes an array of a value", "the value itself")

    def __array_function__(self, function: Any, *_: Any) -> NoReturn:
        raise self.tape.error(f"calls numpy.{function.__name__}", OF_XP)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Refuse NumPy's own functions; arithmetic with one of NumPy's numbers comes here, too, and is recorded."""
        op = OPERATIONS.get(ufunc.__name__)
        with_number = sum(isinstance(x, Expression) for x in inputs) == 1 < len(inputs)
        if op is None or method != "__call__" or options or not with_number:
            raise self.tape.error(f"calls numpy.{ufunc.__name__}", OF_XP)
        return self.apply(op, *inputs)

    def __neg__(self) -> Any:
        return self.apply("neg", self)

    def __abs__(self) -> Any:
        return self.apply("abs", self)

    def __pos__(self) -> Any:
        return copy(self)  # what is written into one of them is not in the other one

    def __invert__(self) -> Any:
        return self.apply("not", self)


def _install_operators() -> None:
    def binary(op: str, *, swapped: bool = False) -> Callable[[Expression, Any], Any]:
        def method(self: Expression, other: Any) -> Any:
            if isinstance(other, Pair):
                return NotImplemented  # which knows better
            return self.apply(op, other, self) if swapped else self.apply(op, self, other)

        return method

    def in_place(op: str) -> Callable[[_Array, Any], Any]:
        def method(self: _Array, other: Any) -> Any:
            if isinstance(other, Pair):
                return NotImplemented
            new = self.apply(op, self, other)
            if (type(new), new.own) != (type(self), self.own):
                raise self.tape.error("writes an array into one of another shape", "arrays of one shape")
            # Under every name that the array has: as arrays do it.
            self.index, self.is_mask, self.tape.writes = new.index, new.is_mask, True
            return self

        return method

    for op in (*ARITHMETIC, "pow", "and", "or"):
        setattr(Expression, f"__{op}__", binary(op))
        setattr(Expression, f"__r{op}__", binary(op, swapped=True))
        setattr(_Array, f"__i{op}__", in_place(op))
    for op in COMPARISONS:
        setattr(Expression, f"__{op}__", binary(op))

    def refused(op: str) -> Callable[..., NoReturn]:
        def method(self: Expression, *_: Any) -> NoReturn:
            raise self.tape.error(f"uses Python's {op} of a value", "elementwise operations")

        return method

    for op in ("floordiv", "rfloordiv", "mod", "rmod", "matmul", "rmatmul", "xor", "rxor", "lshift", "rshift"):
        setattr(Expression, f"__{op}__", refused(op))
    for op in ("round", "getitem", "setitem", "len", "iter", "complex"):
        setattr(Expression, f"__{op}__", refused(op))


class Scalar(Expression):
    """A number of the step, known on the host."""

    recorder, converter = "scalars", "scalar"


class Number(Expression):
    """A float64 of the leaf or of its group."""

    recorder, converter = "numbers", "number"


class _Array(Expression):
    """A symbol that stands for an array. Only instances have a shape and a dtype: chains ask the class, and take it for no array."""

    own: tuple[int, ...] | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in ("shape", "dtype", "ndim", "size"):
            return super().__getattr__(name)
        kind = self.tape.seen(name)
        if name == "dtype":
            return np.dtype(kind.dtype)
        shape = kind.shape if self.own is None else self.own
        return {"shape": shape, "ndim": len(shape), "size": math.prod(shape)}[name]


_install_operators()


class Extent(_Array):
    """An array of another shape than the leaf's: sums along axes, and what is made of them."""

    recorder = "extents"

    def __init__(self, tape: Tape, shape: tuple[int, ...], op: str, *args: Any) -> None:
        super().__init__(tape, op, *args)
        self.own = tape.extent_shapes[self.index] = shape

    @classmethod
    def of(cls, tape: Tape, op: str, *args: Any) -> Any:
        """Record an operation on such arrays; a result of the leaf's shape is a `Symbol`."""
        extents = [tape.extent(a) for a in args]
        shape = np.broadcast_shapes(*[extent.shape for extent in extents])
        if shape == tape.shape:
            return Symbol.of(tape, op, *args)
        tape.check_kinds(op, extents)
        return Extent(tape, shape, op, *[extent.index for extent in extents])


class Symbol(_Array):
    """A value of every element."""

    recorder, converter = "nodes", "element"


KINDS: Iterable[Any] = (Symbol, Extent, Number)
"""Kinds of symbols by priority: an operation on several kinds gives the first kind in this list."""
