"""Passes: a program that reduces is cut where it needs its sums.

A reduction pass reads elements, adds up and writes nothing; after it, numbers are worked out. The last pass updates. What a
pass needs follows from the data: a sum whose terms need no number belongs to the first pass, one whose terms need a number of
the first pass to the second one. A program without numbers has no reduction pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from gpuopt.engines.program.program import LEAVES_OF_NUMBERS, Node, entering, held_by

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpuopt.engines.program.program import Program

WIDTHS = {"sum": 1, "dot": 1, "norm": 3, "max": 1, "number": 1}
"""Columns of a reduction: a norm adds up three sums, see `gpuopt.engines.norms`. A number of each leaf is there before the pass."""
BATCH = 8
"""Reductions of one loop: LLVM takes minutes over loops of fifty, and GPUs run out of registers."""


@dataclass(frozen=True)
class Reduction:
    """A sum, or a largest element, over a leaf or over its group.

    Attributes
    ----------
    number
        Its index in the program's numbers.
    kind, over
        "sum", "dot", "norm", "max" or "number"; "leaf" or "group".
    args
        The elements that it is made of; of complex ones, both parts of each. Of a number of each leaf, that as an element.
    column
        Its first column, counted among the sums or among the maxima.

    """

    number: int
    kind: str
    over: str
    args: tuple[int, ...]
    column: int

    def column_among(self, sums: int) -> int:
        """Return its first column in a row that has the columns of ``sums`` first and the maxima after them."""
        return self.column + sums * (self.kind == "max")


@dataclass(frozen=True)
class Batch:
    """What one loop over a chunk reduces: as many sums as there are registers for.

    Attributes
    ----------
    elements
        Nodes that are worked out for every element, in order.
    reductions
        What is reduced.

    """

    elements: tuple[int, ...]
    reductions: tuple[Reduction, ...]


@dataclass(frozen=True)
class Pass:
    """What a reduction pass does.

    Attributes
    ----------
    before
        Numbers that the elements need before any number is there: made of slots and scalars alone.
    batches
        What it reduces, loop by loop.
    numbers
        Those that are worked out after it, in order.
    kept
        Of these, the ones that are needed later.
    given
        Numbers that each leaf has before the pass, which are added up over the group.
    again
        What is reduced for another number, too: over the leaf and over the group. It is in the columns of that.

    """

    before: tuple[int, ...]
    batches: tuple[Batch, ...]
    numbers: tuple[int, ...]
    kept: tuple[int, ...]
    given: tuple[Reduction, ...] = ()
    again: tuple[Reduction, ...] = ()

    @property
    def elements(self) -> frozenset[int]:
        """Nodes of all loops."""
        return frozenset(i for batch in self.batches for i in batch.elements)

    @property
    def reductions(self) -> tuple[Reduction, ...]:
        """The reductions of all loops."""
        return tuple(r for batch in self.batches for r in batch.reductions)

    @property
    def results(self) -> tuple[Reduction, ...]:
        """All reductions whose results are known after the pass."""
        return (*self.reductions, *self.given, *self.again)

    @property
    def sums(self) -> int:
        """How many columns hold the sums that this pass finds; a norm has three."""
        return sum(WIDTHS[r.kind] for r in (*self.reductions, *self.given) if r.kind != "max")

    @property
    def largest(self) -> int:
        """How many columns hold the largest elements that this pass finds."""
        return sum(r.kind == "max" for r in self.reductions)


@dataclass(frozen=True)
class Store:
    """A write of an element's value into an array; ``when`` is a truth value of the whole leaf, or None.

    Of complex numbers ``part`` is one of both.
    """

    name: str
    part: tuple[int, ...]
    value: int
    when: int | None = None


@dataclass(frozen=True)
class Update:
    """What the last pass does."""

    elements: tuple[int, ...]
    stores: tuple[Store, ...]


def passes(program: Program) -> tuple[Pass, ...]:
    """The reduction passes of a program."""
    return _cut(program)[0]


def update(program: Program) -> Update:
    """The last pass of a program."""
    return _cut(program)[1]


def operands(program: Program, number: int) -> tuple[int, ...]:
    """Return the indices of the numbers that a number is computed from."""
    node = program.numbers[number]
    return () if node.op in LEAVES_OF_NUMBERS else node.args


def uniform(program: Program) -> frozenset[int]:
    """Elements that are the same for the whole leaf."""
    found: set[int] = set()
    for i, node in enumerate(program.nodes):
        match node:
            case Node("coefficient" | "constant" | "number" | "literal" | "scale", _):
                found.add(i)
            case Node("load", _):
                pass
            case Node(_, args) if all(a in found for a in args):
                found.add(i)
    return frozenset(found)


@cache
def _cut(program: Program) -> tuple[tuple[Pass, ...], Update]:
    number_depth = depths(program, of_sums=1, of_arrays=0)[1]
    stores = _stores(program)
    wanted = [i for store in stores for i in (store.value, store.when) if i is not None]
    _, numbers = needed(program, wanted, (*program.number_outputs, *program.totals), through_numbers=True)
    count = max((number_depth[k] for k in numbers), default=0)
    if program.number_slots:
        count = max(count, 1)  # an update writes slots, and so must not read them: numbers hold what they were
    last = Update(needed(program, wanted, ())[0], stores)
    later = {*program.number_outputs, *_numbers_in(program, last.elements)}
    reducing: list[Pass] = []
    for k in reversed(range(count)):
        batches, given, again = _batches(program, [n for n in numbers if number_depth[n] == k + 1])
        used = _numbers_in(program, [i for own in batches for i in own.elements] + [i for r in given for i in r.args])
        before = needed(program, (), used, through_numbers=True)[1] if k == 0 else ()
        after = tuple(n for n in numbers if number_depth[n] == k + 1 or (k == 0 and number_depth[n] == 0))
        reducing.insert(0, Pass(before, batches, after, tuple(n for n in after if n in later), given, again))
        later |= used | {a for n in after for a in operands(program, n)}
    return tuple(reducing), last


def _batches(
    program: Program, numbers: Iterable[int]
) -> tuple[tuple[Batch, ...], tuple[Reduction, ...], tuple[Reduction, ...]]:
    """The loops that reduce what is to be reduced among these numbers; see `Pass` for the others."""
    found: list[Reduction] = []
    again: list[Reduction] = []
    known: dict[Any, Reduction] = {}
    sums = largest = 0
    # Those over the group first: they are in the same columns for real and for complex leaves.
    for number in sorted(numbers, key=lambda k: program.numbers[k].args[1:2] != ("group",)):
        match program.numbers[number]:
            case Node("reduce", (kind, over, *args)) if (kind, *args) in known:
                again.append(replace(known[kind, *args], number=number, over=over))
            case Node("reduce", (kind, over, *args)):
                found.append(Reduction(number, kind, over, tuple(args), largest if kind == "max" else sums))
                known[kind, *args] = found[-1]
                largest, sums = (largest + 1, sums) if kind == "max" else (largest, sums + WIDTHS[kind])
    given = tuple(r for r in found if r.kind == "number")
    loops = [r for r in found if r.kind != "number"]
    parts = [tuple(loops[i : i + BATCH]) for i in range(0, len(loops), BATCH)]
    batches = tuple(Batch(needed(program, [a for r in part for a in r.args], ())[0], part) for part in parts)
    return batches, given, tuple(again)


def _numbers_in(program: Program, elements: Iterable[int]) -> set[int]:
    """The numbers that elements read."""
    return {program.nodes[i].args[0] for i in elements if program.nodes[i].op == "number"}


def depths(program: Program, *, of_sums: int, of_arrays: int) -> tuple[list[int], list[int], list[int]]:
    """For each element, number and extent, how many cuts come before it.

    A number that elements are reduced to has ``of_sums`` more than they, an extent that is made of elements ``of_arrays`` more.
    """
    by_name = {entering(k): k for k in range(len(program.extents))}
    elements, numbers, extents = ([0] * len(own) for own in (program.nodes, program.numbers, program.extents))
    before: tuple[list[int], ...] = ()
    # Each of them is recorded after what it is made of, but in three lists: until nothing changes.
    while before != (now := (elements[:], numbers[:], extents[:])):
        before = now
        for i, node in enumerate(program.nodes):
            match node:
                case Node("load", (name, *_)):
                    elements[i] = extents[by_name[name]] if name in by_name else 0
                case Node("number", (k,)):
                    elements[i] = numbers[k]
                case Node("coefficient" | "constant" | "literal" | "scale", _):
                    pass
                case Node(_, args):
                    elements[i] = max(elements[a] for a in args)
        for i, node in enumerate(program.numbers):
            match node:
                case Node("reduce", (_, _, *reduced)):
                    numbers[i] = max(elements[a] for a in reduced) + of_sums
                case Node(op, args) if op not in LEAVES_OF_NUMBERS:
                    numbers[i] = max(numbers[a] for a in args)
        for i, extent in enumerate(program.extents):
            held = [elements[k] + of_arrays if where == "element" else extents[k] for where, k in held_by(extent)]
            extents[i] = max(held, default=0)
    return elements, numbers, extents


def needed(
    program: Program, elements: Iterable[int], numbers: Iterable[int], *, through_numbers: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The elements and numbers that these are made of, with themselves, in order; not what is beyond numbers, unless told so."""
    found: set[int] = set()
    found_numbers: set[int] = set()
    open_elements, open_numbers = list(elements), list(numbers)
    while open_elements or open_numbers:
        if open_elements:
            i = open_elements.pop()
            if i in found:
                continue
            found.add(i)
            match program.nodes[i]:
                case Node("number", (k,)):
                    open_numbers += [k] if through_numbers else []
                case Node("load" | "coefficient" | "constant" | "literal" | "scale", _):
                    pass
                case Node(_, of):
                    open_elements += of
        else:
            k = open_numbers.pop()
            if k in found_numbers:
                continue
            found_numbers.add(k)
            match program.numbers[k]:
                case Node("reduce", (_, _, *args)):
                    open_elements += args
                case Node(op, of):
                    open_numbers += () if op in LEAVES_OF_NUMBERS else of
    return tuple(sorted(found)), tuple(sorted(found_numbers))


def _stores(program: Program) -> tuple[Store, ...]:
    """What is written: not what stays as it is, and only then what a truth value of the leaf decides over."""
    same = uniform(program)
    stores = []
    for name, part, output in program.stores:
        old = Node("load", (name, *part))
        match program.nodes[output]:
            case node if node == old:
                pass
            case Node("where", (when, value, other)) if when in same and program.nodes[other] == old:
                stores.append(Store(name, part, value, when))
            case _:
                stores.append(Store(name, part, output))
    # Of complex numbers both parts are written, and by one condition.
    whole = [Store(name, part, output) for name, part, output in program.stores if name in program.pairs]
    for name in program.pairs:
        conditions = [store.when for store in stores if store.name == name]
        if conditions and (len(conditions) == 1 or conditions[0] != conditions[1]):
            stores = [store for store in stores if store.name != name] + [s for s in whole if s.name == name]
    return tuple(stores)
