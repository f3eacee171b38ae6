"""Loops of the CPU's kernels that add up over a chunk, as LLVM IR.

The order of a sum is that of `gpuopt.engines.norms`: lanes in order, then halves.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gpuopt.engines import cpu_walks, norms
from gpuopt.engines.cpu_elements import LINE, Elements
from gpuopt.engines.cpu_ir import Function
from gpuopt.engines.cpu_numbers import functions, larger
from gpuopt.engines.passes import Batch
from gpuopt.engines.values import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gpuopt.engines.passes import Reduction
    from gpuopt.engines.table import Variant

_ELEMENTS = """
define internal void @{name}.elements({arguments}, {lanes}, i64 %first, i64 %from, i64 %to) alwaysinline {{
  {prologue}
  br label %element
element:
  %lane = phi i64 [ %from, %0 ], [ %lane.next, %element ]
  %i = add nuw nsw i64 %first, %lane
  {body}
  %lane.next = add nuw nsw i64 %lane, 1
  %more = icmp slt i64 %lane.next, %to
  br i1 %more, label %element, label %end, !llvm.loop !{loop}
end:
  ret void
}}
!{access} = distinct !{{}}
!{loop} = distinct !{{!{loop}, !{{!"llvm.loop.parallel_accesses", !{access}}}{whole}}}
"""

_REDUCE = """
define internal void @{name}({arguments}, ptr %out) {{
  {own_lanes}
  br label %clear
clear:
  %z = phi i64 [ 0, %0 ], [ %z.next, %clear ]
  {clear}
  %z.next = add nuw nsw i64 %z, 1
  %z.more = icmp slt i64 %z.next, {LANES}
  br i1 %z.more, label %clear, label %walk
walk:
  {walk}
halve:
  {halve}
  ret void
}}
"""

_STRETCHES = """br label %stretch
stretch:
  %first = phi i64 [ 0, %walk ], [ %first.next, %some ]
  %rest = sub i64 %n, %first
  %count = call i64 @llvm.smin.i64(i64 %rest, i64 {LANES})
  %any = icmp sgt i64 %rest, 0
  br i1 %any, label %some, label %halve
some:
  call void @{name}.elements({given}, {lanes}, i64 %first, i64 0, i64 %count)
  %first.next = add nuw nsw i64 %first, {LANES}
  br label %stretch"""
"""Lanes, stretch by stretch: memory is read in order, and sums go to and from the cache at every element."""

_TILES = """%whole = and i64 %n, -{LANES}
  %last = sub i64 %n, %whole
  %any.whole = icmp sgt i64 %whole, 0
  br i1 %any.whole, label %block, label %rest
block:
  %begin = phi i64 [ 0, %walk ], [ %end, %block.end ]
  %begin.next = add nuw nsw i64 %begin, {BLOCK}
  %end = call i64 @llvm.smin.i64(i64 %begin.next, i64 %whole)
  br label %tile
tile:
  %from = phi i64 [ 0, %block ], [ %to, %tile.end ]
  %to = add nuw nsw i64 %from, {TILE}
  %part = mul nuw nsw i64 %from, {STRETCHES}
  %ahead = add nuw nsw i64 %begin.next, %part
  {ahead}
  br label %stretch
stretch:
  %first = phi i64 [ %begin, %tile ], [ %first.next, %stretch ]
  call void @{name}.elements({given}, {lanes}, i64 %first, i64 %from, i64 %to)
  %first.next = add nuw nsw i64 %first, {LANES}
  %more = icmp slt i64 %first.next, %end
  br i1 %more, label %stretch, label %tile.end
tile.end:
  %tiles = icmp slt i64 %to, {LANES}
  br i1 %tiles, label %tile, label %block.end
block.end:
  %blocks = icmp slt i64 %end, %whole
  br i1 %blocks, label %block, label %rest
rest:
  %any = icmp sgt i64 %last, 0
  br i1 %any, label %some, label %halve
some:
  call void @{name}.elements({given}, {lanes}, i64 %whole, i64 0, i64 %last)
  br label %halve"""
"""Some lanes at a time, whose sums stay in registers over several stretches; the next block is brought near meanwhile."""

_IDENTITY = {"sum": 0.0, "max": -math.inf}
"""What sums and largest elements begin with."""
MANY = 8
"""Reductions of a loop from which on the sums' way to and from the cache takes longer than what tiles cost."""
TOGETHER = 3
"""Batches of a loop: a tile of their sums has room in 32 vectors, with two vectors that all are multiplied by."""
TILE, STRETCHES = 8, 4
"""Lanes of a tile, as many as a vector of float64 has at most; stretches of a block: a page of float32."""

_TOGETHER: dict[str, Callable[[Function, Any, Any], Any]] = {"sum": lambda _, a, b: a + b, "max": larger}
"""How two numbers become one."""


