"""What a traced program does to one element, as LLVM IR: loads, operations in the program's order, stores.

No operation carries a fast-math flag, so none is contracted or reordered: the bits are NumPy's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import storage, table
from gpuopt.engines.cpu_ir import OPERATIONS
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.passes import uniform
from gpuopt.engines.program import INEXACT, Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuopt.engines.table import Variant

# The elements are independent of each other, and LLVM is told so: a gradient may well be its own parameter.
_LOOP = """
define internal void @{name}({arguments}) {{
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
!{loop} = distinct !{{!{loop}, !{{!"llvm.loop.parallel_accesses", !{access}}}}}
"""

BYTES = {"i16": 2, "float": 4, "double": 8}
LINE = 64
"""Bytes that memory brings near at once."""


def declarations() -> list[str]:
    """IR that declares LLVM's functions, for each type that arithmetic is done in."""
    types = dict.fromkeys((dtype.llvm, dtype.llvm_suffix) for dtype in DTYPES.values())
    functions = [f"declare {T} @llvm.{name}.{S}({T})" for name in ("fabs", "sqrt", *INEXACT) for T, S in types]
    return [
        "declare i64 @llvm.smin.i64(i64, i64)",
        "declare double @llvm.fmuladd.f64(double, double, double)",
        "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
        "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)",
        *functions,
    ]


class Elements:
    """IR of some elements of a variant: what is worked out before a loop, and in it.

    Parameters
    ----------
    variant
        A program at a dtype.
    elements
        Nodes, in order.
    numbers
        Terms of the numbers that are known; others are read where they are kept.
    access
        Metadata of what is loaded and stored.

    """

    def __init__(self, variant: Variant, elements: Iterable[int], numbers: Mapping[int, str], access: str = "") -> None:
        self.variant, self.access = variant, access
        self.dtype = DTYPES[variant.dtype]
        program, T, S = variant.program, self.dtype.llvm, self.dtype.llvm_suffix  # noqa: N806 - types, as IR spells them
        self.prologue: list[str] = []
        self.body: list[str] = []
        self.values: dict[int, str] = {}
        self.arrays: list[str] = []  # that are read or written
        same = uniform(program)
        self._at: set[str] = set()
        self._chunks: dict[int, str] = {}  # of values that are elements of an array as they are, its address
        for k in elements:
            value = f"%v{k}"
            lines = self.prologue if k in same else self.body
            match program.nodes[k]:
                case Node("load", (name, *part)):
                    lines += self._loaded(value, name, part)
                    if not part and not variant.stored(name).stored:
                        self._chunks[k] = f"%a{self._column(name)}.chunk"
                case Node("coefficient", (index,)):
                    lines += [f"%c{k} = getelementptr {T}, ptr %c, i64 {index}", f"{value} = load {T}, ptr %c{k}"]
                case Node("number", (index,)):
                    number = numbers.get(index) or f"%n{k}"
                    if index not in numbers:
                        lines += [f"%n{k}.at = getelementptr double, ptr %own, i64 {index}"]
                        lines += [f"%n{k} = load double, ptr %n{k}.at"]
                    value = self.rounded(number, value, lines)
                case Node("scale", ()):
                    value = self.rounded("%scale", value, lines)
                case Node("literal", (number,)):
                    value = self.dtype.llvm_literal(number)
                case Node("where", (when, *args)) if when in same and all(a in self._chunks for a in args):
                    lines += self._either(k, when, *args)
                case Node(op, args):
                    terms = [self.values[a] for a in args]
                    lines.append(f"{value} = " + OPERATIONS[op].format(*terms, T=T, S=S))
            self.values[k] = value

    def loop(self, name: str, arguments: str, metadata: int) -> str:
        """IR of a function that does what is in the body for each of ``n`` elements, with two numbers of metadata from this one on."""
        return _LOOP.format(
            name=name,
            arguments=arguments,
            access=metadata,
            loop=metadata + 1,
            prologue="\n  ".join(self.prologue),
            body="\n  ".join(self.body),
        )

    def rounded(self, number: str, value: str, lines: list[str]) -> str:
        """A float64, rounded to the dtype of the loop."""
        if self.dtype.llvm == "double":
            return number
        lines.append(f"{value} = fptrunc double {number} to {self.dtype.llvm}")
        return value

    def at(self, name: str, *part: int) -> str:
        """Address of the loop's element of an array, or of one of its parts."""
        label = f"%a{self._column(name)}"
        if label not in self._at:
            self._at.add(label)
            if name in self.variant.program.spread:
                self.prologue += self._spread(name, label)
            else:
                self.prologue += self.chunk(name)
                self.arrays.append(name)
        return self._address(f"{label}.element", f"{label}.chunk", name, *part)

    def _spread(self, name: str, label: str) -> list[str]:
        """Lines that write out what a spread array has for each element of the chunk."""
        T, column = self.dtype.llvm, table.spread_at(self.variant.program, name)  # noqa: N806 - a type
        return [
            *self._leaf(name),
            f"{label}.span.at = getelementptr i64, ptr %row, i64 {column}",
            f"{label}.span = load i64, ptr {label}.span.at",
            f"{label}.inner.at = getelementptr i64, ptr %row, i64 {column + 1}",
            f"{label}.inner = load i64, ptr {label}.inner.at",
            f"{label}.chunk = alloca [{table.CHUNK} x {T}], align 64",
            f"call void @spread.{T}(ptr {label}.leaf, i64 %start, i64 %n, i64 {label}.span, i64 {label}.inner, ptr {label}.chunk)",
        ]

    def store(self, name: str, part: tuple[int, ...], value: int, when: int | None) -> None:
        """Write an element; where it is not to be written, the write goes to a place that nobody reads."""
        T, stored, term = self.dtype.llvm, self.variant.stored(name), self.values[value]  # noqa: N806 - a type
        if not stored.stored:
            self._write(T, term, name, part, when)
        elif name == "p" and self.variant.precision == "split":
            for half, where in (("high", "p"), ("low", storage.LOW)):
                self.body.append(f"%p.{half} = call i16 @{half}(float {term})")
                self._write("i16", f"%p.{half}", where, part, when)
        elif name == "p" and self.variant.precision == "stochastic":
            self.prologue += [
                f"%number.at = getelementptr i64, ptr %row, i64 {table.REST}",
                "%number = load i64, ptr %number.at",
                "%leaf.key = call i64 @leaf.key(i64 %key, i64 %number)",
                "%first = lshr i64 %number, 32",
                "%at.start = add i64 %first, %start",
            ]
            self.body += [
                "%element = add i64 %at.start, %i",
                "%random = call i32 @random(i64 %leaf.key, i64 %element)",
                f"%p.bits = call i16 @random.{stored.name}(float {term}, i32 %random)",
            ]
            self._write("i16", "%p.bits", name, part, when)
        else:
            narrow = f"%w{self._column(name)}"
            self.body.append(f"{narrow} = call i16 @narrow.{stored.name}(float {term})")
            self._write("i16", narrow, name, part, when)

    def _write(self, kind: str, term: str, name: str, part: tuple[int, ...], when: int | None) -> None:
        T, address = self.dtype.llvm, self.at(name, *part)  # noqa: N806 - a type
        if when is not None:
            label = f"%a{self._column(name)}"
            if "%unread" not in self._at:
                self._at.add("%unread")
                self.prologue.append(f"%unread = alloca [{table.CHUNK * self.dtype.parts} x {T}], align 64")
            kept = f"{label}.kept{self.values[when].lstrip('%')}"
            if kept not in self._at:
                self._at.add(kept)
                self.prologue.append(f"{kept} = select i1 {self.values[when]}, ptr {label}.chunk, ptr %unread")
            address = self._address(f"{label}.written", kept, name, *part)
        self.body.append(f"store {kind} {term}, ptr {address}{self.access}")

    def _loaded(self, value: str, name: str, part: Iterable[int]) -> list[str]:
        """Lines that read an element."""
        address, stored = self.at(name, *part), self.variant.stored(name)
        if not stored.stored:
            return [f"{value} = load {self.dtype.llvm}, ptr {address}{self.access}"]
        lines = [f"{value}.bits = load i16, ptr {address}{self.access}"]
        if name == "p" and self.variant.precision == "split":
            lines.append(f"{value}.low = load i16, ptr {self.at(storage.LOW)}{self.access}")
            return [*lines, f"{value} = call float @joined(i16 {value}.bits, i16 {value}.low)"]
        return [*lines, f"{value} = call float @wide.{stored.name}(i16 {value}.bits)"]

    def _either(self, k: int, when: int, *args: int) -> list[str]:
        """Lines that read an element of one of two arrays: a truth value of the whole leaf has chosen it before the loop."""
        first, second = (self._chunks[a] for a in args)
        label, T = f"%e{k}", self.dtype.llvm  # noqa: N806 - a type
        self._chunks[k] = f"{label}.chunk"
        self.prologue.append(f"{label}.chunk = select i1 {self.values[when]}, ptr {first}, ptr {second}")
        return [
            f"{label}.element = getelementptr inbounds {T}, ptr {label}.chunk, i64 %i",
            f"%v{k} = load {T}, ptr {label}.element{self.access}",
        ]

    def _type(self, name: str) -> str:
        """The type of an array's elements."""
        if name == storage.LOW or self.variant.stored(name).stored:
            return "i16"
        return f"[2 x {self.dtype.llvm}]" if name in self.variant.program.pairs else self.dtype.llvm

    def _address(self, label: str, chunk: str, name: str, *part: int) -> str:
        label += "".join(map(str, part))
        if label not in self._at:
            self._at.add(label)
            indices = "".join(f", i64 {k}" for k in ("%i", *part))
            self.body.append(f"{label} = getelementptr inbounds {self._type(name)}, ptr {chunk}{indices}")
        return label

    def extended(self, value: int, name: str) -> str:
        """An element as a float64."""
        if self.dtype.llvm == "double":
            return self.values[value]
        self.body.append(f"{name} = fpext float {self.values[value]} to double")
        return name

    def chunk(self, name: str) -> list[str]:
        """Lines that work out the address of an array's part that is a chunk."""
        label = f"%a{self._column(name)}"
        return [*self._leaf(name), f"{label}.chunk = getelementptr {self._type(name)}, ptr {label}.leaf, i64 %start"]

    def _leaf(self, name: str) -> list[str]:
        """Lines that load the address of an array."""
        column = self._column(name)
        if column == 0:
            return ["%a0.leaf = getelementptr i8, ptr %g.leaf, i64 0"]
        return [
            f"%a{column}.at = getelementptr i64, ptr %row, i64 {column}",
            f"%a{column}.leaf = load ptr, ptr %a{column}.at",
        ]

    def ahead(self, element: str, count: int) -> list[str]:
        """Lines that have so many elements from this one of the chunk on brought near, of every array."""
        lines = []
        for name in self.arrays:
            label, kind = f"%a{self._column(name)}", self._type(name)
            size = BYTES[kind.removeprefix("[2 x ").rstrip("]")] * (2 if kind.startswith("[") else 1)
            lines.append(f"{label}.ahead = getelementptr {kind}, ptr {label}.chunk, i64 {element}")
            for offset in range(0, count * size, LINE):
                lines += [
                    f"{label}.ahead{offset} = getelementptr i8, ptr {label}.ahead, i64 {offset}",
                    f"call void @llvm.prefetch.p0(ptr {label}.ahead{offset}, i32 0, i32 2, i32 1)",
                ]
        return lines

    def _column(self, name: str) -> int:
        fixed = {"g": 0, "p": table.PARAMETER, storage.LOW: table.REST}
        return fixed[name] if name in fixed else table.SLOTS + self.variant.program.slots.index(name)
