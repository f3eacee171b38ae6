"""How a leaf of 16 bits is kept: to nearest, with its other 16 bits beside it, or rounded at random.

Programs compute in float32; only loads and stores differ. Each way is written down three times, for arrays, as LLVM IR and as
CUDA C++, and gives the same bits in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from gpuopt.arrays import current, dtype_of, is_cupy, is_numpy, namespace, zeros_like
from gpuopt.engines.memory import dense_layout

if TYPE_CHECKING:
    from collections.abc import Mapping

Precision: TypeAlias = Literal["state32", "param", "split", "stochastic"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FITTING = {"split": ("bfloat16",), "stochastic": ("bfloat16", "float16")}
"""Dtypes of the leaves that some precisions are for."""
LOW = "split.low"
"""Name among the slots of a leaf: no rule has a slot with a dot, no chain a member of that name."""

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Of SplitMix64."""
THIRD, FOURTH = 0x85EBCA6B, 0xC2B2AE35
"""Of MurmurHash3's finalizer."""


@dataclass(frozen=True)
class Stochastic:
    """Leaves of float16 and bfloat16 that are rounded at random: up or down, as probable as the other one is far.

    The mean of a rounded number is the number itself, so that steps which are smaller than half of the distance to the next
    number move a parameter all the same, now and then by all of that distance. The random bits are a hash of the seed, the
    step, the leaf and the element, the same on every engine and device: the key of a step is the output of that number, counted from 0, of
    SplitMix64 (Steele, Lea & Flood 2014) started from the seed; the key of a leaf likewise from that of the step; element
    ``i`` in memory gets the upper 16 bits of ``fmix32(i ^ low) ^ high``, of the halves of the leaf's key and the finalizer
    of MurmurHash3 (Appleby 2011).

    Parameters
    ----------
    seed
        From 0 to ``2**64 - 1``. It is a part of the optimizer's state.

    Raises
    ------
    ValueError
        If the seed is no such integer.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.ones(10_000, np.float16)
    >>> opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1e-4), precision=gpuopt.Stochastic(seed=1))
    >>> opt.step(np.ones(10_000, np.float16))
    >>> np.unique(w).tolist(), round(float(w.mean(dtype=float)), 5)
    ([0.99951171875, 1.0], 0.9999)

    """

    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 64:
            raise ValueError(f"Stochastic: seed: {self.seed!r:.80}, expected an integer from 0 to 2**64 - 1")


def checked(precision: Precision | Stochastic) -> Precision | Stochastic:
    """Return a precision, as an object where it has a seed.

    Raises
    ------
    ValueError
        If there is no such precision.

    """
    if not isinstance(precision, Stochastic) and precision not in PRECISIONS:
        raise ValueError(
            f"precision: {precision!r}, expected one of {', '.join(map(repr, PRECISIONS))} or gpuopt.Stochastic(seed)"
        )
    return Stochastic() if precision == "stochastic" else precision


def name_of(precision: Precision | Stochastic) -> Precision:
    """Return the name of a precision."""
    return "stochastic" if isinstance(precision, Stochastic) else precision


def key_of(precision: Precision | Stochastic, step: int) -> int:
    """Return the key of a step, for what is rounded at random."""
    return split_mix(precision.seed, step) if isinstance(precision, Stochastic) else 0


def way_of(dtype: str, precision: str) -> str:
    """The precision, where a leaf of this dtype has any; else ""."""
    return precision if dtype in FITTING["stochastic"] else ""


def split_mix(seed: int, number: int) -> int:
    """Output ``number`` of SplitMix64, 64 bits; the reference of the kernels."""
    mask = (1 << 64) - 1
    z = (seed + (number + 1) * GOLDEN) & mask
    z = (z ^ z >> 30) * FIRST & mask
    z = (z ^ z >> 27) * SECOND & mask
    return z ^ z >> 31


def number_of(leaf: int, start: int = 0) -> int:
    """The number by which a leaf is rounded at random; of a part of a leaf, with its first element in the upper 32 bits."""
    return _signed64((start & 0xFFFFFFFF) << 32 | leaf)


