"""What a fused step computes on whole arrays, between its stages (`gpuopt.engines.program.stages`): by the operations of the leaf's library."""

from __future__ import annotations

import itertools
import math
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpuopt.arrays import current, describe, dtype_of, namespace, zeros_like
from gpuopt.arrays import place as place_name
from gpuopt.engines import memory
from gpuopt.engines.interrupts import in_one_go
from gpuopt.engines.program.folds import Fold, fold
from gpuopt.engines.program.program import ARITHMETIC, COMPARISONS, LOGIC, Node, entering
from gpuopt.engines.program.programs import kind_of
from gpuopt.engines.program.stages import axis_of, buffers, idle, leaving, source, stages
from gpuopt.engines.program.symbols import Expression, Extent, TraceError
from gpuopt.engines.program.trace import functions
from gpuopt.engines.reference import sum_along
from gpuopt.engines.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.fused import Leaf
    from gpuopt.engines.place import Place
    from gpuopt.engines.program.program import Program
    from gpuopt.engines.program.symbols import Kind
    from gpuopt.engines.table import Segment
    from gpuopt.rules.base import Rule

OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in (*ARITHMETIC, *COMPARISONS, "neg")},
    **dict(zip(LOGIC, (operator.and_, operator.or_, operator.invert), strict=True)),
}
"""Of Python; others are functions of the library."""


