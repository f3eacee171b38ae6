"""Lion: the sign of a momentum."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded


@dataclass(frozen=True)
class Lion(Rule):
    r"""Lion (Chen et al. 2023, arXiv:2302.06675).

    ``p -= lr * sign(beta1*m + (1-beta1)*g);  m = beta2*m + (1-beta2)*g``

    Parameters
    ----------
    lr
        Learning rate, at least 0: every element moves this far. Take a third to a tenth of AdamW's.
    beta1, beta2
        Decay rates of the momentum, in [0, 1): ``beta1`` for the direction of the step, ``beta2`` for the momentum that is kept.
    components
        For complex leaves: if True, each component has its own sign; if False, ``sign(z) = z / |z|``.

    Warnings
    --------
    There is no weight decay; for the paper's write ``chain(WeightDecay(0.1), Lion())``.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.Lion(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.9, 2.1])

    """

    lr: Hyper = bounded(1e-4, 0)
    beta1: Hyper = bounded(0.9, 0, 1)
    beta2: Hyper = bounded(0.99, 0, 1)
    _: KW_ONLY
    components: bool = False

    slots = ("m",)

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        direction = xp.sign(h.beta1 * s.m + (1 - h.beta1) * g)
        return p - h.lr * direction, {"m": h.beta2 * s.m + (1 - h.beta2) * g}
