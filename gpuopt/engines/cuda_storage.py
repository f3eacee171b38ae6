"""How leaves of 16 bits are loaded and stored, as CUDA C++; see `gpuopt.engines.storage`."""

from __future__ import annotations

from gpuopt.engines.storage import FIRST, FOURTH, GOLDEN, SECOND, THIRD

FUNCTIONS = (
    """\
__device__ __forceinline__ float wide_bfloat16(unsigned int bits)
{
    return __uint_as_float(bits << 16);
}

__device__ __forceinline__ unsigned int narrow_bfloat16(float x)
{
    const unsigned int bits = __float_as_uint(x);
    return (x != x ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;  // to nearest even
}

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
    + f"""
__device__ __forceinline__ unsigned long long leaf_key(unsigned long long key, long long leaf)
{{
    unsigned long long z = key + (unsigned long long)((leaf & 0xffffffffll) + 1) * {GOLDEN:#x}ull;
    z = (z ^ z >> 30) * {FIRST:#x}ull;
    z = (z ^ z >> 27) * {SECOND:#x}ull;
    return z ^ z >> 31;
}}

__device__ __forceinline__ unsigned int random_bits(unsigned long long key, unsigned int element)
{{
    unsigned int h = element ^ (unsigned int)key;
    h = (h ^ h >> 16) * {THIRD:#x}u;
    h = (h ^ h >> 13) * {FOURTH:#x}u;
    return (h ^ h >> 16 ^ (unsigned int)(key >> 32)) >> 16;
}}

__device__ __forceinline__ unsigned int random_bfloat16(float x, unsigned int random)
{{
    const unsigned int bits = __float_as_uint(x);
    return (x != x ? bits | 0x400000u : bits + random) >> 16;
}}

__device__ __forceinline__ unsigned int random_float16(float x, unsigned int random)
{{
    const unsigned int all = __float_as_uint(x), sign = all >> 16 & 0x8000u, size = all & 0x7fffffffu;
    if (size > 0x7f800000u) return sign | 0x7e00u;
    if (size >= 0x47800000u) return sign | 0x7c00u;
    if (size < 0x38800000u) return sign | ((unsigned int)(__uint_as_float(size) * 1099511627776.0f) + random) >> 16;
    return sign | ((size + (random >> 3)) >> 13) - 0x1c000u;
}}
"""
)
"""Functions from and to 16 bits; those of "split" are missing, as CuPy has no leaves of bfloat16."""
