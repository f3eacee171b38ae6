"""The dtypes that the fused engines know: how each is stored, what it is computed in, and what LLVM and CUDA call it."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class DType:
    """A dtype of parameters.

    Attributes
    ----------
    name
        NumPy's.
    arithmetic
        Name of the dtype of the arithmetic on such numbers.
    llvm, llvm_suffix
        LLVM's type, and the end of the names of its functions.
    cuda, cuda_suffix
        CUDA's type, and the end of the names of its functions.
    ctype
        The type of ctypes.
    squares_fit
        Whether no square of such a number overflows or vanishes in float64.
    parts
        Real numbers in an element: two if the dtype is complex, else one.
    stored
        Bytes of a real number in memory, if it is stored in fewer bytes than the arithmetic has; else 0.

    """

    name: str
    arithmetic: str
    llvm: str
    llvm_suffix: str
    cuda: str
    cuda_suffix: str
    ctype: type[Any]
    squares_fit: bool
    parts: int = 1
    stored: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return (self.stored or ctypes.sizeof(self.ctype)) * self.parts

    @property
    def number(self) -> int:
        """The number by which the rows of a `gpuopt.engines.table.Table` name this dtype."""
        return list(DTYPES).index(self.name)

    def rounded(self, number: str) -> Any:
        """A number, as `float.hex` writes it, rounded once to this dtype."""
        with np.errstate(all="ignore"):
            return np.dtype(self.arithmetic).type(float.fromhex(number))

    def llvm_literal(self, number: str) -> str:
        """A constant of LLVM IR, which spells float and double alike: as the bits of a double."""
        with np.errstate(all="ignore"):
            return "0x" + struct.pack(">d", self.rounded(number)).hex()

    def cuda_literal(self, number: str) -> str:
        """A constant of CUDA C++, made of its bits."""
        value = self.rounded(number)
        if self.arithmetic == "float32":
            return f"__int_as_float(0x{value.view(np.uint32):08x})"
        return f"__longlong_as_double(0x{value.view(np.uint64):016x})"


_float32 = DType("float32", "float32", "float", "f32", "float", "f", ctypes.c_float, squares_fit=True)
_float64 = DType("float64", "float64", "double", "f64", "double", "", ctypes.c_double, squares_fit=False)

DTYPES: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        _float32,
        _float64,
        replace(_float32, name="complex64", parts=2),
        replace(_float64, name="complex128", parts=2),
        replace(_float32, name="float16", stored=2),
        replace(_float32, name="bfloat16", stored=2),
    )
}
