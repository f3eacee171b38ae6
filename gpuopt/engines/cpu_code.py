"""Traced programs as LLVM IR: functions ``(context, begin, end)`` that work on some chunks of a table.

The context is an array of pointers. No operation carries a fast-math flag, so none is contracted or reordered: the bits are NumPy's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import norms, table
from gpuopt.engines.dtypes import DTYPES, DType
from gpuopt.engines.trace import COMPARISONS, INEXACT, Node

if TYPE_CHECKING:
    from gpuopt.engines.table import Variant

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

_STEP = """
declare i64 @llvm.smin.i64(i64, i64)

define void @step(ptr %context, i64 %begin, i64 %end) {{
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
  %gradient.at = getelementptr ptr, ptr %gradients, i64 %segment
  %gradient = load ptr, ptr %gradient.at
  %left.alone = icmp eq ptr %gradient, null
  br i1 %left.alone, label %next, label %update
update:
  %scale.at = getelementptr double, ptr %scales, i64 %segment
  %scale = load double, ptr %scale.at
  %length = load i64, ptr %row
  %rest = sub i64 %length, %start
  %n = call i64 @llvm.smin.i64(i64 %rest, i64 {CHUNK})
  %offset.at = getelementptr i64, ptr %row, i64 {COEFFICIENTS}
  %offset = load i64, ptr %offset.at
  %c = getelementptr i8, ptr %coefficients, i64 %offset
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

_CALL = """variant{i}:
  call void @update{i}(ptr %row, ptr %gradient, double %scale, i64 %start, ptr %c, i64 %n)
  br label %next"""

# The elements are independent of each other, and LLVM is told so: a gradient may well be its own parameter.
_UPDATE = """
define internal void @update{i}(ptr %row, ptr %g.leaf, double %scale, i64 %start, ptr %c, i64 %n) {{
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
    """LLVM IR of the kernel that knows these variants."""
    step = _STEP.format(
        context=_context("table", "gradients", "scales", "chunks", "coefficients"),
        columns=table.SLOTS + max(len(v.program.slots) for v in variants),
        COEFFICIENTS=table.COEFFICIENTS,
        VARIANT=table.VARIANT,
        CHUNK=table.CHUNK,
        cases=" ".join(f"i64 {i}, label %variant{i}" for i in range(len(variants))),
        calls="\n".join(_CALL.format(i=i) for i in range(len(variants))),
    )
    functions = ("fabs", "sqrt", *INEXACT)
    declarations = [f"declare {T} @llvm.{name}.{S}({T})" for name in functions for T, S in _types()]
    return "\n".join([*declarations, step, *(_update(i, variant) for i, variant in enumerate(variants))])


def _update(i: int, variant: Variant) -> str:
    """The loop of one variant over ``n`` elements from ``start``."""
    program, dtype = variant.program, DTYPES[variant.dtype]
    T, S = dtype.llvm, dtype.llvm_suffix  # noqa: N806 - types, as IR spells them
    prologue: list[str] = []
    body: list[str] = []
    values: list[str] = []
    access, loop = 2 * i, 2 * i + 1
    columns = {"p": table.PARAMETER} | {slot: table.SLOTS + k for k, slot in enumerate(program.slots)}
    for name, column in columns.items():
        prologue += [
            f"%{name}.at = getelementptr i64, ptr %row, i64 {column}",
            f"%{name}.leaf = load ptr, ptr %{name}.at",
        ]
    for name in ("g", *columns):
        if name in program.pairs:
            prologue.append(f"%{name}.chunk = getelementptr [2 x {T}], ptr %{name}.leaf, i64 %start")
            parts = [f"%{name}.part{k} = getelementptr inbounds [2 x {T}], ptr %{name}.chunk, i64 %i, i64 {k}" for k in range(2)]
            body += parts
        else:
            prologue.append(f"%{name}.chunk = getelementptr {T}, ptr %{name}.leaf, i64 %start")
            body.append(f"%{name}.element = getelementptr inbounds {T}, ptr %{name}.chunk, i64 %i")
    for k, node in enumerate(program.nodes):
        value = f"%v{k}"
        match node:
            case Node("load", (name, *part)):
                at = f"part{part[0]}" if part else "element"
                body.append(f"{value} = load {T}, ptr %{name}.{at}, !llvm.access.group !{access}")
            case Node("coefficient", (index,)):
                prologue += [f"%c{k} = getelementptr {T}, ptr %c, i64 {index}", f"{value} = load {T}, ptr %c{k}"]
            case Node("scale", ()):
                if T == "double":
                    value = "%scale"
                else:
                    prologue.append(f"{value} = fptrunc double %scale to {T}")
            case Node("literal", (number,)):
                value = dtype.llvm_literal(number)
            case Node(op, args):
                body.append(f"{value} = " + _OPERATIONS[op].format(*[values[a] for a in args], T=T, S=S))
        values.append(value)
    for name, part, output in program.stores:
        at = f"part{part}" if name in program.pairs else "element"
        body.append(f"store {T} {values[output]}, ptr %{name}.{at}, !llvm.access.group !{access}")
    return _UPDATE.format(i=i, access=access, loop=loop, prologue="\n  ".join(prologue), body="\n  ".join(body))


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

# See gpuopt.engines.norms: lanes in order, then halves. %lanes does not escape, so the loops are vectorized.
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
    return measure + "".join(
        _SUM.format(name=name, LANES=norms.LANES, HALF=norms.LANES // 2, bytes=8 * norms.LANES, square=_square(dtype))
        for name, dtype in DTYPES.items()
    )


def _square(dtype: DType) -> str:
    """IR of the square of element ``%k`` (of a complex one, of its modulus), scaled."""
    extended = {"float": "fpext float %g.{k} to double", "double": "fadd double %g.{k}, -0.0"}[dtype.llvm]
    lines = []
    for k in range(dtype.parts):
        lines += [
            f"%g.at.{k} = getelementptr inbounds [{dtype.parts} x {dtype.llvm}], ptr %g, i64 %k, i64 {k}",
            f"%g.{k} = load {dtype.llvm}, ptr %g.at.{k}",
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
    lines = [f"{name}:", f"  %{name}.g = getelementptr [{dtype.parts} x {dtype.llvm}], ptr %gradient, i64 %start"]
    for k, scale in enumerate(scales):
        factor = DTYPES["float64"].llvm_literal(scale.hex())
        lines += [
            f"  %{name}.sum{k} = call double @sum.{name}(ptr %{name}.g, i64 %n, double {factor})",
            f"  store double %{name}.sum{k}, ptr %out{k}",
        ]
    return "\n".join([*lines, "  br label %next"])
