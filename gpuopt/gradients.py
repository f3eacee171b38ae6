"""Changes of the gradients within the step: division by the scale of the loss, and clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from gpuopt.engines.norms import DynamicScale, Guard
from gpuopt.engines.program.program import SCALE
from gpuopt.rules.base import Array, Rule
from gpuopt.rules.hyper import Hyper, Hyperparameter, Number
from gpuopt.rules.lifted import applied
from gpuopt.rules.pairs import apart, together
from gpuopt.suggest import called_rightly

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuopt.rules.slots import Part, Slots

By: TypeAlias = Literal["value", "norm", "global_norm"]


@dataclass(frozen=True)
class Clip:
    """How gradients are clipped; made by `clip_by_value`, `clip_by_norm` and `clip_by_global_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.zeros(2)
    >>> gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), clip=gpuopt.clip_by_value(0.5)).step(np.array([0.25, 3.0]))
    >>> w
    array([-0.25, -0.5 ])

    """

    by: By
    limit: Hyperparameter

    @classmethod
    def to(cls, by: By, limit: Hyper) -> Clip:
        """Check the limit."""
        return cls(by, Hyperparameter(f"clip_by_{by}: limit", limit, Number(0)))

    def __repr__(self) -> str:
        return f"clip_by_{self.by}({self.limit.value!r})"


@called_rightly("clip_by_value")
def clip_by_value(limit: Hyper) -> Clip:
    """Clip each element of the gradients to ``[-limit, limit]``, both components of a complex one.

    Parameters
    ----------
    limit
        At least 0; a number or a schedule.

    Raises
    ------
    TypeError, ValueError
        If the limit is not allowed.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.zeros(2)
    >>> opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), clip=gpuopt.clip_by_value(0.5))
    >>> opt.step(np.array([0.25, -8.0]))
    >>> w
    array([-0.25,  0.5 ])

    """
    return Clip.to("value", limit)


@called_rightly("clip_by_norm")
def clip_by_norm(limit: Hyper) -> Clip:
    """Scale the gradient of a leaf down to the Euclidean norm ``limit``, if its own is larger.

    Parameters, errors: as `clip_by_value`. The norm neither overflows nor underflows, unless it is beyond the largest
    float64: then, as where the factor is below the smallest number of the leaf's dtype, the gradient becomes 0.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.zeros(2)
    >>> gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), clip=gpuopt.clip_by_norm(1.0)).step(np.array([3.0, 4.0]))
    >>> w
    array([-0.6, -0.8])

    """
    return Clip.to("norm", limit)


@called_rightly("clip_by_global_norm")
def clip_by_global_norm(limit: Hyper) -> Clip:
    """Scale all gradients down by one factor, so that their Euclidean norm together is at most ``limit``.

    (Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063.) Parameters, errors: as `clip_by_value`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.zeros(2)
    >>> opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=1.0), clip=gpuopt.clip_by_global_norm(1.0))
    >>> opt.step(np.array([3.0, -4.0]))
    >>> w, opt.gradient_norm
    (array([-0.6,  0.8]), 5.0)

    """
    return Clip.to("global_norm", limit)


@dataclass(frozen=True)
class Clipped(Rule):
    """A rule whose gradients are divided by the scale of the loss and clipped before its update."""

    rule: Rule
    clip: Clip | None
    scale: float | DynamicScale | None = None

    def __post_init__(self) -> None:
        """Skip the checks of `Formula`: rule and clip have been checked."""

    @property
    def name(self) -> str:
        """Name of the wrapped rule."""
        return self.rule.name

    @property
    def slots(self) -> Slots:
        """Slots of the wrapped rule."""
        return self.rule.slots

    @property
    def carried(self) -> Mapping[str, float]:
        """Carried numbers of the wrapped rule."""
        return self.rule.carried

    def part(self, slot: str) -> Part:
        """See :meth:`Rule.part`."""
        return self.rule.part(slot)

    def hyperparameter(self, name: str) -> Hyperparameter:
        """A hyperparameter of the wrapped rule."""
        return self.rule.hyperparameter(name)

    def at(self, step: int, given: Mapping[str, float] | None = None) -> dict[str, float]:
        """Numbers of the wrapped rule, with the limit, the scale of the loss, and a place for the factor of each leaf."""
        h = self.rule.at(step, given) if given else self.rule.at(step)
        if isinstance(self.scale, float):
            h["_loss_scale"] = self.scale
        if isinstance(self.scale, DynamicScale) or (self.clip and self.clip.by != "value"):
            h[SCALE] = 1.0
        if self.clip and self.clip.by == "value":
            h["_limit"] = self.clip.limit.at(step)
        return h

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See :meth:`Rule.update`."""
        if isinstance(self.scale, float):
            g = g / h._loss_scale
        if hasattr(h, SCALE):
            g = g * getattr(h, SCALE)
        if self.clip and self.clip.by == "value":
            g = apart(g)
            g = together(xp.where(g > h._limit, h._limit, xp.where(g < -h._limit, -h._limit, g)))
        return applied(self.rule, self.rule.update, xp, p, g, s, h)  # type: ignore[no-any-return]

    def evaluation(self, xp: Any, p: Array, s: Any, h: Any) -> Array:
        """See :meth:`Rule.evaluation`."""
        return applied(self.rule, self.rule.evaluation, xp, p, s, h)


def clipped(rules: list[Rule], clip: Clip | None, scale: float | DynamicScale | None = None) -> list[Rule]:
    """Return the rules, wrapped in `Clipped` if there is something to do."""
    return rules if clip is None and scale is None else [Clipped(rule, clip, scale) for rule in rules]


def guard_of(clip: Clip | None, scale: float | DynamicScale | None = None, *, skip: bool) -> Guard | None:
    """Return the check of the gradients that a step needs: norms for clipping, and with ``skip`` their finiteness."""
    by = None if clip is None or clip.by == "value" else clip.by
    dynamic = scale if isinstance(scale, DynamicScale) else None
    return Guard(by, skip or dynamic is not None, dynamic) if by or skip or dynamic else None
