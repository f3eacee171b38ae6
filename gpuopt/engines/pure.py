"""A fused step that makes new arrays: one table and one kernel for leaves of some layouts, wherever they lie.

A kernel updates in place; here each chunk is brought to its new place first, on its way through the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import assign, is_numpy
from gpuopt.engines.interrupts import in_one_go
from gpuopt.engines.memory import dense_layout, is_without_gaps, same_strides, side_by_side
from gpuopt.engines.place import place_of
from gpuopt.engines.program.trace import traced
from gpuopt.engines.table import PARAMETER, Segment, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.place import Place
    from gpuopt.engines.program.program import Program
    from gpuopt.rules.base import Rule

SMALL = 4096
"""Bytes of parameters and state that lie in one buffer."""
FUSED = ("float32", "float64")
"""Dtypes of leaves whose slots are stored like the leaf."""


def pure_step(arrays: Sequence[Any], groups: Sequence[int], rules: Sequence[Rule]) -> PureStep | None:
    """Return the fused step for parameters like these; None if they cannot be fused, or not together."""
    place, *others = {place_of(a) for a in arrays}
    if place is None or others or not all(str(a.dtype) in FUSED for a in arrays):
        return None
    programs = [_program(rule) for rule in rules]
    elementwise = [program for program in programs if program is not None and program.is_elementwise]
    if len(elementwise) < len(rules) or not all(map(is_without_gaps, arrays)):
        return None
    return PureStep(place, arrays, groups, elementwise)


_programs: dict[int, tuple[Rule, Program | None]] = {}
"""Of recent rules, by ``id``, the rule itself, so that no other gets its ``id``, and its program."""
MOST_PROGRAMS = 32


def _program(rule: Rule) -> Program | None:
    """Return the program of a rule, None if it has none, without tracing it anew at each call."""
    found = _programs.pop(id(rule), None) or (rule, traced(rule, twice=True))
    while len(_programs) >= MOST_PROGRAMS:
        _programs.pop(next(iter(_programs), 0), None)
    _programs[id(rule)] = found
    return found[1]


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
    programs
        Of the rule of each group.

    Attributes
    ----------
    slots
        Name and leaf of each slot.

    """

    def __init__(
        self, place: Place, parameters: Sequence[Any], groups: Sequence[int], programs: Sequence[Program]
    ) -> None:
        self._place = place
        own = [[*program.slots] for program in programs]
        leaves = list(enumerate(groups))
        names = dict.fromkeys(name for slots in own for name in slots)
        self.slots = [(name, i) for name in names for i, group in leaves if name in own[group]]
        # Where each array stands in the table: the parameters, then the slots.
        where = [(i, 0) for i, _ in leaves] + [(i, 1 + own[groups[i]].index(name)) for name, i in self.slots]
        rows, columns = np.array(where, np.intp).T
        self._leaf_of = rows.tolist()
        layouts = [dense_layout(p) for p in parameters]
        self._layouts = [layouts[i] for i in self._leaf_of]
        # Each a buffer: who keeps parameters need not keep their state, unless both are so small that it costs more to ask twice.
        whole = side_by_side(self._layouts)[1] <= SMALL
        parts = [self._layouts] if whole else [layouts, self._layouts[len(layouts) :]]
        self._parts = [(part, *side_by_side(part)) for part in parts if part]
        self._table = Table(
            [
                Segment(p.size, g, programs[g], str(p.dtype), str(p.dtype), (0,) * (1 + len(own[g])))
                for p, g in zip(parameters, groups, strict=True)
            ]
        )
        self._like = [place.stand_in(layout) for layout in (*self._layouts, *layouts)]
        self._addresses = np.zeros(len(self._like), np.int64)
        self._lookup = place.lookup(self._like, self._like, self._addresses)
        # Of each array of a segment, where it comes from and the bytes of an element; where these are 0, it is not brought.
        width = self._table.rows.shape[1]
        self._moves = np.zeros((len(leaves), width - PARAMETER, 2), np.int64)
        self._sources, self._bytes = self._moves.reshape(-1, 2).T
        self._source_at = rows * (width - PARAMETER) + columns
        self._brings = False
        self._apart = b""  # addresses of arrays that were found to share no memory
        self._places = self._table.rows.reshape(-1)
        self._place_at = rows * width + PARAMETER + columns
        self._itemsizes = np.array([layout.dtype.itemsize for layout in self._layouts], np.int64)
        self._sizes = np.array([a.nbytes for a in self._like], np.int64)
        self._advance = place.kernel(self._table, None).advancing(self._moves)

    def __call__(
        self,
        arrays: list[Any],
        gradients: list[Any],
        scalars: Sequence[Mapping[str, float]],
        checked: Callable[[int, Any], Any],
        *,
        donate: bool,
    ) -> list[Any] | None:
        """Return parameters and slots after the step; those of a leaf without a gradient are the same arrays.

        Parameters
        ----------
        arrays
            Parameters, and what `slots` names.
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
        list of arrays or None
            None if the arrays are not of this step's layouts.

        """
        count = len(arrays)
        given = [*arrays, *gradients]  # keeps what is read alive
        for k in self._lookup(given, self._like) or ():
            if k < count:
                return None
            self._replace(given, k, checked(k - count, given[k]))
        old, starts = self._addresses[:count], self._addresses[count:]
        if donate and self._can_write(arrays):
            self._make_room(given, count)
            new = arrays
            self._bring(False)
            self._places[self._place_at] = old
        else:
            new, places = self._made()
            self._bring(True)
            self._sources[self._source_at] = old
            self._places[self._place_at] = places
        self._table.gradients[:] = starts
        self._table.set_coefficients(scalars)
        in_one_go(self._advance(), self._place.restoring())
        if np.count_nonzero(starts) == len(starts):
            return new
        return [a if starts[i] else before for a, before, i in zip(new, arrays, self._leaf_of, strict=True)]

    def _bring(self, brings: bool) -> None:
        """Choose whether the kernel copies the arrays to new places before it updates them."""
        if brings is not self._brings:
            self._bytes[:] = 0
            self._bytes[self._source_at] = self._itemsizes * brings
            self._brings = brings

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

    def _made(self) -> tuple[list[Any], list[int]]:
        """New arrays, and their addresses."""
        arrays: list[Any] = []
        addresses: list[int] = []
        for layouts, offsets, nbytes in self._parts:
            new, first = self._place.room(layouts, offsets, nbytes)
            arrays += new
            addresses += [first + offset for offset in offsets]
        return arrays, addresses
