"""One step for many leaves of one place: one call on the CPU, one launch on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpuopt.arrays import assign, name_of
from gpuopt.engines.complexes import gradient_dtype
from gpuopt.engines.interrupts import in_one_go
from gpuopt.engines.memory import dense_layout, is_without_gaps, same_strides, side_by_side
from gpuopt.engines.parts import Parts, WholeLeaves
from gpuopt.engines.place import host
from gpuopt.engines.table import PARAMETER, Table, TooManyRulesError, reduction_passes, widths
from gpuopt.engines.whole_arrays import Before, segments_of, staged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.memory import Overlaps
    from gpuopt.engines.place import Kernel, Place
    from gpuopt.engines.program.program import Program
    from gpuopt.rules.base import Rule


class Leaf(NamedTuple):
    """A leaf that is updated by a fused engine.

    Attributes
    ----------
    group
        The index of its rule.
    held
        The array as the user holds it, perhaps of a subclass.
    p
        The array as it is updated.
    program
        The traced update of the rule.
    slots
        The slots of the rule, by name; arrays are dense, laid out like `gpuopt.engines.memory.dense_layout` of ``p``.
    precision
        How a leaf of 16 bits is stored; see `gpuopt.engines.storage`.
    rest
        What the precision needs beside the parameter: the array of the lower bits, or the number of the leaf.

    """

    group: int
    held: Any
    p: Any
    program: Program
    slots: Mapping[str, Any]
    precision: str = ""
    rest: Any = 0


class FusedStep:
    """A table of leaves and the kernel that updates them all.

    A leaf that does not fill its memory without gaps is updated in a dense stand-in: its values are copied there before the
    kernel runs, and back afterwards. A leaf of 16 bits may get gradients of its own dtype or of float32; when one comes that
    the kernel was not made for, another kernel is. Where programs have several stages, those before the last one are run in `prepare`.

    Parameters
    ----------
    place
        Of all leaves.
    leaves
        The leaves, by their index in the caller's list.
    rules
        Of each group.
    reach
        All memory of this place that a step may write to.
    before
        The step of the same leaves that this one replaces, if there is one.
    parts
        Which leaves these are parts of, if they are parts. The caller then calls `begin`, and for each pass `reduce` and `know`, before
        `prepare`.

    """

    def __init__(
        self,
        place: Place,
        leaves: Mapping[int, Leaf],
        rules: Sequence[Rule],
        reach: Overlaps,
        before: FusedStep | None = None,
        parts: Parts | None = None,
    ) -> None:
        self.place = place
        self.members = list(leaves)
        with_gaps = [leaf.p for leaf in leaves.values() if not (leaf.p.flags.forc or is_without_gaps(leaf.p))]
        stand_ins = dict(zip(map(id, with_gaps), place.zeros([dense_layout(p) for p in with_gaps]), strict=True))
        self._parameters = [stand_ins.get(id(leaf.p), leaf.p) for leaf in leaves.values()]
        self._leaves, self._rules = list(leaves.values()), rules
        self._staged = staged(place, self._leaves, self._parameters)
        self._parts = parts and parts.of(self.members)
        self._reach = reach
        own = before.expects if before and before.members == self.members else [p.dtype for p in self._parameters]
        self._make(own, before.kernel if before else None)
        self._copies_in = [call for p in with_gaps for call in place.copying(stand_ins[id(p)], p)]
        self._copies_out = [call for p in with_gaps for call in place.copying(p, stand_ins[id(p)])]

    def _make(self, expects: list[Any], before: Kernel | None) -> None:
        """Make the table and the kernel, for gradients of these dtypes."""
        known = {dtype: name_of(dtype) for dtype in dict.fromkeys(expects)}
        names = [known[dtype] for dtype in expects]
        segments = segments_of(
            self.place, self._staged, [own.stages.last for own in self._staged], names, range(len(names))
        )
        table = Table(segments)
        passes = range(reduction_passes(table.variants)) if self._parts else ()
        self.widths = [sum(widths(k, table.variants)) for k in passes]
        numbers = [[leaf.slots[name] for name in leaf.program.number_slots] for leaf in self._leaves]
        self._whole = (
            WholeLeaves(segments, numbers, self._parts, host(), self.place) if self._parts and self.widths else None
        )
        like = [
            p if p.dtype == dtype else self.place.stand_in(dense_layout(p, dtype))
            for p, dtype in zip(self._parameters, expects, strict=True)
        ]
        lookup = self.place.lookup([leaf.held for leaf in self._leaves], like, table.gradients)
        self.kernel: Kernel = self.place.kernel(table, before)
        self._before = (
            Before(self.place, self._staged, names, self._rules, table, self.kernel)
            if any(leaf.program.extents for leaf in self._leaves)
            else None
        )
        self.expects, self._table, self._lookup, self._like = expects, table, lookup, like
        self._sizes = np.array([p.nbytes for p in like])
        self._apart = np.array([p.dtype != dtype for p, dtype in zip(self._parameters, expects, strict=True)])
        self._is_bound = False  # whether the gradients of the last step are in the table, and none is in the way
        self._known: dict[bytes, list[int]] = {}

    def bind(self, gradients: list[Any], leaves: list[Any], checked: Callable[[int, Any, Any], Any]) -> None:
        """Record where the gradients of the next step are; None leaves a leaf alone.

        A gradient that cannot be read where it is, is replaced by a copy: one that is not laid out like its parameter, or
        that this step would write to while it reads (a gradient may be its own parameter, but not another one's).

        Parameters
        ----------
        gradients, leaves
            Of all leaves of the optimizer: the gradients, and the parameters that the user holds now.
        checked
            Called with the number of a leaf, its gradient and its parameter: returns the gradient as an array that fits the
            parameter (or None), or raises.

        """
        self.kernel.expect()
        every = len(gradients) == len(self.members)
        own = gradients if every else [gradients[i] for i in self.members]
        held = leaves if every else [leaves[i] for i in self.members]
        were_bound, self._is_bound = self._is_bound, False  # if an exception ends this, nothing half-done is believed
        rows = self._lookup(own, held)
        if rows is None and were_bound:
            self._is_bound = True
            return
        expects = list(self.expects)
        for row in rows or ():
            i = self.members[row]
            g = gradients[i] = checked(i, own[row], held[row])
            if g is not None:
                expects[row] = np.dtype(gradient_dtype(g, self._parameters[row]))
        if expects != self.expects:
            self._make(expects, self.kernel)
            rows = self._lookup([gradients[i] for i in self.members], held)
        for row in rows or ():
            g, like = gradients[self.members[row]], self._like[row]
            if g is None:
                continue
            if g.dtype == like.dtype and same_strides(g, like):
                self._lookup.record(row, g)
            else:
                self._copy(row, gradients)
        for row in self._in_the_way():
            self._copy(row, gradients)
        self._is_bound = True

    def _copy(self, row: int, gradients: list[Any]) -> None:
        i = self.members[row]
        gradients[i] = _dense_copy(self.place, gradients[i], self._like[row])
        self._lookup.record(row, gradients[i], once=True)

    def _in_the_way(self) -> list[int]:
        """Return the rows whose gradient lies where a step writes before it has read the gradient."""
        addresses = self._table.gradients.tobytes()
        if addresses not in self._known:
            starts = self._table.gradients
            is_other = self._apart | (starts != self._table.rows[:, PARAMETER])
            rows = self._reach(starts, starts + self._sizes) & is_other
            if len(self._known) == 8:  # a loop that makes new gradients gets the same few addresses over and over
                self._known.clear()
            self._known[addresses] = np.flatnonzero(rows).tolist()
        return self._known[addresses]

    def measure(self, sums: NDArray[np.float64]) -> None:
        """Fill in the sums of squares of the gradients of these leaves; see `gpuopt.engines.norms`."""
        sums[self.members] = self.kernel.sums()

    def chunk_sums(self) -> dict[int, NDArray[np.float64]]:
        """Return the sums of squares of each chunk of these leaves' gradients, by leaf."""
        return self._by_leaf(self.kernel.chunk_sums())

    def _by_leaf(self, sums: NDArray[np.float64]) -> dict[int, NDArray[np.float64]]:
        """Split the sums of all chunks by leaf."""
        return dict(zip(self.members, np.split(sums, self._table.first_chunks[1:-1]), strict=True))

    def begin(self, scalars: Sequence[Mapping[str, float]], present: Sequence[bool]) -> None:
        """Before the first pass of a step of parts; see `WholeLeaves.begin`."""
        self._table.set_coefficients(scalars)
        if self._whole is not None:
            self._whole.begin(scalars, present)

    def reduce(self, k: int) -> dict[int, NDArray[np.float64]]:
        """Return what pass ``k`` adds up of each chunk, by leaf."""
        return self._by_leaf(self.kernel.reduce(k))

    def know(self, k: int, sums: NDArray[np.float64]) -> None:
        """Receive what pass ``k`` added up of all chunks of the whole leaves."""
        assert self._whole is not None
        self.kernel.know(self._whole.numbers(k, sums))

    def scale(self, factors: NDArray[np.float64]) -> None:
        """Set the factors of the gradients; ``factors`` has one for each leaf of the optimizer."""
        self.kernel.scale(factors[self.members])

    def prepare(self, scalars: Sequence[Mapping[str, float]], key: int) -> Sequence[Callable[[], object]]:
        """Return what updates the leaves with these scalars (of each group, what `Rule.at` gave); see `Kernel.prepare`.

        ``key`` is that of the step, for what is rounded at random.
        """
        self._table.set_coefficients(scalars, key)
        first: list[Callable[[], object]] = [*self.kernel.judging(), *self._copies_in]
        slots: list[Callable[[], object]] = []
        if self._before is not None:
            try:
                first, slots = self._before.prepare(first, scalars, self._table.gradients)
            except BaseException:
                in_one_go(self.kernel.unjudging(), self.place.restoring())
                raise
        calls = self.kernel.prepare() if self._whole is None else [*self.kernel.updating(), *self._whole.keeping()]
        return (*first, *calls, *self._copies_out, *slots) if first or slots or self._copies_out else calls


def _dense_copy(place: Place, g: Any, like: Any) -> Any:
    """Return a gradient cast and laid out like an array, without gaps."""
    layouts = [dense_layout(like)]
    (new,), _ = place.room(layouts, *side_by_side(layouts))
    assign(new, g)
    return new


def fused_steps(
    place: Place,
    leaves: Mapping[int, Leaf],
    rules: Sequence[Rule],
    reach: Overlaps,
    before: FusedStep | None = None,
    parts: Parts | None = None,
) -> list[FusedStep]:
    """Return one step for all leaves, or several if the rules have more coefficients than one table has room for; arguments as `FusedStep`."""
    try:
        return [FusedStep(place, leaves, rules, reach, before, parts)]
    except TooManyRulesError:
        groups = sorted({leaf.group for leaf in leaves.values()})
        if len(groups) == 1:
            raise
    first = set(groups[: len(groups) // 2])
    halves = [
        {i: leaf for i, leaf in leaves.items() if (leaf.group in first) is is_first} for is_first in (True, False)
    ]
    return [step for half in halves for step in fused_steps(place, half, rules, reach, parts=parts)]
