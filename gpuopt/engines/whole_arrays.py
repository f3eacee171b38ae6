"""The stages of a fused step before the last one (`gpuopt.engines.program.stages`): loops over hidden arrays, and what `xp.whole` computes."""

from __future__ import annotations

import math
import struct
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import current, describe, dtype_of, namespace
from gpuopt.engines import memory
from gpuopt.engines.interrupts import in_one_go
from gpuopt.engines.program.cutting import idle, stages
from gpuopt.engines.program.folds import fold, length
from gpuopt.engines.program.program import Node, entering
from gpuopt.engines.program.programs import kind_of
from gpuopt.engines.program.stages import Loop, leaving, once
from gpuopt.engines.program.trace import functions
from gpuopt.engines.table import Segment, Table, variants_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.fused import Leaf
    from gpuopt.engines.place import Kernel, Place
    from gpuopt.engines.program.program import Program
    from gpuopt.engines.program.stages import Stage, Stages
    from gpuopt.engines.program.symbols import Kind
    from gpuopt.engines.table import Variant
    from gpuopt.rules.base import Rule

Calls = list["Callable[[], object]"]
Names = list[tuple[int, tuple[str, ...]]]
"""For each row of a table, the leaf and the names of the arrays whose addresses the row holds."""


def named(loop: Loop) -> tuple[str, ...]:
    """The names of the arrays whose addresses a loop has in its row of the table."""
    return "p", *loop.arrays, *loop.program.number_slots


class Staged:
    """A leaf and its stages.

    Parameters
    ----------
    leaf
        The leaf as the caller gave it.
    p
        The parameter, without gaps.
    dtype, kind, order, stages
        The name of its dtype, its shape and dtype as an update may see them, its axes in the order of memory, and its stages.

    Attributes
    ----------
    hidden
        Its hidden arrays by name, in the dtype of the arithmetic; `hide` sets them.

    """

    def __init__(self, leaf: Leaf, p: Any, dtype: str, kind: Kind, order: tuple[int, ...], stages: Stages) -> None:
        self.leaf, self.p, self.dtype = leaf, p, dtype
        self.kind, self._order, self.stages = kind, order, stages
        self.hidden: Mapping[str, Any] = {}

    def layouts(self) -> dict[str | int, memory.Layout]:
        """Return the layouts of the hidden arrays by name; arrays that share a buffer have one layout, by the number of the buffer."""
        own, dtype = self.stages, np.dtype(self.kind.dtype)
        shapes = {own.buffers.get(name, name): shape for name, shape in own.shapes.items()}
        return {name: memory.laid_out(shape, dtype, self._order) for name, shape in shapes.items()}

    def hide(self, arrays: Mapping[str | int, Any]) -> None:
        """Receive the arrays of `layouts`."""
        self.hidden = {name: arrays[self.stages.buffers.get(name, name)] for name in self.stages.shapes}

    def arrays(self, loop: Loop) -> list[Any]:
        """The arrays of a loop: the parameter, slots and hidden arrays."""
        slots = self.leaf.slots if not self.hidden else {**self.leaf.slots, **self.hidden}
        return [self.p, *(slots[name] for name in named(loop)[1:])]

    def extent(self, loop: Loop) -> tuple[int, list[int]]:
        """How often a loop goes round, and what follows its addresses in the table; alike for leaves with the same stages."""
        program, shape = loop.program, loop.shape
        more: list[int] = []
        if program.spread:
            for name, array in zip(program.slots, loop.arrays, strict=True):
                if name in program.spread:
                    more += self._span(self.stages.shapes[array], shape)
        size = math.prod(shape)
        if program.folds:
            how, left = fold(shape, self._order, loop.axis)
            size, more = length(size // shape[loop.axis] * left), [*more, *how]
        return size, [
            *more,
            *struct.unpack(f"{len(loop.constants)}q", struct.pack(f"{len(loop.constants)}d", *loop.constants)),
        ]

    def _span(self, shape: tuple[int, ...], over: tuple[int, ...]) -> tuple[int, int]:
        """How a loop reads an array that is spread; see `Segment`."""
        ((*_, last),) = runs = once(shape, over, self._order)
        inner = math.prod(over[axis] for axis in self._order[self._order.index(last) + 1 :])
        return inner * math.prod(over[axis] for axis in runs[0]), inner

    def work_out(self, k: int, functions: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]], rule: str) -> None:
        """Call the ``k``-th function given to `xp.whole` and keep its result in a hidden array."""
        program, xp = self.leaf.program, namespace(self.p)
        _, *given = program.extents[k].args
        function, args = functions[program.extents[k].args[0]]
        with current(self.p), np.errstate(all="ignore"):
            found = function(
                xp, *[arg if own is None else self._held(*own) for arg, own in zip(args, given, strict=True)]
            )
            if not is_like(found, self.kind):
                raise TypeError(unlike(found, self.kind, rule))
            self.hidden[entering(k)][...] = found

    def _held(self, where: str, index: int) -> Any:
        if where == "element":
            return self.hidden[leaving(index)]
        return self.hidden[entering(index)].reshape(self.leaf.program.extent_shapes[index])


