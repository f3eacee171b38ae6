"""Traced programs as LLVM IR.

No operation carries a fast-math flag, so none is contracted or reordered: the bits are NumPy's.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from gpuopt.engines import guard, segments
from gpuopt.engines.trace import COMPARISONS, INEXACT, Node

if TYPE_CHECKING:
    from gpuopt.engines.segments import Variant

_TYPES = {"float32": ("float", "f32"), "float64": ("double", "f64")}

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

define void @step(ptr %table, ptr %gradients, ptr %scales, ptr %chunks, ptr %coefficients, i64 %begin, i64 %end) {{
entry:
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
        columns=segments.SLOTS + max(len(v.program.slots) for v in variants),
        COEFFICIENTS=segments.COEFFICIENTS,
        VARIANT=segments.VARIANT,
        CHUNK=segments.CHUNK,
        cases=" ".join(f"i64 {i}, label %variant{i}" for i in range(len(variants))),
        calls="\n".join(_CALL.format(i=i) for i in range(len(variants))),
    )
    functions = ("fabs", "sqrt", *INEXACT)
    declarations = [f"declare {T} @llvm.{name}.{S}({T})" for name in functions for T, S in _TYPES.values()]
    return "\n".join([*declarations, step, *(_update(i, variant) for i, variant in enumerate(variants))])


def _update(i: int, variant: Variant) -> str:
    """The loop of one variant over ``n`` elements from ``start``."""
    program, (T, S) = variant.program, _TYPES[variant.dtype]  # noqa: N806 - types, as IR spells them
    prologue: list[str] = []
    body: list[str] = []
    values: list[str] = []
    access, loop = 2 * i, 2 * i + 1
    columns = {"p": segments.PARAMETER} | {slot: segments.SLOTS + k for k, slot in enumerate(program.slots)}
    for name, column in columns.items():
        prologue += [
            f"%{name}.at = getelementptr i64, ptr %row, i64 {column}",
            f"%{name}.leaf = load ptr, ptr %{name}.at",
        ]
    for name in ("g", *columns):
        prologue.append(f"%{name}.chunk = getelementptr {T}, ptr %{name}.leaf, i64 %start")
        body.append(f"%{name}.element = getelementptr inbounds {T}, ptr %{name}.chunk, i64 %i")
    for k, node in enumerate(program.nodes):
        value = f"%v{k}"
        match node:
            case Node("load", (name,)):
                body.append(f"{value} = load {T}, ptr %{name}.element, !llvm.access.group !{access}")
            case Node("coefficient", (index,)):
                prologue += [f"%c{k} = getelementptr {T}, ptr %c, i64 {index}", f"{value} = load {T}, ptr %c{k}"]
            case Node("scale", ()):
                if T == "double":
                    value = "%scale"
                else:
                    prologue.append(f"{value} = fptrunc double %scale to {T}")
            case Node("literal", (number,)):
                value = _literal(number, variant.dtype)
            case Node(op, args):
                body.append(f"{value} = " + _OPERATIONS[op].format(*[values[a] for a in args], T=T, S=S))
        values.append(value)
    for name, output in zip(("p", *program.slots), program.outputs, strict=True):
        body.append(f"store {T} {values[output]}, ptr %{name}.element, !llvm.access.group !{access}")
    return _UPDATE.format(i=i, access=access, loop=loop, prologue="\n  ".join(prologue), body="\n  ".join(body))


def _literal(number: str, dtype: str) -> str:
    """A constant, rounded to its dtype; IR spells both dtypes as the bits of a double."""
    with np.errstate(all="ignore"):
        return "0x" + struct.pack(">d", np.dtype(dtype).type(float.fromhex(number))).hex()


# Two NumPy arrays as C structures: the type is the last word of every Python object's header, behind which come the address
# of the data, the number of dimensions, shape, strides, base, dtype and flags; in a list, its length and where its items are.
_WRITEABLE = 0x0400  # NPY_ARRAY_WRITEABLE, of the flags
_BIND = """
define i64 @bind(ptr %none, ptr %parameters, ptr %addresses, ptr %others, i64 %count, ptr %list) {{
entry:
  %objects.at = getelementptr i8, ptr %list, i64 {items}
  %objects = load ptr, ptr %objects.at
  %any = icmp sgt i64 %count, 0
  br i1 %any, label %leaf, label %exit
leaf:
  %i = phi i64 [ 0, %entry ], [ %i.next, %next ]
  %n = phi i64 [ 0, %entry ], [ %n.next, %next ]
  %moved = phi i1 [ false, %entry ], [ %moved.next, %next ]
  %g.at = getelementptr ptr, ptr %objects, i64 %i
  %p.at = getelementptr ptr, ptr %parameters, i64 %i
  %address.at = getelementptr ptr, ptr %addresses, i64 %i
  %g = load ptr, ptr %g.at
  %p = load ptr, ptr %p.at
  %left.alone = icmp eq ptr %g, %none
  br i1 %left.alone, label %next, label %type
type:
{fields}
  %same.type = icmp eq ptr %g.type, %p.type
  br i1 %same.type, label %dtype, label %other
dtype:
{more_fields}
  %same.dtype = icmp eq ptr %g.dtype, %p.dtype
  %same.ndim = icmp eq i32 %g.ndim, %p.ndim
  %p.writeable = and i32 %p.flags, {WRITEABLE}
  %may.write = icmp ne i32 %p.writeable, 0
  %same = and i1 %same.dtype, %same.ndim
  %alike = and i1 %same, %may.write
  br i1 %alike, label %axes, label %other
axes:
  %ndim = zext i32 %g.ndim to i64
  br label %axis
axis:
  %k = phi i64 [ 0, %axes ], [ %k.next, %compare ]
  %left = icmp slt i64 %k, %ndim
  br i1 %left, label %compare, label %found
compare:
  %g.size.at = getelementptr i64, ptr %g.shape, i64 %k
  %p.size.at = getelementptr i64, ptr %p.shape, i64 %k
  %g.stride.at = getelementptr i64, ptr %g.strides, i64 %k
  %p.stride.at = getelementptr i64, ptr %p.strides, i64 %k
  %g.size = load i64, ptr %g.size.at
  %p.size = load i64, ptr %p.size.at
  %g.stride = load i64, ptr %g.stride.at
  %p.stride = load i64, ptr %p.stride.at
  %same.size = icmp eq i64 %g.size, %p.size
  %same.stride = icmp eq i64 %g.stride, %p.stride
  %same.axis = and i1 %same.size, %same.stride
  %k.next = add nuw nsw i64 %k, 1
  br i1 %same.axis, label %axis, label %other
found:
  %data.at = getelementptr i8, ptr %g, i64 {data}
  %data = load ptr, ptr %data.at
  br label %next
other:
  %other.at = getelementptr i64, ptr %others, i64 %n
  store i64 %i, ptr %other.at
  %n.more = add nuw nsw i64 %n, 1
  br label %next
next:
  %n.next = phi i64 [ %n, %leaf ], [ %n, %found ], [ %n.more, %other ]
  %address = phi ptr [ null, %leaf ], [ %data, %found ], [ null, %other ]
  %before = load ptr, ptr %address.at
  %moves = icmp ne ptr %address, %before
  %moved.next = or i1 %moved, %moves
  store ptr %address, ptr %address.at
  %i.next = add nuw nsw i64 %i, 1
  %more = icmp slt i64 %i.next, %count
  br i1 %more, label %leaf, label %exit
exit:
  %n.found = phi i64 [ 0, %entry ], [ %n.next, %next ]
  %any.moved = phi i1 [ false, %entry ], [ %moved.next, %next ]
  %any.other = icmp ne i64 %n.found, 0
  %any.news = or i1 %any.moved, %any.other
  %result = select i1 %any.news, i64 %n.found, i64 -1
  ret i64 %result
}}
"""


def bind(header: int) -> str:
    """LLVM IR that looks up the addresses of a list of NumPy arrays, and which are not just like another one that is writable.

    It returns how many are not, or -1 if all are, and where they were before. ``header`` is the size in bytes of what every
    Python object begins with.
    """

    def fields(**offsets: tuple[str, int]) -> str:
        return "\n".join(
            f"  %{x}.{name}.at = getelementptr i8, ptr %{x}, i64 {header + offset}\n"
            f"  %{x}.{name} = load {T}, ptr %{x}.{name}.at"
            for name, (T, offset) in offsets.items()
            for x in "gp"
        )

    array = fields(ndim=("i32", 8), shape=("ptr", 16), strides=("ptr", 24), dtype=("ptr", 40), flags=("i32", 48))
    return _BIND.format(
        fields=fields(type=("ptr", -8)), more_fields=array, data=header, items=header + 8, WRITEABLE=_WRITEABLE
    )


_MEASURE = """
declare i64 @llvm.smin.i64(i64, i64)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

