"""L-BFGS: the curvature of the last steps, without a line search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.hyper import Count
from gpuopt.rules.slots import Filled, Slot, shared

if TYPE_CHECKING:
    from types import SimpleNamespace


@dataclass(frozen=True)
class LBFGS(Rule):
    r"""Limited-memory BFGS (Liu & Nocedal 1989, Math. Prog. 45:503), as Optax's ``scale_by_lbfgs``.

    ``p -= lr * H(g)`` where ``H`` is the two-loop recursion over the last pairs ``s = p - p_before``,
    ``y = g - g_before``, with products over all leaves. Between its loops it scales by ``<s,y>/<y,y>`` of the newest pair,
    or by 1 if ``y`` is 0; the first step is along ``g * min(1, 1/norm(g))``. A pair with ``<s,y> = 0`` is ignored.

    Parameters
    ----------
    lr
        Step, at least 0.
    memory
        Pairs that are kept, at least 1: two arrays of state each.

    Warnings
    --------
    There is no line search, unlike in ``scipy.optimize`` and, if told so, in PyTorch: gradients without noise, and an
    ``lr`` below 1 at first.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.LBFGS(lr=1.0)).step(np.array([3.0, -4.0]))
    >>> w.round(6)
    array([0.4, 2.8])

    """

    lr: Hyper = bounded(1.0, 0)
    memory: int = field(default=10, metadata={"kind": Count()})

    @property
    def slots(self) -> dict[str, Slot]:
        """Point and gradient before, and for each pair ``s``, ``y`` and ``1/<s,y>``."""
        places = range(self.memory)
        arrays = ["point", "gradient", *(f"{name}{k}" for name in "sy" for k in places)]
        return {**dict.fromkeys(arrays, Filled(0.0)), **{f"weight{k}": shared(0.0) for k in places}}

    def coefficients(self, h: SimpleNamespace) -> dict[str, float]:
        """For each place, 1 if the newest pair goes there."""
        return {f"newest{k}": float(h.t > 1 and (h.t - 2) % self.memory == k) for k in range(self.memory)}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        moved, change = p - s.point, g - s.gradient
        product, square, norm = xp.total_dot(moved, change), xp.total_dot(change, change), xp.total_norm(g)
        inverse = xp.where(product != 0, 1 / product, 0)
        slots: dict[str, Array] = {"point": p, "gradient": g}
        for k in range(self.memory):  # arrays stay where they are: the newest pair replaces the oldest
            is_new = getattr(h, f"newest{k}") > 0
            for name, new in (("s", moved), ("y", change), ("weight", inverse)):
                slots[f"{name}{k}"] = xp.where(is_new, new, getattr(s, f"{name}{k}"))
        ordered = [self.of_age(xp, age, slots, h) for age in range(self.memory)]  # from the newest on
        q, alphas = g, []
        for pair_s, pair_y, weight in ordered:
            alphas.append(weight * xp.total_dot(pair_s, q))
            q = q - alphas[-1] * pair_y
        curvature = xp.where(square > 0, product / square, 1)
        q = xp.where(h.t > 1, curvature, xp.where(norm > 1, 1 / norm, 1)) * q
        for (pair_s, pair_y, weight), alpha in zip(reversed(ordered), reversed(alphas), strict=True):
            q = q + (alpha - weight * xp.total_dot(pair_y, q)) * pair_s
        return p - h.lr * q, slots

    def of_age(self, xp: Any, age: int, slots: dict[str, Array], h: Any) -> list[Array]:
        """Return the pair that was the newest ``age`` steps ago, and its weight."""
        found = [slots[f"{name}0"] for name in ("s", "y", "weight")]
        for k in range(1, self.memory):
            here = getattr(h, f"newest{(k + age) % self.memory}") > 0
            found = [
                xp.where(here, slots[f"{name}{k}"], x) for name, x in zip(("s", "y", "weight"), found, strict=True)
            ]
        return found
