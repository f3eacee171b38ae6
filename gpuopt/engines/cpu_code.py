"""The functions of the CPU's kernels as LLVM IR, each of which works on some chunks of a table; see `gpuopt.engines.cpu_walks`."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from gpuopt.engines import cpu_extents, cpu_numbers, cpu_reductions, cpu_storage, cpu_walks, table
from gpuopt.engines.cpu_elements import Elements, declarations
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.passes import Batch, Reduction, passes, update
from gpuopt.engines.program import Node, Program
from gpuopt.engines.table import Variant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Brings a chunk of each array to another place, and has it updated there.
_MOVE = """  %own = getelementptr [{arrays} x [2 x i64]], ptr %moves, i64 %segment
  br label %move
move:
  %a = phi i64 [ 0, %present ], [ %a.next, %move ]
  %from.at = getelementptr [2 x i64], ptr %own, i64 %a
  %from = load ptr, ptr %from.at
  %size.at = getelementptr i64, ptr %from.at, i64 1
  %size = load i64, ptr %size.at
  %column = add i64 %a, {PARAMETER}
  %to.at = getelementptr ptr, ptr %row, i64 %column
  %to = load ptr, ptr %to.at
  %offset = mul i64 %start, %size
  %bytes = mul i64 %n, %size
  %source = getelementptr i8, ptr %from, i64 %offset
  %target = getelementptr i8, ptr %to, i64 %offset
  call void @llvm.memcpy.p0.p0.i64(ptr %target, ptr %source, i64 %bytes, i1 false)
  %a.next = add nuw nsw i64 %a, 1
  %others = icmp slt i64 %a.next, {arrays}
  br i1 %others, label %move, label %update
update:
  %k.after = add nsw i64 %k, 1
  call void @step(ptr %step, i64 %k, i64 %k.after)
  br label %next"""


def source(variants: tuple[Variant, ...]) -> str:
    """IR of the functions that know these variants: ``pass0``, ``numbers0``, ``pass1``, ..., and ``step``."""
    code = declarations()
    if any(v.precision for v in variants):
        code.append(cpu_storage.functions())
    code += cpu_extents.functions(variants)
    code.append(_over_chunks("step", "update", variants, range(len(variants))))
    code += [_update(i, variant) for i, variant in enumerate(variants)]
    if table.reduction_passes(variants):
        code += cpu_reductions.halves()
    metadata = itertools.count(2 * len(variants), 2)
    for k in range(table.reduction_passes(variants)):
        code += _pass(k, variants, metadata)
    return "\n".join(code)


def advance(variants: tuple[Variant, ...]) -> str:
    """IR of the function that brings every chunk to another place before it is updated there."""
    columns = table.SLOTS + max(len(v.program.slots) for v in variants)
    body = _MOVE.format(arrays=columns - table.PARAMETER, PARAMETER=table.PARAMETER)
    walk = cpu_walks.over_chunks("advance", ("step", "table", "gradients", "chunks", "moves"), columns, body)
    return "\n".join([source(variants), walk])


def measure() -> str:
    """IR of the function that adds up the squares of every chunk."""
    code = [*declarations(), cpu_storage.functions(), *cpu_reductions.halves()]
    calls = {}
    for dtype in DTYPES.values():
        loads = [Node("load", ("g", k)) for k in range(2)] if dtype.parts == 2 else [Node("load", ("g",))]
        pairs = frozenset({"g"}) if dtype.parts == 2 else frozenset[str]()
        variant = Variant(Program((), tuple(loads), (), (), (), pairs=pairs), dtype.name)
        elements = tuple(range(dtype.parts))
        squares = Batch(elements, (Reduction(0, "norm", "leaf", elements, 0),))
        arguments = "ptr %g.leaf, i64 %start, i64 %n"
        code.append(cpu_reductions.loop(f"squares.{dtype.name}", variant, (), squares, 3, 2 * dtype.number, arguments))
        given = arguments.replace("%g.leaf", "%gradient")
        calls[dtype.number] = f"call void @squares.{dtype.name}({given}, ptr %out)"
    context = ("table", "columns", "gradients", "chunks", "partials")
    body = cpu_walks.choice(table.DTYPE, calls)
    code.append(cpu_walks.over_chunks("measure", context, None, body, cpu_reductions.cleared(3, 0)))
    return "\n".join(code)


def _over_chunks(
    name: str, function: str, variants: tuple[Variant, ...], own: Iterable[int], before: str = "", more: str = ""
) -> str:
    """The walk of a step, which calls a function of the chunk's variant."""
    arguments = cpu_walks.arguments(table.numbers(variants))
    given = cpu_walks.ARGUMENTS.replace("%g.leaf", "%gradient") + more
    calls = cpu_walks.choice(table.VARIANT, {i: f"call void @{function}{i}({given})" for i in own})
    columns = table.columns(variants)
    return cpu_walks.over_chunks(name, cpu_walks.CONTEXT, columns, f"{arguments}\n{calls}", before)


def _update(i: int, variant: Variant) -> str:
    """The loop of one variant over ``n`` elements from ``start``."""
    if variant.program.folds:
        return cpu_extents.fold(i, variant)
    last = update(variant.program)
    metadata = 2 * i
    code = Elements(variant, last.elements, {}, f", !llvm.access.group !{metadata}")
    for store in last.stores:
        code.store(store.name, store.part, store.value, store.when)
    if not last.stores:
        return f"define internal void @update{i}({cpu_walks.ARGUMENTS}) {{\n  ret void\n}}"
    return code.loop(f"update{i}", cpu_walks.ARGUMENTS, metadata)


def _pass(k: int, variants: tuple[Variant, ...], metadata: Iterator[int]) -> list[str]:
    """A reduction pass, and the numbers that are worked out after it."""
    sums, largest = table.widths(k, variants)
    own = {i: found[k] for i, v in enumerate(variants) if len(found := passes(v.program)) > k}
    reducing = [i for i, p in own.items() if p.reductions]
    before = cpu_reductions.cleared(sums, largest)
    code = [_over_chunks(f"pass{k}", f"reduce{k}.", variants, reducing, before, ", ptr %out")]
    for i in reducing:
        calls = []
        for n, batch in enumerate(cpu_reductions.joined(own[i].batches)):
            name = f"reduce{k}.{i}.{n}"
            code.append(cpu_reductions.loop(name, variants[i], own[i].before, batch, sums, next(metadata)))
            calls.append(f"  call void @{name}({cpu_walks.ARGUMENTS}, ptr %out)\n")
        code.append(
            f"define internal void @reduce{k}.{i}({cpu_walks.ARGUMENTS}, ptr %out) {{\n{''.join(calls)}  ret void\n}}"
        )
    code.append(cpu_numbers.after(k, variants, own, sums, largest))
    return code
