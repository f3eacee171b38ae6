"""The functions of the CPU's kernels as LLVM IR, each of which works on some chunks of a table; see `gpuopt.engines.cpu.walks`."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

from gpuopt.engines import table
from gpuopt.engines.cpu import extents, reductions, storage, walks
from gpuopt.engines.cpu import numbers as cpu_numbers
from gpuopt.engines.cpu.elements import Elements, declarations
from gpuopt.engines.cpu.ir import Function
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.program.passes import passes, update

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gpuopt.engines.cpu.walks import Chunk
    from gpuopt.engines.program.passes import Store
    from gpuopt.engines.table import Variant


def source(variants: tuple[Variant, ...]) -> str:
    """IR of the functions that know these variants: ``pass0``, ``numbers0``, ``pass1``, ..., and ``step``."""
    code = declarations()
    if any(v.precision for v in variants):
        code.append(storage.functions())
    code += extents.functions(variants)
    code.append(_over_chunks("step", "update", variants, range(len(variants))))
    metadata = itertools.count(2 * len(variants), 2)
    code += [_update(i, variant, metadata) for i, variant in enumerate(variants)]
    if table.reduction_passes(variants):
        code += reductions.halves()
    for k in range(table.reduction_passes(variants)):
        code += _pass(k, variants, metadata)
    return "\n".join(code)


def advance(variants: tuple[Variant, ...]) -> str:
    """IR of the function that brings every chunk to another place before it is updated there."""
    columns = table.columns(variants)
    arrays = table.SLOTS + max(len(v.program.slots) for v in variants) - table.PARAMETER

    def work(f: Function, own: dict[str, Any], chunk: Chunk) -> None:
        with f.loop(0, arrays) as a:
            move = own["moves"].at((chunk.segment * arrays + a) * 2)
            source, size, target = move.bits("i8**")[0], move[1], chunk.row.bits("i8**")[a + table.PARAMETER]
            f.copy(target.at(chunk.start * size), source.at(chunk.start * size), chunk.n * size)
        f.call("step", own["step"], chunk.k, chunk.k + 1)

    context = ("step", "table", "gradients", "chunks", "moves")
    return "\n".join([source(variants), walks.over_chunks("advance", context, columns, work)])


def measure() -> str:
    """IR of the function that adds up the squares of every chunk."""
    code = [*declarations(), storage.functions(), *reductions.halves()]
    names, metadata = {}, itertools.count(0, 2)
    for dtype in DTYPES.values():
        variant, squares = table.squares(dtype)
        name = names[dtype.number] = f"squares.{dtype.name}"
        code.append(reductions.function(name, variant, (), [squares], 3, metadata, "i8* g.leaf, i64 start, i64 n"))

    def work(f: Function, own: dict[str, Any], chunk: Chunk) -> None:
        given = chunk.gradient, chunk.start, chunk.n, reductions.place(own, chunk.k, 3)
        f.choose(chunk.row[table.DTYPE], {i: partial(f.call, name, *given) for i, name in names.items()})

    context = ("table", "columns", "gradients", "chunks", "partials")
    code.append(walks.over_chunks("measure", context, None, work, reductions.clearing(3, 0)))
    return "\n".join(code)


def _over_chunks(
    name: str, function: str, variants: tuple[Variant, ...], own: Iterable[int], width: int = 0, before: Any = None
) -> str:
    """The walk of a step, which calls a function of the chunk's variant; of a pass with the place of so many columns, too."""

    def work(f: Function, context: dict[str, Any], chunk: Chunk) -> None:
        given = chunk.arguments(context, table.numbers(variants))
        given += (reductions.place(context, chunk.k, width),) if width else ()
        f.choose(chunk.row[table.VARIANT], {i: partial(f.call, f"{function}{i}", *given) for i in own})

    return walks.over_chunks(name, walks.OF_STEP, table.columns(variants), work, before)


def _update(i: int, variant: Variant, metadata: Iterator[int]) -> str:
    """The loop of one variant over ``n`` elements from ``start``."""
    if variant.program.folds:
        return extents.fold(i, variant)
    last, name = update(variant.program), f"update{i}"
    if not last.stores:
        return Function(name, walks.TYPED, internal=True).text()
    code = Elements(variant, last.elements, 2 * i)
    if not (copies := code.copies(last.stores)):
        return _stored(code, name, last.stores, 2 * i)
    # A copy that is not done is a store, too, to where nobody reads: one loop is for a few copies, one for any number of them.
    code.copy(copies)
    others = [store for store in last.stores if store not in [copy.store for copy in copies]]
    few = _stored(code, f"{name}.few", others, 2 * i)
    number = next(metadata)
    every = _stored(Elements(variant, last.elements, number), f"{name}.all", last.stores, number)
    return "\n".join([few, every, code.choice(name, copies)])


def _stored(code: Elements, name: str, stores: Iterable[Store], metadata: int) -> str:
    """Write a loop that stores the results of the update."""
    for store in stores:
        code.store(store.name, store.part, store.value, store.when)
    return code.loop(name, walks.ARGUMENTS, metadata)


def _pass(k: int, variants: tuple[Variant, ...], metadata: Iterator[int]) -> list[str]:
    """A reduction pass, and the numbers that are worked out after it."""
    sums, largest = table.widths(k, variants)
    own = {i: found[k] for i, v in enumerate(variants) if len(found := passes(v.program)) > k}
    reducing = [i for i, p in own.items() if p.reductions]
    before = reductions.clearing(sums, largest)
    code = [_over_chunks(f"pass{k}", f"reduce{k}.", variants, reducing, sums + largest, before)]
    for i in reducing:
        batches = reductions.loops(variants[i], own[i].reductions)
        code.append(reductions.function(f"reduce{k}.{i}", variants[i], own[i].before, batches, sums, metadata))
    code.append(cpu_numbers.after(k, variants, own, sums, largest))
    return code
