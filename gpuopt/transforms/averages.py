"""Averages of the parameters over the steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpuopt.rules.hyper import Count
from gpuopt.rules.slots import like
from gpuopt.transforms.base import Array, Hyper, Transform, bounded

if TYPE_CHECKING:
    from types import SimpleNamespace


@dataclass(frozen=True)
class EMA(Transform):
    """Exponential moving average of the parameters, to evaluate with: ``average = decay*average + (1-decay)*p``.

    It starts as a copy of the parameters, so it needs no bias correction. Last in a chain, it averages the parameters after all
    constraints.

    Parameters
    ----------
    decay
        Decay rate of the average, in [0, 1).

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> opt = gpuopt.Optimizer(np.zeros(2), gpuopt.chain(gpuopt.SGD(lr=1.0), gpuopt.EMA(0.5)))
    >>> opt.step(np.array([1.0, 2.0]))
    >>> opt.evaluation()
    array([-0.5, -1. ])

    """

    decay: Hyper = bounded(0.999, 0, 1)

    slots = {"average": like("p")}

    def after(self, xp: Any, old: Array, new: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.after`."""
        return new, {"average": h.decay * s.average + (1 - h.decay) * new}

    def evaluation(self, xp: Any, p: Array, s: Any, h: Any) -> Array:  # noqa: ARG002
        """Return the average."""
        return s.average


@dataclass(frozen=True)
class Lookahead(Transform):
    """Lookahead (Zhang et al. 2019, arXiv:1907.08610): k steps forward, one step back.

    At every step whose number is a multiple of ``every``: ``slow += alpha*(p - slow);  p = slow``.

    Parameters
    ----------
    every
        Number of steps between synchronizations, at least 1.
    alpha
        Fraction of the way from the slow to the fast parameters, at least 0; at most 1 in the paper.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.SGD(lr=1.0), gpuopt.Lookahead(every=1, alpha=0.5))).step(np.array([1.0, 1.0]))
    >>> w
    array([0.5, 1.5])

    """

    every: int = field(default=6, metadata={"kind": Count()})
    alpha: Hyper = bounded(0.5, 0)

    slots = {"slow": like("p")}

    def coefficients(self, h: SimpleNamespace) -> dict[str, float]:
        """1 if this step synchronizes, else 0."""
        return {"synchronizes": 1.0 * (h.t % self.every == 0)}

    def after(self, xp: Any, old: Array, new: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.after`."""
        slow = xp.where(h.synchronizes > 0, s.slow + h.alpha * (new - s.slow), s.slow)
        return xp.where(h.synchronizes > 0, slow, new), {"slow": slow}
