"""A fused step that makes new arrays: one table and one kernel for leaves of some layouts, wherever they lie.

A kernel updates in place; here all arrays are brought to their new places first, of an elementwise rule each chunk on its way
through the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import assign, dtype_of, is_numpy, to_numpy
from gpuopt.engines.complexes import slot_dtype
from gpuopt.engines.fusable import try_whole
from gpuopt.engines.fused import Leaf
from gpuopt.engines.interrupts import in_one_go
from gpuopt.engines.memory import Layout, dense_layout, is_without_gaps, same_strides, side_by_side
from gpuopt.engines.place import place_of
from gpuopt.engines.program.programs import Programs
from gpuopt.engines.table import PARAMETER, Table, TooManyRulesError
from gpuopt.engines.whole_arrays import Before, named, segments_of, staged
from gpuopt.rules.slots import is_number, shape_of, starts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.place import Place
    from gpuopt.engines.program.program import Program
    from gpuopt.engines.whole_arrays import Names
    from gpuopt.rules.base import Rule

SMALL = 4096
"""Bytes of parameters and state that lie in one buffer."""
FUSED = ("float32", "float64", "complex64", "complex128")
"""Dtypes of leaves whose slots are stored as it is computed with them."""


def pure_step(arrays: Sequence[Any], groups: Sequence[int], rules: Sequence[Rule]) -> PureStep | None:
    """Return the fused step for parameters like these; None if they cannot be fused, or not together."""
    place, *others = {place_of(a) for a in arrays}
    if place is None or others or not all(dtype_of(a) in FUSED and is_without_gaps(a) for a in arrays):
        return None
    if not any(a.size for a in arrays):  # no kernel would run, which also works out slots that are numbers
        return None
    own = [_programs_of(rule) for rule in rules]
    found = [own[group].get(0, a) for group, a in zip(groups, arrays, strict=True)]
    try_whole(found, range(len(arrays)), groups, arrays, rules, strict=False)
    programs = [program for program in found if program is not None]
    if len(programs) < len(found):
        return None
    try:
        return PureStep(place, arrays, groups, rules, programs)
    except (TooManyRulesError, TypeError):  # totals that are not made alike of all leaves
        return None


_programs: dict[int, tuple[Rule, Programs]] = {}
"""Of recent rules, by ``id``, the rule itself, so that no other gets its ``id``, and its programs."""
MOST_PROGRAMS = 32


def _programs_of(rule: Rule) -> Programs:
    """Return the programs of a rule, without tracing it anew at each call."""
    found = _programs.pop(id(rule), None) or (rule, Programs([rule]))
    while len(_programs) >= MOST_PROGRAMS:
        _programs.pop(next(iter(_programs), 0), None)
    _programs[id(rule)] = found
    return found[1]


def _is_like(x: Any, like: Any) -> bool:
    return type(x) is type(like) and place_of(x) is place_of(like) and (x.dtype, x.shape) == (like.dtype, like.shape)


class PureStep:
    """A step over leaves of one place, each of a shape, a dtype and strides. Only one thread may be in it.

    Parameters
    ----------
    place
        Of all leaves.
    parameters
        For their layouts alone.
    groups
        Of each parameter, the index of its rule.
    rules
        One for each group.
    programs
        Of each parameter.

    Attributes
    ----------
    slots, numbers
        Name and leaf of each slot that is an array, and of each that is a number.

    """

    def __init__(
        self,
        place: Place,
        parameters: Sequence[Any],
        groups: Sequence[int],
        rules: Sequence[Rule],
        programs: Sequence[Program],
    ) -> None:
        self._place = place
        own = [starts(rule.slots) for rule in rules]
        leaves = list(enumerate(groups))
        names = dict.fromkeys(name for declared in own for name in declared)
        every = [(name, i) for name in names for i, group in leaves if name in own[group]]
        self.numbers = [(name, i) for name, i in every if is_number(own[groups[i]][name])]
        self.slots = [(name, i) for name, i in every if (name, i) not in {*self.numbers}]
        layouts = [dense_layout(p) for p in parameters]
        of_slots = [
            dense_layout(p, slot_dtype(rules[group], name, p), shape_of(own[group][name], tuple(p.shape)))
            for name, i in self.slots
            for p, group in [(parameters[i], groups[i])]
        ]
        self._leaf_of = [*range(len(layouts)), *(i for _, i in self.slots)]
        self._layouts = [*layouts, *of_slots]
        # Each a buffer: who keeps parameters need not keep their state, unless both are so small that it costs more to ask twice.
        whole = side_by_side(self._layouts)[1] <= SMALL
        parts = [self._layouts] if whole else [layouts, of_slots]
        self._parts = [(part, *side_by_side(part)) for part in parts if part]
        self._like = [place.stand_in(layout) for layout in (*self._layouts, *layouts)]
        (self._numbers,) = place.zeros([Layout((len(self.numbers),), np.dtype(np.float64), (8,))])
        self._make_tables(groups, rules, programs)
        self._addresses = np.zeros(len(self._like), np.int64)
        self._lookup = place.lookup(self._like, self._like, self._addresses)
        self._apart = b""  # addresses of arrays that were found to share no memory
        self._sizes = np.array([a.nbytes for a in self._like], np.int64)

    def _make_tables(self, groups: Sequence[int], rules: Sequence[Rule], programs: Sequence[Program]) -> None:
        """Make the kernels. What stands for arrays in their tables is replaced in each step."""
        place, like = self._place, self._like[: len(groups)]
        slots: list[dict[str, Any]] = [{} for _ in groups]
        for k, (name, i) in enumerate(self.slots, len(groups)):
            slots[i][name] = self._like[k]
        for k, (name, i) in enumerate(self.numbers):
            slots[i][name] = self._numbers[k : k + 1].reshape(())
        held = [Leaf(groups[i], p, p, programs[i], slots[i]) for i, p in enumerate(like)]
        leaves, dtypes = staged(place, held, like), [dtype_of(p) for p in like]
        last = [leaf.stages.last for leaf in leaves]
        self._table = Table(segments_of(place, leaves, last, dtypes, range(len(leaves))))
        self._kernel = place.kernel(self._table, None)
        self._before = (
            Before(place, leaves, dtypes, rules, self._table, self._kernel)
            if any(program.extents for program in programs)
            else None
        )
        own: Names = [(i, named(loop)) for i, loop in enumerate(last)]
        tables = [(self._table, own), *(self._before.tables if self._before else ())]
        self._cells = [(table.rows.reshape(-1), *self._cells_of(table, names)) for table, names in tables]
        self._advance = None
        if all(program.is_elementwise for program in programs):
            # Of each array of a segment, where it comes from and the bytes of an element; where these are 0, it is not brought.
            moves = np.zeros((*self._table.rows[:, PARAMETER:].shape, 2), np.int64)
            _, cells, self._which = self._cells[0]
            self._at = cells - (cells // self._table.rows.shape[1] + 1) * PARAMETER
            self._sources, self._bytes = moves.reshape(-1, 2).T
            self._brings = False
            self._itemsizes = np.array([layout.dtype.itemsize for layout in self._layouts], np.int64)
            self._advance = self._kernel.advancing(moves)

    def _cells_of(self, table: Table, names: Names) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Where in a table, as a flat array, the addresses of arrays stand, and of which ones."""
        count = len(self._layouts) - len(self.slots)
        number = {("p", i): i for i in range(count)} | {own: k for k, own in enumerate(self.slots, count)}
        found = [
            (row * table.rows.shape[1] + PARAMETER + column, number[name, i])
            for row, (i, own) in enumerate(names)
            for column, name in enumerate(own)
            if (name, i) in number
        ]
        cells, which = np.array(found, np.intp).T
        return cells, which

    def __call__(
        self,
        arrays: list[Any],
        numbers: list[float],
        gradients: list[Any],
        scalars: Sequence[Mapping[str, float]],
        checked: Callable[[int, Any], Any],
        *,
        donate: bool,
    ) -> tuple[list[Any], list[float]] | None:
        """Return parameters and slots after the step, and numbers; those of a leaf without a gradient are the same arrays.

        Parameters
        ----------
        arrays
            Parameters, and what `slots` names.
        numbers
            What `numbers` names.
        gradients
            Of each leaf, whatever was given; None leaves a leaf alone.
        scalars
            Of each group, what `Rule.at` gave.
        checked
            Called with the number of a leaf and its gradient, unless that is known to fit: returns an array that fits, or
            raises.
        donate
            Whether the arrays may be written to, where that can be done.

        Returns
        -------
        arrays, numbers or None
            None if the arrays are not of this step's layouts.

        """
        count = len(arrays)
        given = [*arrays, *gradients]  # keeps what is read alive
        for k in self._lookup(given, self._like) or ():
            if k >= count:
                self._replace(given, k, checked(k - count, given[k]))
            elif k >= count - len(self.slots) and _is_like(given[k], self._like[k]):  # in another order in memory
                self._replace(given, k, given[k])
                arrays[k] = given[k]
            else:
                return None
        old, there = self._addresses[:count], self._addresses[count:]
        in_place = donate and self._can_write(arrays)
        if in_place:
            self._make_room(given, count)
            new, places = arrays, old
        else:
            new, places = self._made()
        for rows, cells, which in self._cells:
            rows[cells] = places[which]
        self._table.gradients[:] = there
        self._table.set_coefficients(scalars)
        if self._advance is not None:
            self._bring(old, brings=not in_place)
            in_one_go(self._advance(), self._place.restoring())
        else:
            self._run(new, arrays, numbers, scalars)
            numbers = to_numpy(self._numbers).tolist()
        if np.count_nonzero(there) == len(there):
            return new, numbers
        return [a if there[i] else before for a, before, i in zip(new, arrays, self._leaf_of, strict=True)], numbers

    def _run(
        self, new: list[Any], arrays: list[Any], numbers: list[float], scalars: Sequence[Mapping[str, float]]
    ) -> None:
        """Copy the arrays to their new places, and update them there, pass by pass."""
        gradients = self._table.gradients
        if numbers:
            assign(self._numbers, np.array(numbers))
        first = [*self._kernel.moved(), *(self._before.moved() if self._before else ())]
        for target, source, i in zip(new, arrays, self._leaf_of, strict=True):
            if target is not source and gradients[i]:
                first += self._place.copying(target, source)
        kept: Sequence[Callable[[], object]] = ()
        if self._before is not None:
            first, kept = self._before.prepare(first, scalars, gradients)
        in_one_go([*first, *self._kernel.prepare(), *kept], self._place.restoring())

    def _bring(self, old: NDArray[np.int64], *, brings: bool) -> None:
        """Choose whether the kernel copies the arrays to new places before it updates them, and from where."""
        if brings is not self._brings:
            self._bytes[self._at] = self._itemsizes[self._which] * brings
            self._brings = brings
        self._sources[self._at] = old[self._which]

    def _replace(self, given: list[Any], k: int, g: Any) -> None:
        """Put a checked gradient in place of the ``k``-th one; if its layout is not its parameter's, a copy with that layout."""
        like = self._like[k]
        given[k] = g if g.dtype == like.dtype and same_strides(g, like) else self._copy(g, k)
        self._lookup.record(k, given[k], once=True)

    def _copy(self, g: Any, k: int) -> Any:
        (new,) = self._place.zeros([dense_layout(self._like[k])])
        assign(new, g)
        return new

    def _can_write(self, arrays: list[Any]) -> bool:
        """Whether all of the arrays may be written to, and share no memory."""
        if not all(a.flags.writeable for a in arrays if is_numpy(a)):
            return False
        if self._addresses.tobytes() == self._apart:
            return True
        starts, ends = self._reach(slice(0, len(arrays)))
        order = np.argsort(starts)
        return not (ends[order][:-1] > starts[order][1:]).any()

    def _make_room(self, given: list[Any], count: int) -> None:
        """Copy the gradients that lie where this step writes before it has read them."""
        if (now := self._addresses.tobytes()) == self._apart:
            return
        starts, ends = self._reach(slice(0, count))
        begins, stops = self._reach(slice(count, None))
        order = np.argsort(starts)
        before = np.searchsorted(starts[order], stops)
        meets = (before > 0) & (ends[order][before - 1] > begins) & (begins != starts[: len(begins)])
        if not (found := (np.flatnonzero(meets & (begins > 0)) + count).tolist()):
            self._apart = now
        for k in found:
            self._replace(given, k, self._copy(given[k], k))

    def _reach(self, part: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self._addresses[part], self._addresses[part] + self._sizes[part]

    def _made(self) -> tuple[list[Any], NDArray[np.int64]]:
        """New arrays, and their addresses."""
        arrays: list[Any] = []
        addresses: list[int] = []
        for layouts, offsets, nbytes in self._parts:
            new, first = self._place.room(layouts, offsets, nbytes)
            arrays += new
            addresses += [first + offset for offset in offsets]
        return arrays, np.array(addresses, np.int64)
