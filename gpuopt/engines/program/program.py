"""Programs: what a rule's ``update`` does to one element, as a straight line of operations; see `gpuopt.engines.program.trace`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from gpuopt.cached import cached_property

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ARITHMETIC = ("add", "sub", "mul", "truediv")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
LOGIC = ("and", "or", "not")
LEAVES_OF_NUMBERS = ("slot", "scalar", "literal", "reduce")
"""Operations of numbers that are inputs: they have no other number as an argument."""
SCALE = "_scale"
"""Name of the factor of the gradient, the only scalar that differs from leaf to leaf; clipping by norm sets it."""
INEXACT = ("exp", "log", "tanh")
"""Functions of the mathematical library, which differ in the last bits from one platform to the next."""

ON_HOST = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "truediv": "{} / {}",
    "pow": "{} ** {}",
    "neg": "-{}",
    "abs": "abs({})",
    "sqrt": "sqrt({})",
    "lt": "{} < {}",
    "le": "{} <= {}",
    "gt": "{} > {}",
    "ge": "{} >= {}",
    "eq": "{} == {}",
    "ne": "{} != {}",
    "and": "{} and {}",
    "or": "{} or {}",
    "not": "not {}",
    "where": "{1} if {0} else {2}",
}
"""The operations on scalars, by name."""
_FUNCTIONS_ON_HOST = {"sqrt": lambda x: math.sqrt(x) if x >= 0 else math.nan}


def on_host(op: str, *args: Any) -> Any:
    """Return what an operation of `ON_HOST` gives of numbers."""
    return eval(ON_HOST[op].format(*(f"args[{i}]" for i in range(len(args)))), {**_FUNCTIONS_ON_HOST, "args": args})


@dataclass(frozen=True)
class Node:
    """One operation; ``args`` are indices of earlier nodes, or what an input is (a name, a number as `float.hex`)."""

    op: str
    args: tuple[Any, ...]


def entering(index: int) -> str:
    """Name of the hidden array by which one of a program's extents enters the loop; no slot has a name with a space."""
    return f"extent {index}"


def held_by(node: Node) -> list[tuple[str, int]]:
    """The arrays that an extent is made of."""
    match node:
        case Node("sum", (held, _, _)):
            return [held]
        case Node("whole", (_, *given)):
            return [held for held in given if held is not None]
        case Node("slot" | "scalar" | "literal", _):
            return []
    return [("extent", index) for index in node.args]


@dataclass(frozen=True)
class Program:
    """What a rule does to one element: inputs, operations in source order, outputs; and its scalars on the host."""

    slots: tuple[str, ...]
    """Those that are arrays like the leaf, and `hidden`."""
    nodes: tuple[Node, ...]
    stores: tuple[tuple[str, tuple[int, ...], int], ...]
    """Of each output the array, the part (none, of real numbers; of complex ones the real and the imaginary one) and the node."""
    scalars: tuple[Node, ...]
    coefficients: tuple[int, ...]
    """Scalars that enter the loop: the node ``coefficient k`` is ``scalars[coefficients[k]]``."""
    number_slots: tuple[str, ...] = ()
    """The slots that hold one number, not an array."""
    shared: frozenset[str] = frozenset()
    """Those of `number_slots` that all leaves of the group share."""
    numbers: tuple[Node, ...] = ()
    """Operations on numbers, in float64."""
    number_outputs: tuple[int, ...] = ()
    """For each number slot, the index in `numbers` of its new value."""
    number_scalars: tuple[int, ...] = ()
    """Scalars that numbers are made of: the number ``scalar k`` is ``scalars[number_scalars[k]]``."""
    pairs: frozenset[str] = frozenset()
    """Arrays of complex numbers, among "p", "g" and the slots: nodes load their parts, ``("p", 0)`` and ``("p", 1)``."""
    hidden: frozenset[str] = frozenset()
    """Of `slots`, those that are no state: what goes from one stage to the next; see `gpuopt.engines.program.stages`."""
    spread: frozenset[str] = frozenset()
    """Of `hidden`, those of other shapes than the leaf's, each number of which stands for many elements."""
    folds: bool = False
    """Whether what is stored is added up along an axis, as far as one loop goes; see `gpuopt.engines.program.folds`."""
    constants: int = 0
    """How many numbers of its own each leaf has: nodes name them ``constant k``, and leaves of several shapes share the code."""
    totals: tuple[int, ...] = ()
    """Indices in `numbers` that are always worked out, even if nothing else needs them."""
    extents: tuple[Node, ...] = ()
    """Operations on whole arrays: those of other shapes than the leaf's, and `xp.whole`."""
    extent_shapes: tuple[tuple[int, ...], ...] = ()
    """Their shapes; of what `xp.whole` returns none."""
    extent_scalars: tuple[int, ...] = ()
    """Scalars that these are made of: the extent ``scalar k`` is ``scalars[extent_scalars[k]]``."""
    extent_slots: tuple[tuple[str, int], ...] = ()
    """Slots of other shapes than the leaf's, and what of `extents` they become."""
    writes: bool = False
    """Whether the update, run on arrays, may write into those that it is given."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Worked out once: thousands of nodes have a say in it, and it is asked for again and again."""
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    @property
    def exact(self) -> bool:
        """Whether every engine gives the same bits: not with functions of a mathematical library, nor with `xp.whole`."""
        return not any(node.op in (*INEXACT, "whole") for node in (*self.nodes, *self.extents))

    @property
    def is_elementwise(self) -> bool:
        """Whether the new value of an element depends on no other element."""
        return not self.numbers and not self.extents

    @property
    def has_totals(self) -> bool:
        """Whether something is added up over all leaves of a group."""
        return any(node.op == "reduce" and node.args[1] == "group" for node in self.numbers)

    def is_mask(self, number: int) -> bool:
        """Whether one of `numbers` is a truth value."""
        return self.numbers[number].op in (*COMPARISONS, *LOGIC)

    @cached_property
    def evaluate(self) -> Callable[[Mapping[str, float]], list[float]]:
        """A function from the scalars of a step (`Rule.at`) to the coefficients, in float64."""
        return self._evaluating(self.coefficients)

    @cached_property
    def evaluate_for_numbers(self) -> Callable[[Mapping[str, float]], list[float]]:
        """A function from the scalars of a step to the scalars that numbers are made of, in float64."""
        return self._evaluating(self.number_scalars)

    def _evaluating(self, wanted: tuple[int, ...]) -> Callable[[Mapping[str, float]], list[float]]:
        formulas: list[str] = []
        for node in self.scalars:
            match node:
                case Node("hyper", (name,)):
                    formulas.append(f"h[{name!r}]")
                case Node("literal", (number,)):
                    value = float.fromhex(number)
                    formulas.append(repr(value) if math.isfinite(value) else f"float('{value}')")
                case Node(op, args):
                    formulas.append(f"({ON_HOST[op].format(*[formulas[i] for i in args])})")
        # Compiled, since it runs at every step: an interpreter of the nodes takes ten times as long.
        code = f"lambda h: [{', '.join(formulas[i] for i in wanted)}]"
        return eval(code, {**_FUNCTIONS_ON_HOST})  # type: ignore[no-any-return]
