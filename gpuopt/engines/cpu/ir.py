"""LLVM IR of functions that are written as Python expressions; see `gpuopt.engines.values`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.program.program import COMPARISONS, INEXACT
from gpuopt.engines.values import Code, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

OPERATIONS = {
    "add": "fadd {T} {0}, {1}",
    "sub": "fsub {T} {0}, {1}",
    "mul": "fmul {T} {0}, {1}",
    "truediv": "fdiv {T} {0}, {1}",
    "neg": "fneg {T} {0}",
    "abs": "call {T} @llvm.fabs.{S}({T} {0})",
    **{name: f"call {{T}} @llvm.{name}.{{S}}({{T}} {{0}})" for name in ("sqrt", *INEXACT)},
    # Comparisons with NaN are false ("o" for ordered), but for "not equal".
    **{op: f"fcmp {'une' if op == 'ne' else 'o' + op} {{T}} {{0}}, {{1}}" for op in COMPARISONS},
    "and": "and i1 {0}, {1}",
    "or": "or i1 {0}, {1}",
    "not": "xor i1 {0}, true",
    "where": "select i1 {0}, {T} {1}, {T} {2}",
}
"""Of floating-point numbers, without a fast-math flag: none is contracted or reordered, so that the bits are NumPy's."""

_WHOLE = {
    **dict(zip(("add", "sub", "mul", "floordiv", "mod"), ("add", "sub", "mul", "udiv", "urem"), strict=True)),
    **dict(zip(("and", "or", "xor", "lshift", "rshift"), ("and", "or", "xor", "shl", "lshr"), strict=True)),
    **{op: f"icmp {op if op in ('eq', 'ne') else 's' + op}" for op in COMPARISONS},
}
"""Of whole numbers and addresses."""

SIZES = {"i1": 1, "i16": 16, "half": 16, "i32": 32, "float": 32, "i64": 64, "double": 64}
"""Bits of a type."""
_FLOATS = {"half", "float", "double"}


def spelled(kind: str) -> str:
    """A type, as IR has it: all addresses are alike."""
    return "ptr" if kind.endswith("*") else kind


def in_ir(arguments: str) -> str:
    """The arguments of a `Function`, as IR has them."""
    declared = [one.split() for one in arguments.split(",")]
    return ", ".join(" ".join([spelled(kind), *more, f"%{own}"]) for *more, kind, own in declared)


