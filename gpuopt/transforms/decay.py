"""Weight decay: as a part of the gradient, or decoupled from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.transforms.base import Array, Hyper, Transform, bounded


@dataclass(frozen=True)
class L2(Transform):
    """Add the gradient of an L2 penalty ``rate/2 * sum(|p|**2)``: ``g += rate*p``.

    Parameters
    ----------
    rate
        Factor of the penalty, at least 0.

    Warnings
    --------
    Adam and similar rules divide the penalty by the root of ``v``, like the rest of the gradient; `WeightDecay` is not divided.
    ``torch.optim.Adam(weight_decay=...)`` is `L2`, ``torch.optim.AdamW`` is `WeightDecay`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.L2(0.1), gpuopt.SGD(lr=1.0))).step(np.array([0.0, 0.0]))
    >>> w
    array([0.9, 1.8])

    """

    rate: Hyper = bounded(1e-4, 0)

    def before(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.before`."""
        return p, g + h.rate * p, {}


@dataclass(frozen=True)
class WeightDecay(Transform):
    """Decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101): ``p *= 1 - lr*rate``, then the rule.

    Parameters
    ----------
    rate
        Decay rate, at least 0. It is multiplied by the rule's learning rate.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.WeightDecay(0.1), gpuopt.SGD(lr=1.0))).step(np.array([0.0, 0.0]))
    >>> w
    array([0.9, 1.8])

    """

    rate: Hyper = bounded(1e-2, 0)

    def before(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.before`."""
        return p * (1 - h.lr * h.rate), g, {}
