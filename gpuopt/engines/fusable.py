"""Which leaves of a step a fused engine updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import arrays as libraries
from gpuopt.engines import memory
from gpuopt.engines.program.programs import kind_of
from gpuopt.engines.program.symbols import Expression, Extent, TraceError
from gpuopt.engines.program.trace import functions
from gpuopt.engines.table import totals
from gpuopt.engines.whole_arrays import is_like, unlike

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from gpuopt.engines.choice import Engine
    from gpuopt.engines.place import Place
    from gpuopt.engines.program.program import Program
    from gpuopt.rules.base import Rule


def fused_leaves(
    engine: Engine,
    programs: Sequence[Program | None],
    groups: Sequence[int],
    arrays: Sequence[Any],
    places: Sequence[Place | None],
    rules: Sequence[Rule],
    idle: Collection[int],
    *,
    are_parts: bool,
) -> list[int]:
    """Return the indices of the leaves that a fused engine updates.

    Parameters
    ----------
    engine
        "auto", "array" or "fused".
    programs, groups, arrays, places
        For each leaf: its program (None if its rule cannot be traced), the index of its rule, the parameter and its place.
    rules
        One for each group.
    idle
        Leaves that are never updated.
    are_parts
        Whether these are parts of leaves, whose numbers are worked out elsewhere.

    Raises
    ------
    TypeError
        If a rule needs totals over leaves of several libraries; with "fused", of several devices.

    """
    # Leaves that are added up to one total are fused only all together, in one place.
    can_be_fused = [program is not None for program in programs]
    for group, rule in enumerate(rules):
        members = [i for i, own in enumerate(groups) if own == group]
        if not any((program := programs[i]) and program.has_totals for i in members):
            continue
        homes = sorted({p.name if (p := places[i]) else libraries.place(arrays[i]) for i in members})
        if len(homes) > 1 and (engine == "fused" or len({home.partition(":")[0] for home in homes}) > 1):
            devices = (
                "" if engine != "fused" else "; engine='auto' updates those of several devices of one library, too"
            )
            raise TypeError(
                f"{rule.name}.update asks for totals over leaves of {' and '.join(homes)}, expected one place{devices}"
            )
        own_programs = {id(own): own for i in members if (own := programs[i])}.values()
        differ = engine != "fused" and len({tuple(map(tuple, totals(own))) for own in own_programs}) > 1
        if len(homes) > 1 or differ or not all(can_be_fused[i] for i in members):
            for i in members:
                can_be_fused[i] = False
    if engine == "array":
        return []
    leaves = [
        (i, place, a)
        for i, (a, place) in enumerate(zip(arrays, places, strict=True))
        if i not in idle
        and place is not None
        and (can_be_fused[i] or (engine == "fused" and memory.is_without_gaps(a)))
    ]
    # Where there is no element, no kernel runs, which also works out slots that are numbers, unless that is done elsewhere.
    busy = {place for _, place, a in leaves if a.size or are_parts}
    return [i for i, place, _ in leaves if place in busy]


def try_whole(
    programs: list[Program | None],
    members: Sequence[int],
    groups: Sequence[int],
    arrays: Sequence[Any],
    rules: Sequence[Rule],
    *,
    strict: bool,
) -> None:
    """Call what updates give to `xp.whole` once for each kind of leaf, for its errors.

    Parameters
    ----------
    programs
        Of each leaf. Leaves whose functions use values that they are not given, or do not return arrays like the leaf, get None.
    members
        The leaves to look at.
    groups, arrays, rules
        Of each leaf the index of its rule and the parameter; the rules.
    strict
        Whether to raise instead.

    Raises
    ------
    TraceError
        If one is not fit, with ``strict``.
    Exception
        Whatever a function raises.

    """
    kinds: dict[Any, list[int]] = {}
    for i in members:
        program = programs[i]
        if program is not None and program.extents:
            kinds.setdefault(
                (groups[i], id(program), libraries.place(arrays[i]), libraries.dtype_of(arrays[i])), []
            ).append(i)
    for alike in kinds.values():
        least = min(alike, key=lambda i: int(arrays[i].size))
        program = programs[least]
        assert program is not None
        try:
            _try_whole(rules[groups[least]], program, arrays[least])
        except TraceError:
            if strict:
                raise
            for i in alike:
                programs[i] = None


def _try_whole(rule: Rule, program: Program, p: Any) -> None:
    if not any(node.op == "whole" for node in program.extents):
        return
    kind, xp = kind_of(p), libraries.namespace(p)

    def zeros(arg: Any) -> Any:
        if not isinstance(arg, Expression):
            return arg
        return libraries.zeros_like(p, np.dtype(kind.dtype), arg.shape if isinstance(arg, Extent) else kind.shape)

    with libraries.current(p), np.errstate(all="ignore"):
        for function, args in functions(rule, rule.at(0), is_complex=bool(program.pairs), kind=kind):
            found = function(xp, *map(zeros, args))
            if not is_like(found, kind):
                raise TraceError(f"{unlike(found, kind, rule.name)}; engine='array' runs it as it is")