class Whole:
    """The whole arrays of a leaf.

    Parameters
    ----------
    leaf
        Of a rule that has any.
    p
        The parameter, without gaps.
    hidden
        Its hidden arrays, by name.

    """

    def __init__(self, leaf: Leaf, p: Any, hidden: Mapping[str, Hidden]) -> None:
        self.program, self._slots, self._hidden = leaf.program, leaf.slots, hidden
        self._p, self._kind, self._xp = p, kind_of(p), namespace(p)
        self._values: dict[int, Any] = {}
        self._formulas = [self._formula(node) for node in self.program.extents]

    def begin(
        self, scalars: Sequence[float], called: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]], rule: str
    ) -> None:
        """Start a step with its scalars, and what `xp.whole` is called with in it."""
        self._values, self._scalars, self._called, self._rule = {}, scalars, called, rule

    def work_out(self, wanted: Iterable[int], enters: Iterable[int]) -> None:
        """Work out some extents, in order, and put those that enter the loops where these read them."""
        with current(self._p), np.errstate(all="ignore"):
            for k in wanted:
                self._values[k] = self._formulas[k]()
            for k in enters:
                self._hidden[entering(k)].array[...] = self._values[k]

    def keeping(self, place: Place) -> list[Callable[[], object]]:
        """Return what writes the slots of other shapes than the leaf's: functions written in C."""
        return [
            call
            for name, k in self.program.extent_slots
            for call in place.copying(self._slots[name], self._stored(self._values[k], self._slots[name]))
        ]

    def _stored(self, value: Any, slot: Any) -> Any:
        with current(self._p), np.errstate(all="ignore"):
            return self._xp.astype(value, slot.dtype, copy=False)

    def _formula(self, node: Node) -> Callable[[], Any]:
        """Return what works an extent out, when those that it is made of are there."""
        xp = self._xp
        match node:
            case Node("slot", (name,)):
                return lambda: xp.astype(self._slots[name], self._kind.dtype, copy=False)
            case Node("scalar", (k,)):
                return lambda: self._scalars[k]
            case Node("literal", (number,)):
                value = float.fromhex(number)
                return lambda: value
            case Node("sum", ((_, index), axes, keepdims)):
                name = source(self.program, node)
                return lambda: self._sum(self._hidden[name].array if name else self._values[index], axes, keepdims)
            case Node("whole", (k, *given)):
                return lambda: self._of_whole(k, given)
            case Node(op, args):
                function = OPERATIONS.get(op) or getattr(xp, op)
                return lambda: function(*[self._values[a] for a in args])

    def _sum(self, u: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        found = sum_along(self._xp, u, axes, keepdims=keepdims)
        # Where nothing was added up it is the same memory, and a hidden array is used again.
        return self._xp.asarray(found, copy=True) if found.size == u.size else found

    def _array(self, held: tuple[str, int]) -> Any:
        where, index = held
        return self._hidden[leaving(index)].array if where == "element" else self._values[index]

    def _of_whole(self, k: int, given: Sequence[tuple[str, int] | None]) -> Any:
        function, args = self._called[k]
        found = function(
            self._xp, *[arg if own is None else self._array(own) for arg, own in zip(args, given, strict=True)]
        )
        if not _is_like(found, self._kind):
            raise TypeError(_unlike(found, self._kind, self._rule))
        inputs = [self._array(own) for own in given if own is not None]
        # What may be in a hidden array is copied, for that is used again.
        return self._xp.asarray(found, copy=True) if any(memory.Overlaps([u]).meets(found) for u in inputs) else found


class Stages:
    """The stages before the last one, of all leaves of a step.

    Parameters
    ----------
    place
        Of the leaves.
    leaves, parameters
        The leaves, and of each the parameter without gaps.
    segments
        As of the last stage's table, whose programs and pointers each stage has its own.
    hidden
        Of each leaf, its hidden arrays by name.
    rules
        Of each group.

    """

    def __init__(
        self,
        place: Place,
        leaves: Sequence[Leaf],
        parameters: Sequence[Any],
        segments: Sequence[Callable[[Program], Segment]],
        hidden: Sequence[Mapping[str, Hidden]],
        rules: Sequence[Rule],
    ) -> None:
        self._place, self._leaves, self._rules = place, leaves, rules
        self._whole = {
            row: Whole(leaf, p, own)
            for row, (leaf, p, own) in enumerate(zip(leaves, parameters, hidden, strict=True))
            if leaf.program.extents
        }
        self._stages = [stages(leaf.program) for leaf in leaves]
        self._tables: list[list[tuple[list[int], Table, Any]]] = []
        for s in range(max(map(len, self._stages)) - 1):
            loops = self._loops(s)
            folds = [
                (row, program)
                for row, own in enumerate(self._stages)
                if len(own) > s + 1
                for _, program in own[s].folds
            ]
            self._tables.append([self._table(own, segments) for own in (loops, folds) if own])

    def _loops(self, s: int) -> list[tuple[int, Program]]:
        """The loops of a stage that store elements. Totals over a group take all its leaves, also those that store none."""
        storing = {
            leaf.group
            for leaf, own in zip(self._leaves, self._stages, strict=True)
            if len(own) > s + 1 and own[s].program.stores
        }
        return [
            (row, own[s].program if len(own) > s + 1 else idle(leaf.program))
            for row, (leaf, own) in enumerate(zip(self._leaves, self._stages, strict=True))
            if leaf.group in storing and (leaf.program.has_totals or (len(own) > s + 1 and own[s].program.stores))
        ]

    def _table(
        self, own: Sequence[tuple[int, Program]], segments: Sequence[Callable[[Program], Segment]]
    ) -> tuple[list[int], Table, Any]:
        table = Table([segments[row](program) for row, program in own])
        return [row for row, _ in own], table, self._place.kernel(table, None)

    def scale(self, factors: NDArray[np.float64]) -> None:
        """Set the factors of the gradients, of each leaf of the step."""
        for rows, _, kernel in itertools.chain(*self._tables):
            kernel.scale(factors[rows])

    def run(self, scalars: Sequence[Mapping[str, float]], gradients: NDArray[np.int64]) -> list[Callable[[], object]]:
        """Run all stages but the last one, which write hidden arrays alone.

        Parameters
        ----------
        scalars
            Of each group, what `Rule.at` gave.
        gradients
            Addresses of the gradients; 0 leaves a leaf alone.

        Returns
        -------
        list of functions written in C
            What writes the slots of other shapes than the leaf's, after the last stage.

        """
        present = [row for row in self._whole if gradients[row]]
        called: dict[tuple[int, int], tuple[list[float], list[Any], str]] = {}
        for row in present:
            leaf, whole = self._leaves[row], self._whole[row]
            key = leaf.group, id(leaf.program)
            if key not in called:
                called[key] = self._called(leaf, scalars[leaf.group])
            whole.begin(*called[key])
        for s in range(len(self._tables) + 1):
            for row in present:
                if len(own := self._stages[row]) > s:
                    self._whole[row].work_out(own[s].before, own[s].enters)
            for rows, table, kernel in self._tables[s] if s < len(self._tables) else ():
                table.gradients[:] = gradients[rows]
                table.set_coefficients(scalars)
                in_one_go(kernel.prepare(), self._place.restoring())
        return [call for row in present for call in self._whole[row].keeping(self._place)]

    def _called(self, leaf: Leaf, h: Mapping[str, float]) -> tuple[list[float], list[Any], str]:
        program = leaf.program
        called = []
        if any(node.op == "whole" for node in program.extents):
            called = functions(self._rules[leaf.group], h, is_complex=bool(program.pairs), kind=kind_of(leaf.p))
        return program.evaluate_for_extents(h), called, self._rules[leaf.group].name


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
            kinds.setdefault((groups[i], id(program), place_name(arrays[i]), dtype_of(arrays[i])), []).append(i)
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
    kind, xp = kind_of(p), namespace(p)

    def zeros(arg: Any) -> Any:
        if not isinstance(arg, Expression):
            return arg
        return zeros_like(p, np.dtype(kind.dtype), arg.shape if isinstance(arg, Extent) else kind.shape)

    with current(p), np.errstate(all="ignore"):
        for function, args in functions(rule, rule.at(0), is_complex=bool(program.pairs), kind=kind):
            found = function(xp, *map(zeros, args))
            if not _is_like(found, kind):
                raise TraceError(f"{_unlike(found, kind, rule.name)}; engine='array' runs it as it is")


def _is_like(found: Any, kind: Kind) -> bool:
    return hasattr(found, "shape") and tuple(found.shape) == kind.shape and str(found.dtype) == kind.dtype


def _unlike(found: Any, kind: Kind, rule: str) -> str:
    got = f"{found.dtype} of {tuple(found.shape)}" if hasattr(found, "shape") else describe(found)
    return (
        f"{rule}.update: what it gives to xp.whole returned {got}, expected {kind.dtype} of {kind.shape} like the leaf"
    )


class Hidden(NamedTuple):
    """A hidden array of a leaf.

    Attributes
    ----------
    array
        With the axes of the leaf, and in the same order in memory.
    span, inner
        Of a spread one: element ``i`` of the leaf has number ``i // span * inner + i % inner`` of it.
    fold
        Of one that gets sums along an axis, how they are added up.

    """

    array: Any
    span: int = 0
    inner: int = 0
    fold: Fold | None = None


def hidden_arrays(place: Place, leaves: Sequence[Leaf], parameters: Sequence[Any]) -> list[dict[str, Hidden]]:
    """Return the hidden arrays of each leaf, by name: new ones, of the real numbers that is computed with."""
    layouts: list[memory.Layout] = []
    found: list[dict[str, tuple[Any, ...]]] = []
    for leaf, p in zip(leaves, parameters, strict=True):
        own: dict[str, tuple[Any, ...]] = {}
        found.append(own)
        if not leaf.program.extents:
            continue
        kind, first, names = kind_of(p), len(layouts), buffers(leaf.program)
        own |= {name: (first + k,) for name, k in names.items()}
        layouts += [_laid_out(p, kind.shape, kind)[0]] * len({*names.values()})
        for name in {name: None for stage in stages(leaf.program) for name in sorted(stage.program.spread)}:
            k = next(k for k in range(len(leaf.program.extents)) if entering(k) == name)
            layout, span, inner = _laid_out(p, leaf.program.extent_shapes[k], kind)
            own[name] = len(layouts), span, inner
            layouts.append(layout)
        for name in {name: None for stage in stages(leaf.program) for name, _ in stage.folds}:
            axis = axis_of(name)
            how, left = fold(kind.shape, _order(p), axis)
            own[name] = len(layouts), 0, 0, how
            layouts.append(_laid_out(p, (*kind.shape[:axis], left, *kind.shape[axis + 1 :]), kind)[0])
    arrays = place.zeros(layouts) if layouts else []
    return [{name: Hidden(arrays[k], *how) for name, (k, *how) in own.items()} for own in found]


def _laid_out(p: Any, shape: tuple[int, ...], kind: Kind) -> tuple[memory.Layout, int, int]:
    """The layout of an array of this shape, with the axes of a leaf in the order of its memory; its span and what is inside of it."""
    shape, order = (1,) * (len(kind.shape) - len(shape)) + shape, _order(p)
    axes = [axis for axis in order if kind.shape[axis] != 1]
    once = [k for k, axis in enumerate(axes) if shape[axis] == 1]
    if once and once != list(range(once[0], once[-1] + 1)):
        shape, once = kind.shape, []  # it varies between axes along which it does not: written out
    span = inner = max(1, math.prod(kind.shape))
    if once:
        inner = max(1, math.prod(kind.shape[axis] for axis in axes[once[-1] + 1 :]))
        span = max(1, inner * math.prod(kind.shape[axes[k]] for k in once))
    step, own = np.dtype(kind.dtype).itemsize, [0] * len(shape)
    for axis in reversed(order):
        own[axis] = step
        step *= shape[axis]
    return memory.Layout(shape, np.dtype(kind.dtype), tuple(own)), span, inner


def _order(p: Any) -> list[int]:
    """The axes of a leaf, in the order of its memory."""
    strides = memory.dense_layout(p).strides or (p.dtype.itemsize,)
    return sorted(range(len(strides)), key=lambda axis: -strides[axis])
