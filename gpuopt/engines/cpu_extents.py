"""What the CPU's kernels do with arrays of other shapes than the leaf's, as LLVM IR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import cpu_walks, table
from gpuopt.engines.cpu_elements import Elements
from gpuopt.engines.folds import PARTS, Fold
from gpuopt.engines.passes import update

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpuopt.engines.table import Variant

# The loops are not inlined: a fold calls them several times, and LLVM would make vectors of every copy, which takes four times as long.

# Element ``start + i`` has number ``(start + i) // span * inner + (start + i) % inner``: one number for all where ``inner`` is 1, else a
# row of ``inner`` numbers again and again.
_SPREAD = """
define internal void @spread.{T}(ptr %from, i64 %start, i64 %n, i64 %span, i64 %inner, ptr noalias %out) noinline {{
entry:
  %is.one = icmp eq i64 %inner, 1
  %any = icmp sgt i64 %n, 0
  br i1 %any, label %run, label %exit
run:
  %i = phi i64 [ 0, %entry ], [ %i.next, %run.end ]
  %k = add i64 %start, %i
  %outer = udiv i64 %k, %span
  %column = urem i64 %k, %inner
  %first = mul i64 %outer, %inner
  %at = add i64 %first, %column
  %source = getelementptr {T}, ptr %from, i64 %at
  %within = urem i64 %k, %span
  %left.one = sub i64 %span, %within
  %left.row = sub i64 %inner, %column
  %left = select i1 %is.one, i64 %left.one, i64 %left.row
  %rest = sub i64 %n, %i
  %count = call i64 @llvm.smin.i64(i64 %left, i64 %rest)
  %target = getelementptr {T}, ptr %out, i64 %i
  %i.next = add i64 %i, %count
  br i1 %is.one, label %fill, label %copy
fill:
  %x = load {T}, ptr %source
  br label %filling
filling:
  %f = phi i64 [ 0, %fill ], [ %f.next, %filling ]
  %f.at = getelementptr inbounds {T}, ptr %target, i64 %f
  store {T} %x, ptr %f.at
  %f.next = add nuw nsw i64 %f, 1
  %f.more = icmp slt i64 %f.next, %count
  br i1 %f.more, label %filling, label %run.end
copy:
  %bytes = mul i64 %count, {size}
  call void @llvm.memcpy.p0.p0.i64(ptr %target, ptr %source, i64 %bytes, i1 false)
  br label %run.end
run.end:
  %more = icmp slt i64 %i.next, %n
  br i1 %more, label %run, label %exit
exit:
  ret void
}}
"""


_ADD = """
define internal void @add.{T}(ptr noalias %to, ptr noalias %from, i64 %n) noinline {{
entry:
  %any = icmp sgt i64 %n, 0
  br i1 %any, label %loop, label %exit
loop:
  %i = phi i64 [ 0, %entry ], [ %i.next, %loop ]
  %a.at = getelementptr inbounds {T}, ptr %to, i64 %i
  %b.at = getelementptr inbounds {T}, ptr %from, i64 %i
  %a = load {T}, ptr %a.at
  %b = load {T}, ptr %b.at
  %sum = fadd {T} %a, %b
  store {T} %sum, ptr %a.at
  %i.next = add nuw nsw i64 %i, 1
  %more = icmp slt i64 %i.next, %n
  br i1 %more, label %loop, label %exit
exit:
  ret void
}}
"""

# Pieces of at most 256 numbers of one stretch. Of each the elements go to a buffer, those of its parts side by side; where a piece is
# all of a stretch, they lie side by side in memory, too.
_FOLD = """
define internal void @update{i}({arguments}) {{
entry:
  %buffer = alloca [{CHUNK} x {T}], align 64
  %beyond = alloca [{CHUNK} x {T}], align 64
  {numbers}
  %q.first = udiv i64 %start, {PARTS}
  %outputs = udiv i64 %n, {PARTS}
  %q.last = add i64 %q.first, %outputs
  %tail = sub i64 %every, %whole
  br label %piece
piece:
  %q = phi i64 [ %q.first, %entry ], [ %q.next, %piece.end ]
  %o = udiv i64 %q, %lanes
  %t = urem i64 %q, %lanes
  %left = sub i64 %lanes, %t
  %rest = sub i64 %q.last, %q
  %size = call i64 @llvm.smin.i64(i64 %left, i64 %rest)
  %stretch = mul i64 %o, %every
  %base = add i64 %stretch, %t
  %is.all = icmp eq i64 %size, %lanes
  br i1 %is.all, label %all, label %part
all:
  call void @values{i}({at_base}, ptr %buffer)
  %has.tail = icmp sgt i64 %tail, 0
  br i1 %has.tail, label %all.tail, label %halve
all.tail:
  %after = add i64 %base, %whole
  call void @values{i}({at_after}, ptr %beyond)
  call void @add.{T}(ptr %buffer, ptr %beyond, i64 %tail)
  br label %halve
part:
  %j = phi i64 [ 0, %piece ], [ %j.next, %part.end ]
  %far = mul i64 %j, %lanes
  %e = add i64 %base, %far
  %own.at = mul i64 %j, %size
  %into = getelementptr {T}, ptr %buffer, i64 %own.at
  call void @values{i}({at_e}, ptr %into)
  %position = add i64 %t, %far
  %tail.here = sub i64 %tail, %position
  %tail.size = call i64 @llvm.smin.i64(i64 %tail.here, i64 %size)
  %has.own = icmp sgt i64 %tail.size, 0
  br i1 %has.own, label %part.tail, label %part.end
part.tail:
  %e.after = add i64 %e, %whole
  call void @values{i}({at_e_after}, ptr %beyond)
  call void @add.{T}(ptr %into, ptr %beyond, i64 %tail.size)
  br label %part.end
part.end:
  %j.next = add i64 %j, 1
  %more.parts = icmp slt i64 %j.next, %parts
  br i1 %more.parts, label %part, label %halve
halve:
  %half.first = lshr i64 %parts, 1
  %any.half = icmp sgt i64 %half.first, 0
  br i1 %any.half, label %halving, label %piece.end
halving:
  %half = phi i64 [ %half.first, %halve ], [ %half.next, %halving ]
  %both = mul i64 %half, %size
  %second = getelementptr {T}, ptr %buffer, i64 %both
  call void @add.{T}(ptr %buffer, ptr %second, i64 %both)
  %half.next = lshr i64 %half, 1
  %more.halves = icmp sgt i64 %half.next, 0
  br i1 %more.halves, label %halving, label %piece.end
piece.end:
  %target = getelementptr {T}, ptr %sums, i64 %q
  %bytes = mul i64 %size, {bytes}
  call void @llvm.memcpy.p0.p0.i64(ptr %target, ptr %buffer, i64 %bytes, i1 false)
  %q.next = add i64 %q, %size
  %more.pieces = icmp slt i64 %q.next, %q.last
  br i1 %more.pieces, label %piece, label %exit
exit:
  ret void
}}
"""


def fold(i: int, variant: Variant) -> str:
    """The loops of one variant that add up along an axis."""
    last = update(variant.program)
    metadata = 2 * i
    code = Elements(variant, last.elements, {}, f", !llvm.access.group !{metadata}")
    (store,) = last.stores
    T = code.dtype.llvm  # noqa: N806 - a type
    column = table.fold_at(variant.program)
    names = [("sums", table.SLOTS + variant.program.slots.index(store.name), "ptr")]
    names += [(name, column + k, "i64") for k, name in enumerate(Fold._fields)]
    numbers = [
        line
        for name, k, kind in names
        for line in (f"%{name}.at = getelementptr i64, ptr %row, i64 {k}", f"%{name} = load {kind}, ptr %{name}.at")
    ]

    def given(start: str, n: str) -> str:
        return cpu_walks.ARGUMENTS.replace("%start", start).replace("%n", n)

    code.body += [
        f"%out.at = getelementptr inbounds {T}, ptr %out, i64 %i",
        f"store {T} {code.values[store.value]}, ptr %out.at{code.access}",
    ]
    return code.loop(f"values{i}", f"{cpu_walks.ARGUMENTS}, ptr noalias %out", metadata, "noinline") + _FOLD.format(
        i=i,
        arguments=cpu_walks.ARGUMENTS,
        T=T,
        bytes=4 if T == "float" else 8,
        CHUNK=table.CHUNK,
        PARTS=PARTS,
        numbers="\n  ".join(numbers),
        at_base=given("%base", "%whole"),
        at_after=given("%after", "%tail"),
        at_e=given("%e", "%size"),
        at_e_after=given("%e.after", "%tail.size"),
    )


def functions(variants: Iterable[Variant]) -> list[str]:
    """IR of what these variants call."""
    programs = [v.program for v in variants]
    if not any(program.spread or program.folds for program in programs):
        return []
    types = (("float", 4), ("double", 8))
    return [text.format(T=T, size=size) for T, size in types for text in (_SPREAD, _ADD)]
