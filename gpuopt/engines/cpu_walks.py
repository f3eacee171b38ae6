"""The walk of every function of the CPU's kernels over some chunks of a table, as LLVM IR.

Such a function is ``(context, begin, end)``. The context is an array of pointers; `begin` and `end` are numbers of chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
"""What the pointers of a step's context point to; see `gpuopt.engines.cpu`."""

ARGUMENTS = "ptr %row, ptr %g.leaf, double %scale, i64 %key, i64 %start, ptr %c, ptr %h, ptr %own, i64 %n"
"""What a loop over one chunk is given in a step: the row of its leaf, the address of the gradient and its factor, the key of random numbers,
the first element, the coefficients, the scalars of numbers, the numbers of the leaf, and how many elements there are."""

_OVER_CHUNKS = """
define void @{name}(ptr %context, i64 %begin, i64 %end) {{
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
  %row.at = mul i64 %segment, {columns}
  %row = getelementptr i64, ptr %table, i64 %row.at
  %gradient.at = getelementptr ptr, ptr %gradients, i64 %segment
  %gradient = load ptr, ptr %gradient.at
  {before}
  %left.alone = icmp eq ptr %gradient, null
  br i1 %left.alone, label %next, label %present
present:
  %length = load i64, ptr %row
  %rest = sub i64 %length, %start
  %n = call i64 @llvm.smin.i64(i64 %rest, i64 {CHUNK})
{body}
next:
  %k.next = add nsw i64 %k, 1
  %more = icmp slt i64 %k.next, %end
  br i1 %more, label %chunk, label %exit
exit:
  ret void
}}
"""

# What a step finds for each chunk.
_ARGUMENTS_OF_CHUNK = """  %scale.at = getelementptr double, ptr %scales, i64 %segment
  %scale = load double, ptr %scale.at
  %key.at = getelementptr i8, ptr %values, i64 {KEY}
  %key = load i64, ptr %key.at
  %offset.at = getelementptr i64, ptr %row, i64 {COEFFICIENTS}
  %offset = load i64, ptr %offset.at
  %c = getelementptr i8, ptr %values, i64 %offset
  %h.offset.at = getelementptr i64, ptr %row, i64 {SCALARS}
  %h.offset = load i64, ptr %h.offset.at
  %h = getelementptr i8, ptr %values, i64 %h.offset
  %own = getelementptr [{numbers} x double], ptr %numbers, i64 %segment"""


def over_chunks(name: str, context: Iterable[str], columns: int | None, body: str, before: str = "") -> str:
    """Return IR of a function that works on some chunks, and leaves out segments without a gradient.

    Parameters
    ----------
    name
        Of the function.
    context
        Names of the context's pointers, among them "table", "chunks" and "gradients".
    columns
        Of the table; None, if a pointer "columns" of the context says it.
    body
        IR of the work on chunk ``%k``: on ``%n`` elements from ``%start`` on, of a leaf with ``%row`` in the table and ``%gradient``.
        It ends by branches to ``%next``.
    before
        IR of what is done for segments without a gradient, too.

    """
    lines = [loaded(context)]
    if columns is None:
        lines.append("  %columns.count = load i64, ptr %columns")
    return _OVER_CHUNKS.format(
        name=name,
        context="\n".join(lines),
        columns="%columns.count" if columns is None else columns,
        before=before,
        CHUNK=table.CHUNK,
        body=body,
    )


def arguments(numbers: int) -> str:
    """IR that finds the `ARGUMENTS` of a chunk in the context of a step, where each leaf has so many numbers."""
    return _ARGUMENTS_OF_CHUNK.format(
        KEY=table.KEY, COEFFICIENTS=table.COEFFICIENTS, SCALARS=table.SCALARS, numbers=numbers
    )


def choice(column: int, cases: Mapping[int, str]) -> str:
    """IR that does what a column of the row says: by number, the call; other numbers are left out."""
    lines = [
        f"  %choice.at = getelementptr i64, ptr %row, i64 {column}",
        "  %choice = load i64, ptr %choice.at",
        f"  switch i64 %choice, label %next [ {' '.join(f'i64 {i}, label %case{i}' for i in cases)} ]",
    ]
    for i, call in cases.items():
        lines += [f"case{i}:", f"  {call}", "  br label %next"]
    return "\n".join(lines)


def loaded(context: Iterable[str]) -> str:
    """IR that loads the pointers of a context."""
    return "\n".join(
        f"  %{name}.in = getelementptr ptr, ptr %context, i64 {i}\n  %{name} = load ptr, ptr %{name}.in"
        for i, name in enumerate(context)
    )