def random_bits(like: Any, key: int, leaf: int) -> Any:
    """16 bits for each element of an array, as an array of uint32.

    Parameters
    ----------
    like
        Of NumPy or CuPy; elements are numbered in its memory, or in C's order if it has gaps.
    key, leaf
        Of the step; and which of all leaves it is, see `number_of`.

    """
    xp, own = namespace(like), split_mix(key, leaf & 0xFFFFFFFF)
    layout = dense_layout(like)
    with np.errstate(over="ignore"):
        h = xp.full((1,) * len(layout.shape), leaf >> 32 & 0xFFFFFFFF, dtype=np.uint32)
        for axis, (size, stride) in enumerate(zip(layout.shape, layout.strides, strict=True)):
            numbers = xp.arange(size, dtype=np.uint32) * np.uint32(stride // layout.dtype.itemsize & 0xFFFFFFFF)
            h = h + numbers.reshape([-1 if k == axis else 1 for k in range(len(layout.shape))])
        h = h ^ np.uint32(own & 0xFFFFFFFF)
        h = (h ^ h >> np.uint32(16)) * np.uint32(THIRD)
        h = (h ^ h >> np.uint32(13)) * np.uint32(FOURTH)
        return (h ^ h >> np.uint32(16) ^ np.uint32(own >> 32)) >> np.uint32(16)


def loaded(p: Any, slots: Mapping[str, Any], precision: str) -> Any:
    """Return what a rule is to compute with: a new array of float32, or the leaf itself where the array engine rounds to nearest."""
    way = way_of(dtype_of(p), precision)
    if way not in FITTING or (way == "split" and slots.get(LOW) is None):  # the latter of a leaf that is never updated
        return p
    xp = namespace(p)
    with current(p):
        if way == "stochastic":
            return p.astype(np.float32)
        high, low = (x.reshape(p.shape or (1,)).astype(np.uint32) for x in (p.view(np.uint16), slots[LOW]))
        # Somebody wrote a zero into the leaf: the bits that are left beside it are not those of a number near zero.
        low = xp.where(((high & 0x7FFF) == 0) & (low >> 15 != 0), xp.zeros_like(low), low)
        return ((high - (low >> 15)) << 16 | low).view(np.float32).reshape(p.shape)


def stored(new: Any, p: Any, slots: Mapping[str, Any], precision: str, key: int, leaf: int) -> list[tuple[Any, Any]]:
    """Return pairs of an array and what is to be written into it, for a new value of the leaf.

    Parameters
    ----------
    new
        Of float32 if `loaded` was.
    p, slots, precision
        As for `loaded`.
    key, leaf
        As for `random_bits`.

    """
    way = way_of(dtype_of(p), precision)
    if way not in FITTING:
        return [(p, new)]
    xp = namespace(p)
    with current(p), np.errstate(all="ignore"):
        x = new.reshape(p.shape or (1,))
        bits, is_nan = x.view(np.uint32), x != x  # noqa: PLR0124 - NaN
        if way == "split":
            high = xp.where(is_nan, bits | 0x400000, bits + 0x8000) >> 16
            low = xp.where(is_nan, xp.zeros_like(bits), bits & 0xFFFF).astype(np.uint16)
            return [(p, _narrowed(high, p)), (slots[LOW], low.reshape(p.shape))]
        random = random_bits(p, key, leaf).reshape(x.shape)
        if dtype_of(p) == "bfloat16":
            return [(p, _narrowed(xp.where(is_nan, bits | 0x400000, bits + random) >> 16, p))]
        sign, size = bits >> 16 & 0x8000, bits & 0x7FFFFFFF
        tiny = xp.where(size < 0x38800000, xp.abs(x), xp.zeros_like(x)) * np.float32(2.0**40)
        small = (tiny.astype(np.uint32) + random) >> 16  # a multiple of the smallest number
        large = ((size + (random >> 3)) >> 13) - 0x1C000
        found = xp.where(size < 0x38800000, small, xp.where(size < 0x47800000, large, xp.full_like(size, 0x7C00)))
        return [(p, _narrowed(sign | xp.where(is_nan, xp.full_like(size, 0x7E00), found), p))]


def _narrowed(bits: Any, p: Any) -> Any:
    """The numbers of 16 bits."""
    return bits.astype(np.uint16).view(p.dtype).reshape(p.shape)


def can_keep(p: Any, precision: str) -> bool:
    """Whether an array's library has what `loaded` and `stored` need."""
    import array_api_compat

    if precision not in FITTING or is_numpy(p) or is_cupy(p):
        return True
    return precision == "split" and array_api_compat.is_jax_array(p)  # pure functions alone have such leaves


def lower_bits(p: Any, precision: str) -> Any:
    """Return the lower 16 bits of a leaf before the first step, as a new array; None if there are none."""
    return zeros_like(p, namespace(p).uint16) if way_of(dtype_of(p), precision) == "split" else None


def _signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number


def _signed64(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


LLVM = f"""
define internal float @wide.bfloat16(i16 %bits) alwaysinline {{
  %wide = zext i16 %bits to i32
  %high = shl i32 %wide, 16
  %x = bitcast i32 %high to float
  ret float %x
}}

define internal i16 @narrow.bfloat16(float %x) alwaysinline {{
  %bits = bitcast float %x to i32
  %high = lshr i32 %bits, 16
  %odd = and i32 %high, 1
  %half = add i32 %odd, 32767
  %up = add i32 %bits, %half
  %narrow = call i16 @upper(float %x, i32 %up)
  ret i16 %narrow
}}

define internal i16 @upper(float %x, i32 %rounded) alwaysinline {{
  %bits = bitcast float %x to i32
  %nan = fcmp uno float %x, %x
  %quiet = or i32 %bits, 4194304
  %kept = select i1 %nan, i32 %quiet, i32 %rounded
  %high = lshr i32 %kept, 16
  %narrow = trunc i32 %high to i16
  ret i16 %narrow
}}

define internal float @wide.float16(i16 %bits) alwaysinline {{
  %half = bitcast i16 %bits to half
  %x = fpext half %half to float
  ret float %x
}}

define internal i16 @narrow.float16(float %x) alwaysinline {{
  %half = fptrunc float %x to half
  %bits = bitcast half %half to i16
  ret i16 %bits
}}

define internal float @joined(i16 %high, i16 %low) alwaysinline {{
  %h = zext i16 %high to i32
  %l = zext i16 %low to i32
  %size = and i32 %h, 32767
  %zero = icmp eq i32 %size, 0
  %is.up = icmp uge i32 %l, 32768
  %stale = and i1 %zero, %is.up
  %own = select i1 %stale, i32 0, i32 %l
  %up = lshr i32 %own, 15
  %down = sub i32 %h, %up
  %shifted = shl i32 %down, 16
  %bits = or i32 %shifted, %own
  %x = bitcast i32 %bits to float
  ret float %x
}}

define internal i16 @high(float %x) alwaysinline {{
  %bits = bitcast float %x to i32
  %up = add i32 %bits, 32768
  %narrow = call i16 @upper(float %x, i32 %up)
  ret i16 %narrow
}}

define internal i16 @low(float %x) alwaysinline {{
  %bits = bitcast float %x to i32
  %nan = fcmp uno float %x, %x
  %kept = select i1 %nan, i32 0, i32 %bits
  %narrow = trunc i32 %kept to i16
  ret i16 %narrow
}}

define internal i64 @leaf.key(i64 %key, i64 %leaf) alwaysinline {{
  %own = and i64 %leaf, 4294967295
  %number = add i64 %own, 1
  %far = mul i64 %number, {_signed64(GOLDEN)}
  %a = add i64 %key, %far
  %a.high = lshr i64 %a, 30
  %a.mixed = xor i64 %a, %a.high
  %b = mul i64 %a.mixed, {_signed64(FIRST)}
  %b.high = lshr i64 %b, 27
  %b.mixed = xor i64 %b, %b.high
  %c = mul i64 %b.mixed, {_signed64(SECOND)}
  %c.high = lshr i64 %c, 31
  %mixed = xor i64 %c, %c.high
  ret i64 %mixed
}}

define internal i32 @random(i64 %key, i64 %element) alwaysinline {{
  %low = trunc i64 %key to i32
  %upper = lshr i64 %key, 32
  %high = trunc i64 %upper to i32
  %number = trunc i64 %element to i32
  %a = xor i32 %number, %low
  %a.high = lshr i32 %a, 16
  %a.mixed = xor i32 %a, %a.high
  %b = mul i32 %a.mixed, {_signed(THIRD)}
  %b.high = lshr i32 %b, 13
  %b.mixed = xor i32 %b, %b.high
  %c = mul i32 %b.mixed, {_signed(FOURTH)}
  %c.high = lshr i32 %c, 16
  %c.mixed = xor i32 %c, %c.high
  %d = xor i32 %c.mixed, %high
  %bits = lshr i32 %d, 16
  ret i32 %bits
}}

define internal i16 @random.bfloat16(float %x, i32 %random) alwaysinline {{
  %bits = bitcast float %x to i32
  %up = add i32 %bits, %random
  %narrow = call i16 @upper(float %x, i32 %up)
  ret i16 %narrow
}}

define internal i16 @random.float16(float %x, i32 %random) alwaysinline {{
  %bits = bitcast float %x to i32
  %sign.low = lshr i32 %bits, 16
  %sign = and i32 %sign.low, 32768
  %size = and i32 %bits, 2147483647
  %is.tiny = icmp ult i32 %size, {0x38800000}
  %size.tiny = select i1 %is.tiny, i32 %size, i32 0
  %tiny = bitcast i32 %size.tiny to float
  %multiples = fmul float %tiny, 0x4270000000000000
  %fixed = fptoui float %multiples to i32
  %fixed.up = add i32 %fixed, %random
  %small = lshr i32 %fixed.up, 16
  %random.high = lshr i32 %random, 3
  %up = add i32 %size, %random.high
  %up.high = lshr i32 %up, 13
  %large = sub i32 %up.high, {0x1C000}
  %fits = icmp ult i32 %size, {0x47800000}
  %large.or.infinite = select i1 %fits, i32 %large, i32 {0x7C00}
  %number = select i1 %is.tiny, i32 %small, i32 %large.or.infinite
  %nan = fcmp uno float %x, %x
  %found = select i1 %nan, i32 {0x7E00}, i32 %number
  %all = or i32 %sign, %found
  %narrow = trunc i32 %all to i16
  ret i16 %narrow
}}
"""
"""Functions from and to 16 bits."""

CUDA = (
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
"""The same on a GPU; `joined` and what it needs are missing, as leaves of bfloat16 are not for CuPy."""
