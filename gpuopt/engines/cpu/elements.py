"""What a traced program does to one element, as LLVM IR: loads, operations in the program's order, stores.

No operation carries a fast-math flag, so none is contracted or reordered: the bits are NumPy's.
"""

from __future__ import annotations

import functools
import operator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuopt.engines import storage, table
from gpuopt.engines.cpu import walks
from gpuopt.engines.cpu.ir import SIZES, Function
from gpuopt.engines.cpu.numbers import Numbers
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.program.passes import uniform
from gpuopt.engines.program.program import INEXACT, Node
from gpuopt.engines.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gpuopt.engines.program.passes import Store
    from gpuopt.engines.table import Variant

# The elements are independent of each other, and LLVM is told so: a gradient may well be its own parameter.
_LOOP = """
define internal void @{name}({arguments}) {attributes} {{
  {prologue}
  br label %loop
loop:
  %i = phi i64 [ 0, %0 ], [ %i.next, %loop ]
  {body}
  %i.next = add nuw nsw i64 %i, 1
  %more = icmp slt i64 %i.next, %n
  br i1 %more, label %loop, label %exit, !llvm.loop !{loop}
exit:
  ret void
}}
!{access} = distinct !{{}}
!{loop} = distinct !{{!{loop}, !{{!"llvm.loop.parallel_accesses", !{access}}}{hint}}}
"""
_CHOICE = """
define internal void @{name}({arguments}) {{
  {prologue}
  br i1 {fit}, label %few, label %all
few:
  call void @{name}.few({arguments})
  ret void
all:
  call void @{name}.all({arguments})
  ret void
}}
"""
FEW = 2
"""Copies of arrays of one kind that a loop has room for, where a truth value of the whole leaf says of each whether it is done."""
_TWO_AT_A_TIME = ', !{!"llvm.loop.interleave.count", i32 2}'
"""Metadata of a loop that does two vectors side by side: for leaves of 16 bits, where one waits for its conversions."""

LINE = 64
"""Bytes of a cache line."""


def declarations() -> list[str]:
    """IR that declares LLVM's functions, for each type that arithmetic is done in."""
    types = dict.fromkeys((dtype.llvm, dtype.llvm_suffix) for dtype in DTYPES.values())
    functions = [f"declare {T} @llvm.{name}.{S}({T})" for name in ("fabs", "sqrt", *INEXACT) for T, S in types]
    return [
        "declare i64 @llvm.smin.i64(i64, i64)",
        "declare double @llvm.fmuladd.f64(double, double, double)",
        "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
        "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)",
        f"@{ZEROS} = internal global [{table.CHUNK * 2} x double] zeroinitializer, align 64",
        *functions,
    ]


class _Source(NamedTuple):
    """An element of an array as it is: its chunk, the way it is read, and the name of an array that is read so."""

    chunk: Any
    way: tuple[Any, ...]
    name: str


class _Operation(NamedTuple):
    """An operation of elements of arrays, by their forms."""

    op: str
    of: tuple[Any, ...]


class _Zero(NamedTuple):
    """The number 0."""


class Copy(NamedTuple):
    """A store of an element of an array as it is, and the truth value that says whether it is done."""

    store: Store
    when: Any
    source: _Source


_Form = _Source | _Operation | _Zero
"""A value that a loop can choose by the address it reads from, without a branch."""
_ZERO = (0.0).hex()
ZEROS = "zeros"
"""The name of a chunk of zeros, of whatever type."""


