"""Adafactor: a second moment of which only the means of rows and columns are kept."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.hyper import Count
from gpuopt.rules.slots import Columns, Filled, Matrix, Rows, Slot


@dataclass(frozen=True)
class Adafactor(Rule):
    r"""Adafactor (Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 to 6).

    ::

        beta = 1 - t**(-decay)
        r = beta*r + (1-beta) * mean over columns of (|g|**2 + eps)
        c = beta*c + (1-beta) * mean over rows of (|g|**2 + eps)
        u = g / sqrt(r*c / mean(r))
        p -= max(smallest, rms(p)) * min(lr, 1/sqrt(t)) * u / max(1, rms(u)/clip) + lr*weight_decay*p

    with ``rms`` the root of the mean of ``|.|**2``. The matrix is in the last two axes of a leaf; all others number matrices. Of a
    leaf that is no matrix ``c`` is the second moment itself, and ``u = g / sqrt(c)``.

    Parameters
    ----------
    lr
        The largest step in proportion to the parameter, at least 0.
    decay
        Power by which the second moment forgets, at least 0.
    eps
        Added to the squares of the gradient, at least 0.
    smallest
        Size that a leaf counts as at least, at least 0.
    clip
        Size of ``u`` from which on it is scaled down, at least 0; 0 for never.
    weight_decay
        At least 0.
    momentum
        Fraction of the mean of the moves that is kept, in [0, 1): with it, that mean is the move.
    relative_step
        Without it, the step is ``lr`` at all times.
    relative_size
        Without it, the step is not in proportion to the parameter.
    floor
        The least root of the second moment that is divided by, at least 0.
    machine_eps
        Let ``floor`` be the spacing of the dtype's numbers at 1, as in PyTorch.
    decay_alone
        Whether the weight decay leaves out the learning rate, as in Optax: ``p -= weight_decay*p``.
    least
        Elements of both axes of a matrix, at least 1; a leaf that has fewer is no matrix. Optax has 128.
    longest
        Whether the matrix is in the two longest axes, as in Optax.

    Warnings
    --------
    ``lr`` is a fraction of the parameter's size, as long as there is ``relative_size``.

    Means along axes are added up by halves, so that every library and engine gives the same bits.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.ones((3, 2))
    >>> opt = gpuopt.Optimizer(w, gpuopt.Adafactor(lr=0.01))
    >>> opt.step(np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]))
    >>> w.round(6)
    array([[0.99, 0.99],
           [0.99, 0.99],
           [0.99, 0.99]])
    >>> {name: slot.shape for name, slot in opt.state_dict()["state"][""].items()}
    {'r': (3, 1), 'c': (1, 2)}

    """

    lr: Hyper = bounded(0.01, 0)
    decay: Hyper = bounded(0.8, 0)
    eps: Hyper = bounded(1e-30, 0)
    smallest: Hyper = bounded(1e-3, 0)
    clip: Hyper = bounded(1.0, 0)
    weight_decay: Hyper = bounded(0.0, 0)
    _: KW_ONLY
    momentum: Hyper = bounded(0.0, 0, 1)
    relative_step: bool = True
    relative_size: bool = True
    floor: Hyper = bounded(0.0, 0)
    machine_eps: bool = False
    decay_alone: bool = False
    least: int = field(default=1, metadata={"kind": Count()})
    longest: bool = False

    @property
    def matrix(self) -> Matrix:
        """Which axes of a leaf are those of a matrix."""
        return Matrix(self.least, self.longest)

    @property
    def slots(self) -> dict[str, Slot]:
        """The means of rows and of columns; the mean of the moves, with ``momentum``."""
        slots: dict[str, Slot] = {"r": Rows(0.0, self.matrix), "c": Columns(0.0, self.matrix)}
        return {**slots, "m": Filled()} if self.momentum else slots

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        squares = xp.abs2(g) + h.eps
        fresh = h.t**-h.decay
        axes = self.matrix.axes(squares.shape)
        row_means, column_means = (mean(xp, squares, axes[1]), mean(xp, squares, axes[0])) if axes else (s.r, squares)
        r, c = ((1 - fresh) * old + fresh * new for old, new in ((s.r, row_means), (s.c, column_means)))
        floor = xp.finfo(squares.dtype).eps if self.machine_eps else h.floor
        v, has_floor = c, self.machine_eps or self.floor
        if axes:
            means = mean(xp, r, axes[0])
            v = r / (xp.maximum(means, floor) if has_floor else means) * c
        u = g / xp.sqrt(xp.maximum(v, floor * floor) if has_floor else v)
        if self.clip:
            u = u / xp.maximum(rms(xp, u) / h.clip, 1.0)
        step = xp.minimum(h.lr, h.t**-0.5) if self.relative_step else h.lr
        u = step * u
        if self.relative_size:
            u = u * xp.maximum(rms(xp, p), h.smallest)
        slots = {"r": r, "c": c}
        if self.momentum:
            u = slots["m"] = h.momentum * s.m + (1 - h.momentum) * u
        return p * (1 - (1 if self.decay_alone else h.lr) * h.weight_decay) - u, slots


def mean(xp: Any, x: Array, *axes: int) -> Array:
    """Return the mean along axes, each of which is left with length 1."""
    return xp.sum(x, axis=axes, keepdims=True) / max(1, math.prod(x.shape[axis] for axis in axes))


def rms(xp: Any, x: Array) -> Array:
    """Return the root of the mean of ``|x|**2``, with as many axes as the leaf, each of length 1."""
    squares = xp.abs2(x)
    return xp.sqrt(mean(xp, squares, *range(len(squares.shape))))