define void @measure(ptr %table, i64 %columns, ptr %gradients, ptr %chunks, ptr %partials, i64 %begin, i64 %end) {{
entry:
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
  %itemsize.at = getelementptr i64, ptr %row, i64 {ITEMSIZE}
  %itemsize = load i64, ptr %itemsize.at
  %offset = mul i64 %start, %itemsize
  %g = getelementptr i8, ptr %gradient, i64 %offset
  %single = icmp eq i64 %itemsize, 4
  br i1 %single, label %float, label %double
float:
  %sum = call double @sum.f32(ptr %g, i64 %n, double 1.0)
  store double %sum, ptr %out0
  br label %next
double:
  %sum0 = call double @sum.f64(ptr %g, i64 %n, double {scales[0]})
  store double %sum0, ptr %out0
  %sum1 = call double @sum.f64(ptr %g, i64 %n, double {scales[1]})
  store double %sum1, ptr %out1
  %sum2 = call double @sum.f64(ptr %g, i64 %n, double {scales[2]})
  store double %sum2, ptr %out2
  br label %next
next:
  %k.next = add nsw i64 %k, 1
  %more = icmp slt i64 %k.next, %end
  br i1 %more, label %chunk, label %exit
exit:
  ret void
}}
"""

# See gpuopt.engines.guard: lanes in order, then halves. %lanes does not escape, so the loops are vectorized.
_SUM = """
define internal double @sum.{S}(ptr %g, i64 %n, double %scale) {{
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
  %g.at = getelementptr inbounds {T}, ptr %g, i64 %k
  %g.k = load {T}, ptr %g.at
  %x = {extended}
  %scaled = fmul double %x, %scale
  %square = fmul double %scaled, %scaled
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
    scales = [_literal(scale.hex(), "float64") for scale in guard.SCALES]
    sums = {"float": "fpext float %g.k to double", "double": "fadd double %g.k, -0.0"}
    return _MEASURE.format(CHUNK=segments.CHUNK, ITEMSIZE=segments.ITEMSIZE, scales=scales) + "".join(
        _SUM.format(T=T, S=S, LANES=guard.LANES, HALF=guard.LANES // 2, bytes=8 * guard.LANES, extended=sums[T])
        for T, S in _TYPES.values()
    )
