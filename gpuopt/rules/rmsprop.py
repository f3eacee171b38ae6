"""RMSProp: AdaGrad that forgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded


@dataclass(frozen=True)
class RMSProp(Rule):
    r"""RMSProp (Tieleman & Hinton 2012, Coursera "Neural Networks for Machine Learning", lecture 6.5).

    ``cache = rho*cache + (1-rho)*g*g;  p -= lr*g / (sqrt(cache) + eps)``

    Parameters
    ----------
    lr
        Learning rate, at least 0.
    rho
        Fraction of the cache that is kept, in [0, 1). PyTorch calls it ``alpha``.
    eps
        Keeps the division finite, at least 0; outside of the root.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0, 3.0])
    >>> gpuopt.Optimizer(w, gpuopt.RMSProp(lr=0.1, rho=0.75)).step(np.array([2, 4, 3]))
    >>> w.round(6)
    array([0.8, 1.8, 2.8])

    """

    lr: Hyper = bounded(0.001, 0)
    rho: Hyper = bounded(0.9, 0, 1)
    eps: Hyper = bounded(1e-7, 0)

    slots = ("cache",)

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        cache = h.rho * s.cache + (1 - h.rho) * (g * g)
        return p - h.lr * g / (xp.sqrt(cache) + h.eps), {"cache": cache}
