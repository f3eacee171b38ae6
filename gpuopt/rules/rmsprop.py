"""RMSProp: AdaGrad with a decaying average in place of the sum."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.slots import Filled, Slot, like, real


@dataclass(frozen=True)
class RMSProp(Rule):
    r"""RMSProp (Tieleman & Hinton 2012, Coursera "Neural Networks for Machine Learning", lecture 6.5).

    ``cache = rho*cache + (1-rho)*|g|**2;  p -= lr*g / (sqrt(cache + eps_root) + eps)``

    Parameters
    ----------
    lr
        Learning rate, at least 0.
    rho
        Decay rate of the cache, in [0, 1). PyTorch calls it ``alpha``.
    eps
        Added outside of the root, as in PyTorch, so that the division stays finite; at least 0.
    eps_root
        The same inside of the root, as in Keras and Optax.
    momentum
        Decay rate of a velocity, in [0, 1): ``v = momentum*v + lr*g / (...);  p -= v``. At 0 there is none.
    nesterov
        Look ahead along ``v``: ``p -= momentum*v + lr*g / (...)``.
    lr_in_velocity
        Whether the learning rate is inside of ``v``, as in Keras and Optax. In PyTorch it is outside.
    centered
        Subtract the square of the average gradient from the cache (Graves 2013, arXiv:1308.0850).
    initial
        Start of the cache, at least 0.
    bias_correction
        Divide both averages by ``1 - rho**t``, as `Adam` does.
    components
        For complex leaves, see `Adam`.

    Warnings
    --------
    Keras and Optax have ``eps`` inside of the root, PyTorch and MLX outside. With momentum and a learning rate that falls,
    ``lr_in_velocity`` matters: see ``docs/conventions.md``.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0, 3.0])
    >>> gpuopt.Optimizer(w, gpuopt.RMSProp(lr=0.1, rho=0.75)).step(np.array([2, 4, 3]))
    >>> w.round(6)
    array([0.8, 1.8, 2.8])

    """

    lr: Hyper = bounded(0.001, 0)
    rho: Hyper = bounded(0.9, 0, 1)
    eps: Hyper = bounded(1e-7, 0)
    _: KW_ONLY
    eps_root: Hyper = bounded(0.0, 0)
    momentum: Hyper = bounded(0.0, 0, 1)
    nesterov: bool = False
    lr_in_velocity: bool = True
    centered: bool = False
    initial: Hyper = bounded(0.0, 0)
    bias_correction: bool = False
    components: bool = False

    @property
    def slots(self) -> dict[str, Slot]:
        """The cache; with ``momentum`` a velocity, with ``centered`` an average gradient."""
        slots: dict[str, Slot] = {"cache": real(like("initial"))}
        if self.momentum:
            slots["v"] = Filled(0.0)
        if self.centered:
            slots["average"] = Filled(0.0)
        return slots

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        cache = h.rho * s.cache + (1 - h.rho) * xp.abs2(g)
        slots, square = {"cache": cache}, cache
        correction = 1 / (1 - h.rho**h.t) if self.bias_correction else 1.0
        if self.bias_correction:
            square = cache * correction
        if self.centered:
            average = slots["average"] = h.rho * s.average + (1 - h.rho) * g
            mean = average * correction if self.bias_correction else average
            square = square - xp.abs2(mean)
        if self.eps_root:
            square = square + h.eps_root
        root = xp.sqrt(square) + h.eps
        if not self.momentum:
            return p - h.lr * g / root, slots
        step = h.lr * g / root if self.lr_in_velocity else g / root
        v = slots["v"] = h.momentum * s.v + step
        move = h.momentum * v + step if self.nesterov else v
        return p - (move if self.lr_in_velocity else h.lr * move), slots
