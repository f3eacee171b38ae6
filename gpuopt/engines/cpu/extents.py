"""What the CPU's kernels do with arrays of other shapes than the leaf's, as LLVM IR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuopt.engines import table
from gpuopt.engines.cpu import walks
from gpuopt.engines.cpu.elements import Elements
from gpuopt.engines.cpu.ir import SIZES, Function
from gpuopt.engines.program.folds import PARTS, Fold
from gpuopt.engines.program.passes import update

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpuopt.engines.table import Variant

APART = "noinline"
"""Of loops that a fold calls several times: LLVM would make vectors of every copy, which takes four times as long."""


def functions(variants: Iterable[Variant]) -> list[str]:
    """Return IR of the functions that the code of these variants calls."""
    if not any(v.program.spread or v.program.folds for v in variants):
        return []
    return [write(T) for T in ("float", "double") for write in (_spread, _add)]


def _spread(T: str) -> str:  # noqa: N803 - a type
    """Write numbers out for ``n`` elements: one number for all where ``inner`` is 1, else a row of ``inner`` again and again."""
    f = Function(
        f"spread.{T}", f"{T}* from, i64 start, i64 n, i64 span, i64 inner, {T}* out", attributes=APART, internal=True
    )
    numbers, start, n, span, inner, out = f.given.values()
    with f.loop(0, n) as i:
        k = start + i
        column = k % inner
        source, target = numbers.at(k // span * inner + column), out.at(i)
        count = i.step = f.smaller(f.where(inner == 1, span - k % span, inner - column), n - i)
        with f.when(inner == 1):
            number = source[0]
            with f.loop(0, count) as j:
                target[j] = number
        with f.when(inner != 1):
            f.copy(target, source, count * (SIZES[T] // 8))
    return f.text()


def _add(T: str) -> str:  # noqa: N803 - a type
    """Add numbers to others."""
    f = Function(f"add.{T}", f"noalias {T}* to, noalias {T}* from, i64 n", attributes=APART, internal=True)
    to, others, n = f.given.values()
    with f.loop(0, n) as i:
        to[i] = to[i] + others[i]
    return f.text()


def fold(i: int, variant: Variant) -> str:
    """The loops of one variant that add up along an axis.

    They work on pieces of at most 256 numbers of one stretch. Of each the elements go to a buffer, those of its parts side by side;
    where a piece is all of a stretch, they lie side by side in memory, too.
    """
    last = update(variant.program)
    metadata = 2 * i
    code = Elements(variant, last.elements, metadata)
    (store,) = last.stores
    T = code.dtype.llvm  # noqa: N806 - a type
    code.set_item("%out", store.value)
    f = Function(f"update{i}", walks.TYPED, internal=True)
    buffer, beyond = f.room(T, table.CHUNK), f.room(T, table.CHUNK)
    row, column = f.given["row"], table.fold_at(variant.program)
    sums = row.bits(f"{T}**")[table.SLOTS + variant.program.slots.index(store.name)]
    lanes, parts, whole, every = (row[column + k] for k in range(len(Fold._fields)))
    tail, first = every - whole, f.given["start"] // PARTS
    end = first + f.given["n"] // PARTS

    def values(start: Any, n: Any, out: Any) -> None:
        f.call(f"values{i}", *(f.given | {"start": start, "n": n}).values(), out)

    def add_beyond(to: Any, start: Any, n: Any) -> None:
        with f.when(n > 0):
            values(start, n, beyond)
            f.call(f"add.{T}", to, beyond, n)

    with f.loop(first, end) as q:
        t = q % lanes
        size = q.step = f.smaller(lanes - t, end - q)
        base = q // lanes * every + t
        with f.when(size == lanes):
            values(base, whole, buffer)
            add_beyond(buffer, base + whole, tail)
        with f.when(size != lanes), f.loop(0, parts) as j:
            far, own = j * lanes, buffer.at(j * size)
            values(base + far, size, own)
            add_beyond(own, base + far + whole, f.smaller(tail - t - far, size))
        with f.loop(0, PARTS.bit_length() - 1) as k:
            half = (parts >> 1 >> k) * size
            f.call(f"add.{T}", buffer, buffer.at(half), half)
        f.copy(sums.at(q), buffer, size * (SIZES[T] // 8))
    return code.loop(f"values{i}", f"{walks.ARGUMENTS}, ptr noalias %out", metadata, APART) + f.text()
