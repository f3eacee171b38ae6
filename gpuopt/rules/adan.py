"""Adan: Nesterov's momentum, estimated from the differences of gradients."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.slots import Filled, real


@dataclass(frozen=True)
class Adan(Rule):
    r"""Adan (Xie et al. 2022, arXiv:2208.06677).

    ::

        d = g - g_before                                   (0 at the first step)
        m = beta1*m + (1-beta1)*g;    v = beta2*v + (1-beta2)*d
        n = beta3*n + (1-beta3)*|g + (1-beta2)*d|**2
        p -= lr * (m_hat + (1-beta2)*v_hat) / (sqrt(n_hat + eps_root) + eps)

    where ``m_hat = m / (1 - beta1**t)``, and likewise ``v_hat`` and ``n_hat``, correct the start at 0, as in `Adam`.

    Parameters
    ----------
    lr
        Learning rate, at least 0.
    beta1, beta2, beta3
        Decay rates of ``m``, ``v`` and ``n``, in [0, 1). The paper writes ``beta`` for ``1 - beta``.
    eps, eps_root
        Added outside and inside of the root, so that the division stays finite; at least 0.
    components
        For complex leaves, see `Adam`.

    Warnings
    --------
    The paper's weight decay is implicit, ``p / (1 + lr*decay)``; for that of Optax put `WeightDecay` before the rule.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.Adan(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.9, 2.1])

    """

    lr: Hyper = bounded(0.001, 0)
    beta1: Hyper = bounded(0.98, 0, 1)
    beta2: Hyper = bounded(0.92, 0, 1)
    beta3: Hyper = bounded(0.99, 0, 1)
    eps: Hyper = bounded(1e-8, 0)
    eps_root: Hyper = bounded(1e-8, 0)
    _: KW_ONLY
    components: bool = False

    slots = {"m": Filled(), "v": Filled(), "n": real(0.0), "before": Filled()}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        d = xp.where(h.t > 1, g - s.before, xp.zeros_like(g))
        ahead = g + (1 - h.beta2) * d
        m = h.beta1 * s.m + (1 - h.beta1) * g
        v = h.beta2 * s.v + (1 - h.beta2) * d
        n = h.beta3 * s.n + (1 - h.beta3) * xp.abs2(ahead)
        move = m * (1 / (1 - h.beta1**h.t)) + (1 - h.beta2) / (1 - h.beta2**h.t) * v
        root = xp.sqrt(n * (1 / (1 - h.beta3**h.t)) + h.eps_root) + h.eps
        return p - h.lr * move / root, {"m": m, "v": v, "n": n, "before": g}