def halves() -> list[str]:
    """IR of the functions that add lanes up by halves, and of what they call."""
    code = functions()
    for name, together in _TOGETHER.items():
        f = Function(f"halve.{name}", "double* lanes", "double", "noinline", internal=True)
        lanes = f.given["lanes"]
        with f.loop(0, norms.LANES.bit_length() - 1) as k:
            half = f.whole(norms.LANES // 2) >> k
            with f.loop(0, half) as j:
                lanes[j] = together(f, lanes[j], lanes[j + half])
        code.append(f.text(lanes[0]))
    return code


def joined(batches: tuple[Batch, ...]) -> list[Batch]:
    """Return what is reduced in one loop each: in tiles, more fits than a GPU has registers for, and arrays are read once."""
    found = []
    for k in range(0, len(batches), TOGETHER):
        own = batches[k : k + TOGETHER]
        elements = sorted({i for batch in own for i in batch.elements})
        found.append(Batch(tuple(elements), tuple(r for batch in own for r in batch.reductions)))
    return found


def place(context: Mapping[str, Any], k: Any, width: int) -> Any:
    """Where what a chunk adds up to is written, in so many columns."""
    return context["partials"].at(k * width)


def clearing(sums: int, largest: int) -> Callable[[Function, dict[str, Any], Any], None]:
    """What writes the code that clears these columns of a chunk."""

    def clear(_: Function, context: dict[str, Any], k: Any) -> None:
        out = place(context, k, sums + largest)
        for column in range(sums + largest):
            out[column] = 0.0 if column < sums else -math.inf

    return clear


def loop(
    name: str,
    variant: Variant,
    before: Iterable[int],
    batch: Batch,
    sums: int,
    metadata: int,
    arguments: str = cpu_walks.ARGUMENTS,
) -> str:
    """IR of a function that reduces a chunk in one loop. Lanes are independent of each other, and LLVM is told so.

    Parameters
    ----------
    name
        Of the function; its arguments are those of a chunk, and where it writes, ``%out``.
    variant
        A program at a dtype.
    before
        Numbers that the elements need.
    batch
        What is reduced.
    sums
        Columns of ``%out`` before those of largest elements.
    metadata
        Two numbers from here on are free for metadata.
    arguments
        What the elements need of those of a chunk.

    """
    code = Elements(variant, batch.elements, metadata, before)
    around = Function(name, f"{cpu_walks.TYPED}, i64 z, i64 ahead, double* out")
    lane, lanes = Value(code.f, "i64", "%lane"), list[str]()
    clear, halve = list[str](), list[str]()
    for r in batch.reductions:
        kind = "max" if r.kind == "max" else "sum"
        for n, added in enumerate(_added(code, r)):
            lanes.append(f"%r{r.number}.{n}.lanes")
            inside, own = (Value(f, "double*", lanes[-1]) for f in (code.f, around))
            inside[lane] = added(inside[lane])
            around.lines = clear
            own[around.given["z"]] = _IDENTITY[kind]
            around.lines = halve
            around.given["out"][r.column_among(sums) + n] = around.call(f"halve.{kind}", own, kind="double")
        if (
            r.kind == "norm" and code.dtype.squares_fit
        ):  # the sum of scaled squares is not computed; it has infinities and NaN, too
            plain = around.given["out"][r.column_among(sums)]
            around.given["out"][r.column_among(sums) + 1] = around.where(plain - plain == 0.0, 0.0, plain)
    is_wide = any(r.kind == "norm" for r in batch.reductions) and not code.dtype.squares_fit  # three sums of one array
    in_tiles = is_wide or len(lanes) >= MANY
    around.lines = ahead = list[str]()
    code.write_ahead(around, around.given["ahead"], STRETCHES * TILE)
    parts = {
        "name": name,
        "arguments": arguments,
        "given": arguments,
        "lanes": ", ".join(f"ptr {own}" for own in lanes),
        "LANES": norms.LANES,
    }
    walk = (
        _TILES.format(
            **parts,
            TILE=TILE,
            STRETCHES=STRETCHES,
            BLOCK=STRETCHES * norms.LANES,
            ahead="\n  ".join(ahead),
        )
        if in_tiles
        else _STRETCHES.format(**parts)
    )
    return _ELEMENTS.format(
        **parts,
        access=metadata,
        loop=metadata + 1,
        whole=', !{!"llvm.loop.unroll.disable"}' if in_tiles else "",  # a tile is one vector
        prologue="\n  ".join(code.prologue),
        body="\n  ".join(code.f.lines),
    ) + _REDUCE.format(
        **parts,
        # One by one: LLVM looks at no more than 100 uses of an address to see that nobody else knows it. A line apart: the lanes
        # of a tile would all be in one place of the cache.
        own_lanes="\n  ".join(f"{own} = alloca [{norms.LANES + LINE // 8} x double], align 64" for own in lanes),
        clear="\n  ".join(clear),
        walk=walk,
        halve="\n  ".join(halve),
    )


def _added(code: Elements, r: Reduction) -> list[Callable[[Any], Any]]:
    """How an element is added to what each column of a reduction has by then."""
    x = [code.extended(arg) for arg in r.args]
    match r.kind:
        case "dot":
            return [_with_product(code, x[: len(x) // 2], x[len(x) // 2 :])]
        case "norm":
            scales = norms.SCALES[:1] if code.dtype.squares_fit else norms.SCALES
            scaled = [[part * scale for part in x] for scale in scales]
            return [_with_product(code, own, own) for own in scaled]
        case "max":
            new = x[0] + 0.0
            return [lambda before: code.f.call("larger", before, new, kind="double")]
        case _:
            return [lambda before: before + x[0]]


def _with_product(code: Elements, first: list[Any], second: list[Any]) -> Callable[[Any], Any]:
    """How the product of two numbers is added; of complex ones, that of their real and that of their imaginary parts."""
    if len(first) == 1 and code.dtype.squares_fit:
        # Of two float32 it is exact in float64, so that it is the same bits whether or not it is rounded before.
        return lambda before: code.f.call("llvm.fmuladd.f64", *first, *second, before, kind="double")
    product, *more = [a * b for a, b in zip(first, second, strict=True)]
    for other in more:
        product = product + other
    return lambda before: before + product
