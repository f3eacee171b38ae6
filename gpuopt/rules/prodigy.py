"""Prodigy: Adam that estimates its learning rate."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.slots import Filled, Slot, like, real, shared


@dataclass(frozen=True)
class Prodigy(Rule):
    r"""Prodigy (Mishchenko & Defazio 2024, arXiv:2306.06101, algorithm 4).

    ::

        step = d*lr * sqrt(1 - beta2**t) / (1 - beta1**t)
        m = beta1*m + (1-beta1)*d*g;    v = beta2*v + (1-beta2)*|d*g|**2
        r = beta3*r + d/d0 * step * <g, p_start - p>;    s = beta3*s + step*d*g/d0
        d = max(d, growth * r / sum(|s|))
        p -= step * (m / (sqrt(v) + d*eps) + weight_decay*p)

    with sums over all leaves, ``beta3 = sqrt(beta2)``, and the new ``d`` beside ``eps``.

    Parameters
    ----------
    lr
        Factor of the estimated learning rate; 1, or a schedule that falls from 1.
    beta1, beta2
        Decay rates of the first and the second moment, in [0, 1).
    eps
        Added to the root, so that the division stays finite; at least 0.
    weight_decay
        Decay rate, at least 0; decoupled.
    d0
        First estimate of the distance to the solution, above 0.
    growth
        Factor of the estimate, at least 0. The authors' program calls it ``d_coef``.
    safeguard_warmup
        Leave ``lr`` out of the estimate, for long warm-ups.
    components
        For complex leaves, see `Adam`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.Prodigy(d0=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.9, 2.1])

    """

    lr: Hyper = bounded(1.0, 0)
    beta1: Hyper = bounded(0.9, 0, 1)
    beta2: Hyper = bounded(0.999, 0, 1)
    eps: Hyper = bounded(1e-8, 0)
    weight_decay: Hyper = bounded(0.0, 0)
    d0: float = bounded(1e-6, 2.0**-149)
    growth: Hyper = bounded(1.0, 0)
    safeguard_warmup: bool = False
    _: KW_ONLY
    components: bool = False

    @property
    def slots(self) -> dict[str, Slot]:
        """Moments ``m`` and ``v``, the sum ``s``, the first parameters, and the numbers ``r`` and ``d``."""
        arrays: dict[str, Slot] = {"m": Filled(0.0), "v": real(0.0), "s": Filled(0.0)}
        return {**arrays, "start": like("p"), "r": shared(0.0), "d": shared(self.d0)}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        beta3, dg = h.beta2**0.5, s.d * g
        step = s.d * (h.lr * (1 - h.beta2**h.t) ** 0.5 / (1 - h.beta1**h.t))
        m = h.beta1 * s.m + (1 - h.beta1) * dg
        v = h.beta2 * s.v + (1 - h.beta2) * xp.abs2(dg)
        total = beta3 * s.s + (s.d if self.safeguard_warmup else step) / h.d0 * dg
        r = beta3 * s.r + s.d / h.d0 * step * xp.total_dot(g, s.start - p)
        found = h.growth * r / xp.total(xp.abs(total))
        d = xp.where(found > s.d, found, s.d)
        new = p - step * h.weight_decay * p - step * m / (d * h.eps + xp.sqrt(v))
        return new, {"m": m, "v": v, "s": total, "start": s.start, "r": r, "d": d}