def segments_of(
    place: Place, leaves: Sequence[Staged], loops: Sequence[Loop], gradients: Sequence[str], owners: Iterable[int]
) -> list[Segment]:
    """The loops of some leaves in the table of a stage, for gradients of these dtypes; the owners are the rows of the leaves."""
    arrays = [own.arrays(loop) for own, loop in zip(leaves, loops, strict=True)]
    pointers = iter(place.pointers([*chain.from_iterable(arrays)]))
    extents: dict[int, tuple[int, list[int]]] = {}  # of many loops few are unlike the others
    found = []
    for own, loop, gradient, many, owner in zip(leaves, loops, gradients, map(len, arrays), owners, strict=True):
        if id(loop) not in extents:
            extents[id(loop)] = own.extent(loop)
        (size, more), leaf = extents[id(loop)], own.leaf
        rest = leaf.rest if isinstance(leaf.rest, int) else place.pointers([leaf.rest])[0]
        addresses = (*islice(pointers, many), *more)
        found.append(
            Segment(size, leaf.group, loop.program, own.dtype, gradient, addresses, leaf.precision, rest, owner)
        )
    return found


def staged(place: Place, leaves: Sequence[Leaf], parameters: Sequence[Any]) -> list[Staged]:
    """Return the leaves of a step with their hidden arrays, which lie side by side."""
    alike: dict[tuple[Any, ...], tuple[str, Kind, tuple[int, ...], Stages]] = {}
    found = []
    for leaf, p in zip(leaves, parameters, strict=True):
        key = id(leaf.program), p.dtype, p.shape, p.strides
        if key not in alike:
            kind, order = kind_of(p), memory.order_of(memory.dense_layout(p)) or (0,)
            alike[key] = dtype_of(p), kind, order, stages(leaf.program, kind.shape, order)
        found.append(Staged(leaf, p, *alike[key]))
    layouts = {
        (row, name): layout
        for row, own in enumerate(found)
        if own.stages.shapes
        for name, layout in own.layouts().items()
    }
    by_leaf: dict[int, dict[str | int, Any]] = {}
    for (row, name), array in zip(layouts, place.zeros([*layouts.values()]) if layouts else (), strict=True):
        by_leaf.setdefault(row, {})[name] = array
    for row, arrays in by_leaf.items():
        found[row].hide(arrays)
    return found


