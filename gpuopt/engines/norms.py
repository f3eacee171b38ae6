"""Norms of the gradients before a step: whether gradients are finite, and by how much they are scaled down.

The sums of squares are added up in float64 and in one fixed order, so that they are the same bits on every engine: of a
chunk, element ``k`` goes to lane ``k % 256`` (of a complex one, the square of the modulus), each lane adds up in order, and the lanes are added by halves; chunks,
then leaves, are added in order. A square of a float32 neither overflows nor vanishes in float64. For float64 gradients
two more sums are added up, of the elements scaled by powers of two, and the one that did neither is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gpuopt.engines.dtypes import DTYPES
from gpuopt.rules.hyper import Count, as_float

if TYPE_CHECKING:
    from numpy.typing import NDArray

LANES = 256
SCALES = (1.0, 2.0**-600, 2.0**600)
"""What elements are multiplied by in each of the three sums of squares."""
TINY = 2.0**-900
"""Below this a sum of squares may have lost elements."""
BATCH = 64
"""Number of chunks that the reference implementation adds up at a time."""
SMALLEST, LARGEST = 2.0**-126, 2.0**127
"""Smallest and largest scale of a loss, both exact in float32."""


@dataclass(frozen=True)
class DynamicScale:
    """By what a loss is multiplied, so that its gradients neither vanish nor overflow in 16 bits.

    The optimizer divides the gradients by it. After a step with a gradient that is not finite, which changes nothing, the scale
    is divided by ``factor``; after ``every`` good steps in a row it is multiplied by it (Micikevicius et al. 2018,
    arXiv:1710.03740; PyTorch's ``GradScaler``). It stays between ``2**-126`` and ``2**127``. On a GPU, the GPU does all that, and nothing waits for it.

    Parameters
    ----------
    initial
        Scale of the first loss.
    factor
        Larger than 1; best a power of 2, by which gradients are divided exactly.
    every
        Good steps, at least 1.

    Raises
    ------
    TypeError, ValueError
        If one of them is not such a number.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.ones(2, np.float16)
    >>> opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), scale=gpuopt.DynamicScale(2.0**10, every=2))
    >>> for loss in (np.inf, 1.0, 1.0):
    ...     opt.step(np.full(2, 0.25 * opt.scale * loss, np.float16))
    ...     print(w, opt.scale, opt.skipped)
    [1. 1.] 512.0 1
    [0.75 0.75] 512.0 1
    [0.5 0.5] 1024.0 1

    """

    initial: float = 65536.0
    factor: float = 2.0
    every: int = 2000

    def __post_init__(self) -> None:
        for name, above in (("initial", 0.0), ("factor", 1.0)):
            object.__setattr__(self, name, checked_scale(getattr(self, name), f"DynamicScale: {name}", above))
        object.__setattr__(self, "every", Count().checked(self.every, "DynamicScale: every"))

    def next(self, scale: float, good: float, *, is_finite: bool) -> tuple[float, float]:
        """Return the scale after a step, and the number of good steps in a row since the scale changed."""
        if is_finite and good + 1 < self.every:
            return scale, good + 1
        new = scale * self.factor if is_finite else scale / self.factor
        return new if SMALLEST <= new <= LARGEST else scale, 0.0


def checked_scale(value: Any, where: str, above: float = 0.0) -> float:
    """Return a number by which a loss is multiplied.

    Raises
    ------
    TypeError, ValueError
        If it is no finite number above ``above``; the message begins with ``where``.

    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{where}: got {value!r:.80} ({type(value).__name__}), expected a number above {above:g}")
    if not above < (number := as_float(value)) < math.inf:
        raise ValueError(f"{where}: got {number}, expected a finite number above {above:g}")
    return number


@dataclass(frozen=True)
class Guard:
    """What a step has to find out about its gradients.

    Attributes
    ----------
    clip
        Whether gradients are scaled down by their leaf's norm, by the norm of all, or not.
    skip
        Whether a step with a NaN or an infinity in a gradient is left out.
    scale
        What finds the number that the gradients are divided by.

    """

    clip: Literal["norm", "global_norm"] | None
    skip: bool
    scale: DynamicScale | None = None


@dataclass(frozen=True)
class Verdict:
    """What a step found out about its gradients.

    Attributes
    ----------
    norm
        Norm of all gradients together.
    scales
        Of each leaf, what its gradient is to be multiplied by.
    finite
        Of each leaf, whether its gradient is.

    """

    norm: float
    scales: NDArray[np.float64]
    finite: NDArray[np.bool_]


