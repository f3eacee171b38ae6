"""What stands between the layers: nonlinear functions with their slopes, and dropout. Array API operations only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    Array: TypeAlias = Any

__all__ = ["ACTIVATIONS", "LEAK", "Activation", "kept"]

Activation: TypeAlias = Literal["relu", "leaky_relu", "elu", "tanh", "sigmoid", "silu"]
LEAK = 0.01
"""The slope of `leaky_relu` below 0."""
MIXING = ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1))
"""Shifts and factors of MurmurHash3's finalizer (https://github.com/aappleby/smhasher), which scatters the bits of a number."""
GOLDEN = 0x9E3779B1


def _relu(xp: Any, z: Array) -> tuple[Array, Array]:
    slope = xp.astype(z > 0, z.dtype)
    z *= slope
    return z, slope


def _leaky_relu(xp: Any, z: Array) -> tuple[Array, Array]:
    slope = xp.astype(z > 0, z.dtype) * (1 - LEAK) + LEAK
    return z * slope, slope


def _elu(xp: Any, z: Array) -> tuple[Array, Array]:
    slope = xp.exp(xp.minimum(z, xp.zeros_like(z)))
    return xp.where(z > 0, z, slope - 1), slope


def _tanh(xp: Any, z: Array) -> tuple[Array, Array]:
    a = xp.tanh(z)
    return a, 1 - a * a


def _sigmoid(xp: Any, z: Array) -> tuple[Array, Array]:
    a = _logistic(xp, z)
    return a, a * (1 - a)


def _silu(xp: Any, z: Array) -> tuple[Array, Array]:
    a = _logistic(xp, z)
    return z * a, a * (1 + z * (1 - a))


def _logistic(xp: Any, z: Array) -> Array:
    return (1 + xp.tanh(z * 0.5)) * 0.5  # never overflows


ACTIVATIONS: dict[str, Callable[[Any, Array], tuple[Array, Array]]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "silu": _silu,
}
"""By name: a function of the inputs, which it may overwrite, that returns the outputs and the slopes."""


def kept(xp: Any, like: Array, share: float, key: int) -> Array:
    """What units are multiplied by if a share of them is left out: 0, or ``1 / (1 - share)``.

    Which ones depends on the key alone, and is the same on every device.

    >>> import numpy as np
    >>> kept(np, np.ones(6, np.float32), 0.5, 3)
    array([2., 2., 0., 0., 2., 2.], dtype=float32)
    """
    numbers = xp.reshape(xp.arange(math.prod(like.shape), dtype=xp.uint32), like.shape)
    mixed = numbers * GOLDEN ^ (key & 0xFFFFFFFF)
    for shift, factor in MIXING:
        mixed = (mixed ^ mixed >> shift) * factor
    return xp.astype(mixed >= round(share * 2**32), like.dtype) * (1 / (1 - share))
