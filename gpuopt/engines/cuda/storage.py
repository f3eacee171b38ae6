"""How leaves of 16 bits are loaded and stored, as CUDA C++; see `gpuopt.engines.storage`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from gpuopt.engines import rounding
from gpuopt.engines.cuda.elements import OPERATIONS
from gpuopt.engines.program.program import COMPARISONS
from gpuopt.engines.values import BITWISE, Code, Value

if TYPE_CHECKING:
    from collections.abc import Callable

_OPERATIONS = OPERATIONS | {
    op: f"{{0}} {sign} {{1}}" for op, sign in zip(BITWISE, ["&", "|", "^", "<<", ">>"], strict=True)
}
_TYPES = {"i1": "bool", "i32": "unsigned int", "i64": "unsigned long long", "float": "float"}
_SUFFIXES = {"i32": "u", "i64": "ull", "float": "f"}
"""Of constants."""

# With the GPU's own instructions; an emulator has others.
_FLOAT16 = """\
__device__ __forceinline__ float wide_float16(unsigned int bits)
{
#ifdef __CUDACC__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((unsigned short)bits));
    return x;
#else
    const unsigned int sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 0x3ffu;
    if (exponent == 0) return __uint_as_float(sign | __float_as_uint((float)fraction * 5.9604644775390625e-08f));
    return __uint_as_float(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13);
#endif
}

__device__ __forceinline__ unsigned int narrow_float16(float x)
{
#ifdef __CUDACC__
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
#else
    const unsigned int all = __float_as_uint(x), sign = all >> 16 & 0x8000u, size = all & 0x7fffffffu;
    if (size > 0x7f800000u) return sign | 0x7e00u;
    if (size >= 0x477ff000u) return sign | 0x7c00u;
    if (size < 0x38800000u) return sign | (__float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000u);
    return sign | ((size + 0xfffu + (size >> 13 & 1u)) >> 13) - 0x1c000u;
#endif
}
"""

# Those of "split" are missing, as CuPy has no leaves of bfloat16.
_FORMULAS: dict[Callable[..., Any], str] = {
    rounding.wide_bfloat16: "i32 half",
    rounding.narrow_bfloat16: "float x",
    rounding.random_bfloat16: "float x, i32 random",
    rounding.random_float16: "float x, i32 random",
    rounding.leaf_key: "i64 key, i64 leaf",
    rounding.random_bits: "i64 key, i32 element",
}


class _Statements(Code):
    """Statements of CUDA C++, one for each operation."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def operation(self, op: str, *args: Any) -> Value:
        """See :meth:`Code.operation`."""
        kind = next(arg.kind for arg in args[op == "where" :] if isinstance(arg, Value))
        terms = [arg.term if isinstance(arg, Value) else f"{arg}{_SUFFIXES[kind]}" for arg in args]
        return self._value("i1" if op in COMPARISONS else kind, _OPERATIONS[op].format(*terms))

    def cast(self, value: Any, kind: str) -> Value:
        """See :meth:`Code.cast`."""
        return self._value(kind, f"({_TYPES[kind]}){value.term}")

    def bits(self, value: Any, kind: str) -> Value:
        """See :meth:`Code.bits`."""
        return self._value(kind, f"{'__uint_as_float' if kind == 'float' else '__float_as_uint'}({value.term})")

    def _value(self, kind: str, formula: str) -> Value:
        value = Value(self, kind, f"t{len(self.lines)}")
        self.lines.append(f"const {_TYPES[kind]} {value.term} = {formula};")
        return value


@cache
def functions() -> str:
    """The functions from and to 16 bits."""
    return _FLOAT16 + "".join(_function(formula, arguments) for formula, arguments in _FORMULAS.items())


def _function(formula: Callable[..., Any], arguments: str) -> str:
    code, pairs = _Statements(), [one.split(" ") for one in arguments.split(", ")]
    found = formula(code, *(Value(code, kind, name) for kind, name in pairs))
    given = ", ".join(f"{_TYPES[kind]} {name}" for kind, name in pairs)
    body = "\n    ".join([*code.lines, f"return {found.term};"])
    return f"\n__device__ __forceinline__ {_TYPES[found.kind]} {formula.__name__}({given})\n{{\n    {body}\n}}\n"
