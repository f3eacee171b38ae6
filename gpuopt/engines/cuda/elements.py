"""What a traced program does to one element, as CUDA C++: loads, operations in the program's order.

The compiler is told to contract and reorder nothing, so that the bits are NumPy's; see `gpuopt.nvrtc`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import table
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.program.passes import uniform
from gpuopt.engines.program.program import COMPARISONS, INEXACT, LOGIC, Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuopt.engines.table import Variant

OPERATIONS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "truediv": "{0} / {1}",
    "neg": "-{0}",
    "sqrt": "sqrt{s}({0})",
    "abs": "fabs{s}({0})",
    **{name: name + "{s}({0})" for name in INEXACT},
    **dict(
        zip(
            COMPARISONS, ("{0} < {1}", "{0} <= {1}", "{0} > {1}", "{0} >= {1}", "{0} == {1}", "{0} != {1}"), strict=True
        )
    ),
    "and": "{0} && {1}",
    "or": "{0} || {1}",
    "not": "!{0}",
    "where": "{0} ? {1} : {2}",
}


class Elements:
    """CUDA C++ of some elements of a variant: what is worked out before a loop, and in it.

    Parameters
    ----------
    variant
        A program at a dtype.
    elements
        Nodes, in order.
    numbers
        Terms of the numbers that are known; others are read where they are kept.
    index
        The element of the chunk that the body is of, if it may read arrays: one of two that a truth value of the whole leaf has
        chosen before the loop. Without, all are read before the body, as those that are written have to be.

    """

    def __init__(
        self, variant: Variant, elements: Iterable[int], numbers: Mapping[int, str], *, index: str = ""
    ) -> None:
        self.variant, self.T = variant, DTYPES[variant.dtype].cuda
        self.is_random = variant.precision == "stochastic"
        program, suffix = variant.program, DTYPES[variant.dtype].cuda_suffix
        self.arrays: dict[str, str] = {}
        self.parts: dict[str, int] = {}
        self.small: dict[str, str] = {}
        self.spread: dict[str, int] = {}
        self.constants: dict[str, str] = {}
        self.body: list[str] = []
        self.used: set[str] = set()
        self.terms: dict[int, str] = {}
        self._prologue: list[str] = []
        self._index = index
        self._read: dict[int, tuple[str, tuple[int, ...]]] = {}  # of values that are elements of an array as they are
        same = uniform(program)
        for k in elements:
            term = f"v{k}"
            match program.nodes[k]:
                case Node("load", (name, *part)):
                    label = self.array(name)
                    term = numbered("a", label, *part)
                    if label not in self.spread:
                        self._read[k] = label, tuple(part)
                case Node("coefficient", (index,)):
                    self._constant(term, self.T, f"c[{index}]")
                case Node("constant", (index,)):
                    column = table.constants_at(program) + index
                    self._constant(term, self.T, f"({self.T})((const double*)row)[{column}]")
                case Node("scale", ()):
                    self._constant(term, self.T, f"({self.T})leaf_scale")
                case Node("number", (index,)):
                    self._constant(term, self.T, f"({self.T}){numbers.get(index, f'own[{index}]')}")
                case Node("literal", (number,)):
                    term = DTYPES[variant.dtype].cuda_literal(number)
                case Node("where", (when, a, b)) if when in same and self._may_choose(a, b):
                    self._choose(k, term, when, a, b)
                case Node(op, args):
                    kind = "bool" if op in (*COMPARISONS, *LOGIC) else self.T
                    formula = OPERATIONS[op].format(*[self.terms[a] for a in args], s=suffix)
                    if k in same:
                        self._constant(term, kind, formula)
                    else:
                        self.body.append(f"const {kind} {term} = {formula};")
                        self.used |= {self.terms[a] for a in args}
            self.terms[k] = term

    def array(self, name: str) -> str:
        """What an array is called: names of their own, for those of a chain have dots."""
        slots = self.variant.program.slots
        if name == "g":
            label, address = "g", "gradient"
        else:
            column = table.PARAMETER if name == "p" else table.SLOTS + slots.index(name)
            label, address = name if name == "p" else f"slot{slots.index(name)}", f"row[{column}]"
        self.arrays[label] = address
        self.parts[label] = 2 if name in self.variant.program.pairs else 1
        if name in self.variant.program.spread:
            self.spread[label] = table.spread_at(self.variant.program, name)
        stored = self.variant.stored(name)
        if stored.stored:
            self.small[label] = stored.name
        return label

    def _may_choose(self, *values: int) -> bool:
        """Whether the body may read arrays, and values are elements of arrays as they are that are read alike."""
        found = [self._read.get(k) for k in values if self._index]
        ways = {own and (self.parts[own[0]], self.small.get(own[0]), own[1]) for own in found}
        return len(ways) == 1 and None not in ways

    def _choose(self, k: int, term: str, when: int, *args: int) -> None:
        """Read an element of one of two arrays."""
        (first, part), (second, _) = (self._read[a] for a in args)
        self.parts[term] = self.parts[first]
        if first in self.small:
            self.small[term] = self.small[first]
        self._read[k] = term, part
        kind = self.kept(first)
        self._prologue += [
            f"const {kind}* at_{term} = {self.terms[when]} ? at_{first} : at_{second};",
            f"ASSUME_GLOBAL(at_{term});",
        ]
        self.body.append(f"const {self.T} {term} = {self.read(term, self.at(term, self._index, *part))};")

    def kept(self, label: str) -> str:
        """The type of an array's numbers in memory."""
        return "unsigned short" if label in self.small else self.T

    def read(self, label: str, term: str) -> str:
        """A number of an array, from what is in memory."""
        return f"wide_{self.small[label]}({term})" if label in self.small else term

    def written(self, label: str, term: str, index: str) -> str:
        """What is in memory of a number of an array."""
        if label == "p" and self.is_random:
            return f"random_{self.small[label]}({term}, random_bits(own_key, first + (unsigned int)start + {index}))"
        return f"narrow_{self.small[label]}({term})" if label in self.small else term

    def at(self, label: str, index: str, part: int = 0) -> str:
        """An element of an array, or one of its parts."""
        parts = self.parts[label]
        if label in self.spread:
            return f"at_{label}[spread(start, {index}, row[{self.spread[label]}], row[{self.spread[label] + 1}])]"
        return f"at_{label}[{index}]" if parts == 1 else f"at_{label}[{parts} * {index} + {part}]"

    def each(self, labels: Iterable[str]) -> list[tuple[str, int]]:
        """Every part of these arrays."""
        return [(label, part) for label in labels for part in range(self.parts[label])]

    @property
    def prologue(self) -> list[str]:
        """Statements before the loop."""
        addresses = [
            f"{self.kept(name)}* at_{name} = ({self.kept(name)}*){address} + "
            f"{'0' if name in self.spread else 'start' if self.parts[name] == 1 else '2 * start'};"
            for name, address in self.arrays.items()
        ]
        return [*addresses, *(f"ASSUME_GLOBAL(at_{name});" for name in self.arrays), *self._prologue]

    def _constant(self, name: str, kind: str, formula: str) -> None:
        self.constants[name] = kind
        self._prologue.append(f"const {kind} {name} = {formula};")


def numbered(kind: str, label: str, number: int = 0) -> str:
    """The name of a variable that belongs to an array; from 1 on, a number tells several of a kind apart."""
    return f"{kind}{number or ''}_{label}"
