"""Schedule-Free: averaging in place of a schedule."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.slots import Slot, like, real

if TYPE_CHECKING:
    from types import SimpleNamespace


@dataclass(frozen=True)
class ScheduleFreeSGD(Rule):
    r"""Schedule-Free SGD (Defazio et al. 2024, arXiv:2405.15682).

    ::

        z -= lr*g                                              (g is computed at p, between x and z)
        x = (1-c)*x + c*z,    c = largest lr so far ** weight_power / the sum of these weights
        p = beta*x + (1-beta)*z

    `Optimizer.evaluation` gives ``x``, which is worked out from ``p`` and ``z``.

    Parameters
    ----------
    lr
        Learning rate, at least 0; a constant, or a warm-up.
    beta
        Weight of the average ``x`` at the point where gradients are computed, in (0, 1).
    weight_power
        Exponent of the learning rate in the weights of the average, at least 0. At 0 all points count alike.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.ScheduleFreeSGD(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.95, 2.3 ])

    """

    lr: Hyper = bounded(1.0, 0)
    beta: Hyper = bounded(0.9, 2.0**-20, 1)
    weight_power: Hyper = bounded(2.0, 0)

    carried = {"largest_lr": 0.0, "weights": 0.0}

    @property
    def slots(self) -> dict[str, Slot]:
        """``z``, which starts as the parameters."""
        return {"z": like("p")}

    def coefficients(self, h: SimpleNamespace) -> dict[str, float]:
        """Weight ``share`` of the new point in the average, and the sums it is made of."""
        largest = max(h.largest_lr, h.lr)
        weight = largest**h.weight_power
        weights = h.weights + weight
        return {"largest_lr": largest, "weights": weights, "share": weight / weights if weights else 0.0}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:  # noqa: ARG002
        """See :meth:`Rule.update`."""
        return self.moved(p, g, s, h, {})

    def moved(self, p: Array, u: Array, s: Any, h: Any, slots: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        """Move ``z`` by ``-lr*u``, and average."""
        z = s.z - h.lr * u
        x = (1 - h.share) * self.average(p, s, h) + h.share * z
        return h.beta * x + (1 - h.beta) * z, {"z": z, **slots}

    def average(self, p: Array, s: Any, h: Any) -> Array:
        """Return ``x``."""
        return (p - (1 - h.beta) * s.z) * (1 / h.beta)

    def evaluation(self, xp: Any, p: Array, s: Any, h: Any) -> Array:  # noqa: ARG002
        """Return the average."""
        return self.average(p, s, h)


@dataclass(frozen=True)
class ScheduleFreeAdamW(ScheduleFreeSGD):
    r"""Schedule-Free AdamW (Defazio et al. 2024, arXiv:2405.15682).

    `ScheduleFreeSGD` along ``g / (sqrt(v_hat) + eps) + weight_decay*p``, with ``v_hat`` as in `Adam`.

    Parameters
    ----------
    beta2
        Decay rate of the second moment, in [0, 1).
    eps
        Added to the root, so that the division stays finite; at least 0.
    weight_decay
        Decay rate, at least 0; decoupled, at the point where gradients are computed.
    components
        For complex leaves, see `Adam`.

    The other parameters are those of `ScheduleFreeSGD`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.ScheduleFreeAdamW(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.9, 2.1])

    """

    lr: Hyper = bounded(0.0025, 0)
    beta2: Hyper = bounded(0.999, 0, 1)
    eps: Hyper = bounded(1e-8, 0)
    weight_decay: Hyper = bounded(0.0, 0)
    _: KW_ONLY
    components: bool = False

    @property
    def slots(self) -> dict[str, Slot]:
        """``z`` and the second moment."""
        return {**super().slots, "v": real(0.0)}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        v = h.beta2 * s.v + (1 - h.beta2) * xp.abs2(g)
        u = g / (xp.sqrt(v * (1 / (1 - h.beta2**h.t))) + h.eps) + h.weight_decay * p
        return self.moved(p, u, s, h, {"v": v})
