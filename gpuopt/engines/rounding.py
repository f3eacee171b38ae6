"""Formulas that convert from and to 16 bits, written once for arrays, LLVM IR and CUDA C++.

The first argument of each formula says what its values are: `gpuopt.engines.storage` computes with whole arrays, of the others see
`gpuopt.engines.values`. Bits are whole numbers of 32 bits; keys have 64.
"""

from __future__ import annotations

from typing import Any

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of SplitMix64."""
THIRD, FOURTH = 0x85EBCA6B, 0xC2B2AE35
"""The constants of MurmurHash3's finalizer."""
QUIET = 0x400000
"""A bit that keeps a NaN a NaN when its lower bits are cut off."""


def split_mix(code: Any, seed: Any, number: Any) -> Any:  # noqa: ARG001 - as of all formulas
    """Return output ``number`` of SplitMix64."""
    z = (number + 1) * GOLDEN + seed
    z = (z ^ z >> 30) * FIRST
    z = (z ^ z >> 27) * SECOND
    return z ^ z >> 31


def leaf_key(code: Any, key: Any, leaf: Any) -> Any:
    """The key of a leaf, from that of a step."""
    return split_mix(code, key, leaf & 0xFFFFFFFF)


def random_bits(code: Any, key: Any, element: Any) -> Any:
    """16 bits for an element of a leaf, whose key this is."""
    h = element ^ code.cast(key, "i32")
    h = (h ^ h >> 16) * THIRD
    h = (h ^ h >> 13) * FOURTH
    return (h ^ h >> 16 ^ code.cast(key >> 32, "i32")) >> 16


def wide_bfloat16(code: Any, half: Any) -> Any:
    """Return the float32 number with these upper 16 bits."""
    return code.bits(half << 16, "float")


def narrow_bfloat16(code: Any, x: Any) -> Any:
    """Return the bits of the nearest bfloat16; of two equally near, of the even one."""
    bits = code.bits(x, "i32")
    return _upper(code, x, bits + (bits >> 16 & 1) + 0x7FFF)


def random_bfloat16(code: Any, x: Any, random: Any) -> Any:
    """The bits of a number that is rounded at random."""
    return _upper(code, x, code.bits(x, "i32") + random)


def random_float16(code: Any, x: Any, random: Any) -> Any:
    """The bits of a number that is rounded at random."""
    bits = code.bits(x, "i32")
    sign, size = bits >> 16 & 0x8000, bits & 0x7FFFFFFF
    absolute = code.bits(size, "float")  # processors compare numbers faster than bits without a sign
    is_tiny = absolute < 2.0**-14
    tiny = code.where(is_tiny, absolute, 0.0) * 2.0**40  # a multiple of the smallest number, times 2**16
    small = code.cast(tiny, "i32") + random >> 16
    large = (size + (random >> 3) >> 13) - 0x1C000
    special = code.where(x != x, 0x7E00, code.where(absolute < 2.0**16, large, 0x7C00))  # noqa: PLR0124 - NaN
    return sign | code.where(is_tiny, small, special)


def joined(code: Any, high: Any, low: Any) -> Any:
    """The number whose bits were taken apart."""
    # Somebody wrote a zero into the leaf: the bits that are left beside it are not those of a number near zero.
    is_stale = (high & 0x7FFF | low >> 15 ^ 1) == 0
    own = code.where(is_stale, 0, low)
    return code.bits((high - (own >> 15) << 16) | own, "float")


def high(code: Any, x: Any) -> Any:
    """The upper 16 bits of a number: those of the nearest one, up if there are two."""
    return _upper(code, x, code.bits(x, "i32") + 0x8000)


def low(code: Any, x: Any) -> Any:
    """The lower 16 bits of a number."""
    return code.where(x != x, 0, code.bits(x, "i32")) & 0xFFFF  # noqa: PLR0124 - NaN


def _upper(code: Any, x: Any, rounded: Any) -> Any:
    """The upper 16 bits of a number that was rounded, or of NaN."""
    return code.where(x != x, code.bits(x, "i32") | QUIET, rounded) >> 16  # noqa: PLR0124 - NaN
