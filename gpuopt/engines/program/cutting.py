"""How a program is cut into stages, for a leaf of one shape and order of axes.

What a stage does follows from the data, as with passes (`gpuopt.engines.program.passes`), of which each loop has its own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from gpuopt.engines.program.folds import fold
from gpuopt.engines.program.passes import depths, needed
from gpuopt.engines.program.program import Node, Program, entering, held_by
from gpuopt.engines.program.stages import Loop, Stage, Stages, leaving, like_leaf, once

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gpuopt.engines.program.stages import Shape

Stores = tuple[tuple[str, tuple[int, ...], int], ...]


def stages(program: Program, shape: Shape, order: tuple[int, ...]) -> Stages:
    """Return the stages of a program of a leaf of this shape, with its axes in this order in memory."""
    if not program.extents:
        return Stages((), Loop(program, shape, program.slots))
    return _cut(program, shape, order)


@cache
def _cut(program: Program, shape: Shape, order: tuple[int, ...]) -> Stages:
    return _Cut(program, shape, order).stages()


def idle(program: Program) -> Program:
    """The program of a leaf that takes part in the totals of a stage, and no more."""
    return _only(program, (), _totals(program))


@cache
def depth_of_totals(program: Program) -> int:
    """How many stages come before the last total over all leaves is known."""
    numbers = depths(program, of_sums=0, of_arrays=1)[1]
    return max((numbers[k] for k in _totals(program)), default=0)


class _Cut:
    """A program that is being cut.

    A level says how many stages come before the one that can work something out.
    """

    def __init__(self, program: Program, shape: Shape, order: tuple[int, ...]) -> None:
        self._program, self._shape, self._order = program, shape, order
        self._by_name = {entering(k): k for k in range(len(program.extents))}
        self._shapes: dict[str, Shape] = {}
        self._levels: dict[str, int] = {}  # of hidden arrays: from which level on they are there
        self._elements: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._whole: dict[int, list[int]] = {}
        self._left: dict[int, dict[str, int]] = {}  # elements that are stored
        self._loops: dict[int, list[Loop]] = {}

    def stages(self) -> Stages:
        """Cut it."""
        program = self._program
        ends = [i for _, _, i in program.stores]
        level = max([*map(self._element, ends), *map(self._number, program.number_outputs)], default=0)
        kept: dict[Shape, list[tuple[str, int]]] = {}
        for name, k in program.extent_slots:
            if program.extents[k] != Node("slot", (name,)):
                kept.setdefault(self._shape_of(k), []).append((name, k))
        keeping = []
        for shape, own in kept.items():
            loop, at = self._loop([k for _, k in own], [name for name, _ in own], shape)
            keeping.append(loop)
            level = max(level, at)
        totals = _totals(program)
        last = self._over_leaf(replace(_loops_of(program), totals=totals), program.stores)
        stores = {s: tuple((name, (), i) for name, i in own.items()) for s, own in self._left.items()}
        before = tuple(
            Stage(
                tuple(self._whole.get(s, ())),
                self._over_leaf(_only(program, stores[s], totals), stores[s]) if s in stores else None,
                tuple(self._loops.get(s, ())),
            )
            for s in range(1 + max((*self._whole, *stores, *self._loops), default=-1))
        )
        while len(before) < level:
            before += (Stage((), None, ()),)
        return Stages(before, last, tuple(keeping), self._shapes, self._buffers(before, (last, *keeping)))

    def _element(self, i: int) -> int:
        """Return the level of an element."""
        for k in needed(self._program, [i], ())[0]:
            if k not in self._elements:
                match self._program.nodes[k]:
                    case Node("load", (name, *_)):
                        self._elements[k] = (
                            self._levels[self._read(self._stored(self._by_name[name]), self._shape)]
                            if name in self._by_name
                            else 0
                        )
                    case Node("number", (number,)):
                        self._elements[k] = self._number(number)
                    case Node("coefficient" | "literal" | "scale", _):
                        self._elements[k] = 0
                    case Node(_, args):
                        self._elements[k] = max(self._elements[a] for a in args)
        return self._elements[i]

    def _number(self, i: int) -> int:
        """Return the level of a number."""
        for k in needed(self._program, (), [i])[1]:
            if k not in self._numbers:
                match self._program.numbers[k]:
                    case Node("reduce", (_, _, *args)):
                        self._numbers[k] = max(map(self._element, args))
                    case Node("slot" | "scalar" | "literal", _):
                        self._numbers[k] = 0
                    case Node(_, args):
                        self._numbers[k] = max(self._numbers[a] for a in args)
        return self._numbers[i]

    def _shape_of(self, k: int) -> Shape:
        """The shape of the hidden array of an extent."""
        if self._program.extents[k].op == "whole":
            return self._shape
        return like_leaf(self._program.extent_shapes[k], self._shape)

    def _there(self, name: str, shape: Shape, level: int) -> str:
        """Note that a hidden array is there from a level on."""
        self._shapes[name], self._levels[name] = shape, level
        return name

    def _stored(self, k: int) -> str:
        """The hidden array of an extent."""
        name = entering(k)
        if name in self._levels:
            return name
        shape = self._shape_of(k)
        match self._program.extents[k]:
            case Node("sum", ((where, index), axes, _)):
                return self._summed(name, where, index, axes)
            case Node("whole", (_, *given)):
                held = [own for own in given if own is not None]
                arrays = [self._left_at(i) if where == "element" else self._stored(i) for where, i in held]
                level = max((self._levels[own] for own in arrays), default=0)
                self._whole.setdefault(level, []).append(k)
                return self._there(name, shape, level)
        loop, level = self._loop([k], [name], shape)
        self._loops.setdefault(level, []).append(loop)
        return self._there(name, shape, level + 1)

    def _left_at(self, i: int) -> str:
        """The hidden array of an element."""
        name = leaving(i)
        if name not in self._levels:
            level = self._element(i)
            self._left.setdefault(level, {})[name] = i
            self._there(name, self._shape, level + 1)
        return name

    def _summed(self, name: str, where: str, index: int, axes: tuple[int, ...]) -> str:
        """The hidden array of a sum along axes. Elements that are made of no numbers are added up as they are worked out."""
        final = self._shape_of(self._by_name[name])
        shape = self._shape if where == "element" else self._shape_of(index)
        if 0 in shape:  # of nothing: hidden arrays start as zeros
            return self._there(name, final, 0)
        missing = len(shape) - (len(shape) if where == "element" else len(self._program.extent_shapes[index]))
        axes = tuple(axis + missing for axis in axes)
        source, done = "", shape
        for n, axis in enumerate(axes):
            while not (source and done[axis] == 1):
                left = fold(done, self._order, axis)[1]
                after = (*done[:axis], left, *done[axis + 1 :])
                is_last = all(after[own] == 1 for own in axes)
                target = name if is_last else f"{where} {index} along {axes[: n + 1]}, {left} left"
                if target not in self._levels:
                    self._fold(target, where, index, source, done, axis, final if is_last else after)
                source, done = target, after
                if is_last:
                    return name
        return name

    def _fold(self, target: str, where: str, index: int, source: str, shape: Shape, axis: int, left: Shape) -> None:
        """Add up along an axis, as far as one loop goes."""
        if not source and where == "element" and _has_numbers(self._program, index):
            source = self._left_at(index)
        if source:
            loop, level = Loop(_COPY, shape, (source, target)), self._levels[source]
        elif where == "element":
            stores: Stores = ((target, (), index),)
            loop, level = self._over_leaf(_only(self._program, stores, ()), stores), self._element(index)
        else:
            loop, level = self._loop([index], [target], shape)
        folding = replace(loop.program, folds=True)
        self._loops.setdefault(level, []).append(loop._replace(program=folding, axis=axis))
        self._there(target, left, level + 1)

    def _read(self, name: str, over: Shape) -> str:
        """The hidden array by which a loop over this shape can read one: with one run of axes along which it does not vary."""
        *_, last = runs = once(self._shapes[name], over, self._order) or [[]]
        if len(runs) <= 1:
            return name
        shape = tuple(over[axis] if axis in last else n for axis, n in enumerate(self._shapes[name]))
        wider = f"{name} as {shape}"
        if wider not in self._levels:
            level = self._levels[name]
            loop = Loop(replace(_COPY, spread=frozenset({"from"})), shape, (name, wider))
            self._loops.setdefault(level, []).append(loop)
            self._there(wider, shape, level + 1)
        return self._read(wider, over)

    def _over_leaf(self, program: Program, stores: Stores) -> Loop:
        """A loop over the leaf, with the hidden arrays that it reads and writes among its slots."""
        elements, _ = needed(
            program, [i for _, _, i in stores], (*program.number_outputs, *program.totals), through_numbers=True
        )
        known = {"p", "g", *program.slots}
        read = [program.nodes[i].args[0] for i in elements if program.nodes[i].op == "load"]
        hidden = dict.fromkeys(name for name in (*read, *(name for name, _, _ in stores)) if name not in known)
        arrays = {
            name: self._read(name, self._shape) if name in self._by_name and name in read else name for name in hidden
        }
        spread = frozenset(name for name, own in arrays.items() if name in read and self._shapes[own] != self._shape)
        return Loop(
            replace(program, slots=(*program.slots, *hidden), stores=stores, hidden=frozenset(hidden), spread=spread),
            self._shape,
            (*program.slots, *arrays.values()),
        )

    def _loop(self, wanted: Sequence[int], targets: Sequence[str], shape: Shape) -> tuple[Loop, int]:
        """The loop over rows or columns that works out some extents, of smaller ones too, and its level."""
        program = self._program
        open_ones, closure = [*wanted], set[int]()
        while open_ones:
            k = open_ones.pop()
            if k not in closure:
                closure.add(k)
                if program.extents[k].op not in ("sum", "whole"):
                    open_ones += [index for _, index in held_by(program.extents[k])]
        nodes: dict[Node, int] = {}
        terms: dict[int, int] = {}
        arrays: dict[str, str] = {}
        constants: list[float] = []
        coefficients: list[int] = []
        level = 0

        def node(op: str, *args: object) -> int:
            return nodes.setdefault(Node(op, args), len(nodes))

        for k in sorted(closure):
            match program.extents[k]:
                case Node("slot", (name,)) if self._shape_of(k) == shape:
                    arrays[name] = name
                    terms[k] = node("load", name)
                case Node("scalar", (index,)):
                    coefficients.append(program.extent_scalars[index])
                    terms[k] = node("coefficient", len(coefficients) - 1)
                case Node("literal", (number,)):
                    constants.append(float.fromhex(number))
                    terms[k] = node("constant", len(constants) - 1)
                case Node("slot" | "sum" | "whole", _):
                    name = entering(k)
                    arrays[name] = self._read(self._stored(k), shape)
                    level = max(level, self._levels[arrays[name]])
                    terms[k] = node("load", name)
                case Node(op, args):
                    terms[k] = node(op, *[terms[a] for a in args])
        spread = frozenset(name for name, own in arrays.items() if self._shapes.get(own, shape) != shape)
        arrays |= {name: name for name in targets}
        of_rule = {name for name, _ in program.extent_slots}
        made = Program(
            tuple(arrays),
            tuple(nodes),
            tuple((name, (), terms[k]) for name, k in zip(targets, wanted, strict=True)),
            program.scalars,
            tuple(coefficients),
            hidden=frozenset(arrays) - of_rule,
            spread=spread,
            constants=len(constants),
        )
        return Loop(made, shape, tuple(arrays.values()), tuple(constants)), level

    def _buffers(self, before: Sequence[Stage], last: Sequence[Loop]) -> dict[str, int]:
        """See `Stages`."""
        spans: dict[str, tuple[int, int]] = {}

        def seen(names: Iterable[str], time: int) -> None:
            for name in names:
                if self._shapes.get(name) == self._shape:
                    spans[name] = spans.get(name, (time, 0))[0], time

        for s, stage in enumerate(before):
            for k in stage.whole:
                held = [own for own in self._program.extents[k].args[1:] if own is not None]
                seen([leaving(i) if where == "element" else entering(i) for where, i in held], 2 * s)
                seen([entering(k)], 2 * s)
            for loop in (*filter(None, [stage.over_leaf]), *stage.others):
                seen(loop.arrays, 2 * s + 1)
        for loop in last:
            seen(loop.arrays, 2 * len(before) + 1)
        until: list[int] = []
        found: dict[str, int] = {}
        for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
            k = next((k for k, own in enumerate(until) if own < begin), len(until))
            until[k : k + 1] = [end]
            found[name] = k
        return found


_COPY = Program(("from", "to"), (Node("load", ("from",)),), (("to", (), 0),), (), (), hidden=frozenset({"from", "to"}))
"""The program that copies the elements of one array into another."""


def _only(program: Program, stores: Stores, totals: tuple[int, ...]) -> Program:
    """Return a program of loops alone that has these outputs."""
    used = needed(program, [i for _, _, i in stores], totals, through_numbers=True)[1]
    kept = {program.numbers[k].args[0]: k for k in used if program.numbers[k].op == "slot"}
    names = tuple(name for name in program.number_slots if name in kept)
    return replace(
        _loops_of(program),
        number_slots=names,
        number_outputs=tuple(kept[name] for name in names),
        totals=totals,
        stores=stores,
    )


def _loops_of(program: Program) -> Program:
    """Return a program without its operations on whole arrays."""
    return replace(program, extents=(), extent_shapes=(), extent_scalars=(), extent_slots=())


def _totals(program: Program) -> tuple[int, ...]:
    used = needed(program, [i for _, _, i in program.stores], program.number_outputs, through_numbers=True)[1]
    return tuple(k for k in used if program.numbers[k].op == "reduce" and program.numbers[k].args[1] == "group")


def _has_numbers(program: Program, element: int) -> bool:
    return any(program.nodes[i].op == "number" for i in needed(program, [element], ())[0])
