"""Rules as a user would write them, that together use everything an update may use."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gpuopt
from gpuopt.rules import Array, Hyper, Rule

New = tuple[Array, dict[str, Array]]


@dataclass(frozen=True)
class Lion(Rule):
    """The sign of a momentum."""

    lr: Hyper = gpuopt.bounded(0.01, 0)
    beta1: Hyper = gpuopt.bounded(0.9, 0, 1)
    beta2: Hyper = gpuopt.bounded(0.99, 0, 1)

    slots = ("m",)

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> New:
        direction = xp.sign(h.beta1 * s.m + (1 - h.beta1) * g)
        return p - h.lr * direction, {"m": h.beta2 * s.m + (1 - h.beta2) * g}


@dataclass(frozen=True)
class Clipped(Rule):
    """Clipping in all its forms."""

    lr: Hyper = gpuopt.bounded(0.1, 0)
    most: Hyper = gpuopt.bounded(1.0, 0)

    slots = ("low", "high")

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> New:
        low, high = xp.minimum(s.low, g), xp.maximum(s.high, g)
        p = xp.clip(p - h.lr * xp.clip(g, -h.most, h.most), low - 3, high + 3)
        return xp.minimum(p, 100), {"low": low, "high": high}


@dataclass(frozen=True)
class Branches(Rule):
    """Comparisons and logic, one in each place where they may stand."""

    lr: Hyper = gpuopt.bounded(0.1, 0)

    slots = ("count", "sum")

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> New:
        small = xp.logical_and(xp.abs(g) <= 1e-3, g != 0)
        large = (xp.square(g) > 4) | xp.logical_not(xp.isfinite(g))
        odd = ((s.count >= 2) & (p < 1)) | (xp.isnan(p) | xp.isinf(p)) & ~(p == g)
        step = xp.where(small, -g / 3, xp.where(large, xp.sign(g) * 0.1, g**2))
        return (
            xp.where(odd, p, p - h.lr * step),
            {"count": xp.where(odd, xp.zeros_like(p), s.count + 1), "sum": xp.where(large, s.sum, s.sum + xp.abs(g))},
        )


@dataclass(frozen=True)
class Exchange(Rule):
    """What goes in comes out again, elsewhere."""

    lr: Hyper = gpuopt.bounded(0.1, 0)

    slots = ("before", "gradient", "unused")

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> New:
        return s.before, {"before": p, "gradient": g, "unused": s.unused}


@dataclass(frozen=True)
class HeavyBall(Rule):
    """Momentum as the difference to the parameter before, by a number that only the first steps need."""

    lr: Hyper = gpuopt.bounded(0.01, 0)
    beta: Hyper = gpuopt.bounded(0.9, 0, 1)

    slots = ("before",)

    def coefficients(self, h: SimpleNamespace) -> Mapping[str, float]:
        return {"rolling": 0.0 if h.t == 1 else h.beta, "scale": max(1.0, 10.0 / h.t) ** 0.5}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> New:
        return p - h.lr * h.scale * g + h.rolling * (p - s.before), {"before": p}


@dataclass(frozen=True)
class Nothing(Rule):
    """The smallest rule: no coefficient, no slot."""

    lr: Hyper = 0.0

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> New:
        return p - g, {}


USER_RULES: list[Rule] = [Lion(), Clipped(), Branches(), Exchange(), HeavyBall(), Nothing()]
