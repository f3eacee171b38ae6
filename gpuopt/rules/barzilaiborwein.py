"""Barzilai-Borwein: gradient descent with a step size estimated from the last two gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.slots import Filled, like


@dataclass(frozen=True)
class BarzilaiBorwein(Rule):
    r"""Gradient descent with the step of Barzilai & Borwein (1988, IMA J. Numer. Anal. 8:141).

    With ``s = p - p_before`` and ``y = g - g_before``, over all leaves: ``p -= step*g`` where

    ======  ======================
    long    ``step = <s,s>/<s,y>``
    short   ``step = <s,y>/<y,y>``
    ======  ======================

    and ``step = lr`` at the first step and where ``<s,y>`` is not above 0. It needs gradients without noise.

    Parameters
    ----------
    lr
        Step size where none can be estimated, at least 0.
    short
        Take the short step in place of the long one.
    factor
        Factor of an estimated step size, at least 0.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.BarzilaiBorwein(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.95, 2.3 ])

    """

    lr: Hyper = bounded(1e-3, 0)
    short: bool = False
    factor: Hyper = bounded(1.0, 0)

    slots = {"before": like("p"), "gradient": Filled(0.0)}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        moved, y = p - s.before, g - s.gradient
        curvature = xp.total_dot(moved, y)
        step = curvature / xp.total_dot(y, y) if self.short else xp.total_dot(moved, moved) / curvature
        step = xp.where((curvature > 0) & (h.t > 1), h.factor * step, h.lr)
        return p - step * g, {"before": p, "gradient": g}
