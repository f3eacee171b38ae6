"""Adafactor: the second moment of a matrix is kept as the means of its rows and of its columns."""

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

    with ``rms(x) = sqrt(mean(|x|**2))``. The last two axes of a leaf are rows and columns; further axes number the matrices of a
    stack. For a leaf with fewer axes ``c`` is the second moment itself, and ``u = g / sqrt(c)``.

    Parameters
    ----------
    lr
        Largest step as a fraction of ``rms(p)``, at least 0.
    decay
        Exponent of ``beta``, at least 0.
    eps
        Added to the squares of the gradient, at least 0.
    smallest
        Least value that is used for ``rms(p)``, at least 0.
    clip
        ``u`` is scaled down to this ``rms``, at least 0; 0 switches clipping off.
    weight_decay
        At least 0.
    momentum
        Decay rate of an average of the updates, in [0, 1). Above 0 the parameter moves by this average.
    relative_step
        If False, the factor is ``lr`` in place of ``min(lr, 1/sqrt(t))``.
    relative_size
        If False, the factor ``max(smallest, rms(p))`` is left out.
    floor
        Least divisor ``sqrt(second moment)``, at least 0.
    machine_eps
        Take the machine epsilon of the dtype as ``floor``, as PyTorch does.
    decay_alone
        Whether the weight decay leaves out the learning rate, as in Optax: ``p -= weight_decay*p``.
    least
        Least number of rows and of columns, at least 1; a leaf with fewer is treated as a vector. Optax uses 128.
    longest
        Whether the two longest axes are rows and columns, as in Optax.

    Warnings
    --------
    With ``relative_size`` (the default) ``lr`` is a fraction of the parameter's size, not a length.

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
        """Choice of the axes that are rows and columns."""
        return Matrix(self.least, self.longest)

    @property
    def slots(self) -> dict[str, Slot]:
        """Means of rows ``r`` and columns ``c``; with ``momentum`` the average ``m`` of the updates."""
        slots: dict[str, Slot] = {"r": Rows(0.0, self.matrix), "c": Columns(0.0, self.matrix)}
        return {**slots, "m": Filled()} if self.momentum else slots

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        squares = xp.abs2(g) + h.eps
        fresh = h.t**-h.decay  # 1 - beta
        floor = xp.finfo(squares.dtype).eps if self.machine_eps else h.floor
        has_floor = self.machine_eps or self.floor
        if axes := self.matrix.axes(squares.shape):
            rows, columns = axes
            r = (1 - fresh) * s.r + fresh * mean(xp, squares, columns)
            c = (1 - fresh) * s.c + fresh * mean(xp, squares, rows)
            total = mean(xp, r, rows)
            v = r / (xp.maximum(total, floor) if has_floor else total) * c
        else:
            r, c = s.r, (1 - fresh) * s.c + fresh * squares
            v = c
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
    """Return the mean along axes, which keep length 1."""
    return xp.sum(x, axis=axes, keepdims=True) / max(1, math.prod(x.shape[axis] for axis in axes))


def rms(xp: Any, x: Array) -> Array:
    """Return ``sqrt(mean(|x|**2))`` as an array of one element, with as many axes as the leaf."""
    squares = xp.abs2(x)
    return xp.sqrt(mean(xp, squares, *range(len(squares.shape))))
