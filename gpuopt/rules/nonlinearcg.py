"""Nonlinear conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded


@dataclass(frozen=True)
class NonlinearCG(Rule):
    r"""Nonlinear conjugate gradients with Polak & Ribiere's (1969) factor, never negative, and a fixed step.

    ``b = max(0, <g, g - g_before> / <g_before, g_before>);  d = b*d - g;  p += lr*d``, products over all leaves.

    Where ``d`` is no descent direction, it is reset to ``-g``.

    Parameters
    ----------
    lr
        Step size, at least 0. There is no line search.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.NonlinearCG(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.95, 2.3 ])

    """

    lr: Hyper = bounded(1e-3, 0)

    slots = ("direction", "gradient")

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        before, now, across = xp.total_dot(s.gradient, s.gradient), xp.total_dot(g, g), xp.total_dot(g, s.gradient)
        b = xp.where((before > 0) & (now > across), (now - across) / before, 0)
        b = xp.where(b * xp.total_dot(g, s.direction) < now, b, 0)
        d = b * s.direction - g
        return p + h.lr * d, {"direction": d, "gradient": g}
