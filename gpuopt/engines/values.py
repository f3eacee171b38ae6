"""Values of code that is being written: Python's operators on them write operations, one line each.

What is alike on the CPU and on the GPU is written down once, in these; `gpuopt.engines.cpu.ir` makes LLVM IR of it and
`gpuopt.engines.cuda.storage` CUDA C++.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from gpuopt.engines.program.program import ARITHMETIC, COMPARISONS

if TYPE_CHECKING:
    from collections.abc import Callable

BITWISE = ("and", "or", "xor", "lshift", "rshift")
WHOLE = ("floordiv", "mod")


class Code(ABC):
    """Lines that are being written."""

    @abstractmethod
    def operation(self, op: str, *args: Any) -> Any:
        """Write an operation on values or Python's numbers, of which one value at least; return the value that it gives."""

    @abstractmethod
    def cast(self, value: Any, kind: str) -> Any:
        """The same number, of another type."""

    @abstractmethod
    def bits(self, value: Any, kind: str) -> Any:
        """The same bits, of another type."""

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """The first value if the condition holds, else the second."""
        return self.operation("where", condition, x, y)


class Value:
    """A value of some code.

    Whole numbers have no sign, and are compared where both are below half of their range.

    Parameters
    ----------
    code
        Where operations on it are written.
    kind
        Its type, by LLVM's names; of an address that of what is there, with a ``*`` behind it.
    term
        What it is called in the code.

    """

    __hash__ = object.__hash__

    def __init__(self, code: Any, kind: str, term: str) -> None:
        self.code, self.kind, self.term = code, kind, term

    def cast(self, kind: str) -> Any:
        """The same number, of another type."""
        return self.code.cast(self, kind)

    def bits(self, kind: str) -> Any:
        """The same bits, of another type."""
        return self.code.bits(self, kind)

    def at(self, index: Any) -> Any:
        """The address of an item."""
        return self.code.at(self, index)

    def __getitem__(self, index: Any) -> Any:
        return self.code.load(self.at(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        self.code.store(value, self.at(index))


def _install_operators() -> None:
    def binary(op: str) -> Callable[[Value, Any], Any]:
        return lambda self, other: self.code.operation(op, self, other)

    for op in (*ARITHMETIC, *COMPARISONS, *BITWISE, *WHOLE):
        setattr(Value, f"__{op}__", binary(op))


_install_operators()
