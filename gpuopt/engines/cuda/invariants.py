"""What is the same for all elements of a chunk, as the loop over them has it: few in registers, many as bits and in shared memory."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from gpuopt.engines.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpuopt.engines.cuda.elements import Elements

TRUTHS = 7
"""So many truth values stay what they are: a thread has registers of one bit for them. Of more, compilers would keep the numbers that they
came from, and compare them again for every element."""

REGISTERS = 120
"""Of 255 of 32 bits: what arrays, their addresses and numbers may take up together. Results take up the rest."""


class Invariants:
    """Truth values, numbers and addresses of arrays, which the loop of an update does not change.

    Parameters
    ----------
    code
        What is worked out for an element.
    used
        Terms that an element, or the stores after it, are made of.
    words
        Words of 32 bits that are read of all arrays at a time.

    Attributes
    ----------
    prologue
        Statements before the loop, after those of the elements.
    parameters, arguments
        Of the function of an element.
    body
        Statements that the function begins with.

    """

    def __init__(self, code: Elements, used: Iterable[str], words: int) -> None:
        arguments = {name: name for name in code.constants}
        kinds = dict(code.constants)
        self.prologue: list[str] = []
        self.body: list[str] = []
        self._tests: dict[str, str] = {}
        self._shared: dict[str, str] = {}
        wanted = [name for name in code.constants if name in set(used)]
        truths = [name for name in wanted if code.constants[name] == "bool"]
        numbers = [name for name in wanted if code.constants[name] == code.T]
        if len(truths) > TRUTHS:
            for name, kind in code.constants.items():
                if kind == "bool":
                    del arguments[name], kinds[name]
            for word in range(0, len(truths), 32):
                name = self._packed(f"truths{word // 32}", truths[word : word + 32])
                arguments[name], kinds[name] = name, "unsigned int"
        size = ctypes.sizeof(DTYPES[code.variant.dtype].ctype) // 4
        if words + 4 * len(code.arrays) + size * len(numbers) > REGISTERS:  # an address, and that of the element
            self._shared = {name: f"{code.kept(name)}*" for name in code.arrays}
            own = {f"at_{name}": kind for name, kind in self._shared.items()} | dict.fromkeys(numbers, code.T)
            self.prologue += [f"__shared__ {kind} volatile shared_{name};" for name, kind in own.items()]
            self.prologue += ["if (threadIdx.x == 0) {", *(f"    shared_{name} = {name};" for name in own)]
            self.prologue += ["}", "__syncthreads();"]
            arguments |= {name: f"shared_{name}" for name in numbers}
        self.arguments = list(arguments.values())
        self.parameters = [f"{kind} {name}" for name, kind in kinds.items()]

    def test(self, truth: str) -> str:
        """A truth value, as an expression in the loop."""
        return self._tests.get(truth, truth)

    def addresses(self, labels: Iterable[str], *, again: bool = False) -> list[str]:
        """Statements in the loop that read the addresses of arrays, if they are not in registers; once more, for the stores."""
        own = [(name, "" if again else f"{self._shared[name]} ") for name in labels if name in self._shared]
        return [f"{kind}at_{name} = shared_at_{name}; ASSUME_GLOBAL(at_{name});" for name, kind in own]

    def _packed(self, name: str, truths: list[str]) -> str:
        """A word of truth values. The compiler is not to see what its bits come from."""
        self._tests |= {truth: f"({name} >> {bit} & 1u) != 0" for bit, truth in enumerate(truths)}
        self.body += [f"const bool {truth} = {self._tests[truth]};" for truth in truths]
        bits = " | ".join(f"(unsigned int){truth} << {bit}" for bit, truth in enumerate(truths))
        self.prologue += [f"unsigned int {name} = {bits};", f'asm volatile("" : "+r"({name}));']
        return name
