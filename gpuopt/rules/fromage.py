"""Fromage: each leaf moves by a fraction of its norm, and the norm does not grow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded


@dataclass(frozen=True)
class Fromage(Rule):
    r"""Fromage (Bernstein et al. 2020, arXiv:2002.03432).

    ``p = (p - lr * norm(p)/norm(g) * g) / sqrt(1 + lr*lr)`` (``lr*g`` where a norm is 0), with the norms of the leaf.

    Parameters
    ----------
    lr
        Learning rate, at least 0: the fraction of its norm by which a leaf moves.
    smallest
        Least value of both norms, at least 0. Optax uses 1e-6.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.Fromage(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.958459, 2.209544])

    """

    lr: Hyper = bounded(0.01, 0)
    smallest: Hyper = bounded(0.0, 0)

    slots = ()

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:  # noqa: ARG002
        """See :meth:`Rule.update`."""
        own, norm = (xp.where(x > h.smallest, x, h.smallest) for x in (xp.norm(p), xp.norm(g)))
        shrink = 1 / (1 + h.lr * h.lr) ** 0.5
        return p * shrink - h.lr * shrink * xp.where((own > 0) & (norm > 0), own / norm, 1) * g, {}
