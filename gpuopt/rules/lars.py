"""LARS: each leaf moves by a fraction of its own norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded


@dataclass(frozen=True)
class LARS(Rule):
    r"""Layer-wise adaptive rate scaling (You, Gitman & Ginsburg 2017, arXiv:1708.03888).

    ::

        u = g + weight_decay*p
        v = momentum*v + lr * trust*norm(p) / (norm(u) + eps) * u            (lr*u where a norm is 0)
        p -= v

    with the norms of the leaf.

    Parameters
    ----------
    lr
        Learning rate, at least 0.
    momentum
        Decay rate of the velocity ``v``, in [0, 1).
    weight_decay
        Decay rate, at least 0; a part of the gradient.
    trust
        Fraction of its norm by which a leaf moves at ``lr=1``, at least 0.
    eps
        Added to the norm of ``u``, at least 0.
    nesterov
        Look ahead along ``v``.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.LARS(lr=1.0)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.999632, 2.002206])

    """

    lr: Hyper = bounded(0.1, 0)
    momentum: Hyper = bounded(0.9, 0, 1)
    weight_decay: Hyper = bounded(0.0, 0)
    trust: Hyper = bounded(0.001, 0)
    eps: Hyper = bounded(0.0, 0)
    nesterov: bool = False

    slots = ("v",)

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        u = g + h.weight_decay * p
        own, norm = xp.norm(p), xp.norm(u)
        move = h.lr * xp.where((own > 0) & (norm > 0), h.trust * own / (norm + h.eps), 1) * u
        v = h.momentum * s.v + move
        return p - (h.momentum * v + move if self.nesterov else v), {"v": v}
