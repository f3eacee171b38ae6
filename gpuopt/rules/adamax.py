"""AdaMax: Adam with a decaying maximum of the gradient in place of the mean square."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.slots import Filled, real


@dataclass(frozen=True)
class AdaMax(Rule):
    r"""AdaMax (Kingma & Ba 2015, arXiv:1412.6980, algorithm 2).

    ``m = beta1*m + (1-beta1)*g;  u = max(beta2*u, |g| + eps_inside);  p -= lr * m / (1 - beta1**t) / (u + eps)``

    Parameters
    ----------
    lr
        Learning rate, at least 0.
    beta1, beta2
        Decay rates of the momentum and of the largest gradient, in [0, 1).
    eps, eps_inside
        Added outside of the maximum as in Keras and MLX, and inside as in PyTorch and Optax; at least 0.
    bias_correction
        If False, the momentum is not divided by ``1 - beta1**t``, as in MLX.
    components
        For complex leaves, see `Adam`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.AdaMax(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.9, 2.1])

    """

    lr: Hyper = bounded(0.002, 0)
    beta1: Hyper = bounded(0.9, 0, 1)
    beta2: Hyper = bounded(0.999, 0, 1)
    eps: Hyper = bounded(1e-7, 0)
    eps_inside: Hyper = bounded(0.0, 0)
    bias_correction: bool = True
    _: KW_ONLY
    components: bool = False

    slots = {"m": Filled(), "u": real(0.0)}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        m = h.beta1 * s.m + (1 - h.beta1) * g
        u = xp.maximum(h.beta2 * s.u, xp.abs(g) + h.eps_inside)
        lr = h.lr / (1 - h.beta1**h.t) if self.bias_correction else h.lr
        return p - lr * m / (u + h.eps), {"m": m, "u": u}
