"""Projections and proximal steps, which are made after the rule's update."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpuopt.cached import cached_property
from gpuopt.rules.hyper import Arrays, is_traced
from gpuopt.rules.slots import Slot, given
from gpuopt.transforms.base import Array, Hyper, Transform, bounded

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class NonNegative(Transform):
    """Projection onto the nonnegative numbers: ``p = max(p, 0)``; a NaN stays.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.SGD(lr=1.0), gpuopt.NonNegative())).step(np.array([3.0, 1.0]))
    >>> w
    array([0., 1.])

    """

    projects = True
    real_only = "Magnitude(low, high) bounds the modulus of complex ones"

    def after(self, xp: Any, old: Array, new: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.after`."""
        return xp.maximum(new, 0), {}


@dataclass(frozen=True)
class _Bounds(Transform):
    """Base class of constraints between ``low`` and ``high``: numbers, schedules or arrays of the caller."""

    low: Any = field(default=0.0, metadata={"kind": Arrays(or_number=True)})
    high: Any = field(default=1.0, metadata={"kind": Arrays(or_number=True)})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_order(self.low, self.high)

    def at(self, step: int, given: Mapping[str, float] | None = None) -> dict[str, float]:
        """See `Rule.at`. Raises ValueError if schedules have crossed at this step."""
        h = super().at(step, given)
        if self._schedules and not is_traced(step):
            low, high = (h.get(name, end) for name, end in self._ends.items())
            self._check_order(low, high, f" at step {step}")
        return h

    @cached_property
    def _ends(self) -> dict[str, Any]:
        """Largest ``low`` and smallest ``high`` where they are arrays, to compare a schedule with; else None."""
        bounds = {"low": (self.low, "max"), "high": (self.high, "min")}
        return {name: getattr(x, end)() if getattr(x, "size", 0) else None for name, (x, end) in bounds.items()}

    def _check_order(self, low: Any, high: Any, when: str = "") -> None:
        if not _is_ordered(low, high):
            raise ValueError(f"{self.name}: low {low!r:.40}, high {high!r:.40}{when}, expected low <= high")


@dataclass(frozen=True)
class Box(_Bounds):
    """Projection onto a box: ``p = min(max(p, low), high)``; a NaN stays.

    Parameters
    ----------
    low, high
        Numbers (or schedules), or arrays: one like the leaf, or a tree like the parameters. Arrays become a part of the
        state.

    Raises
    ------
    ValueError
        If ``low`` is above ``high``; of schedules, at the step where they cross.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.SGD(lr=1.0), gpuopt.Box(0.0, 1.5))).step(np.array([3.0, 0.0]))
    >>> w
    array([0. , 1.5])

    """

    projects = True
    real_only = "Magnitude(low, high) bounds the modulus of complex ones"

    @property
    def slots(self) -> dict[str, Slot]:
        """The bounds that are arrays, as a part of the state."""
        bounds = {"low": self.low, "high": self.high}
        return {name: given(x) for name, x in bounds.items() if not isinstance(x, float) and not callable(x)}

    def after(self, xp: Any, old: Array, new: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.after`."""
        kept = {name: getattr(s, name) for name in self.slots}
        low, high = kept.get("low", getattr(h, "low", None)), kept.get("high", getattr(h, "high", None))
        return xp.minimum(xp.maximum(new, low), high), kept


def _is_ordered(low: Any, high: Any) -> bool:
    """Whether ``low <= high`` everywhere; True where it cannot be compared yet (schedules, trees, other shapes)."""
    shapes = {tuple(x.shape) for x in (low, high) if getattr(x, "shape", ())}
    if len(shapes) > 1 or not all(isinstance(x, float) or hasattr(x, "shape") for x in (low, high)):
        return True
    ordered = low <= high
    return bool(ordered.all() if hasattr(ordered, "all") else ordered)


@dataclass(frozen=True)
class Magnitude(_Bounds):
    """Projection onto the numbers whose modulus is from ``low`` to ``high``: the phase, or the sign, stays.

    0 becomes ``low``; a NaN stays. ``Magnitude(high=1.0)`` is for a transmission, ``Magnitude(1.0, 1.0)`` for a pure phase
    object.

    Parameters
    ----------
    low, high
        Numbers or schedules, at least 0.

    Raises
    ------
    ValueError
        If ``low`` is above ``high``; of schedules, at the step where they cross.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([0.3 + 0.4j, 3.0 - 4.0j])
    >>> opt = gpuopt.Optimizer(w, gpuopt.chain(gpuopt.SGD(lr=1.0), gpuopt.Magnitude(high=1.0)))
    >>> opt.step(np.zeros(2, complex))
    >>> w
    array([0.3+0.4j, 0.6-0.8j])

    """

    low: Hyper = bounded(0.0, 0)
    high: Hyper = bounded(1.0, 0)

    projects = True

    def after(self, xp: Any, old: Array, new: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.after`."""
        size = xp.abs(new)
        bound = xp.minimum(xp.maximum(size, h.low), h.high)
        unit = xp.where(size > 0, new / xp.where(size > 0, size, 1), xp.ones_like(new))
        return xp.where(size == bound, new, unit * bound), {}


@dataclass(frozen=True)
class SoftThreshold(Transform):
    """The proximal step of an L1 penalty: ``p = sign(p) * max(|p| - lr*strength, 0)``, with ``sign(z) = z/|z|``.

    After `SGD` this is ISTA (Daubechies, Defrise & De Mol 2004), with `Accelerate` behind it FISTA.

    Parameters
    ----------
    strength
        Factor of the penalty ``strength * sum(|p|)``, at least 0. The threshold is the rule's learning rate times ``strength``.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.SGD(lr=1.0), gpuopt.SoftThreshold(0.3))).step(np.array([0.9, 0.0]))
    >>> w
    array([0. , 1.7])

    """

    strength: Hyper = bounded(1e-3, 0)

    def after(self, xp: Any, old: Array, new: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.after`."""
        return xp.sign(new) * xp.maximum(xp.abs(new) - h.lr * h.strength, 0), {}
