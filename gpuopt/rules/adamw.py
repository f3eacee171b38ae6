"""AdamW: Adam with decoupled weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.rules.adam import Adam
from gpuopt.rules.base import Array, Hyper, bounded


@dataclass(frozen=True)
class AdamW(Adam):
    r"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101): ``p *= 1 - lr*weight_decay``, then `Adam`.

    Parameters
    ----------
    weight_decay
        Decay rate, at least 0. It is multiplied by the learning rate, as in PyTorch, Optax and Keras; in the paper it is not.

    The other parameters are those of `Adam`.

    Warnings
    --------
    The ``weight_decay`` of PyTorch's ``Adam`` is `L2`, that of Keras' ``Adam`` is decoupled like this one. MLX does not correct the
    moments.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.AdamW(lr=0.1, weight_decay=0.5)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.85, 2.  ])

    """

    weight_decay: Hyper = bounded(0.01, 0)

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        return super().update(xp, p * (1 - h.lr * h.weight_decay), g, s, h)
