"""What the CPU's kernels do with arrays of other shapes than the leaf's, as LLVM IR."""

from __future__ import annotations

# Element ``start + i`` has number ``(start + i) // span * inner + (start + i) % inner``: one number for all where ``inner`` is 1, else a
# row of ``inner`` numbers again and again.
_SPREAD = """
define internal void @spread.{T}(ptr %from, i64 %start, i64 %n, i64 %span, i64 %inner, ptr noalias %out) {{
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


def spreads() -> list[str]:
    """IR of the functions that write out what such an array has for each element of a chunk, and what they need."""
    return [
        "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)",
        *(_SPREAD.format(T=T, size=size) for T, size in (("float", 4), ("double", 8))),
    ]
