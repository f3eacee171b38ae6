"""Loops of the CPU's kernels that add up over a chunk, as LLVM IR.

The order of a sum is that of `gpuopt.engines.norms`: lanes in order, then halves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import cpu_walks, norms
from gpuopt.engines.cpu_elements import IDENTITY, LARGER, Elements
from gpuopt.engines.cpu_numbers import Numbers
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.trace import COMPARISONS, LOGIC

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpuopt.engines.passes import Batch
    from gpuopt.engines.table import Variant

_REDUCE = """
define internal void @{name}({arguments}, ptr %out) {{
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

_BOTH = {"sum": "%both = fadd double %low, %high", "max": LARGER.format("both", "low", "high")}


def halves() -> list[str]:
    """IR of the functions that add lanes up by halves."""
    return [_HALVE.format(name=name, LANES=norms.LANES, HALF=norms.LANES // 2, both=_BOTH[name]) for name in _BOTH]


def cleared(sums: int, largest: int) -> str:
    """IR that finds the place of what chunk ``%k`` adds up to, ``%out``, and clears it."""
    width = sums + largest
    lines = [f"%out = getelementptr [{width} x double], ptr %partials, i64 %k"]
    for column in range(width):
        lines += [
            f"%out{column} = getelementptr double, ptr %out, i64 {column}",
            f"store double {IDENTITY['sum' if column < sums else 'max']}, ptr %out{column}",
        ]
    return "\n  ".join(lines)


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
    numbers, lines = Numbers(variant.program, known=False).emit(before)
    for number in [n for n in numbers if variant.program.numbers[n].op in (*COMPARISONS, *LOGIC)]:
        lines.append(f"%m{number}.one = uitofp i1 {numbers[number]} to double")
        numbers[number] = f"%m{number}.one"
    access = f", !llvm.access.group !{metadata}"
    code = Elements(variant, batch.elements, numbers, access)
    clear: list[str] = []
    halve: list[str] = []
    count = 0
    for r in batch.reductions:
        kind = "max" if r.kind == "max" else "sum"
        out = r.column + (sums if r.kind == "max" else 0)
        for n, term in enumerate(_terms(code, r.number, r.kind, r.args)):
            part = f"r{r.number}.{n}"
            code.prologue.append(f"%{part}.lanes = getelementptr double, ptr %lanes, i64 {count * norms.LANES}")
            clear += [
                f"%{part}.z = getelementptr inbounds double, ptr %{part}.lanes, i64 %z",
                f"store double {IDENTITY[kind]}, ptr %{part}.z",
            ]
            code.body += [
                f"%{part}.at = getelementptr inbounds double, ptr %{part}.lanes, i64 %lane",
                f"%{part}.before = load double, ptr %{part}.at{access}",
                LARGER.format(f"{part}.both", f"{part}.before", term)
                if kind == "max"
                else f"%{part}.both = fadd double %{part}.before, {term}",
                f"store double %{part}.both, ptr %{part}.at{access}",
            ]
            halve += [
                f"%{part}.sum = call double @halve.{kind}(ptr %{part}.lanes)",
                f"%{part}.out = getelementptr double, ptr %out, i64 {out + n}",
                f"store double %{part}.sum, ptr %{part}.out",
            ]
            count += 1
        if r.kind == "norm" and code.dtype.squares_fit:
            halve += _kept_infinite(f"r{r.number}", out + 1)
    return _REDUCE.format(
        name=name,
        arguments=arguments,
        width=count * norms.LANES,
        LANES=norms.LANES,
        access=metadata,
        loop=metadata + 1,
        prologue="\n  ".join([*lines, *code.prologue]),
        clear="\n  ".join(clear),
        body="\n  ".join(code.body),
        halve="\n  ".join(halve),
    )


def _terms(code: Elements, number: int, kind: str, args: tuple[int, ...]) -> list[str]:
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


def _added(code: Elements, terms: list[str], name: str) -> str:
    """The sum of the parts of a complex number, or the one number itself."""
    if len(terms) == 2:
        code.body.append(f"{name} = fadd double {terms[0]}, {terms[1]}")
        return name
    return terms[0]


def _kept_infinite(name: str, column: int) -> list[str]:
    """Of squares that fit, the sum of the scaled ones is not computed; it has their infinities and NaN, too."""
    return [
        f"%{name}.zero = fsub double %{name}.0.sum, %{name}.0.sum",
        f"%{name}.finite = fcmp oeq double %{name}.zero, 0.0",
        f"%{name}.found = select i1 %{name}.finite, double 0.0, double %{name}.0.sum",
        f"%{name}.found.out = getelementptr double, ptr %out, i64 {column}",
        f"store double %{name}.found, ptr %{name}.found.out",
    ]
