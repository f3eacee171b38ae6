"""RAdam: Adam that divides by its second moment only once enough steps are in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuopt.rules.adam import Adam
from gpuopt.rules.base import Array, Hyper, bounded

if TYPE_CHECKING:
    from types import SimpleNamespace


@dataclass(frozen=True)
class RAdam(Adam):
    r"""Rectified Adam (Liu et al. 2020, arXiv:1908.03265).

    ::

        rho_max = 2 / (1 - beta2) - 1;  rho = rho_max - 2*t*beta2**t / (1 - beta2**t)
        r = sqrt((rho-4)*(rho-2)*rho_max / ((rho_max-4)*(rho_max-2)*rho))
        p -= lr * r * m_hat / (sqrt(v_hat) + eps)     if rho > threshold, else    p -= lr * m_hat

    Parameters
    ----------
    threshold
        Least ``rho``, the effective number of steps in the second moment, for which it is used; at least 4. 4 in the paper, 5 in
        PyTorch and Optax.

    The other parameters are those of `Adam`.

    Warnings
    --------
    PyTorch adds ``eps`` before the correction: that is ``eps_hat`` here.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.RAdam(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.95, 2.3 ])

    """

    threshold: Hyper = bounded(5.0, 4)

    def coefficients(self, h: SimpleNamespace) -> dict[str, float]:
        """Effective number of steps ``rho``, and the rectification ``r``."""
        rho_max = 2 / (1 - h.beta2) - 1
        rho = rho_max - 2 * h.t * h.beta2**h.t / (1 - h.beta2**h.t)
        if rho <= h.threshold:
            return {"rho": rho, "rectification": 1.0}
        return {
            "rho": rho,
            "rectification": ((rho - 4) * (rho - 2) * rho_max / ((rho_max - 4) * (rho_max - 2) * rho)) ** 0.5,
        }

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        m_hat, root, slots = self.moments(xp, g, s, h)
        return p - h.lr * xp.where(h.rho > h.threshold, h.rectification * m_hat / root, m_hat), slots
