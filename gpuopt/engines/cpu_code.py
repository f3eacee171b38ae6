"""Traced programs as LLVM IR: functions ``(context, begin, end)`` that work on some chunks of a table.

The context is an array of pointers. No operation carries a fast-math flag, so none is contracted or reordered: the bits are NumPy's.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from gpuopt.engines import norms, storage, table
from gpuopt.engines.dtypes import DTYPES, DType
from gpuopt.engines.passes import passes, uniform, update
from gpuopt.engines.trace import COMPARISONS, INEXACT, LOGIC, Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gpuopt.engines.passes import Batch, Pass
    from gpuopt.engines.table import Variant
    from gpuopt.engines.trace import Program

_OPERATIONS = {
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

# Walks over the chunks of a table, and leaves out segments without a gradient.
_OVER_CHUNKS = """
define void @{name}(ptr %context, i64 %begin, i64 %end) {{
entry:
{context}
  %key.at = getelementptr i8, ptr %values, i64 {KEY}
  %key = load i64, ptr %key.at
  %any = icmp slt i64 %begin, %end
  br i1 %any, label %chunk, label %exit
chunk:
  %k = phi i64 [ %begin, %entry ], [ %k.next, %next ]
  %segment.at = getelementptr [2 x i64], ptr %chunks, i64 %k
  %segment = load i64, ptr %segment.at
  %start.at = getelementptr i64, ptr %segment.at, i64 1
  %start = load i64, ptr %start.at
  %row = getelementptr [{columns} x i64], ptr %table, i64 %segment
  %gradient.at = getelementptr ptr, ptr %gradients, i64 %segment
  %gradient = load ptr, ptr %gradient.at
  {before}
  %left.alone = icmp eq ptr %gradient, null
  br i1 %left.alone, label %next, label %present
present:
  %scale.at = getelementptr double, ptr %scales, i64 %segment
  %scale = load double, ptr %scale.at
  %length = load i64, ptr %row
  %rest = sub i64 %length, %start
  %n = call i64 @llvm.smin.i64(i64 %rest, i64 {CHUNK})
  %offset.at = getelementptr i64, ptr %row, i64 {COEFFICIENTS}
  %offset = load i64, ptr %offset.at
  %c = getelementptr i8, ptr %values, i64 %offset
  %h.offset.at = getelementptr i64, ptr %row, i64 {SCALARS}
  %h.offset = load i64, ptr %h.offset.at
  %h = getelementptr i8, ptr %values, i64 %h.offset
  %own = getelementptr [{numbers} x double], ptr %numbers, i64 %segment
  %variant.at = getelementptr i64, ptr %row, i64 {VARIANT}
  %variant = load i64, ptr %variant.at
  switch i64 %variant, label %next [ {cases} ]
{calls}
next:
  %k.next = add nsw i64 %k, 1
  %more = icmp slt i64 %k.next, %end
  br i1 %more, label %chunk, label %exit
exit:
  ret void
}}
"""

_ADVANCE = """
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define void @advance(ptr %context, i64 %begin, i64 %end) {{
entry:
{context}
  %any = icmp slt i64 %begin, %end
  br i1 %any, label %chunk, label %exit
chunk:
  %k = phi i64 [ %begin, %entry ], [ %k.next, %next ]
  %segment.at = getelementptr [2 x i64], ptr %chunks, i64 %k
  %segment = load i64, ptr %segment.at
  %start.at = getelementptr i64, ptr %segment.at, i64 1
  %start = load i64, ptr %start.at
  %row = getelementptr [{columns} x i64], ptr %table, i64 %segment
  %own = getelementptr [{arrays} x [2 x i64]], ptr %moves, i64 %segment
  %gradient.at = getelementptr ptr, ptr %gradients, i64 %segment
  %gradient = load ptr, ptr %gradient.at
  %left.alone = icmp eq ptr %gradient, null
  br i1 %left.alone, label %next, label %present
present:
  %length = load i64, ptr %row
  %rest = sub i64 %length, %start
  %n = call i64 @llvm.smin.i64(i64 %rest, i64 {CHUNK})
  br label %move
move:
  %a = phi i64 [ 0, %present ], [ %a.next, %move ]
  %from.at = getelementptr [2 x i64], ptr %own, i64 %a
  %from = load ptr, ptr %from.at
  %size.at = getelementptr i64, ptr %from.at, i64 1
  %size = load i64, ptr %size.at
  %column = add i64 %a, {PARAMETER}
  %to.at = getelementptr ptr, ptr %row, i64 %column
  %to = load ptr, ptr %to.at
  %offset = mul i64 %start, %size
  %bytes = mul i64 %n, %size
  %source = getelementptr i8, ptr %from, i64 %offset
  %target = getelementptr i8, ptr %to, i64 %offset
  call void @llvm.memcpy.p0.p0.i64(ptr %target, ptr %source, i64 %bytes, i1 false)
  %a.next = add nuw nsw i64 %a, 1
  %others = icmp slt i64 %a.next, {arrays}
  br i1 %others, label %move, label %update
update:
  %k.after = add nsw i64 %k, 1
  call void @step(ptr %step, i64 %k, i64 %k.after)
  br label %next
next:
  %k.next = add nsw i64 %k, 1
  %more = icmp slt i64 %k.next, %end
  br i1 %more, label %chunk, label %exit
exit:
  ret void
}}
"""

_CALL = """variant{i}:
  call void @{function}{i}(ptr %row, ptr %gradient, double %scale, i64 %key, i64 %start, ptr %c, ptr %h, ptr %own, i64 %n{more})
  br label %next"""

_ARGUMENTS = "ptr %row, ptr %g.leaf, double %scale, i64 %key, i64 %start, ptr %c, ptr %h, ptr %own, i64 %n"

# The elements are independent of each other, and LLVM is told so: a gradient may well be its own parameter.
_UPDATE = """
define internal void @update{i}({arguments}) {{
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


def source(variants: tuple[Variant, ...]) -> str:
    """LLVM IR of the functions that know these variants: ``pass0``, ``numbers0``, ``pass1``, ..., and ``step``."""
    functions = ("fabs", "sqrt", *INEXACT)
    declarations = [f"declare {T} @llvm.{name}.{S}({T})" for name in functions for T, S in _types()]
    code = ["declare i64 @llvm.smin.i64(i64, i64)", *declarations]
    if any(v.precision for v in variants):
        code.append(storage.LLVM)
    code.append(_over_chunks("step", "update", variants, range(len(variants))))
    code += [_update(i, variant) for i, variant in enumerate(variants)]
    if table.reduction_passes(variants):
        code += [_HALVE.format(name=name, LANES=norms.LANES, HALF=norms.LANES // 2, both=_BOTH[name]) for name in _BOTH]
    metadata = itertools.count(2 * len(variants), 2)
    for k in range(table.reduction_passes(variants)):
        code += _pass(k, variants, metadata)
    return "\n".join(code)


CONTEXT = (
    "table",
    "gradients",
    "scales",
    "chunks",
    "values",
    "numbers",
    "partials",
    "found",
    "totals",
    "first",
    "sizes",
)
"""What the pointers of the context point to; see `gpuopt.engines.cpu`."""


def _over_chunks(
    name: str, function: str, variants: tuple[Variant, ...], own: Iterable[int], before: str = "", more: str = ""
) -> str:
    numbered = list(own)
    return _OVER_CHUNKS.format(
        name=name,
        context=_context(*CONTEXT),
        columns=table.columns(variants),
        before=before,
        numbers=max(len(v.program.numbers) for v in variants),
        CHUNK=table.CHUNK,
        KEY=table.KEY,
        COEFFICIENTS=table.COEFFICIENTS,
        SCALARS=table.SCALARS,
        VARIANT=table.VARIANT,
        cases=" ".join(f"i64 {i}, label %variant{i}" for i in numbered),
        calls="\n".join(_CALL.format(i=i, function=function, more=more) for i in numbered),
    )


class _Loop:
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
        same = uniform(program)
        self._at: set[str] = set()
        for k in elements:
            value = f"%v{k}"
            lines = self.prologue if k in same else self.body
            match program.nodes[k]:
                case Node("load", (name, *part)):
                    lines += self._loaded(value, name, part)
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
                case Node(op, args):
                    terms = [self.values[a] for a in args]
                    lines.append(f"{value} = " + _OPERATIONS[op].format(*terms, T=T, S=S))
            self.values[k] = value

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
            self.prologue += self.leaf(name)
            self.prologue.append(f"{label}.chunk = getelementptr {self._type(name)}, ptr {label}.leaf, i64 %start")
        return self._address(f"{label}.element", f"{label}.chunk", name, *part)

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

    def leaf(self, name: str) -> list[str]:
        """Lines that load the address of an array."""
        column = self._column(name)
        if column == 0:
            return ["%a0.leaf = getelementptr i8, ptr %g.leaf, i64 0"]
        return [
            f"%a{column}.at = getelementptr i64, ptr %row, i64 {column}",
            f"%a{column}.leaf = load ptr, ptr %a{column}.at",
        ]

    def _column(self, name: str) -> int:
        fixed = {"g": 0, "p": table.PARAMETER, storage.LOW: table.REST}
        return fixed[name] if name in fixed else table.SLOTS + self.variant.program.slots.index(name)


def advance(variants: tuple[Variant, ...]) -> str:
    """LLVM IR of the kernel that brings every chunk to another place before it is updated there."""
    columns = table.SLOTS + max(len(v.program.slots) for v in variants)
    return source(variants) + _ADVANCE.format(
        context=_context("step", "table", "gradients", "chunks", "moves"),
        columns=columns,
        arrays=columns - table.PARAMETER,
        PARAMETER=table.PARAMETER,
        CHUNK=table.CHUNK,
    )


def _update(i: int, variant: Variant) -> str:
    """The loop of one variant over ``n`` elements from ``start``."""
    last = update(variant.program)
    access, loop = 2 * i, 2 * i + 1
    code = _Loop(variant, last.elements, {}, f", !llvm.access.group !{access}")
    for store in last.stores:
        code.store(store.name, store.part, store.value, store.when)
    if not last.stores:
        return f"define internal void @update{i}({_ARGUMENTS}) {{\n  ret void\n}}"
    return _UPDATE.format(
        i=i,
        arguments=_ARGUMENTS,
        access=access,
        loop=loop,
        prologue="\n  ".join(code.prologue),
        body="\n  ".join(code.body),
    )


# See gpuopt.engines.norms: lanes in order, then halves.
_REDUCE = """
define internal void @reduce{label}({arguments}, ptr %out) {{
  %lanes = alloca [{width} x double], align 64
  {prologue}
  br label %clear
clear:
  %z = phi i64 [ 0, %0 ], [ %z.next, %clear ]
  {clear}
  %z.next = add nuw nsw i64 %z, 1
  %z.more = icmp slt i64 %z.next, {LANES}
  br i1 %z.more, label %clear, label %stretch
stretch:
  %first = phi i64 [ 0, %clear ], [ %first.next, %stretch.end ]
  %rest = sub i64 %n, %first
  %count = call i64 @llvm.smin.i64(i64 %rest, i64 {LANES})
  %any = icmp sgt i64 %rest, 0
  br i1 %any, label %element, label %halve
element:
  %lane = phi i64 [ 0, %stretch ], [ %lane.next, %element ]
  %i = add nuw nsw i64 %first, %lane
  {body}
  %lane.next = add nuw nsw i64 %lane, 1
  %more = icmp slt i64 %lane.next, %count
  br i1 %more, label %element, label %stretch.end, !llvm.loop !{loop}
stretch.end:
  %first.next = add nuw nsw i64 %first, {LANES}
  br label %stretch
halve:
  {halve}
  ret void
}}
!{access} = distinct !{{}}
!{loop} = distinct !{{!{loop}, !{{!"llvm.loop.parallel_accesses", !{access}}}}}
"""

_HALVE = """
define internal double @halve.{name}(ptr %lanes) noinline {{
  br label %halve
halve:
  %half = phi i64 [ {HALF}, %0 ], [ %half.next, %halve.end ]
  br label %pair
pair:
  %j = phi i64 [ 0, %halve ], [ %j.next, %pair ]
  %low.at = getelementptr inbounds double, ptr %lanes, i64 %j
  %high.at = getelementptr inbounds double, ptr %low.at, i64 %half
  %low = load double, ptr %low.at
  %high = load double, ptr %high.at
  {both}
  store double %both, ptr %low.at
  %j.next = add nuw nsw i64 %j, 1
  %pairs = icmp slt i64 %j.next, %half
  br i1 %pairs, label %pair, label %halve.end
halve.end:
  %half.next = lshr i64 %half, 1
  %again = icmp sgt i64 %half.next, 0
  br i1 %again, label %halve, label %end
end:
  %sum = load double, ptr %lanes
  ret double %sum
}}
"""

_LARGER = """%{0}.gt = fcmp ogt double %{1}, %{2}
  %{0}.nan = fcmp uno double %{1}, %{1}
  %{0}.first = or i1 %{0}.gt, %{0}.nan
  %{0} = select i1 %{0}.first, double %{1}, double %{2}"""
"""The larger one of two; NaN if either is."""
_BOTH = {"sum": "%both = fadd double %low, %high", "max": _LARGER.format("both", "low", "high")}
_IDENTITY = {"sum": "0.0", "max": "0xFFF0000000000000"}


def _pass(k: int, variants: tuple[Variant, ...], metadata: Iterator[int]) -> list[str]:
    """A reduction pass, and the numbers that are worked out after it."""
    sums, largest = table.widths(k, variants)
    own = {i: found[k] for i, v in enumerate(variants) if len(found := passes(v.program)) > k}
    width = sums + largest
    before = [f"%out = getelementptr [{width} x double], ptr %partials, i64 %k"]
    for column in range(width):
        before += [
            f"%out{column} = getelementptr double, ptr %out, i64 {column}",
            f"store double {_IDENTITY['sum' if column < sums else 'max']}, ptr %out{column}",
        ]
    reducing = [i for i, p in own.items() if p.reductions]
    code = [_over_chunks(f"pass{k}", f"reduce{k}.", variants, reducing, "\n  ".join(before), ", ptr %out")]
    for i in reducing:
        loops = range(len(own[i].batches))
        calls = "\n  ".join(f"call void @reduce{k}.{i}.{n}({_ARGUMENTS}, ptr %out)" for n in loops)
        code += [_reduce(f"{k}.{i}.{n}", variants[i], own[i], own[i].batches[n], sums, next(metadata)) for n in loops]
        code.append(f"define internal void @reduce{k}.{i}({_ARGUMENTS}, ptr %out) {{\n  {calls}\n  ret void\n}}")
    code.append(_numbers(k, variants, own, sums, largest))
    return code


def _reduce(label: str, variant: Variant, own: Pass, batch: Batch, sums: int, metadata: int) -> str:
    """One loop of one variant over a chunk. Lanes are independent of each other, and LLVM is told so."""
    numbers, lines = _Numbers(variant.program, known=False).emit(own.before)
    for number in [n for n in own.before if variant.program.numbers[n].op in (*COMPARISONS, *LOGIC)]:
        lines.append(f"%m{number}.one = uitofp i1 {numbers[number]} to double")
        numbers[number] = f"%m{number}.one"
    access = f", !llvm.access.group !{metadata}"
    code = _Loop(variant, batch.elements, numbers, access)
    clear: list[str] = []
    halve: list[str] = []
    count = 0
    for r in batch.reductions:
        kind = "max" if r.kind == "max" else "sum"
        out = r.column + (sums if r.kind == "max" else 0)
        for n, term in enumerate(_terms(code, r.number, r.kind, r.args)):
            name = f"r{r.number}.{n}"
            code.prologue.append(f"%{name}.lanes = getelementptr double, ptr %lanes, i64 {count * norms.LANES}")
            clear += [
                f"%{name}.z = getelementptr inbounds double, ptr %{name}.lanes, i64 %z",
                f"store double {_IDENTITY[kind]}, ptr %{name}.z",
            ]
            code.body += [
                f"%{name}.at = getelementptr inbounds double, ptr %{name}.lanes, i64 %lane",
                f"%{name}.before = load double, ptr %{name}.at{access}",
                _LARGER.format(f"{name}.both", f"{name}.before", term)
                if kind == "max"
                else f"%{name}.both = fadd double %{name}.before, {term}",
                f"store double %{name}.both, ptr %{name}.at{access}",
            ]
            halve += [
                f"%{name}.sum = call double @halve.{kind}(ptr %{name}.lanes)",
                f"%{name}.out = getelementptr double, ptr %out, i64 {out + n}",
                f"store double %{name}.sum, ptr %{name}.out",
            ]
            count += 1
        if r.kind == "norm" and code.dtype.squares_fit:
            halve += _kept_infinite(f"r{r.number}", out + 1)
    return _REDUCE.format(
        label=label,
        arguments=_ARGUMENTS,
        width=count * norms.LANES,
        LANES=norms.LANES,
        access=metadata,
        loop=metadata + 1,
        prologue="\n  ".join([*lines, *code.prologue]),
        clear="\n  ".join(clear),
        body="\n  ".join(code.body),
        halve="\n  ".join(halve),
    )


def _terms(code: _Loop, number: int, kind: str, args: tuple[int, ...]) -> list[str]:
    """What an element adds to each column of a reduction."""
    extended = [code.extended(arg, f"%r{number}.x{k}") for k, arg in enumerate(args)]
    count = len(args) // 2 if kind == "dot" else len(args)  # parts of a number
    x = extended[0]
    match kind:
        case "dot":
            products = [f"%r{number}.product{k}" for k in range(count)]
            for k, product in enumerate(products):
                code.body.append(f"{product} = fmul double {extended[k]}, {extended[k + count]}")
            return [_added(code, products, f"%r{number}.product")]
        case "norm":
            squares = []
            for n, scale in enumerate(norms.SCALES[:1] if code.dtype.squares_fit else norms.SCALES):
                factor = DTYPES["float64"].llvm_literal(scale.hex())
                own = []
                for k, x in enumerate(extended):
                    scaled, square = f"%r{number}.scaled{n}.{k}", f"%r{number}.square{n}.{k}"
                    code.body += [f"{scaled} = fmul double {x}, {factor}", f"{square} = fmul double {scaled}, {scaled}"]
                    own.append(square)
                squares.append(_added(code, own, f"%r{number}.square{n}"))
            return squares
        case "max":
            code.body.append(f"%r{number}.new = fadd double {x}, 0.0")
            return [f"r{number}.new"]
        case _:
            return [x]


def _added(code: _Loop, terms: list[str], name: str) -> str:
    """The sum of the parts of a complex number, or the one number itself."""
    if len(terms) == 2:
        code.body.append(f"{name} = fadd double {terms[0]}, {terms[1]}")
        return name
    return terms[0]


def _kept_infinite(name: str, column: int) -> list[str]:
    """Of squares that fit, the sum of the scaled ones is not taken; it has their infinities and NaN, too."""
    return [
        f"%{name}.zero = fsub double %{name}.0.sum, %{name}.0.sum",
        f"%{name}.finite = fcmp oeq double %{name}.zero, 0.0",
        f"%{name}.found = select i1 %{name}.finite, double 0.0, double %{name}.0.sum",
        f"%{name}.found.out = getelementptr double, ptr %out, i64 {column}",
        f"store double %{name}.found, ptr %{name}.found.out",
    ]


class _Numbers:
    """IR of arithmetic on numbers, in float64.

    Parameters
    ----------
    program
        Whose numbers they are.
    known
        Whether earlier numbers are kept in ``%own``, and what was reduced lies at ``%found`` and ``%totals``.

    """

    def __init__(self, program: Program, *, known: bool, columns: Mapping[int, tuple[str, int]] | None = None) -> None:
        self.program, self.known, self.columns = program, known, columns or {}

    def emit(self, wanted: Iterable[int]) -> tuple[dict[int, str], list[str]]:
        """Return a term for each of these numbers, and the lines that work it out."""
        program, lines = self.program, list[str]()
        values: dict[int, str] = {}
        for k in wanted:
            value = f"%m{k}"
            match program.numbers[k]:
                case Node("slot", (name,)):
                    column = table.SLOTS + len(program.slots) + program.number_slots.index(name)
                    lines += [
                        f"{value}.at = getelementptr i64, ptr %row, i64 {column}",
                        f"{value}.slot = load ptr, ptr {value}.at",
                        f"{value} = load double, ptr {value}.slot",
                    ]
                case Node("scalar", (index,)):
                    lines += [
                        f"{value}.at = getelementptr double, ptr %h, i64 {index}",
                        f"{value} = load double, ptr {value}.at",
                    ]
                case Node("literal", (number,)):
                    value = DTYPES["float64"].llvm_literal(number)
                case Node("reduce", (kind, *_)):
                    lines += self._reduced(value, kind, *self.columns[k])
                case Node(op, args):
                    terms = [self._term(a, values, lines) for a in args]
                    lines.append(f"{value} = " + _OPERATIONS[op].format(*terms, T="double", S="f64"))
            values[k] = value
        return values, lines

    def keep(self, values: Mapping[int, str]) -> list[str]:
        """Lines that keep numbers in ``%own``."""
        lines = []
        for k, value in values.items():
            term = value
            if self.program.numbers[k].op in (*COMPARISONS, *LOGIC):
                lines.append(f"%k{k} = uitofp i1 {value} to double")
                term = f"%k{k}"
            lines += [f"%k{k}.at = getelementptr double, ptr %own, i64 {k}", f"store double {term}, ptr %k{k}.at"]
        return lines

    def _term(self, k: int, values: dict[int, str], lines: list[str]) -> str:
        if k not in values:  # of an earlier pass
            lines += [f"%m{k}.at = getelementptr double, ptr %own, i64 {k}", f"%m{k}.kept = load double, ptr %m{k}.at"]
            values[k] = f"%m{k}.kept"
            if self.program.numbers[k].op in (*COMPARISONS, *LOGIC):
                lines.append(f"%m{k} = fcmp une double %m{k}.kept, 0.0")
                values[k] = f"%m{k}"
        return values[k]

    def _reduced(self, value: str, kind: str, over: str, column: int) -> list[str]:
        parts = []
        for n in range(3 if kind == "norm" else 1):
            part = f"{value}.{n}" if kind == "norm" else value
            parts += [
                f"{part}.at = getelementptr double, ptr %{'found' if over == 'leaf' else 'totals'}, i64 {column + n}",
                f"{part} = load double, ptr {part}.at",
            ]
        return (
            [*parts, f"{value} = call double @root(double {value}.0, double {value}.1, double {value}.2)"]
            if kind == "norm"
            else parts
        )


_ROOT = """
define internal double @root(double %plain, double %large, double %small) alwaysinline {{
  %sqrt = call double @llvm.sqrt.f64(double %plain)
  %large.root = call double @llvm.sqrt.f64(double %large)
  %large.norm = fmul double %large.root, {LARGE}
  %small.root = call double @llvm.sqrt.f64(double %small)
  %small.norm = fmul double %small.root, {SMALL}
  %zero = fsub double %plain, %plain
  %finite = fcmp oeq double %zero, 0.0
  %norm = select i1 %finite, double %sqrt, double %large.norm
  %tiny = fcmp olt double %plain, {TINY}
  %root = select i1 %tiny, double %small.norm, double %norm
  ret double %root
}}
"""

# On one thread: what chunks found is added up for each leaf, then for each group, in order; then numbers are worked out.
_NUMBERS = """
define internal double @added{k}(i1 %is.max, double %before, double %new) alwaysinline {{
  %sum = fadd double %before, %new
  {larger}
  %both = select i1 %is.max, double %larger, double %sum
  ret double %both
}}

define void @numbers{k}(ptr %context, i64 %begin, i64 %end) {{
entry:
{context}
  %segments = load i64, ptr %sizes
  %groups.at = getelementptr i64, ptr %sizes, i64 1
  %groups = load i64, ptr %groups.at
  br label %group
group:
  %group.k = phi i64 [ 0, %entry ], [ %group.next, %group.end ]
  %total = getelementptr [{width} x double], ptr %totals, i64 %group.k
  br label %group.column
group.column:
  %gc = phi i64 [ 0, %group ], [ %gc.next, %group.column ]
  %gc.late = icmp sge i64 %gc, {sums}
  %gc.early = icmp slt i64 %gc, {parts}
  %gc.max = and i1 %gc.late, %gc.early
  %gc.start = select i1 %gc.max, double {least}, double 0.0
  %gc.at = getelementptr double, ptr %total, i64 %gc
  store double %gc.start, ptr %gc.at
  %gc.next = add nuw nsw i64 %gc, 1
  %gc.more = icmp slt i64 %gc.next, {width}
  br i1 %gc.more, label %group.column, label %group.end
group.end:
  %group.next = add nuw nsw i64 %group.k, 1
  %group.more = icmp slt i64 %group.next, %groups
  br i1 %group.more, label %group, label %segment
segment:
  %s = phi i64 [ 0, %group.end ], [ %s.next, %segment.end ]
  %row = getelementptr [{columns} x i64], ptr %table, i64 %s
  %group.at = getelementptr i64, ptr %row, i64 {GROUP}
  %g = load i64, ptr %group.at
  %total.s = getelementptr [{width} x double], ptr %totals, i64 %g
  %found.s = getelementptr [{width} x double], ptr %found, i64 %s
  %from.at = getelementptr i64, ptr %first, i64 %s
  %from = load i64, ptr %from.at
  %to.at = getelementptr i64, ptr %from.at, i64 1
  %to = load i64, ptr %to.at
  %gradient.at = getelementptr ptr, ptr %gradients, i64 %s
  %gradient = load ptr, ptr %gradient.at
  %is.present = icmp ne ptr %gradient, null
  %present.one = uitofp i1 %is.present to double
  br label %column
column:
  %c = phi i64 [ 0, %segment ], [ %c.next, %column.end ]
  %c.max = icmp sge i64 %c, {sums}
  %c.start = select i1 %c.max, double {least}, double 0.0
  %any.chunks = icmp slt i64 %from, %to
  br i1 %any.chunks, label %part, label %column.end
part:
  %p = phi i64 [ %from, %column ], [ %p.next, %part ]
  %sum = phi double [ %c.start, %column ], [ %sum.next, %part ]
  %part.row = getelementptr [{parts} x double], ptr %partials, i64 %p
  %part.at = getelementptr double, ptr %part.row, i64 %c
  %new = load double, ptr %part.at
  %sum.next = call double @added{k}(i1 %c.max, double %sum, double %new)
  %p.next = add nuw nsw i64 %p, 1
  %p.more = icmp slt i64 %p.next, %to
  br i1 %p.more, label %part, label %column.end
column.end:
  %leaf.sum = phi double [ %c.start, %column ], [ %sum.next, %part ]
  %found.at = getelementptr double, ptr %found.s, i64 %c
  store double %leaf.sum, ptr %found.at
  %total.at = getelementptr double, ptr %total.s, i64 %c
  %total.before = load double, ptr %total.at
  %total.new = call double @added{k}(i1 %c.max, double %total.before, double %leaf.sum)
  store double %total.new, ptr %total.at
  %c.next = add nuw nsw i64 %c, 1
  %c.more = icmp slt i64 %c.next, {parts}
  br i1 %c.more, label %column, label %segment.end
segment.end:
  %count.at = getelementptr double, ptr %total.s, i64 {parts}
  %count.before = load double, ptr %count.at
  %count.new = fadd double %count.before, %present.one
  store double %count.new, ptr %count.at
  %s.next = add nuw nsw i64 %s, 1
  %s.more = icmp slt i64 %s.next, %segments
  br i1 %s.more, label %segment, label %leaf
leaf:
  %l = phi i64 [ 0, %segment.end ], [ %l.next, %next ]
  %l.row = getelementptr [{columns} x i64], ptr %table, i64 %l
  %l.group.at = getelementptr i64, ptr %l.row, i64 {GROUP}
  %l.group = load i64, ptr %l.group.at
  %l.totals = getelementptr [{width} x double], ptr %totals, i64 %l.group
  %l.found = getelementptr [{width} x double], ptr %found, i64 %l
  %l.own = getelementptr [{numbers} x double], ptr %numbers, i64 %l
  %l.gradient.at = getelementptr ptr, ptr %gradients, i64 %l
  %l.gradient = load ptr, ptr %l.gradient.at
  %l.present = icmp ne ptr %l.gradient, null
  %l.count.at = getelementptr double, ptr %l.totals, i64 {parts}
  %l.count = load double, ptr %l.count.at
  %l.any = fcmp ogt double %l.count, 0.0
  %h.offset.at = getelementptr i64, ptr %l.row, i64 {SCALARS}
  %h.offset = load i64, ptr %h.offset.at
  %h = getelementptr i8, ptr %values, i64 %h.offset
  %variant.at = getelementptr i64, ptr %l.row, i64 {VARIANT}
  %variant = load i64, ptr %variant.at
  br i1 %l.any, label %worked, label %next
worked:
  switch i64 %variant, label %next [ {cases} ]
{calls}
next:
  %l.next = add nuw nsw i64 %l, 1
  %l.more = icmp slt i64 %l.next, %segments
  br i1 %l.more, label %leaf, label %exit
exit:
  ret void
}}
"""

_NUMBERS_CALL = """variant{i}:
  call void @numbers{k}.{i}(ptr %l.row, ptr %l.found, ptr %l.totals, ptr %l.own, ptr %h, i1 %l.present)
  br label %next"""

_NUMBERS_OF = """
define internal void @numbers{k}.{i}(ptr %row, ptr %found, ptr %totals, ptr %own, ptr %h, i1 %present) {{
  {lines}
  ret void
}}
"""


def _numbers(k: int, variants: tuple[Variant, ...], own: Mapping[int, Pass], sums: int, largest: int) -> str:
    """The function that is called after a pass."""
    parts = sums + largest
    code = [
        _NUMBERS.format(
            k=k,
            context=_context(*CONTEXT),
            larger=_LARGER.format("larger", "before", "new"),
            columns=table.columns(variants),
            numbers=max(len(v.program.numbers) for v in variants),
            sums=sums,
            parts=parts,
            width=parts + 1,
            least=_IDENTITY["max"],
            GROUP=table.GROUP,
            SCALARS=table.SCALARS,
            VARIANT=table.VARIANT,
            cases=" ".join(f"i64 {i}, label %variant{i}" for i in own),
            calls="\n".join(_NUMBERS_CALL.format(i=i, k=k) for i in own),
        )
    ]
    if k == 0:
        constants = {"SMALL": norms.SCALES[1], "LARGE": norms.SCALES[2], "TINY": norms.TINY}
        literal = DTYPES["float64"].llvm_literal
        code.append(_ROOT.format(**{name: literal(x.hex()) for name, x in constants.items()}))
    for i, this in own.items():
        program = variants[i].program
        columns = {r.number: (r.over, r.column + (sums if r.kind == "max" else 0)) for r in this.reductions}
        numbers = _Numbers(program, known=True, columns=columns)
        values, lines = numbers.emit(this.numbers)
        lines += numbers.keep({n: values[n] for n in this.kept})
        if k == len(passes(program)) - 1:
            lines += _slots(program, numbers, values)
        code.append(_NUMBERS_OF.format(k=k, i=i, lines="\n  ".join(lines)))
    return "\n".join(code)


def _slots(program: Program, numbers: _Numbers, values: dict[int, str]) -> list[str]:
    """Write the slots that are numbers; of a leaf without a gradient, those that all leaves share."""
    lines: list[str] = []
    terms = [numbers._term(output, values, lines) for output in program.number_outputs]
    for n, (name, term) in enumerate(zip(program.number_slots, terms, strict=True)):
        lines += [
            f"%slot{n}.column = getelementptr i64, ptr %row, i64 {table.SLOTS + len(program.slots) + n}",
            f"%slot{n}.at = load ptr, ptr %slot{n}.column",
        ]
        if name not in program.shared:
            lines += [
                f"%slot{n}.old = load double, ptr %slot{n}.at",
                f"%slot{n}.new = select i1 %present, double {term}, double %slot{n}.old",
            ]
        new = term if name in program.shared else f"%slot{n}.new"
        lines.append(f"store double {new}, ptr %slot{n}.at")
    return lines


def _types() -> list[tuple[str, str]]:
    return list(dict.fromkeys((dtype.llvm, dtype.llvm_suffix) for dtype in DTYPES.values()))


def _context(*names: str) -> str:
    """IR that loads the pointers of a context."""
    return "\n".join(
        f"  %{name}.in = getelementptr ptr, ptr %context, i64 {i}\n  %{name} = load ptr, ptr %{name}.in"
        for i, name in enumerate(names)
    )


_MEASURE = """
declare i64 @llvm.smin.i64(i64, i64)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

define void @measure(ptr %context, i64 %begin, i64 %end) {{
entry:
{context}
  %columns = load i64, ptr %columns.count
  %any = icmp slt i64 %begin, %end
  br i1 %any, label %chunk, label %exit
chunk:
  %k = phi i64 [ %begin, %entry ], [ %k.next, %next ]
  %segment.at = getelementptr [2 x i64], ptr %chunks, i64 %k
  %segment = load i64, ptr %segment.at
  %start.at = getelementptr i64, ptr %segment.at, i64 1
  %start = load i64, ptr %start.at
  %row.index = mul i64 %segment, %columns
  %row = getelementptr i64, ptr %table, i64 %row.index
  %gradient.at = getelementptr ptr, ptr %gradients, i64 %segment
  %gradient = load ptr, ptr %gradient.at
  %out0 = getelementptr [3 x double], ptr %partials, i64 %k
  %out1 = getelementptr double, ptr %out0, i64 1
  %out2 = getelementptr double, ptr %out0, i64 2
  store double 0.0, ptr %out0
  store double 0.0, ptr %out1
  store double 0.0, ptr %out2
  %left.alone = icmp eq ptr %gradient, null
  br i1 %left.alone, label %next, label %present
present:
  %length = load i64, ptr %row
  %rest = sub i64 %length, %start
  %n = call i64 @llvm.smin.i64(i64 %rest, i64 {CHUNK})
  %dtype.at = getelementptr i64, ptr %row, i64 {DTYPE}
  %dtype = load i64, ptr %dtype.at
  switch i64 %dtype, label %next [ {cases} ]
{sums}
next:
  %k.next = add nsw i64 %k, 1
  %more = icmp slt i64 %k.next, %end
  br i1 %more, label %chunk, label %exit
exit:
  ret void
}}
"""

# See gpuopt.engines.norms: lanes in order, then halves.
_SUM = """
define internal double @sum.{name}(ptr %g, i64 %n, double %scale) {{
  %lanes = alloca [{LANES} x double], align 64
  call void @llvm.memset.p0.i64(ptr align 64 %lanes, i8 0, i64 {bytes}, i1 false)
  br label %row
row:
  %start = phi i64 [ 0, %0 ], [ %start.next, %row.end ]
  %rest = sub i64 %n, %start
  %count = call i64 @llvm.smin.i64(i64 %rest, i64 {LANES})
  %any = icmp sgt i64 %rest, 0
  br i1 %any, label %element, label %halve
element:
  %lane = phi i64 [ 0, %row ], [ %lane.next, %element ]
  %k = add nuw nsw i64 %start, %lane
{square}
  %lane.at = getelementptr inbounds double, ptr %lanes, i64 %lane
  %before = load double, ptr %lane.at
  %after = fadd double %before, %square
  store double %after, ptr %lane.at
  %lane.next = add nuw nsw i64 %lane, 1
  %more = icmp slt i64 %lane.next, %count
  br i1 %more, label %element, label %row.end
row.end:
  %start.next = add nuw nsw i64 %start, {LANES}
  br label %row
halve:
  %half = phi i64 [ {HALF}, %row ], [ %half.next, %halve.end ]
  br label %pair
pair:
  %j = phi i64 [ 0, %halve ], [ %j.next, %pair ]
  %low.at = getelementptr inbounds double, ptr %lanes, i64 %j
  %high.at = getelementptr inbounds double, ptr %low.at, i64 %half
  %low = load double, ptr %low.at
  %high = load double, ptr %high.at
  %both = fadd double %low, %high
  store double %both, ptr %low.at
  %j.next = add nuw nsw i64 %j, 1
  %pairs = icmp slt i64 %j.next, %half
  br i1 %pairs, label %pair, label %halve.end
halve.end:
  %half.next = lshr i64 %half, 1
  %again = icmp sgt i64 %half.next, 0
  br i1 %again, label %halve, label %end
end:
  %sum = load double, ptr %lanes
  ret double %sum
}}
"""


def measure() -> str:
    """LLVM IR of the sums of squares of every chunk."""
    measure = _MEASURE.format(
        context=_context("table", "columns.count", "gradients", "chunks", "partials"),
        CHUNK=table.CHUNK,
        DTYPE=table.DTYPE,
        cases=" ".join(f"i64 {dtype.number}, label %{name}" for name, dtype in DTYPES.items()),
        sums="\n".join(map(_sums, DTYPES)),
    )
    return (
        measure
        + storage.LLVM
        + "".join(
            _SUM.format(
                name=name, LANES=norms.LANES, HALF=norms.LANES // 2, bytes=8 * norms.LANES, square=_square(dtype)
            )
            for name, dtype in DTYPES.items()
        )
    )


def _square(dtype: DType) -> str:
    """IR of the square of element ``%k`` (of a complex one, of its modulus), scaled."""
    extended = {"float": "fpext float %g.{k} to double", "double": "fadd double %g.{k}, -0.0"}[dtype.llvm]
    lines = []
    for k in range(dtype.parts):
        kind = "i16" if dtype.stored else dtype.llvm
        lines.append(f"%g.at.{k} = getelementptr inbounds [{dtype.parts} x {kind}], ptr %g, i64 %k, i64 {k}")
        if dtype.stored:
            lines += [
                f"%g.{k}.bits = load i16, ptr %g.at.{k}",
                f"%g.{k} = call float @wide.{dtype.name}(i16 %g.{k}.bits)",
            ]
        else:
            lines.append(f"%g.{k} = load {dtype.llvm}, ptr %g.at.{k}")
        lines += [
            f"%x.{k} = {extended.format(k=k)}",
            f"%scaled.{k} = fmul double %x.{k}, %scale",
            f"%square{'' if dtype.parts == 1 else f'.{k}'} = fmul double %scaled.{k}, %scaled.{k}",
        ]
    if dtype.parts == 2:
        lines.append("%square = fadd double %square.0, %square.1")
    return "\n".join(f"  {line}" for line in lines)


def _sums(name: str) -> str:
    """IR that adds up the squares of a chunk of a dtype, scaled ones too where squares may not fit."""
    dtype = DTYPES[name]
    scales = norms.SCALES[:1] if dtype.squares_fit else norms.SCALES
    lines = [f"{name}:", f"  %{name}.g = getelementptr [{dtype.itemsize} x i8], ptr %gradient, i64 %start"]
    for k, scale in enumerate(scales):
        factor = DTYPES["float64"].llvm_literal(scale.hex())
        lines += [
            f"  %{name}.sum{k} = call double @sum.{name}(ptr %{name}.g, i64 %n, double {factor})",
            f"  store double %{name}.sum{k}, ptr %out{k}",
        ]
    return "\n".join([*lines, "  br label %next"])
