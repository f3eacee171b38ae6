"""L-BFGS: the curvature of the last steps, without a line search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.hyper import Count
from gpuopt.rules.slots import Filled, Slot, shared

if TYPE_CHECKING:
    from collections.abc import Callable


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
        """Point and gradient before, the pairs, and where the newest one is: -1 before there is one, -2 before any step."""
        pairs = [f"{name}{k}" for name in "sy" for k in range(self.memory)]
        return {**dict.fromkeys(["point", "gradient", *pairs], Filled(0.0)), "newest": shared(-2.0)}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        places = range(self.memory)
        newest = xp.where(s.newest < self.memory - 1, s.newest + 1, 0)
        moved, change = p - s.point, g - s.gradient
        # The newest pair takes the place of the oldest one, the others stay where they are.
        moves = [xp.where(newest == k, moved, getattr(s, f"s{k}")) for k in places]
        changes = [xp.where(newest == k, change, getattr(s, f"y{k}")) for k in places]
        # All vectors of the two loops are sums of g, moves and changes: numbers alone say how much of each.
        products = [[xp.total_dot(a, b) for b in changes] for a in moves]
        lower = [[xp.total_dot(changes[i], changes[j]) for j in range(i + 1)] for i in places]
        along_moves, along_changes = [xp.total_dot(a, g) for a in moves], [xp.total_dot(b, g) for b in changes]
        product, square, norm = xp.total_dot(moved, change), xp.total_dot(change, change), xp.total_norm(g)
        inverses = [xp.where(products[k][k] != 0, 1 / products[k][k], 0) for k in places]
        curvature = xp.where(square > 0, product / square, 1)
        factor = xp.where(newest >= 0, curvature, xp.where(norm > 1, 1 / norm, 1))

        def one_by_one(entry: Callable[[int, dict[int, Any]], Any], *, backwards: bool) -> dict[int, Any]:
            """Numbers of the pairs, each made of those before it: from the newest pair to the oldest, or from there on."""
            found: dict[int, Any] = {}
            for is_first in (True, False):
                for k in reversed(places) if backwards else places:
                    is_now = newest >= k if is_first == backwards else newest < k
                    others = {j: x for j, x in found.items() if j != k}
                    found[k] = xp.where(is_now, entry(k, others), found.get(k, 0))
            return found

        def first(k: int, others: dict[int, Any]) -> Any:
            return inverses[k] * (along_moves[k] - sum(x * products[k][j] for j, x in others.items()))

        alphas = one_by_one(first, backwards=True)
        along = [along_changes[k] - sum(alphas[j] * lower[max(j, k)][min(j, k)] for j in places) for k in places]

        def second(k: int, others: dict[int, Any]) -> Any:
            return alphas[k] - inverses[k] * (factor * along[k] + sum(x * products[j][k] for j, x in others.items()))

        parts = one_by_one(second, backwards=False)
        q = factor * g
        for k in places:
            q = q + parts[k] * moves[k] - factor * alphas[k] * changes[k]
        slots = {f"s{k}": moves[k] for k in places} | {f"y{k}": changes[k] for k in places}
        return p - h.lr * q, {"point": p, "gradient": g, **slots, "newest": newest}
