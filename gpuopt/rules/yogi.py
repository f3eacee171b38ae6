"""Yogi: Adam whose second moment changes by a bounded amount at each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.rules.adam import Adam
from gpuopt.rules.base import Array, Hyper, bounded
from gpuopt.rules.slots import Real, Slot, like, real


@dataclass(frozen=True)
class Yogi(Adam):
    r"""Yogi (Zaheer et al. 2018, "Adaptive methods for nonconvex optimization").

    `Adam` with ``v -= (1-beta2) * sign(v - |g|**2) * |g|**2``.

    Parameters
    ----------
    initial
        Start of both moments, at least 0. Of complex leaves, too, a real number, so that a turn of all phases changes the
        trajectory by as much; with 0 it does not.

    The other parameters are those of `Adam`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.Yogi(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.900396, 2.099961])

    """

    lr: Hyper = bounded(0.01, 0)
    eps: Hyper = bounded(1e-3, 0)
    initial: Hyper = bounded(1e-6, 0)

    @property
    def slots(self) -> dict[str, Slot]:
        """Moments that start at ``initial``."""
        start = like("initial")
        return {name: real(start) if isinstance(slot, Real) else start for name, slot in super().slots.items()}

    def second_moment(self, xp: Any, g: Array, m: Array, s: Any, h: Any) -> Array:  # noqa: ARG002
        """See :meth:`Adam.second_moment`."""
        square = xp.abs2(g)
        return s.v - (1 - h.beta2) * (xp.sign(s.v - square) * square)
