"""ASGD: SGD with a falling learning rate, and the average of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.slots import like

if TYPE_CHECKING:
    from types import SimpleNamespace


@dataclass(frozen=True)
class ASGD(Rule):
    r"""Averaged SGD (Polyak & Juditsky 1992, SIAM J. Control Optim. 30:838), as Bottou's and PyTorch's.

    ::

        eta = lr / (1 + decay*lr*(t-1))**power
        p = p*(1 - decay*eta) - eta*g
        average += (p - average) / max(1, t - 1 - start)

    `Optimizer.evaluation` gives the average.

    Parameters
    ----------
    lr
        Learning rate of the first step, at least 0.
    decay
        Decay rate of the learning rate and of the weights, at least 0. PyTorch calls it ``lambd``.
    power
        Exponent of the learning rate's decay, at least 0. PyTorch calls it ``alpha``.
    start
        Step from which on the parameters are averaged, at least 0; before it the average equals the parameter. PyTorch calls it ``t0``.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.ASGD(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.94999, 2.29998])

    """

    lr: Hyper = bounded(0.01, 0)
    decay: Hyper = bounded(1e-4, 0)
    power: Hyper = bounded(0.75, 0)
    start: Hyper = bounded(1e6, 0)

    slots = {"average": like("p")}

    def coefficients(self, h: SimpleNamespace) -> dict[str, float]:
        """Learning rate ``eta`` of this step, and weight of the new parameter in the average."""
        return {
            "eta": h.lr / (1 + h.decay * h.lr * (h.t - 1)) ** h.power,
            "weight": 1 / max(1.0, h.t - 1 - h.start),
        }

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        p = p * (1 - h.decay * h.eta) - h.eta * g
        return p, {"average": xp.where(h.weight < 1, s.average + h.weight * (p - s.average), p)}

    def evaluation(self, xp: Any, p: Array, s: Any, h: Any) -> Array:  # noqa: ARG002
        """Return the average."""
        return s.average
