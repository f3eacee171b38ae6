"""The walk of every function of the CPU's kernels over some chunks of a table, as LLVM IR.

Such a function is ``(context, begin, end)``. The context is an array of pointers; `begin` and `end` are numbers of chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gpuopt.engines import table
from gpuopt.engines.cpu.ir import Function, in_ir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CONTEXT = {
    "table": "i64*",
    "gradients": "i8**",
    "scales": "double*",
    "chunks": "i64*",
    "values": "i8*",
    "numbers": "double*",
    "partials": "double*",
    "found": "double*",
    "totals": "double*",
    "first": "i64*",
    "sizes": "i64*",
    "columns": "i64*",
    "moves": "i64*",
    "step": "i8*",
}
"""Names of the pointers in a context; see `gpuopt.engines.cpu.kernel`."""
OF_STEP = tuple(CONTEXT)[:11]
"""The context of a step."""

TYPED = "i64* row, i8* g.leaf, double scale, i64 key, i64 start, i8* c, double* h, double* own, i64 n"
"""What a loop over one chunk is given in a step: the row of its leaf, the address of the gradient and its factor, the key of random numbers,
the first element, the coefficients, the scalars of numbers, the numbers of the leaf, and how many elements there are."""
ARGUMENTS = in_ir(TYPED)
"""The same in IR."""


class Chunk(NamedTuple):
    """A chunk in a walk: its number and its segment's, the row of that, the gradient, the first element and how many there are."""

    k: Any
    segment: Any
    row: Any
    gradient: Any
    start: Any
    n: Any

    def arguments(self, context: dict[str, Any], numbers: int) -> tuple[Any, ...]:
        """The `ARGUMENTS` of the chunk in the context of a step, where each leaf has so many numbers."""
        values, row = context["values"], self.row
        return (
            row,
            self.gradient,
            context["scales"][row[table.OWNER]],
            values.bits("i64*")[table.KEY // 8],
            self.start,
            values.at(row[table.COEFFICIENTS]),
            values.at(row[table.SCALARS]).bits("double*"),
            context["numbers"].at(self.segment * numbers),
            self.n,
        )


def function(name: str, context: Iterable[str]) -> tuple[Function, dict[str, Any]]:
    """Begin a function of a kernel, with these pointers in its context."""
    f = Function(name, "i8** context, i64 begin, i64 end")
    return f, {own: f.given["context"].bits(f"{CONTEXT[own]}*")[i] for i, own in enumerate(context)}


def over_chunks(
    name: str,
    context: Iterable[str],
    columns: int | None,
    work: Callable[[Function, dict[str, Any], Chunk], object],
    before: Callable[[Function, dict[str, Any], Any], object] | None = None,
) -> str:
    """Return IR of a function that works on some chunks, and leaves out segments without a gradient.

    Parameters
    ----------
    name
        Of the function.
    context
        Names of the context's pointers, among them "table", "chunks" and "gradients".
    columns
        Number of columns of the table; None if the context has it as "columns".
    work
        Writes the work on a chunk.
    before
        Writes the work that is also done for segments without a gradient; it gets the number of the chunk.

    """
    f, own = function(name, context)
    width = own["columns"][0] if columns is None else columns
    with f.loop(f.given["begin"], f.given["end"]) as k:
        segment, start = own["chunks"][k * 2], own["chunks"][k * 2 + 1]
        row, gradient = own["table"].at(segment * width), own["gradients"][segment]
        if before:
            before(f, own, k)
        with f.when(gradient != None):
            n = f.smaller(row[table.LENGTH] - start, table.CHUNK)
            work(f, own, Chunk(k, segment, row, gradient, start, n))
    return f.text()
