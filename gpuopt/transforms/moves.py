"""Changes of the move that a rule has made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpuopt.rules.hyper import Arrays
from gpuopt.rules.slots import Slot, given, like
from gpuopt.transforms.base import Array, Transform

if TYPE_CHECKING:
    from types import SimpleNamespace


@dataclass(frozen=True)
class Cautious(Transform):
    """Cautious updates (Liang et al. 2024, arXiv:2411.16085): elements do not move along their gradient, only against it.

    The two components of a complex number are treated separately.

    ``mask = (p_new - p)*g < 0;  p += (p_new - p) * mask / max(mean(mask), 0.001)``

    Parameters
    ----------
    rescale
        Whether to divide the moves of a leaf by the fraction of its elements that move, as in the paper.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.Cautious(), gpuopt.SGD(lr=1.0))).step(np.array([0.5, 0.5]))
    >>> w
    array([0.5, 1.5])

    """

    rescale: bool = True

    components = True

    def after(self, xp: Any, old: Array, new: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.after`."""
        move = new - old
        mask = xp.where(xp.sign(move) * xp.sign(g) < 0, xp.ones_like(g), xp.zeros_like(g))
        if not self.rescale:
            return old + move * mask, {}
        mean = xp.sum(mask) / xp.sum(xp.ones_like(g))
        return old + 1 / xp.where(mean > 1e-3, mean, 1e-3) * (move * mask), {}


@dataclass(frozen=True)
class Scale(Transform):
    """Multiply the move of each element by a factor: ``p += factor*(p_new - p)``.

    Parameters
    ----------
    factor
        Arrays: one like the leaf, or a tree like the parameters. They become a part of the state.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.SGD(lr=1.0), gpuopt.Scale(np.array([1.0, 0.5])))).step(np.array([1.0, 1.0]))
    >>> w
    array([0. , 1.5])

    """

    factor: Any = field(metadata={"kind": Arrays()})

    @property
    def slots(self) -> dict[str, Slot]:
        """The factors."""
        return {"factor": given(self.factor)}

    def after(self, xp: Any, old: Array, new: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.after`."""
        return old + (new - old) * s.factor, {"factor": s.factor}


@dataclass(frozen=True)
class Accelerate(Transform):
    """Nesterov's momentum for a proximal step, as in FISTA (Beck & Teboulle 2009, SIAM J. Imaging Sci. 2:183).

    ::

        t_next = (1 + sqrt(1 + 4*t*t)) / 2
        p = x_new + (t - 1) / t_next * (x_new - x);  x = x_new

    where ``x_new`` is the parameter after the rule and the transforms before this one. After plain `SGD` and a constraint or
    `SoftThreshold` it is FISTA. Gradients are computed at the parameters; `Optimizer.evaluation` gives ``x``, which meets the
    constraint.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.SGD(lr=0.5), gpuopt.Accelerate())).step(np.array([1.0, 1.0]))
    >>> w
    array([0.5, 1.5])

    """

    slots = {"x": like("p")}
    carried = {"theta": 1.0}

    def coefficients(self, h: SimpleNamespace) -> dict[str, float]:
        """The next ``t`` (here ``theta``, since ``h.t`` counts steps), and the factor of the momentum."""
        theta = (1 + (1 + 4 * h.theta * h.theta) ** 0.5) / 2
        return {"theta": theta, "momentum": (h.theta - 1) / theta}

    def after(self, xp: Any, old: Array, new: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.after`."""
        return new + h.momentum * (new - s.x), {"x": new}

    def evaluation(self, xp: Any, p: Array, s: Any, h: Any) -> Array:  # noqa: ARG002
        """Return the point before the momentum."""
        return s.x