class Function(Code):
    """A function that is being written.

    Parameters
    ----------
    name
        Of the function.
    arguments
        As in ``"i64* table, i64 n"``.
    result
        The type of what it returns.
    attributes
        Of LLVM.
    internal
        Whether it is not called from outside.

    Attributes
    ----------
    lines
        What has been written.
    access
        Metadata of what is loaded and stored from now on.

    """

    def __init__(
        self, name: str, arguments: str, result: str = "void", attributes: str = "", *, internal: bool = False
    ) -> None:
        declared = [one.split() for one in arguments.split(",")]
        self.given: dict[str, Any] = {own: Value(self, kind, f"%{own}") for *_, kind, own in declared}
        self._head = f"define {'internal ' * internal}{result} @{name}({in_ir(arguments)}) {attributes}"
        self.lines: list[str] = []
        self.access = ""
        self._result, self._count, self._block = result, 0, "entry"

    def text(self, result: Any = None) -> str:
        """The function, which returns this value."""
        end = "ret void" if result is None else f"ret {self._result} {self._term(result, self._result)}"
        return "\n".join([f"{self._head} {{", "entry:", *self.lines, end, "}\n"])

    def operation(self, op: str, *args: Any) -> Any:
        """See :meth:`Code.operation`."""
        kind = next((arg.kind for arg in args[op == "where" :] if isinstance(arg, Value)), "double")
        kinds = ("i1", kind, kind) if op == "where" else (kind,) * len(args)
        terms = [self._term(arg, own) for arg, own in zip(args, kinds, strict=True)]
        found = "i1" if op in COMPARISONS else kind
        if kind in _FLOATS or op not in _WHOLE:
            suffix = {"float": "f32", "double": "f64"}.get(kind, "")
            return self._value(found, OPERATIONS[op].format(*terms, T=spelled(kind), S=suffix))
        return self._value(found, f"{_WHOLE[op]} {spelled(kind)} {', '.join(terms)}")

    def cast(self, value: Any, kind: str) -> Any:
        """See :meth:`Code.cast`."""
        before, to_float = value.kind, kind in _FLOATS
        wider = SIZES[kind] > SIZES[before]
        if before in _FLOATS:
            # Of bits without a sign many processors have no vectors.
            op = ("fpext" if wider else "fptrunc") if to_float else "fptosi"
        else:
            op = "uitofp" if to_float else "zext" if wider else "trunc"
        return self._value(kind, f"{op} {before} {value.term} to {kind}")

    def bits(self, value: Any, kind: str) -> Any:
        """See :meth:`Code.bits`; of an address, one of other items."""
        if kind.endswith("*"):
            return Value(self, kind, value.term)
        return self._value(kind, f"bitcast {value.kind} {value.term} to {kind}")

    def at(self, pointer: Any, *indices: Any) -> Any:
        """The address of an item, or of an item of that."""
        item, count = pointer.kind[:-1], len(indices)
        where = ", ".join(f"i64 {self._term(index, 'i64')}" for index in indices)
        found = pointer.kind if count == 1 else f"{item.rpartition(' ')[2].rstrip(']')}*"
        return self._value(found, f"getelementptr inbounds {spelled(item)}, ptr {pointer.term}, {where}")

    def load(self, pointer: Any) -> Any:
        """What is at an address."""
        kind = pointer.kind[:-1]
        return self._value(kind, f"load {spelled(kind)}, ptr {pointer.term}{self.access}")

    def store(self, value: Any, pointer: Any) -> None:
        """Write what is at an address."""
        kind = value.kind if isinstance(value, Value) else pointer.kind[:-1]
        self.lines.append(f"store {spelled(kind)} {self._term(value, kind)}, ptr {pointer.term}{self.access}")

    def room(self, kind: str, count: int) -> Any:
        """The address of memory for so many items, for as long as the function runs; to be asked for before any loop."""
        return self._value(f"{kind}*", f"alloca [{count} x {spelled(kind)}], align 64")

    def call(self, name: str, *args: Any, kind: str = "void") -> Any:
        """Call a function; Python's numbers are given as 64 bits."""
        given = ", ".join(f"{spelled(arg.kind)} {arg.term}" if isinstance(arg, Value) else f"i64 {arg}" for arg in args)
        call = f"call {spelled(kind)} @{name}({given})"
        return self.lines.append(call) if kind == "void" else self._value(kind, call)

    def whole(self, number: int) -> Any:
        """A number of 64 bits."""
        return Value(self, "i64", str(number))

    def real(self, number: float) -> Any:
        """A number of float64."""
        return Value(self, "double", self._term(number, "double"))

    def smaller(self, x: Any, y: Any) -> Any:
        """The smaller one of two numbers of 64 bits."""
        return self.call("llvm.smin.i64", x, y, kind="i64")

    def copy(self, target: Any, source: Any, nbytes: Any) -> None:
        """Copy memory."""
        given = f"ptr {target.term}, ptr {source.term}, i64 {self._term(nbytes, 'i64')}, i1 false"
        self.lines.append(f"call void @llvm.memcpy.p0.p0.i64({given})")

    @contextmanager
    def loop(self, begin: Any, end: Any, *carried: Any, once: bool = False) -> Iterator[Any]:
        """Write a block for each number from the first one on that is below the last one.

        The number that it yields has a ``step``, 1 unless the block sets it, and values ``carried``, which the block may set for the
        next time; afterwards they are the last ones. With ``once``, which is for a loop that carries nothing, it is known that there is a
        number at all.
        """
        n, before = self._new(), self._block
        self.lines.append(f"br label %head{n}")
        self._begin(f"head{n}")
        at, starts = len(self.lines), [*carried, Value(self, "i64", self._term(begin, "i64"))]
        i: Any
        *own, i = [Value(self, start.kind, f"%loop{n}.{k}") for k, start in enumerate(starts)]
        i.step, i.carried = 1, own
        if not once:
            self._branch(i < end, f"body{n}", f"end{n}")
            self._begin(f"body{n}")
        yield i
        following = self._value("i64", f"add nsw i64 {i.term}, {self._term(i.step, 'i64')}")
        for start, value, new in zip(starts, [*own, i], [*i.carried, following], strict=True):
            phi = f"phi {spelled(value.kind)} [ {start.term}, %{before} ], [ {new.term}, %{self._block} ]"
            self.lines.insert(at, f"{value.term} = {phi}")
        i.carried = own
        if once:
            self._branch(following < end, f"head{n}", f"end{n}")
        else:
            self.lines.append(f"br label %head{n}")
        self._begin(f"end{n}")

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """Write a block that is for a condition."""
        n = self._new()
        self._branch(condition, f"then{n}", f"end{n}")
        self._begin(f"then{n}")
        yield
        self.lines.append(f"br label %end{n}")
        self._begin(f"end{n}")

    def choose(self, number: Any, cases: Mapping[int, Callable[[], object]]) -> None:
        """Write what is to be done for each number; for others, nothing is."""
        n = self._new()
        labels = " ".join(f"i64 {i}, label %case{n}.{i}" for i in cases)
        self.lines.append(f"switch i64 {number.term}, label %end{n} [ {labels} ]")
        for i, write in cases.items():
            self._begin(f"case{n}.{i}")
            write()
            self.lines.append(f"br label %end{n}")
        self._begin(f"end{n}")

    def _value(self, kind: str, text: str) -> Any:
        value = Value(self, kind, f"%t{self._new()}")
        self.lines.append(f"{value.term} = {text}")
        return value

    def _term(self, x: Any, kind: str) -> str:
        if isinstance(x, Value):
            return x.term
        if kind.endswith("*"):
            return "null"
        name = {"float": "float32", "double": "float64"}.get(kind)
        return DTYPES[name].llvm_literal(float(x).hex()) if name else str(x)

    def _branch(self, condition: Any, yes: str, no: str) -> None:
        self.lines.append(f"br i1 {condition.term}, label %{yes}, label %{no}")

    def _begin(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self._block = label

    def _new(self) -> int:
        self._count += 1
        return self._count
