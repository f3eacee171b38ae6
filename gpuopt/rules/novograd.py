"""Novograd: one second moment for each leaf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.slots import Filled, leaf


@dataclass(frozen=True)
class Novograd(Rule):
    r"""Novograd (Ginsburg et al. 2019, arXiv:1905.11286), with the norm of the leaf, and one number ``v`` for each leaf.

    ::

        v = beta2*v + (1-beta2)*norm(g)**2                     (norm(g)**2 at the first step)
        m = beta1*m + g / (sqrt(v + eps_root) + eps) + weight_decay*p
        p -= lr*m

    Parameters
    ----------
    lr
        Learning rate, at least 0.
    beta1, beta2
        Decay rates of the momentum and of the second moment, in [0, 1).
    eps, eps_root
        Added outside and inside of the root, so that the division stays finite; at least 0.
    weight_decay
        Decay rate, at least 0; decoupled.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.Novograd(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.98356 , 2.098639])

    """

    lr: Hyper = bounded(0.001, 0)
    beta1: Hyper = bounded(0.9, 0, 1)
    beta2: Hyper = bounded(0.25, 0, 1)
    eps: Hyper = bounded(1e-6, 0)
    eps_root: Hyper = bounded(0.0, 0)
    weight_decay: Hyper = bounded(0.0, 0)

    slots = {"m": Filled(0.0), "v": leaf(0.0)}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        square = xp.dot(g, g)
        v = xp.where(h.t > 1, h.beta2 * s.v + (1 - h.beta2) * square, square)
        m = h.beta1 * s.m + 1 / (xp.sqrt(v + h.eps_root) + h.eps) * g + h.weight_decay * p
        return p - h.lr * m, {"m": m, "v": v}
