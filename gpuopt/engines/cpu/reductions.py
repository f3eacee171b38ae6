"""Loops of the CPU's kernels that add up over a chunk, as LLVM IR.

The order of a sum is that of `gpuopt.engines.norms`: lanes in order, then halves.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gpuopt.engines import norms
from gpuopt.engines.cpu import walks
from gpuopt.engines.cpu.elements import LINE, Elements
from gpuopt.engines.cpu.ir import Function, in_ir
from gpuopt.engines.cpu.numbers import functions, larger
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.program.passes import Batch, needed
from gpuopt.engines.values import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from gpuopt.engines.program.passes import Reduction
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

_TILE = (
    ', !{{!"llvm.loop.unroll.disable"}}, !{{!"llvm.loop.vectorize.width", i32 {}}},'
    ' !{{!"llvm.loop.interleave.count", i32 {}}}'
)
"""Metadata of a loop over a tile, which is so many vectors of so many numbers, so that the loop is done once."""
_IDENTITY = {"sum": 0.0, "max": -math.inf}
"""The start value of sums and of maxima."""
SUMS = 7
"""Sums of a loop: their lanes are in the first cache beside what is read, and few arrays are read in order."""
VECTORS, LANES = 12, 4
"""Vectors of sums that 16 registers have room for beside what is added, and numbers of a vector, which has 256 bits."""
STRETCHES = 4
"""Stretches of a block: a page of float32."""

_FEW = 16
"""Lanes that halves have become when the last ones are added up one by one."""
_TOGETHER: dict[str, Callable[[Function, Any, Any], Any]] = {"sum": lambda _, a, b: a + b, "max": larger}
"""The operation that combines two lanes, for sums and for maxima."""


def halves() -> list[str]:
    """IR of the functions that add lanes up by halves, and of what they call."""
    code = functions()
    for name, together in _TOGETHER.items():
        f = Function(f"halve.{name}", "double* lanes", "double", "noinline", internal=True)
        few = f.room("double", _FEW)

        def halved(own: Any, at: Any, left: int, of: int, f: Function = f, together: Any = together) -> Any:
            """What is at a place when so many are left of so many."""
            if left == of:
                return own[at]
            return together(f, halved(own, at, 2 * left, of), halved(own, at + left, 2 * left, of))

        with f.loop(0, _FEW) as j:  # of vectors
            few[j] = halved(f.given["lanes"], j, _FEW, norms.LANES)
        code.append(f.text(halved(few, 0, 1, _FEW)))
    return code


def loops(variant: Variant, reduced: Iterable[Reduction]) -> list[Batch]:
    """Return what is reduced in one loop each: sums that all stay in registers, of few arrays, which the first factors tell."""
    program, squares_fit = variant.program, DTYPES[variant.dtype].squares_fit
    groups: dict[frozenset[int], list[Reduction]] = {}
    for r in reduced:
        nodes, _ = needed(program, r.args[:1], ())
        groups.setdefault(frozenset(i for i in nodes if program.nodes[i].op == "load"), []).append(r)

    def sums(own: Iterable[Reduction]) -> int:
        return sum(3 if r.kind == "norm" and not squares_fit else 1 for r in own)

    found: list[list[Reduction]] = []
    for own in sorted(groups.values(), key=len, reverse=True):
        size = -(-len(own) // -(-sums(own) // SUMS))
        for k in range(0, len(own), size):
            part = own[k : k + size]
            if found and sums([*found[-1], *part]) <= SUMS:
                found[-1] += part
            else:
                found.append(part)
    return [Batch(needed(program, [a for r in part for a in r.args], ())[0], tuple(part)) for part in found]


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


def function(
    name: str,
    variant: Variant,
    before: Iterable[int],
    batches: Iterable[Batch],
    sums: int,
    metadata: Iterator[int],
    arguments: str = walks.TYPED,
) -> str:
    """IR of a function that reduces a chunk, in a loop for each batch.

    Parameters
    ----------
    name
        Of the function; its arguments are those of a chunk, and where it writes, ``%out``.
    variant
        A program at a dtype.
    before
        Numbers that the elements need.
    batches
        What is reduced.
    sums
        Columns of ``%out`` before those of largest elements.
    metadata
        Even numbers; each and the next one are free for metadata.
    arguments
        What the elements need of those of a chunk.

    """
    f = Function(name, f"{arguments}, double* out", internal=True)
    loops = [_Loop(f, f"{name}.{k}", variant, before, batch, next(metadata)) for k, batch in enumerate(batches)]
    columns = [column for own in loops for column in own.columns]
    with f.loop(0, norms.LANES) as z:
        for r, _, lanes in columns:
            lanes[z] = _IDENTITY[_kind(r)]
    n = f.given["n"]
    if tiled := [own for own in loops if own.tile]:
        # Some lanes at a time, whose sums stay in registers over several stretches; the next block is brought near meanwhile.
        whole = n // norms.LANES * norms.LANES
        with f.loop(0, whole) as block:
            block.step = STRETCHES * norms.LANES
            following = block + block.step
            until = f.smaller(following, whole)
            for own in tiled:
                with f.loop(0, norms.LANES, once=True) as begin:
                    begin.step = own.tile
                    own.code.write_ahead(f, following + begin * STRETCHES, STRETCHES * own.tile)
                    with f.loop(block, until, once=True) as first:
                        first.step = norms.LANES
                        own.walk(f, first, begin, begin + own.tile)
        with f.when(n > whole):
            for own in tiled:
                own.walk(f, whole, 0, n - whole)
    for own in loops:
        if not own.tile:
            # Lanes, stretch by stretch: memory is read in order, so that the processor reads ahead, and sums go to and from the cache.
            with f.loop(0, n) as first:
                first.step = norms.LANES
                own.walk(f, first, 0, f.smaller(n - first, norms.LANES))
    out = f.given["out"]
    for r, k, lanes in columns:
        column = r.column_among(sums) + k
        out[column] = plain = f.call(f"halve.{_kind(r)}", lanes, kind="double")
        if (
            r.kind == "norm" and DTYPES[variant.dtype].squares_fit
        ):  # the sum of scaled squares is not computed; it has infinities and NaN, too
            out[column + 1] = f.where(plain - plain == 0.0, 0.0, plain)
    return "\n".join([f.text(), *(own.text(arguments) for own in loops)])


class _Loop:
    """A loop over some lanes of a stretch, as a function that is written into the one of a chunk.

    Parameters
    ----------
    f
        The function of a chunk.
    name, variant, before, batch, metadata
        As of `function`.

    Attributes
    ----------
    code
        What is done for an element.
    columns
        Of each sum its reduction, which one of that it is, and its lanes.
    tile
        How many lanes there are at a time whose sums stay in registers; 0, if lanes are done in order.

    """

    def __init__(
        self, f: Function, name: str, variant: Variant, before: Iterable[int], batch: Batch, metadata: int
    ) -> None:
        self._name, self._metadata = name, metadata
        self.code = code = Elements(variant, batch.elements, metadata, before)
        self.columns: list[tuple[Reduction, int, Any]] = []
        lane = Value(code.f, "i64", "%lane")
        for r in batch.reductions:
            for n, added in enumerate(_added(code, r)):
                # One by one: LLVM looks at no more than 100 uses of an address to see that nobody else knows it. A line apart: the lanes
                # of a tile would all be in one place of the cache.
                self.columns.append((r, n, f.room("double", norms.LANES + LINE // 8)))
                inside = Value(code.f, "double*", f"%r{r.number}.{n}")
                inside[lane] = added(inside[lane])
        # Three sums of one array.
        is_wide = any(r.kind == "norm" for r in batch.reductions) and not code.dtype.squares_fit
        self._vectors = 1 if 2 * len(self.columns) > VECTORS else 2
        self.tile = self._vectors * LANES if is_wide else 0

    def walk(self, f: Function, first: Any, begin: Any, end: Any) -> None:
        """Write what adds up these lanes of the stretch from an element on."""
        given = [own for own in f.given.values() if own is not f.given["out"]]
        f.call(f"{self._name}.elements", *given, *(lanes for *_, lanes in self.columns), first, begin, end)

    def text(self, arguments: str) -> str:
        """IR of the function."""
        return _ELEMENTS.format(
            name=self._name,
            arguments=in_ir(arguments),
            lanes=", ".join(f"ptr %r{r.number}.{k}" for r, k, _ in self.columns),
            access=self._metadata,
            loop=self._metadata + 1,
            whole=_TILE.format(LANES, self._vectors) if self.tile else "",
            prologue="\n  ".join(self.code.prologue),
            body="\n  ".join(self.code.f.lines),
        )


def _kind(r: Reduction) -> str:
    return "max" if r.kind == "max" else "sum"


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