class Elements:
    """LLVM IR that works out some elements of a variant: the lines before a loop and the lines in the loop.

    Parameters
    ----------
    variant
        A program at a dtype.
    elements
        Nodes, in order.
    metadata
        That of what is loaded and stored in the loop.
    before
        Numbers that are worked out before the loop; others are read where they are kept.

    Attributes
    ----------
    f
        What the loop is written into.
    prologue
        Lines before it.
    values
        Of each node.
    arrays
        Those that are read at every element, and not only where one of two is chosen.

    """

    def __init__(self, variant: Variant, elements: Iterable[int], metadata: int, before: Iterable[int] = ()) -> None:
        self.variant, self.dtype = variant, DTYPES[variant.dtype]
        self.f = f = Function("", walks.TYPED)
        numbers = Numbers(f, variant.program)
        numbers.write(before)
        known = {k: numbers.as_float(k) for k in before}
        self.prologue, f.lines = f.lines, []
        self._access = f.access = f", !llvm.access.group !{metadata}"
        self._i = Value(f, "i64", "%i")
        self._chunks: dict[Any, Any] = {}
        self._forms: dict[int, _Form] = {}
        self.values: dict[int, Any] = {}
        self.arrays: dict[str, None] = {}
        same = uniform(variant.program)
        for k in elements:
            with self._before() if k in same else nullcontext():
                match variant.program.nodes[k]:
                    case Node("load", (name, *part)):
                        self._forms[k] = self._source(name, part)
                        self.values[k] = self._written(self._forms[k])
                    case Node("coefficient", (index,)):
                        self.values[k] = f.given["c"].bits(f"{self.dtype.llvm}*")[index]
                    case Node("constant", (index,)):
                        column = table.constants_at(variant.program) + index
                        self.values[k] = self._rounded(f.given["row"].bits("double*")[column])
                    case Node("number", (index,)):
                        self.values[k] = self._rounded(known[index] if index in known else f.given["own"][index])
                    case Node("scale", ()):
                        self.values[k] = self._rounded(f.given["scale"])
                    case Node("literal", (number,)):
                        self.values[k] = Value(f, self.dtype.llvm, self.dtype.llvm_literal(number))
                        if number == _ZERO:
                            self._forms[k] = _Zero()
                    case Node("where", (when, a, b)) if when in same and (form := self._either(when, a, b)):
                        self._forms[k], self.values[k] = form, self._written(form)
                    case Node(op, args):
                        self.values[k] = f.operation(op, *map(self._value, args))
                        if all(isinstance(self._forms.get(a), _Source) for a in args):
                            self._forms[k] = _Operation(op, tuple(self._forms[a] for a in args))

    def loop(self, name: str, arguments: str, metadata: int, attributes: str = "") -> str:
        """IR of a function that does what is written for each of ``n`` elements, with two numbers of metadata from this one on."""
        return _LOOP.format(
            name=name,
            arguments=arguments,
            attributes=attributes,
            access=metadata,
            loop=metadata + 1,
            hint=_TWO_AT_A_TIME if self.variant.precision else "",
            prologue="\n  ".join(self.prologue),
            body="\n  ".join(self.f.lines),
        )

    def store(self, name: str, part: tuple[int, ...], value: int, when: int | None) -> None:
        """Write an element; where it is not to be written, the write goes to a place that nobody reads."""
        f, stored, x = self.f, self.variant.stored(name), self._value(value)
        if self._is_split(name):
            self._write(f.call("low", x, kind="i16"), storage.LOW, part, when)
            x = f.call("high", x, kind="i16")
        elif stored.stored and name == "p" and self.variant.precision == "stochastic":
            with self._before():
                number = f.given["row"][table.REST]
                key = f.call("leaf.key", f.given["key"], number, kind="i64")
                first = ((number >> 32) + f.given["start"]).cast("i32")
            random = f.call("random", key, first + self._i.cast("i32"), kind="i32")
            x = f.call(f"random.{stored.name}", x, random, kind="i16")
        elif stored.stored:
            x = f.call(f"narrow.{stored.name}", x, kind="i16")
        self._write(x, name, part, when)

    def copies(self, stores: Iterable[Store]) -> list[Copy]:
        """What copies an array to another one if a truth value of the leaf says so, where there are more than a `FEW` of a kind."""
        kinds: dict[Any, list[Copy]] = {}
        for store in stores:
            form = self._forms.get(store.value)
            if store.when is None or not isinstance(form, _Source):
                continue
            if form.way == self._source(store.name, store.part).way:
                kinds.setdefault(form.way, []).append(Copy(store, self.values[store.when], form))
        return [copy for own in kinds.values() if len(own) > FEW for copy in own]

    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy an element of each that is done, of which there are a `FEW` of a kind; before anything is stored."""
        f, kinds = self.f, dict[Any, list[tuple[Any, ...]]]()
        with self._before():
            for store, when, source in copies:
                done = kinds.setdefault(source.way, [(source.chunk, self._unread())] * FEW)
                moved_on = [(source.chunk, self._chunk(store.name)), *done[:-1]]
                done[:] = [
                    tuple(f.where(when, *pair) for pair in zip(new, old, strict=True))
                    for new, old in zip(moved_on, done, strict=True)
                ]
        found = [
            (f.load(f.at(source, self._i, *way[-1])), f.at(target, self._i, *way[-1]))
            for way, done in kinds.items()
            for source, target in done
        ]
        for x, address in found:
            f.store(x, address)

    def choice(self, name: str, copies: Iterable[Copy]) -> str:
        """IR of a function that calls ``.few`` of this name if no more than a `FEW` of the copies of a kind are done, else ``.all``."""
        counts: dict[Any, Any] = {}
        with self._before():
            for _, when, source in copies:
                one = when.cast("i64")
                counts[source.way] = counts[source.way] + one if source.way in counts else one
            fit = functools.reduce(operator.and_, [count <= FEW for count in counts.values()])
        prologue = "\n  ".join(self.prologue)
        return _CHOICE.format(name=name, arguments=walks.ARGUMENTS, prologue=prologue, fit=fit.term)

    def set_item(self, pointer: str, value: int) -> None:
        """Write an element into an array of the loop's dtype, by the name of its address."""
        Value(self.f, f"{self.dtype.llvm}*", pointer)[self._i] = self._value(value)

    def extended(self, value: int) -> Any:
        """An element as a float64."""
        found = self._value(value)
        return found if self.dtype.llvm == "double" else found.cast("double")

    def write_ahead(self, f: Function, element: Any, count: int) -> None:
        """Have so many elements from this one of the chunk on brought near, of every array."""
        for name in self.arrays:
            size = SIZES[self._kind(name)] // 8 if self._kind(name) in SIZES else 2 * SIZES[self.dtype.llvm] // 8
            address = self._start(f, name).at(element).bits("i8*")
            for offset in range(0, count * size, LINE):
                f.lines.append(f"call void @llvm.prefetch.p0(ptr {address.at(offset).term}, i32 0, i32 2, i32 1)")

    @contextmanager
    def _before(self) -> Iterator[None]:
        """Write what is done before the loop."""
        f, body, access = self.f, self.f.lines, self.f.access
        f.lines, f.access = self.prologue, ""
        yield
        f.lines, f.access = body, access

    def _rounded(self, number: Any) -> Any:
        """A float64, rounded to the dtype of the loop."""
        return number if self.dtype.llvm == "double" else number.cast(self.dtype.llvm)

    def _value(self, k: int) -> Any:
        """The value of a node that is made use of."""
        match self.variant.program.nodes[k]:
            case Node("load", (name, *_)) if name not in self.variant.program.spread:
                self.arrays[name] = None
        return self.values[k]

    def _loaded(self, chunk: Any, name: str, part: Sequence[int]) -> Any:
        """An element of a chunk, which is stored as those of an array are."""
        f, stored = self.f, self.variant.stored(name)
        found = f.load(f.at(chunk, self._i, *part))
        if not stored.stored:
            return found
        if self._is_split(name):
            return f.call("joined", found, self._chunk(storage.LOW)[self._i], kind="float")
        return f.call(f"wide.{stored.name}", found, kind="float")

    def _is_split(self, name: str) -> bool:
        return name == "p" and self.variant.precision == "split" and bool(self.variant.stored(name).stored)

    def _source(self, name: str, part: Sequence[int]) -> _Source:
        """Return the form of an element that is read from an array unchanged."""
        stored = self.variant.stored(name)
        way = self._kind(name), stored.stored and stored.name, self._is_split(name), tuple(part)
        return _Source(self._chunk(name), way, name)

    def _written(self, form: Any) -> Any:
        """Write the value of an element of this form."""
        if isinstance(form, _Source):
            return self._loaded(form.chunk, form.name, form.way[-1])
        return self.f.operation(form.op, *map(self._written, form.of))

    def _either(self, when: int, a: int, b: int) -> _Form | None:
        """What one of two values is that a truth value of the whole leaf has chosen before the loop: branches in a loop are no vectors.

        Of two arrays one is read, and of two operations of arrays one is done. 0 is an array of zeros, or the difference of two such.
        None if they are nothing of that.
        """
        return self._chosen(self.values[when], self._forms.get(a), self._forms.get(b))

    def _chosen(self, when: Any, a: _Form | None, b: _Form | None) -> _Form | None:
        match a, b:
            case _Source(one, way, name), _Source(other, same, _) if way == same:
                with self._before():
                    return _Source(self.f.where(when, one, other), way, name)
            case _Operation(op, of), _Operation(other, those) if op == other:
                found = tuple(self._chosen(when, *pair) for pair in zip(of, those, strict=True))
                return None if any(own is None for own in found) else _Operation(op, found)
            case ((_Source() | _Operation("sub")), _Zero()):
                return self._chosen(when, a, self._zeros(a))
            case _Zero(), (_Source() | _Operation("sub")):
                return self._chosen(when, self._zeros(b), b)
        return None

    def _zeros(self, like: _Form | None) -> _Form | None:
        """Zeros that are read as elements of an array are."""
        if isinstance(like, _Operation):
            return _Operation(like.op, tuple(map(self._zeros, like.of)))
        if not isinstance(like, _Source) or self._is_split(like.name):  # the lower half is elsewhere
            return None
        return _Source(Value(self.f, like.chunk.kind, f"@{ZEROS}"), like.way, like.name)

    def _write(self, x: Any, name: str, part: tuple[int, ...], when: int | None) -> None:
        chunk = self._chunk(name)
        if when is not None:
            with self._before():
                if (name, when) not in self._chunks:
                    self._chunks[name, when] = self.f.where(self.values[when], chunk, self._unread())
            chunk = self._chunks[name, when]
        self.f.store(x, self.f.at(chunk, self._i, *part))

    def _unread(self) -> Any:
        """The address of a chunk that nobody reads."""
        if "unread" not in self._chunks:
            self._chunks["unread"] = self.f.room(self.dtype.llvm, table.CHUNK * self.dtype.parts)
        return self._chunks["unread"]

    def _chunk(self, name: str) -> Any:
        """The address of an array's part that is a chunk."""
        if name not in self._chunks:
            with self._before():
                if name in self.variant.program.spread:
                    self._chunks[name] = self._spread(name)
                else:
                    self._chunks[name] = self._start(self.f, name)
        return self._chunks[name]

    def _spread(self, name: str) -> Any:
        """Write out what a spread array has for each element of the chunk."""
        f, T, column = self.f, self.dtype.llvm, table.spread_at(self.variant.program, name)  # noqa: N806 - a type
        row, chunk = f.given["row"], f.room(T, table.CHUNK)
        given = f.given["start"], f.given["n"], row[column], row[column + 1]
        f.call(f"spread.{T}", row.bits(f"{T}**")[self._column(name)], *given, chunk)
        return chunk

    def _start(self, f: Function, name: str) -> Any:
        """Return the address where the chunk of an array begins."""
        kind = f"{self._kind(name)}*"
        leaf = f.given["g.leaf"].bits(kind) if name == "g" else f.given["row"].bits(f"{kind}*")[self._column(name)]
        return leaf.at(f.given["start"])

    def _kind(self, name: str) -> str:
        """The type of an array's elements."""
        if name == storage.LOW or self.variant.stored(name).stored:
            return "i16"
        return f"[2 x {self.dtype.llvm}]" if name in self.variant.program.pairs else self.dtype.llvm

    def _column(self, name: str) -> int:
        fixed = {"p": table.PARAMETER, storage.LOW: table.REST}
        return fixed[name] if name in fixed else table.SLOTS + self.variant.program.slots.index(name)
