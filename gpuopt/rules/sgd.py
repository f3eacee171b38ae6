"""Stochastic gradient descent, with momentum and Nesterov's look-ahead."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded

if TYPE_CHECKING:
    from types import SimpleNamespace


@dataclass(frozen=True)
class SGD(Rule):
    r"""Stochastic gradient descent.

    ==========  =====================================================
    plain       ``p -= lr*g``
    momentum    ``v = momentum*v - lr*g;  p += v``
    nesterov    ``v = momentum*v - lr*g;  p += momentum*v - lr*g``
    ==========  =====================================================

    Parameters
    ----------
    lr
        Learning rate, at least 0.
    momentum
        Decay rate of the velocity ``v``, in [0, 1). At 0 there is no velocity and no state.
    nesterov
        Look ahead along the new velocity (Sutskever et al. 2013, "On the importance of initialization and momentum"). With
        ``momentum=0`` it has no effect (PyTorch refuses it).
    dampening
        Fraction of the gradient that is left out of ``v``, at least 0; not at the first step, as in PyTorch.
    dampen_first
        Whether the first step is dampened, too, as in MLX.
    lr_in_velocity
        Whether the learning rate is inside of ``v``. If False, ``v = momentum*v + g;  p -= lr*v``.

    Warnings
    --------
    The learning rate is inside ``v``, as in the papers (Polyak 1964) and in Keras. PyTorch keeps it outside,
    ``v = momentum*v + g; p -= lr*v``: the same for a constant ``lr``, but there a falling ``lr`` also shrinks the velocity that
    has been gathered before.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=0.1, momentum=0.9))
    >>> opt.step(np.array([1.0, 1.0]))
    >>> w
    array([0.9, 1.9])

    """

    lr: Hyper = bounded(0.01, 0)
    momentum: Hyper = bounded(0.0, 0, 1)
    nesterov: bool = False
    _: KW_ONLY
    dampening: Hyper = bounded(0.0, 0)
    dampen_first: bool = False
    lr_in_velocity: bool = True

    @property
    def slots(self) -> tuple[str, ...]:
        """``v`` with momentum, nothing without."""
        return ("v",) if self.momentum else ()

    def coefficients(self, h: SimpleNamespace) -> dict[str, float]:
        """Fraction of the gradient that enters the velocity."""
        return {"undamped": 1.0 - h.dampening * (self.dampen_first or h.t != 1)}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:  # noqa: ARG002
        """See :meth:`Rule.update`."""
        if not self.slots:
            return p - h.lr * g, {}
        if not self.lr_in_velocity:
            v = h.momentum * s.v + h.undamped * g
            return p - h.lr * (g + h.momentum * v if self.nesterov else v), {"v": v}
        v = h.momentum * s.v - h.lr * h.undamped * g
        return p + (h.momentum * v - h.lr * g if self.nesterov else v), {"v": v}
