"""How a leaf of 16 bits is kept: to nearest, with its other 16 bits beside it, or rounded at random.

Programs compute in float32; only loads and stores differ. Their formulas are in `gpuopt.engines.rounding`; here they are of whole
arrays, in `gpuopt.engines.cpu.storage` and `gpuopt.engines.cuda.storage` of compiled code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from gpuopt.arrays import current, dtype_of, is_cupy, is_numpy, namespace, zeros_like
from gpuopt.engines import rounding
from gpuopt.engines.memory import dense_layout
from gpuopt.rules.hyper import as_index

if TYPE_CHECKING:
    from collections.abc import Mapping

Precision: TypeAlias = Literal["state32", "param", "split", "stochastic"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FITTING = {"split": ("bfloat16",), "stochastic": ("bfloat16", "float16")}
"""The dtypes of the leaves that these precisions are for."""
LOW = "split.low"
"""Name among the slots of a leaf: no rule has a slot with a dot, no chain a member of that name."""


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
        seed = as_index(self.seed)
        if seed is None or not 0 <= seed < 1 << 64:
            raise ValueError(f"Stochastic: seed: {self.seed!r:.80}, expected an integer from 0 to 2**64 - 1")
        object.__setattr__(self, "seed", seed)


def checked(precision: Precision | Stochastic) -> Precision | Stochastic:
    """Return a precision, as an object where it has a seed.

    Raises
    ------
    ValueError
        If there is no such precision.

    """
    given: Any = precision
    if not isinstance(given, Stochastic) and not (isinstance(given, str) and given in PRECISIONS):
        raise ValueError(
            f"precision: {precision!r:.80}, expected one of {', '.join(map(repr, PRECISIONS))} or gpuopt.Stochastic(seed)"
        )
    return Stochastic() if precision == "stochastic" else precision


def name_of(precision: Precision | Stochastic) -> Precision:
    """Return the name of a precision."""
    return "stochastic" if isinstance(precision, Stochastic) else precision


def key_of(precision: Precision | Stochastic, step: int) -> int:
    """Return the key of a step, for what is rounded at random."""
    return split_mix(precision.seed, step) if isinstance(precision, Stochastic) else 0


def precision_of(dtype: str, precision: str) -> str:
    """The precision, where a leaf of this dtype has any; else ""."""
    return precision if dtype in FITTING["stochastic"] else ""


class _Arrays:
    """Arrays as the formulas of `gpuopt.engines.rounding` use them: casts, bits and choices."""

    def __init__(self, xp: Any) -> None:
        self.where = xp.where

    @staticmethod
    def cast(x: Any, kind: str) -> Any:
        """The same numbers, of another type."""
        return x.astype(_KINDS[kind])

    @staticmethod
    def bits(x: Any, kind: str) -> Any:
        """The same bits, of another type."""
        return x.view(_KINDS[kind])


_KINDS = {"i32": np.uint32, "float": np.float32}


def split_mix(seed: int, number: int) -> int:
    """Output ``number`` of SplitMix64, 64 bits."""
    return int(rounding.split_mix(_Arrays(np), np.array([seed], np.uint64), np.array([number], np.uint64))[0])


def number_of(leaf: int, start: int = 0) -> int:
    """The number by which a leaf is rounded at random; of a part of a leaf, with its first element in the upper 32 bits."""
    return int(np.array([(start & 0xFFFFFFFF) << 32 | leaf], np.uint64).view(np.int64)[0])


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
        return rounding.random_bits(_Arrays(xp), xp.asarray([own], dtype=np.uint64), h)


def loaded(p: Any, slots: Mapping[str, Any], precision: str) -> Any:
    """Return the array that a rule computes with: a new one of float32, or the leaf itself where the array engine rounds to nearest."""
    kept = precision_of(dtype_of(p), precision)
    if kept not in FITTING or (
        kept == "split" and slots.get(LOW) is None
    ):  # the latter of a leaf that is never updated
        return p
    xp = namespace(p)
    with current(p):
        if kept == "stochastic":
            return p.astype(np.float32)
        high, low = (x.reshape(p.shape or (1,)).astype(np.uint32) for x in (p.view(np.uint16), slots[LOW]))
        return rounding.joined(_Arrays(xp), high, low).reshape(p.shape)


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
    kept = precision_of(dtype_of(p), precision)
    if kept not in FITTING:
        return [(p, new)]
    xp = namespace(p)
    with current(p), np.errstate(all="ignore"):
        x = new.reshape(p.shape or (1,))
        code = _Arrays(xp)
        if kept == "split":
            low = rounding.low(code, x).astype(np.uint16).reshape(p.shape)
            return [(p, _narrowed(rounding.high(code, x), p)), (slots[LOW], low)]
        random = random_bits(p, key, leaf).reshape(x.shape)
        rounded = rounding.random_bfloat16 if dtype_of(p) == "bfloat16" else rounding.random_float16
        return [(p, _narrowed(rounded(code, x, random), p))]


def _narrowed(bits: Any, p: Any) -> Any:
    """Return the numbers with these 16 bits, as an array like ``p``."""
    return bits.astype(np.uint16).view(p.dtype).reshape(p.shape)


def can_keep(p: Any, precision: str) -> bool:
    """Whether an array's library has what `loaded` and `stored` need."""
    import array_api_compat

    if precision not in FITTING or is_numpy(p) or is_cupy(p):
        return True
    return precision == "split" and array_api_compat.is_jax_array(p)  # pure functions alone have such leaves


def lower_bits(p: Any, precision: str) -> Any:
    """Return the lower 16 bits of a leaf before the first step, as a new array; None if there are none."""
    return zeros_like(p, namespace(p).uint16) if precision_of(dtype_of(p), precision) == "split" else None
