"""L-BFGS: the curvature of the last steps, without a line search."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.hyper import Count
from gpuopt.rules.slots import Filled, Slot, leaf, shared


@dataclass(frozen=True)
class LBFGS(Rule):
    r"""Limited-memory BFGS (Liu & Nocedal 1989, Math. Prog. 45:503), as Optax's ``scale_by_lbfgs``.

    ``p -= lr * H(g)`` where ``H`` is the two-loop recursion over the last pairs ``s = p - p_before``,
    ``y = g - g_before``, with products over all leaves. Between its loops it scales by ``<s,y>/<y,y>`` of the newest pair,
    or by 1 if ``y`` is 0; the first step is along ``g * min(1, 1/norm(g))``. A pair with ``<s,y> = 0`` is ignored. A leaf without
    a gradient counts as 0, in the step and in its pair.

    Parameters
    ----------
    lr
        Step, at least 0.
    memory
        Pairs that are kept, at least 1: two arrays of state each, and their products.

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
        """Points and gradients before; products of their differences, and of those with the gradient before; when and where.

        A point stays at its place; ``newest`` is the newest one's, ``place`` that of the leaf's own newest one. A pair is at
        the place of the point that it begins at. Products are by age: ``sy2_1`` is that of the third newest ``s`` with the
        second newest ``y``. A leaf has its own ``sg2``, of the ``s`` at place 2 with its newest gradient. ``steps`` counts, and ``last`` is what it was after the leaf's last step.
        """
        arrays = dict.fromkeys(
            [f"{name}{k}" for name in ("point", "gradient") for k in range(self.memory)], Filled(0.0)
        )
        products = [f"{name}{i}_{j}" for name in ("sy", "yy") for i in range(self.memory) for j in range(i + 1)]
        numbers = dict.fromkeys([*products, "steps"], shared(0.0))
        along = dict.fromkeys([f"{name}{k}" for name in ("sg", "yg") for k in range(self.memory)], leaf(0.0))
        return {**arrays, **numbers, **along, "newest": shared(-1.0), "last": leaf(0.0), "place": leaf(-1.0)}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        places = ages = range(self.memory)
        is_newest = [s.newest == k for k in places]
        # The newest point takes the place of the oldest one. While a leaf had no gradient, and before its first one, it stood still.
        free = xp.where(s.newest < self.memory - 1, s.newest + 1, 0)
        age = [xp.where(s.newest >= k, s.newest - k, s.newest - k + self.memory) for k in places]
        still = xp.where(s.last > 0, s.steps - s.last, self.memory)
        pairs, changes, slots = [], [], dict[str, Array]()
        for name, now in (("point", p), ("gradient", g)):
            kept, before = [getattr(s, f"{name}{k}") for k in places], now
            for k in places:
                before = xp.where(s.place == k, kept[k], before)
            change = now - before
            changes.append(change)
            between = [xp.where(age[k] > still, kept[(k + 1) % self.memory] - kept[k], 0) for k in places]
            pairs.append([xp.where(is_newest[k], change, between[k]) for k in places])
            for k in places:
                new = xp.where(free == k, now, before)
                slots[f"{name}{k}"] = xp.where((free == k) | (age[k] < still), new, kept[k])

        def turned(values: list[Any]) -> list[Any]:
            """Return numbers by age of those by place, or the reverse: what is at ``k`` goes to ``newest - k``."""
            found: list[Any] = [0.0] * self.memory
            for i, k in itertools.product(places, places):
                found[i] = xp.where(is_newest[(i + k) % self.memory], values[k], found[i])
            return found

        # All vectors of the two loops are sums of g and of the pairs: numbers alone say how much of each. The newest y is g less the
        # gradient before, whose products with older pairs are known: only those with g are new (Chen, Wang & Zhou 2014).
        rows, alongs = [], []
        for name, own, newest in zip(("sg", "yg"), pairs, changes, strict=True):
            new = [xp.total_dot(x, g) for x in own]
            before = [xp.total(xp.where(age[k] > still, getattr(s, f"{name}{k}"), 0)) for k in places]
            product = xp.total_dot(newest, changes[1])
            rows.append(turned([xp.where(is_newest[k], product, new[k] - before[k]) for k in places]))
            alongs.append(turned(new))
            slots |= {f"{name}{k}": xp.dot(own[k], g) for k in places}
        (with_s, with_y), (s_along, y_along) = rows, alongs
        sy, yy = (
            [[new[i] if j == 0 else getattr(s, f"{name}{i - 1}_{j - 1}") for j in range(i + 1)] for i in ages]
            for name, new in (("sy", with_s), ("yy", with_y))
        )
        inverses = [xp.where(sy[i][i] != 0, 1 / sy[i][i], 0) for i in ages]
        norm = xp.total_norm(g)
        curvature = xp.where(yy[0][0] > 0, sy[0][0] / yy[0][0], 1)
        factor = xp.where(s.steps > 0, curvature, xp.where(norm > 1, 1 / norm, 1))
        alphas: list[Any] = []
        for i in ages:
            alphas.append(inverses[i] * (s_along[i] - sum(alphas[j] * sy[i][j] for j in range(i))))
        parts = list(alphas)
        for i in reversed(ages):
            along = y_along[i] - sum(alphas[j] * yy[max(i, j)][min(i, j)] for j in ages)
            later = sum(parts[j] * sy[j][i] for j in range(i + 1, self.memory))
            parts[i] = alphas[i] - inverses[i] * (factor * along + later)
        q = factor * g
        for k, part, alpha in zip(places, turned(parts), turned(alphas), strict=True):
            q = q + part * pairs[0][k] - factor * alpha * pairs[1][k]
        products = {
            f"{name}{i}_{j}": own[i][j] for name, own in (("sy", sy), ("yy", yy)) for i in ages for j in range(i + 1)
        }
        counts = {"newest": free, "place": free, "steps": s.steps + 1, "last": s.steps + 1}
        return p - h.lr * q, {**slots, **products, **counts}