class Before:
    """The stages before the last one, of all leaves of a step.

    Parameters
    ----------
    place
        Where the leaves are.
    leaves
        The leaves with their stages.
    expects
        For each leaf, the dtype of its gradients.
    rules
        One for each group.
    table, kernel
        The table and the kernel of the last stage, which updates.

    """

    def __init__(
        self,
        place: Place,
        leaves: Sequence[Staged],
        expects: Sequence[str],
        rules: Sequence[Rule],
        table: Table,
        kernel: Kernel,
    ) -> None:
        self._place, self._leaves, self._rules = place, leaves, rules

        def of_stage(s: int) -> list[tuple[int, Stage]]:
            return [(row, leaf.stages.before[s]) for row, leaf in enumerate(leaves) if len(leaf.stages.before) > s]

        def segments(loops: Iterable[tuple[int, Loop]]) -> list[tuple[Segment, Loop]]:
            pairs = [*loops]
            rows, own = [row for row, _ in pairs], [loop for _, loop in pairs]
            gradients = [expects[row] for row in rows]
            found = segments_of(place, [leaves[row] for row in rows], own, gradients, rows)
            return [*zip(found, own, strict=True)]

        def loops(own: list[tuple[Segment, Loop]], more: Sequence[Variant] = ()) -> list[_Loops]:
            return [_Loops(place, own, more, table, kernel)] if own else []

        stages = range(max(len(leaf.stages.before) for leaf in leaves))
        others = [segments((row, loop) for row, stage in of_stage(s) for loop in stage.others) for s in stages]
        keeping = segments((row, loop) for row, leaf in enumerate(leaves) for loop in leaf.stages.keeping)
        # One kernel for all of them: it is compiled once.
        every = variants_of(segment for own in (*others, keeping) for segment, _ in own)
        self._stages = [[*loops(segments(self._over_leaves(s))), *loops(others[s], every)] for s in stages]
        self._keeping = loops(keeping, every)
        self._whole = [[(row, k) for row, stage in of_stage(s) for k in stage.whole] for s in stages]

    @property
    def tables(self) -> list[tuple[Table, Names]]:
        """All tables, each with the names of the arrays in its rows."""
        return [(own.table, own.names) for own in self._every]

    def moved(self) -> Calls:
        """See `Kernel.moved`."""
        return [call for own in self._every for call in own.kernel.moved()]

    @property
    def _every(self) -> list[_Loops]:
        return [own for stage in (*self._stages, self._keeping) for own in stage]

    def _over_leaves(self, s: int) -> list[tuple[int, Loop]]:
        """The loops of a stage over leaves. Totals over a group take all its leaves, also those that store none."""
        own = [leaf.stages.before[s].over_leaf if len(leaf.stages.before) > s else None for leaf in self._leaves]
        storing = {leaf.leaf.group for leaf, loop in zip(self._leaves, own, strict=True) if loop}
        return [
            (row, loop or Loop(idle(leaf.leaf.program), leaf.kind.shape, leaf.leaf.program.slots))
            for row, (leaf, loop) in enumerate(zip(self._leaves, own, strict=True))
            if loop or (leaf.leaf.group in storing and leaf.leaf.program.has_totals)
        ]

    def prepare(
        self,
        first: Sequence[Callable[[], object]],
        scalars: Sequence[Mapping[str, float]],
        gradients: NDArray[np.int64],
    ) -> tuple[Calls, Calls]:
        """Return what runs these stages, which write hidden arrays alone: functions written in C.

        Where `xp.whole` calls functions of Python, all that comes before is run already.

        Parameters
        ----------
        first
            What comes before them.
        scalars
            Of each group, what `Rule.at` gave.
        gradients
            Addresses of the gradients; 0 leaves a leaf alone.

        Returns
        -------
        before, after
            What comes before the last stage, and what comes after it and writes the slots of other shapes than the leaf's.

        """
        calls: Calls = [*first]
        called: dict[tuple[int, int], Any] = {}
        for whole, loops in zip(self._whole, self._stages, strict=True):
            present = [(row, k) for row, k in whole if gradients[row]]
            if present:
                in_one_go(calls, self._place.restoring())
                calls = []
            for row, k in present:
                leaf = self._leaves[row].leaf
                rule, key = self._rules[leaf.group], (leaf.group, id(leaf.program))
                if key not in called:
                    is_complex = bool(leaf.program.pairs)
                    called[key] = functions(
                        rule, scalars[leaf.group], is_complex=is_complex, kind=self._leaves[row].kind
                    )
                self._leaves[row].work_out(k, called[key], rule.name)
            for own in loops:
                calls += own.prepare(scalars, gradients)
        return calls, [call for own in self._keeping for call in own.prepare(scalars, gradients)]


class _Loops:
    """Loops that run together, and their table."""

    def __init__(
        self,
        place: Place,
        segments: Sequence[tuple[Segment, Loop]],
        more: Sequence[Variant],
        updating: Table,
        kernel: Kernel,
    ) -> None:
        self.names = [(segment.owner, named(loop)) for segment, loop in segments]
        self._rows = [segment.owner for segment, _ in segments]
        self._reads = np.array([Node("load", ("g",)) in _loads(loop.program) for _, loop in segments])
        self.table = Table([segment for segment, _ in segments], updating, more)
        self.kernel = place.kernel(self.table, None, kernel)

    def prepare(
        self, scalars: Sequence[Mapping[str, float]], gradients: NDArray[np.int64]
    ) -> Sequence[Callable[[], object]]:
        """Return what runs them; see `Kernel.prepare`."""
        own = gradients[self._rows]
        # Where it is not read, only whether there is one: addresses might have to be sent to a GPU.
        self.table.gradients[:] = np.where(self._reads, own, own != 0)
        self.table.set_coefficients(scalars)
        return self.kernel.prepare()


def _loads(program: Program) -> Iterable[Node]:
    return (Node("load", node.args[:1]) for node in program.nodes if node.op == "load")


def is_like(found: Any, kind: Kind) -> bool:
    """Whether this is an array of the shape and the dtype of the leaf."""
    return hasattr(found, "shape") and tuple(found.shape) == kind.shape and str(found.dtype) == kind.dtype


def unlike(found: Any, kind: Kind, rule: str) -> str:
    """Return the message of an error for what is no such array."""
    got = f"{found.dtype} of {tuple(found.shape)}" if hasattr(found, "shape") else describe(found)
    return (
        f"{rule}.update: what it gives to xp.whole returned {got}, expected {kind.dtype} of {kind.shape} like the leaf"
    )
