"""Stages: a program is cut where it needs whole arrays, for sums along axes or `xp.whole`.

A stage before the last one writes hidden arrays alone, and never a slot or the parameter: what it works out that a later stage needs
again, that stage works out again. Between two stages the leaf's library computes what is of whole arrays. The last stage updates. What
a stage does follows from the data, as with passes (`gpuopt.engines.program.passes`), of which each stage has its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from gpuopt.engines.program.passes import depths, needed
from gpuopt.engines.program.program import Node, entering, held_by

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpuopt.engines.program.program import Program


@dataclass(frozen=True)
class Stage:
    """What the loops of one stage do.

    Attributes
    ----------
    before
        Extents that are worked out before them, in order.
    enters
        Of these, the ones that the loops of this stage or of later ones read.
    program
        Of the loops.
    folds
        Programs of loops that add up along an axis, by the name of the hidden array that they write.

    """

    before: tuple[int, ...]
    enters: tuple[int, ...]
    program: Program
    folds: tuple[tuple[str, Program], ...] = ()


def leaving(element: int) -> str:
    """Name of the hidden array in which an element is stored for what is of whole arrays; no slot has a name with a space."""
    return f"element {element}"


def source(program: Program, node: Node) -> str | None:
    """Name of the hidden array that an extent is a sum of; None if it is the sum of another extent.

    Elements that are made of no numbers are added up in the loop that works them out, along the first axis, as far as that goes.
    """
    (where, index), (first, *_), _ = node.args
    if where != "element":
        return None
    return leaving(index) if _numbers_of(program, index) else f"{leaving(index)} along {first}"


def axis_of(name: str) -> int:
    """The axis along which a hidden array is added up; -1 if it is not."""
    _, is_sum, axis = name.partition(" along ")
    return int(axis) if is_sum else -1


def _numbers_of(program: Program, element: int) -> bool:
    return any(program.nodes[i].op == "number" for i in needed(program, [element], ())[0])


@cache
def stages(program: Program) -> tuple[Stage, ...]:
    """The stages of a program, one at least."""
    if not program.extents:
        return (Stage((), (), program),)
    wanted = _wanted(program)
    if not wanted:
        return (Stage((), (), _with_hidden(program, program.stores)),)
    _, _, extents = depths(program, of_sums=0, of_arrays=1)
    read = {k for k in wanted if Node("load", (entering(k),)) in _read(program, wanted)}
    totals = tuple(
        k
        for k in needed(program, _ends(program, wanted), program.number_outputs, through_numbers=True)[1]
        if program.numbers[k].op == "reduce" and program.numbers[k].args[1] == "group"
    )
    found = []
    for depth in range(1 + max(extents[k] for k in wanted)):
        before = tuple(k for k in wanted if extents[k] == depth)
        left = {name: i for k in wanted if extents[k] == depth + 1 for name, i in _left(program, program.extents[k])}
        found.append((before, tuple(k for k in before if k in read), left))
    *first, (before, enters, _) = found
    return (
        *(
            Stage(
                own,
                ins,
                _only(program, tuple((name, (), i) for name, i in left.items() if axis_of(name) < 0), totals),
                tuple(
                    (name, replace(_only(program, ((name, (), i),), ()), folds=True))
                    for name, i in left.items()
                    if axis_of(name) >= 0
                ),
            )
            for own, ins, left in first
        ),
        Stage(before, enters, _with_hidden(replace(program, totals=totals), program.stores)),
    )


def idle(program: Program) -> Program:
    """The program of a leaf that takes part in the totals of a stage, and no more."""
    (*_, last) = stages(program)
    return _only(program, (), last.program.totals or tuple(_totals(program)))


def depth_of_totals(program: Program) -> int:
    """How many stages come before the last total over all leaves is known."""
    numbers = depths(program, of_sums=0, of_arrays=1)[1]
    return max((numbers[k] for k in _totals(program)), default=0)


@cache
def buffers(program: Program) -> dict[str, int]:
    """Of each hidden array of a leaf that is like the leaf, the buffer that it is in.

    A buffer is used again when what was in it is not needed any more.
    """
    spans: dict[str, tuple[int, int]] = {}
    own = stages(program)
    for s, stage in enumerate(own):
        for k in stage.enters:
            if program.extents[k].op == "whole":
                spans[entering(k)] = 2 * s - 1, 2 * s
        for name in stage.program.hidden - stage.program.spread:
            begin, end = spans.get(name, (2 * s, 0))
            spans[name] = begin, max(end, 2 * s + 1)
    free: list[int] = []
    found: dict[str, int] = {}
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        k = next((k for k, until in enumerate(free) if until <= begin), len(free))
        free[k : k + 1] = [end]
        found[name] = k
    return found


def _only(program: Program, stores: tuple[tuple[str, tuple[int, ...], int], ...], totals: tuple[int, ...]) -> Program:
    """A program that writes these alone."""
    used = needed(program, [i for _, _, i in stores], totals, through_numbers=True)[1]
    kept = {program.numbers[k].args[0]: k for k in used if program.numbers[k].op == "slot"}
    names = tuple(name for name in program.number_slots if name in kept)
    return _with_hidden(
        replace(program, number_slots=names, number_outputs=tuple(kept[name] for name in names), totals=totals), stores
    )


def _with_hidden(program: Program, stores: tuple[tuple[str, tuple[int, ...], int], ...]) -> Program:
    """A program of loops alone, with the hidden arrays that it reads and writes among its slots."""
    elements, _ = needed(
        program, [i for _, _, i in stores], (*program.number_outputs, *program.totals), through_numbers=True
    )
    known = {"p", "g", *program.slots}
    read = [program.nodes[i].args[0] for i in elements if program.nodes[i].op == "load"]
    hidden = dict.fromkeys(name for name in (*read, *(name for name, _, _ in stores)) if name not in known)
    spread = {entering(k) for k, node in enumerate(program.extents) if node.op != "whole"}
    return replace(
        program,
        slots=(*program.slots, *hidden),
        stores=stores,
        hidden=frozenset(hidden),
        spread=frozenset(hidden) & spread,
        extents=(),
        extent_shapes=(),
        extent_scalars=(),
        extent_slots=(),
    )


def _totals(program: Program) -> list[int]:
    return [k for k, node in enumerate(program.numbers) if node.op == "reduce" and node.args[1] == "group"]


def _left(program: Program, node: Node) -> list[tuple[str, int]]:
    """The hidden arrays that an extent is made of, and the elements that are stored there."""
    if node.op == "sum":
        name = source(program, node)
        return [(name, node.args[0][1])] if name else []
    return [(leaving(i), i) for i in _elements_of(node)]


def _elements_of(node: Node) -> list[int]:
    """The elements that are stored for an extent."""
    return [index for where, index in held_by(node) if where == "element"]


def _ends(program: Program, wanted: Iterable[int]) -> list[int]:
    """Elements that are written, at last or for an extent."""
    return [i for _, _, i in program.stores] + [i for k in wanted for i in _elements_of(program.extents[k])]


def _read(program: Program, wanted: Iterable[int]) -> set[Node]:
    """Nodes of all elements that are needed."""
    used, _ = needed(program, _ends(program, wanted), program.number_outputs, through_numbers=True)
    return {program.nodes[i] for i in used}


def _wanted(program: Program) -> list[int]:
    """The extents that something needs, in order."""
    by_name = {entering(k): k for k in range(len(program.extents))}
    found: set[int] = set()
    open_ones = [k for _, k in program.extent_slots]
    ends = [i for _, _, i in program.stores]
    numbers: Iterable[int] = program.number_outputs
    while open_ones or ends:
        used, _ = needed(program, ends, numbers, through_numbers=True)
        loads = [program.nodes[i].args[0] for i in used if program.nodes[i].op == "load"]
        open_ones += [by_name[name] for name in loads if name in by_name]
        ends, numbers = [], ()
        while open_ones:
            k = open_ones.pop()
            if k not in found:
                found.add(k)
                held = held_by(program.extents[k])
                open_ones += [index for where, index in held if where == "extent"]
                ends += [index for where, index in held if where == "element"]
    return sorted(found)
