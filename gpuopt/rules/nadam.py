"""NAdam: Adam with Nesterov's momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuopt.rules.adam import Adam
from gpuopt.rules.base import Array, Hyper, bounded

if TYPE_CHECKING:
    from types import SimpleNamespace


@dataclass(frozen=True)
class NAdam(Adam):
    r"""NAdam (Dozat 2016, "Incorporating Nesterov momentum into Adam").

    ::

        mu = beta1*(1 - 0.96**(t*momentum_decay)/2)            mu_next: the same with t + 1
        product = product*mu                                   starts at 1
        m_hat = mu_next*m / (1 - product*mu_next) + (1-mu)*g / (1 - product)
        p -= lr * m_hat / (sqrt(v_hat) + eps)

    Parameters
    ----------
    momentum_decay
        Rate at which the momentum grows, at least 0. Keras uses 1.

    The other parameters, and ``m``, ``v`` and ``v_hat``, are those of `Adam`.

    Warnings
    --------
    ``optax.nadam`` is `Adam` with ``nesterov=True``, whose momentum does not grow.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.NAdam(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.894355, 2.105645])

    """

    momentum_decay: Hyper = bounded(0.004, 0)

    carried = {"product": 1.0}

    def coefficients(self, h: SimpleNamespace) -> dict[str, float]:
        """Momentum of this step and of the next one, and the product of all so far."""
        mu, mu_next = (h.beta1 * (1 - 0.5 * 0.96 ** (t * h.momentum_decay)) for t in (h.t, h.t + 1))
        return {"mu": mu, "mu_next": mu_next, "product": h.product * mu}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        _, root, slots = self.moments(xp, g, s, h)
        m_hat = h.mu_next / (1 - h.product * h.mu_next) * slots["m"] + (1 - h.mu) / (1 - h.product) * g
        return p - h.lr * m_hat / root, slots
