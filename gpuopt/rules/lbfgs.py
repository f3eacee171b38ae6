"""L-BFGS: the curvature of the last steps, without a line search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.hyper import Count
from gpuopt.rules.slots import Filled, Slot

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
        """Point and gradient before, and the pairs."""
        pairs = [f"{name}{k}" for name in "sy" for k in range(self.memory)]
        return dict.fromkeys(["point", "gradient", *pairs], Filled(0.0))

    def coefficients(self, h: SimpleNamespace) -> dict[str, float]:
        """For each place, 1 if the newest pair goes there: the others stay where they are."""
        return {f"newest{k}": float((h.t - 2) % self.memory == k) for k in range(self.memory)}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        places, has_pair = range(self.memory), h.t > 1
        newest = [getattr(h, f"newest{k}") > 0 for k in places]
        moved, change = p - s.point, g - s.gradient
        moves = [xp.where(newest[k] & has_pair, moved, getattr(s, f"s{k}")) for k in places]
        changes = [xp.where(newest[k] & has_pair, change, getattr(s, f"y{k}")) for k in places]
        slots = {f"s{k}": moves[k] for k in places} | {f"y{k}": changes[k] for k in places}
        # All vectors of the two loops are sums of g, moves and changes: numbers alone say how much of each.
        products = [[xp.total_dot(a, b) for b in changes] for a in moves]
        lower = [[xp.total_dot(changes[i], changes[j]) for j in range(i + 1)] for i in places]
        squares = [[lower[max(i, j)][min(i, j)] for j in places] for i in places]
        along_moves, along_changes = [xp.total_dot(a, g) for a in moves], [xp.total_dot(b, g) for b in changes]

        def chosen(values: list[Any]) -> Any:
            """The value that stands where the newest pair is."""
            found = values[0]
            for k in places[1:]:
                found = xp.where(newest[k], values[k], found)
            return found

        def of(vector: list[Any], age: int) -> Any:
            """The entry of the pair that was the newest ``age`` steps ago."""
            return chosen([vector[(k - age) % self.memory] for k in places])

        def between(matrix: list[list[Any]], age: int, other: int) -> Any:
            """The entry of two pairs."""
            return chosen([matrix[(k - age) % self.memory][(k - other) % self.memory] for k in places])

        own = [between(products, i, i) for i in places]
        inverses = [xp.where(product != 0, 1 / product, 0) for product in own]
        alphas: list[Any] = []
        for i in places:  # from the newest pair on
            product = of(along_moves, i)
            for j, alpha in enumerate(alphas):
                product = product - alpha * between(products, i, j)
            alphas.append(inverses[i] * product)
        square, norm = between(squares, 0, 0), xp.total_norm(g)
        curvature = xp.where(square > 0, own[0] / square, 1)
        factor = xp.where(has_pair, curvature, xp.where(norm > 1, 1 / norm, 1))
        parts: dict[int, Any] = {}
        for i in reversed(places):
            product = of(along_changes, i)
            for j, alpha in enumerate(alphas):
                product = product - alpha * between(squares, i, j)
            product = factor * product
            for j, part in parts.items():
                product = product + part * between(products, j, i)
            parts[i] = alphas[i] - inverses[i] * product
        q = factor * g
        for k in places:
            at = [
                (n - k) % self.memory for n in places
            ]  # the age of the pair in this place, wherever the newest one is
            q = (
                q
                + chosen([parts[age] for age in at]) * moves[k]
                - factor * chosen([alphas[age] for age in at]) * changes[k]
            )
        return p - h.lr * q, {"point": p, "gradient": g, **slots}
