"""Passes: a program that reduces is cut where it needs its sums.

A reduction pass reads elements, adds up and writes nothing; after it, numbers are worked out. The last pass updates. What a
pass needs follows from the data: a sum whose terms need no number belongs to the first pass, one whose terms need a number of
the first pass to the second one. A program without numbers has no reduction pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from gpuopt.engines.trace import LEAVES_OF_NUMBERS, Node

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpuopt.engines.trace import Program

WIDTHS = {"sum": 1, "dot": 1, "norm": 3, "max": 1}
"""Columns of a reduction: a norm adds up three sums, see `gpuopt.engines.norms`."""


@dataclass(frozen=True)
class Reduction:
    """A sum, or a largest element, over a leaf or over its group.

    Attributes
    ----------
    number
        What it is among the program's numbers.
    kind, over
        "sum", "dot", "norm" or "max"; "leaf" or "group".
    args
        The elements that it is made of; of complex ones, both parts of each.
    column
        Its first one, among those of the sums or among those of the largest elements.

    """

    number: int
    kind: str
    over: str
    args: tuple[int, ...]
    column: int


@dataclass(frozen=True)
class Pass:
    """What a reduction pass does.

    Attributes
    ----------
    elements
        Nodes that it works out for every element, in order.
    before
        Numbers that the elements need before any number is there: made of slots and scalars alone.
    reductions
        What it reduces.
    numbers
        Those that are worked out after it, in order.

    """

    elements: tuple[int, ...]
    before: tuple[int, ...]
    reductions: tuple[Reduction, ...]
    numbers: tuple[int, ...]

    @property
    def sums(self) -> int:
        """Columns of sums."""
        return sum(WIDTHS[r.kind] for r in self.reductions if r.kind != "max")

    @property
    def largest(self) -> int:
        """Columns of largest elements."""
        return sum(r.kind == "max" for r in self.reductions)


@dataclass(frozen=True)
class Store:
    """What the update writes: an element's value into an array; ``when`` is a truth value of the whole leaf, or None.

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


def uniform(program: Program) -> frozenset[int]:
    """Elements that are the same for the whole leaf."""
    found: set[int] = set()
    for i, node in enumerate(program.nodes):
        match node:
            case Node("coefficient" | "number" | "literal" | "scale", _):
                found.add(i)
            case Node("load", _):
                pass
            case Node(_, args) if all(a in found for a in args):
                found.add(i)
    return frozenset(found)


@cache
def _cut(program: Program) -> tuple[tuple[Pass, ...], Update]:
    element_depth, number_depth = _depths(program)
    stores = _stores(program)
    wanted = [i for store in stores for i in (store.value, store.when) if i is not None]
    elements, numbers = _needed(program, wanted, program.number_outputs)
    count = max((number_depth[k] for k in numbers), default=0)
    if program.number_slots:
        count = max(count, 1)  # an update writes slots, and so must not read them: numbers hold what they were
    reducing = []
    for k in range(count):
        sums = largest = 0
        found = []
        # Those over the group first: they are in the same columns for real and for complex leaves.
        for number in sorted(numbers, key=lambda k: program.numbers[k].args[1:2] != ("group",)):
            match program.numbers[number]:
                case Node("reduce", (kind, over, *args)) if number_depth[number] == k + 1:
                    found.append(Reduction(number, kind, over, tuple(args), largest if kind == "max" else sums))
                    largest, sums = (largest + 1, sums) if kind == "max" else (largest, sums + WIDTHS[kind])
        own, _ = _needed(program, [a for r in found for a in r.args], (), through_reductions=False)
        used = [program.nodes[i].args[0] for i in own if program.nodes[i].op == "number"]
        before = _needed(program, (), used)[1] if k == 0 else ()
        after = [n for n in numbers if number_depth[n] == k + 1 or (k == 0 and number_depth[n] == 0)]
        reducing.append(Pass(own, before, tuple(found), tuple(after)))
    own, _ = _needed(program, wanted, (), through_reductions=False)
    return tuple(reducing), Update(own, stores)


def _depths(program: Program) -> tuple[list[int], list[int]]:
    """For each element and each number, how many passes come before it."""
    elements: dict[int, int] = {}
    numbers: dict[int, int] = {}

    def of_element(i: int) -> int:
        if i not in elements:
            match program.nodes[i]:
                case Node("number", (k,)):
                    elements[i] = of_number(k)
                case Node("load" | "coefficient" | "literal" | "scale", _):
                    elements[i] = 0
                case Node(_, args):
                    elements[i] = max(map(of_element, args))
        return elements[i]

    def of_number(k: int) -> int:
        if k not in numbers:
            match program.numbers[k]:
                case Node("reduce", (_, _, *args)):
                    numbers[k] = 1 + max(map(of_element, args))
                case Node(op, args):
                    numbers[k] = 0 if op in LEAVES_OF_NUMBERS else max(map(of_number, args))
        return numbers[k]

    # In order of recording, whatever an operation needs has been looked at before: no recursion goes deep.
    made: list[tuple[int, int]] = []
    n = 0
    for i, node in enumerate(program.nodes):
        if node.op == "number":
            for k in range(n, node.args[0] + 1):
                made.append((1, k))
            n = max(n, node.args[0] + 1)
        made.append((0, i))
    made += [(1, k) for k in range(n, len(program.numbers))]
    for is_number, index in made:
        (of_number if is_number else of_element)(index)
    return [elements[i] for i in range(len(program.nodes))], [numbers[k] for k in range(len(program.numbers))]


def _needed(
    program: Program, elements: Iterable[int], numbers: Iterable[int], *, through_reductions: bool = True
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The elements and numbers that these are made of, with themselves, in order; maybe as far as the numbers only."""
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
                    open_numbers += [k] if through_reductions else []
                case Node("load" | "coefficient" | "literal" | "scale", _):
                    pass
                case Node(_, args):
                    open_elements += args
        else:
            k = open_numbers.pop()
            if k in found_numbers:
                continue
            found_numbers.add(k)
            match program.numbers[k]:
                case Node("reduce", (_, _, *args)):
                    open_elements += args
                case Node(op, args) if op not in LEAVES_OF_NUMBERS:
                    open_numbers += args
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
