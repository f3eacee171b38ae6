"""AdaDelta: moves in the units of the parameters, without a learning rate to choose."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.slots import real


@dataclass(frozen=True)
class AdaDelta(Rule):
    r"""AdaDelta (Zeiler 2012, arXiv:1212.5701).

    ``v = rho*v + (1-rho)*|g|**2;  move = sqrt(u + eps) / sqrt(v + eps) * g;  u = rho*u + (1-rho)*|move|**2;  p -= lr*move``

    Parameters
    ----------
    lr
        Learning rate, at least 0; 1 in the paper.
    rho
        Decay rate of both means, in [0, 1).
    eps
        Added inside of both roots, at least 0; it decides how large the first steps are.
    components
        For complex leaves, see `Adam`.

    Warnings
    --------
    Keras has a learning rate of 0.001 by default; Optax ascends unless a learning rate is given.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.AdaDelta()).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.996838, 2.003162])

    """

    lr: Hyper = bounded(1.0, 0)
    rho: Hyper = bounded(0.9, 0, 1)
    eps: Hyper = bounded(1e-6, 0)
    _: KW_ONLY
    components: bool = False

    slots = {"v": real(0.0), "u": real(0.0)}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        v = h.rho * s.v + (1 - h.rho) * xp.abs2(g)
        move = g * (xp.sqrt(s.u + h.eps) / xp.sqrt(v + h.eps))
        u = h.rho * s.u + (1 - h.rho) * xp.abs2(move)
        return p - h.lr * move, {"v": v, "u": u}
