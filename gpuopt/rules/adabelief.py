"""AdaBelief: Adam with the variance of the gradient around its mean as second moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.rules.adam import Adam
from gpuopt.rules.base import Array, Hyper, bounded


@dataclass(frozen=True)
class AdaBelief(Adam):
    r"""AdaBelief (Zhuang et al. 2020, arXiv:2010.07468): `Adam` with ``v = beta2*v + (1-beta2)*|g-m|**2 + eps_belief``.

    Parameters
    ----------
    eps_belief
        Added to ``v`` at every step, at least 0. Optax calls it ``eps_root``.

    The other parameters are those of `Adam`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.AdaBelief(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.888889, 2.111111])

    """

    eps: Hyper = bounded(1e-16, 0)
    eps_belief: Hyper = bounded(1e-16, 0)

    def second_moment(self, xp: Any, g: Array, m: Array, s: Any, h: Any) -> Array:
        """See :meth:`Adam.second_moment`."""
        return h.beta2 * s.v + (1 - h.beta2) * xp.abs2(g - m) + h.eps_belief
