"""Complex arrays of any library: taken apart for the array engine, and put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import dtype_of, is_cupy, is_numpy, namespace
from gpuopt.rules.pairs import Pair

if TYPE_CHECKING:
    from gpuopt.rules.base import Rule


SMALL = ("float16", "bfloat16")
"""Dtypes of 16 bits: arrays are stored in them, arithmetic is done in float32."""


def is_complex(x: Any) -> bool:
    """Whether an array is one of complex numbers."""
    if is_numpy(x) or is_cupy(x):
        return bool(x.dtype.kind == "c")
    return bool(namespace(x).isdtype(x.dtype, "complex floating"))


def real_dtype(x: Any) -> Any:
    """Return the dtype of an array's parts, or of a real array itself."""
    if not is_complex(x):
        return x.dtype
    xp = namespace(x)
    return xp.float32 if x.dtype == xp.complex64 else xp.float64


def arithmetic_dtype(x: Any) -> Any:
    """Return the dtype of the arithmetic on an array: float32 for arrays of 16 bits, else the array's own."""
    return namespace(x).float32 if dtype_of(x) in SMALL else x.dtype


def gradient_dtype(g: Any, p: Any) -> Any:
    """Return the dtype in which a gradient is read: the parameter's if the gradient has it, else the dtype of the arithmetic."""
    return p.dtype if g.dtype == p.dtype else arithmetic_dtype(p)


def slot_dtype(rule: Rule, slot: str, p: Any, precision: str = "state32") -> Any:
    """Return the dtype of a slot of a parameter."""
    if is_complex(p) and rule.part(slot) == "real":
        return real_dtype(p)
    return p.dtype if precision == "param" else arithmetic_dtype(p)


def as_pair(x: Any) -> Any:
    """Return a complex array as a pair of real arrays; anything else unchanged."""
    if not (hasattr(x, "dtype") and is_complex(x)):
        return x
    xp = namespace(x)
    return Pair(xp.real(x), xp.imag(x))


def joined(pair: Pair, like: Any) -> Any:
    """Return a new complex array made of two real parts, on the library and device of ``like``; every bit of the parts is kept."""
    xp = namespace(like)
    if is_numpy(like) or is_cupy(like):
        new = xp.empty_like(like)
        new.real[...], new.imag[...] = pair.re, pair.im
        return new
    zeros = xp.zeros_like(xp.real(like))
    re, im = (xp.where(zeros == 0, x, zeros) for x in (pair.re, pair.im))  # a number may stand for an array
    if hasattr(xp, "complex"):  # torch's
        return xp.complex(re, im)
    both = xp.stack([re, im], axis=-1)
    if hasattr(both, "view"):  # JAX's
        return both.view(like.dtype)[..., 0]
    import array_api_compat

    # The array API can only add i*im, which makes NaN of infinities: through the host.
    host = np.from_dlpack(both, device="cpu").view(dtype_of(like))[..., 0]
    return xp.asarray(host.copy(), device=array_api_compat.device(like))
