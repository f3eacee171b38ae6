"""Elementwise changes of the gradient, before the rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.transforms.base import Array, Hyper, Transform, bounded


@dataclass(frozen=True)
class Maximize(Transform):
    """Gradient ascent: ``g = -g``. Put it before `L2` and `WeightDecay`, which should keep their direction.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.Maximize(), gpuopt.SGD(lr=1.0))).step(np.array([0.5, 0.5]))
    >>> w
    array([1.5, 2.5])

    """

    def before(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.before`."""
        return p, -g, {}


@dataclass(frozen=True)
class ClipValue(Transform):
    """Clip each element of the gradient to ``[-limit, limit]``, both components of a complex one; a NaN stays.

    Parameters
    ----------
    limit
        Largest absolute value, at least 0.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([0.0, 0.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.ClipValue(1.0), gpuopt.SGD(lr=1.0))).step(np.array([0.5, -3.0]))
    >>> w
    array([-0.5,  1. ])

    """

    limit: Hyper = bounded(1.0, 0)

    components = True

    def before(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.before`."""
        return p, xp.where(g > h.limit, h.limit, xp.where(g < -h.limit, -h.limit, g)), {}
