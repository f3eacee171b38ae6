"""Adam: momentum and a learning rate for each element, both corrected for their start at zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded


@dataclass(frozen=True)
class Adam(Rule):
    r"""Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1).

    ::

        m = beta1*m + (1-beta1)*g            m_hat = m / (1 - beta1**t)
        v = beta2*v + (1-beta2)*g*g          v_hat = v / (1 - beta2**t)
        p -= lr * m_hat / (sqrt(v_hat) + eps)

    with ``t = 1`` at the first step.

    Parameters
    ----------
    lr
        Learning rate, at least 0.
    beta1, beta2
        Fractions of the first and second moment that are kept, in [0, 1).
    eps
        Keeps the division finite, at least 0; outside of the root. The paper and PyTorch take 1e-8.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = gpuopt.Optimizer(w, gpuopt.Adam(lr=0.1))
    >>> opt.step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.9, 2.1])

    """

    lr: Hyper = bounded(0.001, 0)
    beta1: Hyper = bounded(0.9, 0, 1)
    beta2: Hyper = bounded(0.999, 0, 1)
    eps: Hyper = bounded(1e-7, 0)

    slots = ("m", "v")

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        m = h.beta1 * s.m + (1 - h.beta1) * g
        v = h.beta2 * s.v + (1 - h.beta2) * (g * g)
        m_hat = m * (1 / (1 - h.beta1**h.t))
        v_hat = v * (1 / (1 - h.beta2**h.t))
        return p - h.lr * m_hat / (xp.sqrt(v_hat) + h.eps), {"m": m, "v": v}