def judge(sums: NDArray[np.float64], clip: str | None, limit: float, scale: float = 1.0) -> Verdict:
    """Decide from the sums of squares by how much gradients are scaled, and which are finite.

    Parameters
    ----------
    sums
        Of each leaf the three sums of squares, of shape (leaves, 3); of a leaf without gradient, 0.
    clip, limit
        How and to which norm gradients are scaled down.
    scale
        What they are divided by before.

    """
    with np.errstate(all="ignore"):
        sums = with_infinities(sums)
        total = np.cumsum(sums, axis=0)[-1:]  # in order, unlike numpy.sum
        norms, norm = _root(sums) / scale, _root(total)[0] / scale
        measured = np.full(len(sums), norm) if clip == "global_norm" else norms
        scales = np.where(measured > limit, limit / measured, 1.0) if clip else np.ones(len(sums))
    return Verdict(float(norm), scales / scale, is_finite(sums))


def is_finite(sums: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether all elements of each leaf are finite, by its three sums: the sum for large elements does not overflow."""
    return np.isfinite(with_infinities(sums)[:, 1])


def with_infinities(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Copy infinities and NaN of the plain sums into the sums of large elements, which are not computed for float32."""
    plain, of_large, of_small = sums.T
    of_large = np.where(~np.isfinite(plain) & (of_large == 0), plain, of_large)
    return np.stack([plain, of_large, of_small], axis=1)


def _root(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the root of the sum of squares that neither overflowed nor vanished; NaN and infinity stay."""
    plain, of_large, of_small = sums.T
    large, small = np.sqrt(of_large) * 2.0**600, np.sqrt(of_small) * 2.0**-600
    norms: NDArray[np.float64] = np.where(plain < TINY, small, np.where(np.isfinite(plain), np.sqrt(plain), large))
    return norms


def root(sums: NDArray[np.float64]) -> float:
    """Return the norm of one leaf, or of many whose sums were added, by its three sums."""
    with np.errstate(all="ignore"):
        return float(_root(with_infinities(sums[None]))[0])


def sums_of_squares(flat: NDArray[Any]) -> NDArray[np.float64]:
    """Return the three sums of a flat NumPy array, the two scaled ones only for float64; the reference of the kernels."""
    with np.errstate(all="ignore"):
        return np.asarray(np.cumsum(np.concatenate([np.zeros((1, 3)), chunk_sums_of_squares(flat)]), axis=0)[-1])


def chunk_sums_of_squares(flat: NDArray[Any]) -> NDArray[np.float64]:
    """Return the three sums of each chunk of a flat NumPy array, of shape (chunks, 3); see `sums_of_squares`."""
    scales = SCALES[:1] if DTYPES[flat.dtype.name].squares_fit else SCALES
    exact = [part.astype(np.float64) for part in parts_of(flat)]
    with np.errstate(all="ignore"):
        squares = [[np.square(part * scale) for part in exact] for scale in scales]
        columns = [chunk_sums(own[0] + own[1] if len(own) == 2 else own[0]) for own in squares]
    return np.stack(columns + [np.zeros(len(columns[0]))] * (3 - len(columns)), axis=1)


def parts_of(flat: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Real and imaginary part of a NumPy array, or a real one itself."""
    return (flat.real, flat.imag) if flat.dtype.kind == "c" else (flat,)


def ordered_sum(flat: NDArray[np.float64]) -> float:
    """Add numbers up in the one order that all engines keep; the reference of the kernels."""
    with np.errstate(all="ignore"):
        return float(np.cumsum(np.concatenate([[0.0], chunk_sums(flat)]))[-1])


def chunk_sums(flat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add the numbers of each chunk up, in the same order."""
    from gpuopt.engines.table import CHUNK

    found = np.zeros(-(-flat.size // CHUNK))
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, BATCH * CHUNK):
            part = flat[start : start + BATCH * CHUNK]
            chunks = np.zeros((-(-part.size // CHUNK), CHUNK // LANES, LANES))
            chunks.reshape(-1)[: part.size] = part
            lanes = np.cumsum(chunks, axis=1)[:, -1]
            while lanes.shape[1] > 1:
                half = lanes.shape[1] // 2
                lanes = lanes[:, :half] + lanes[:, half:]
            found[start // CHUNK :][: len(lanes)] = lanes[:, 0]
    return found
