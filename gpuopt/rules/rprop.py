"""Rprop: a step size for each element, from the signs of the gradient alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.slots import Filled, like


@dataclass(frozen=True)
class Rprop(Rule):
    r"""Resilient propagation (Riedmiller & Braun 1993), without weight backtracking (iRprop-, Igel & Huesken 2000).

    Where the gradient keeps its sign, ``step`` is multiplied by ``grow``; where the sign changes, ``step`` is multiplied by ``shrink``
    and the element does not move. Then ``p -= sign(g)*step``. It is meant for gradients of the whole data set. The two components
    of a complex number have separate step sizes.

    Parameters
    ----------
    lr
        Start of the step sizes, at least 0; later changes have no effect.
    shrink, grow
        Factors of the step size, in [0, 1) and at least 1.
    smallest, largest
        Bounds of the step sizes, at least 0.
    late
        Whether each move is made one step later, and a step size is only bounded where it changes, as in Optax 0.2.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.Rprop(lr=0.1)).step(np.array([0.5, -3.0]))
    >>> w.round(6)
    array([0.9, 2.1])

    """

    lr: Hyper = bounded(0.01, 0)
    shrink: Hyper = bounded(0.5, 0, 1)
    grow: Hyper = bounded(1.2, 1)
    smallest: Hyper = bounded(1e-6, 0)
    largest: Hyper = bounded(50.0, 0)
    late: bool = False

    components = True
    slots = {"step": like("lr"), "before": Filled(0.0)}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        same = xp.sign(g) * xp.sign(s.before)
        step = s.step * xp.where(same > 0, h.grow, xp.where(same < 0, h.shrink, xp.ones_like(g)))
        step = xp.minimum(xp.maximum(step, h.smallest), h.largest)
        if self.late:
            step = xp.where(same == 0, s.step, step)
        none = xp.zeros_like(g)
        move = xp.where(same < 0, none, xp.sign(g) * step)
        return p - (xp.where(same < 0, none, s.before) if self.late else move), {"step": step, "before": move}
