"""What a traced program does to one element, as CUDA C++: loads, operations in the program's order.

The compiler is told to contract and reorder nothing, so that the bits are NumPy's; see `gpuopt.nvrtc`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import table
from gpuopt.engines.dtypes import DTYPES
from gpuopt.engines.passes import uniform
from gpuopt.engines.trace import COMPARISONS, INEXACT, LOGIC, Node

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

    """

    def __init__(self, variant: Variant, elements: Iterable[int], numbers: Mapping[int, str]) -> None:
        self.variant, self.T = variant, DTYPES[variant.dtype].cuda
        self.is_random = variant.precision == "stochastic"
        program, suffix = variant.program, DTYPES[variant.dtype].cuda_suffix
        self.arrays: dict[str, str] = {}
        self.parts: dict[str, int] = {}
        self.small: dict[str, str] = {}
        self.constants: dict[str, str] = {}
        self.body: list[str] = []
        self.terms: dict[int, str] = {}
        self._prologue: list[str] = []
        same = uniform(program)
        for k in elements:
            term = f"v{k}"
            match program.nodes[k]:
                case Node("load", (name, *part)):
                    term = numbered("a", self.array(name), *part)
                case Node("coefficient", (index,)):
                    self._constant(term, self.T, f"c[{index}]")
                case Node("scale", ()):
                    self._constant(term, self.T, f"({self.T})leaf_scale")
                case Node("number", (index,)):
                    self._constant(term, self.T, f"({self.T}){numbers.get(index, f'own[{index}]')}")
                case Node("literal", (number,)):
                    term = DTYPES[variant.dtype].cuda_literal(number)
                case Node(op, args):
                    kind = "bool" if op in (*COMPARISONS, *LOGIC) else self.T
                    formula = OPERATIONS[op].format(*[self.terms[a] for a in args], s=suffix)
                    if k in same:
                        self._constant(term, kind, formula)
                    else:
                        self.body.append(f"const {kind} {term} = {formula};")
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
        stored = self.variant.stored(name)
        if stored.stored:
            self.small[label] = stored.name
        return label

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
        return f"at_{label}[{index}]" if parts == 1 else f"at_{label}[{parts} * {index} + {part}]"

    def each(self, labels: Iterable[str]) -> list[tuple[str, int]]:
        """Every part of these arrays."""
        return [(label, part) for label in labels for part in range(self.parts[label])]

    @property
    def prologue(self) -> list[str]:
        """Statements before the loop."""
        addresses = [
            f"{self.kept(name)}* at_{name} = ({self.kept(name)}*){address} + "
            f"{'start' if self.parts[name] == 1 else '2 * start'};"
            for name, address in self.arrays.items()
        ]
        return [*addresses, *(f"ASSUME_GLOBAL(at_{name});" for name in self.arrays), *self._prologue]

    def _constant(self, name: str, kind: str, formula: str) -> None:
        self.constants[name] = kind
        self._prologue.append(f"const {kind} {name} = {formula};")


def numbered(kind: str, label: str, number: int = 0) -> str:
    """The name of a variable that belongs to an array; from 1 on, a number tells several of a kind apart."""
    return f"{kind}{number or ''}_{label}"
