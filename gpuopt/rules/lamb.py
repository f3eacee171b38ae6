"""LAMB: Adam in which each leaf moves in proportion to its norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.rules.adam import Adam
from gpuopt.rules.base import Array, Hyper, bounded


@dataclass(frozen=True)
class LAMB(Adam):
    r"""LAMB (You et al. 2020, arXiv:1904.00962).

    ``u = m_hat / (sqrt(v_hat) + eps) + weight_decay*p;  p -= lr * norm(p)/norm(u) * u`` (``lr*u`` where a norm is 0), with
    the norms of the leaf and moments as in `Adam`.

    Parameters
    ----------
    weight_decay
        Decay rate, at least 0; a part of ``u``.

    The other parameters are those of `Adam`.

    Warnings
    --------
    The paper also bounds ``norm(p)`` by a function that it leaves open; neither Optax nor Keras does.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.LAMB(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.841886, 2.158114])

    """

    eps: Hyper = bounded(1e-6, 0)
    weight_decay: Hyper = bounded(0.0, 0)

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        m_hat, root, slots = self.moments(xp, g, s, h)
        u = m_hat / root + h.weight_decay * p
        own, norm = xp.norm(p), xp.norm(u)
        return p - h.lr * xp.where((own > 0) & (norm > 0), own / norm, 1) * u, slots
