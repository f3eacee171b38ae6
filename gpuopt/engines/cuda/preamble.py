"""What kernels in CUDA C++ begin with: where they find the values of a step, constants, conversions from and to 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuopt.engines import norms, table
from gpuopt.engines.cuda import storage
from gpuopt.engines.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gpuopt.engines.table import Variant

FLOAT64 = DTYPES["float64"]

SKIP, SKIPPED, NORM, LOSS_SCALE, GOOD, BEFORE = range(6)
SCALES = 2 * BEFORE
"""Of the verdict, an array of float64 on the device: whether to leave the step out, how many were, the norm, what the
gradients are divided by, for how many good steps that is so; what these were before; the scales."""

_VALUES = """\
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700
#define GRID_CONSTANT  // which older devices do not know: they make a copy of the parameter
#else
#define GRID_CONSTANT __grid_constant__
#endif
struct Values {{ alignas(8) unsigned char bytes[{bytes}]; }};

// Addresses of gradients come by value where they fit: a step with new gradients then copies nothing.
__device__ __forceinline__ long long address(const Values& values, int gradients_at, const long long* gradients, long long segment)
{{
    return gradients_at < 0 ? gradients[segment] : ((const long long*)(values.bytes + gradients_at))[segment];
}}
"""

GLOBAL = """\
#ifdef __CUDACC__
#define ASSUME_GLOBAL(pointer) __builtin_assume(__isGlobal(pointer))  // addresses come from memory: say what they are
#else
#define ASSUME_GLOBAL(pointer)
#endif
"""
"""A macro for every address that a kernel reads from memory."""

_ADDING = """\
__device__ __forceinline__ double larger(double a, double b)
{
    return a > b || a != a ? a : b;
}

__device__ __forceinline__ double root(double plain, double large, double small)
{
    if (plain < TINY) return sqrt(small) * SMALL;
    return FINITE(plain) ? sqrt(plain) : sqrt(large) * LARGE;
}

__device__ __forceinline__ void add_lanes(double value, double* lanes, double* out)
{
    lanes[threadIdx.x] = value;
    __syncthreads();
    for (int half = LANES / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) *out = lanes[0];
    __syncthreads();
}

__device__ __forceinline__ void largest_lane(double value, double* lanes, double* out)
{
    lanes[threadIdx.x] = value;
    __syncthreads();
    for (int half = LANES / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) lanes[threadIdx.x] = larger(lanes[threadIdx.x], lanes[threadIdx.x + half]);
        __syncthreads();
    }
    if (threadIdx.x == 0) *out = lanes[0];
    __syncthreads();
}
"""

_SPREAD = """\
// A division of 32 bits takes a fraction of one of 64.
__device__ __forceinline__ long long quotient(long long a, long long b, long long& rest)
{
    if ((a | b) >> 32 == 0) {
        const unsigned int whole = (unsigned int)a / (unsigned int)b;
        rest = (unsigned int)a - whole * (unsigned int)b;
        return whole;
    }
    const long long whole = a / b;
    rest = a - whole * b;
    return whole;
}

__device__ __forceinline__ long long spread(long long start, int i, long long span, long long inner)
{
    long long rest, column;
    const long long outer = quotient(start + i, span, rest);
    quotient(start + i, inner, column);
    return outer * inner + column;
}
"""


def values() -> str:
    """The values of a step, which are passed to the kernel by value, and the address of a gradient."""
    return _VALUES.format(bytes=table.VALUE_BYTES)


def adding() -> str:
    """Constants and functions for sums and norms; see `gpuopt.engines.norms`."""
    literals = {"SMALL": norms.SCALES[1], "LARGE": norms.SCALES[2], "TINY": norms.TINY}
    constants = {name: FLOAT64.cuda_literal(number.hex()) for name, number in literals.items()}
    return defined({"LANES": norms.LANES, "FINITE(x)": "((x) - (x) == 0)", **constants}) + _ADDING


def defined(constants: Mapping[str, object]) -> str:
    """Macros, a line each."""
    return "".join(f"#define {name} {value}\n" for name, value in constants.items())


def conversions(variants: Iterable[Variant]) -> str:
    """Functions from and to 16 bits, if one of the variants is stored so; and where in a spread array an element has its number."""
    variants = tuple(variants)
    small = storage.functions() if any(v.precision for v in variants) else ""
    return small + (_SPREAD if any(v.program.spread or v.program.folds for v in variants) else "")
