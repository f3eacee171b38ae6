"""Changes of the gradient by norms and means, before the rule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from gpuopt.rules.hyper import End
from gpuopt.transforms.base import Array, Hyper, Transform, bounded


def _scaled(xp: Any, g: Array, norm: Any, limit: Any) -> Array:
    """Return the gradient, scaled down to the norm ``limit`` if its own ``norm`` is larger."""
    return xp.where(norm > limit, limit / norm, 1) * g


@dataclass(frozen=True)
class ClipNorm(Transform):
    """Scale the gradient of each leaf down to the Euclidean norm ``limit``, if its own is larger.

    Parameters
    ----------
    limit
        Largest norm, at least 0.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([0.0, 0.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.ClipNorm(1.0), gpuopt.SGD(lr=1.0))).step(np.array([3.0, -4.0]))
    >>> w
    array([-0.6,  0.8])

    """

    limit: Hyper = bounded(1.0, 0)

    def before(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.before`."""
        return p, _scaled(xp, g, xp.norm(g), h.limit), {}


@dataclass(frozen=True)
class ClipGlobalNorm(Transform):
    """Scale the gradients of all leaves of the group down by one factor, to the Euclidean norm ``limit`` together.

    (Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063.) In a chain it clips the leaves of that chain's group; the
    optimizer's own ``clip=gpuopt.clip_by_global_norm(...)`` clips all leaves of the optimizer.

    Parameters
    ----------
    limit
        Largest norm, at least 0.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([0.0, 0.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.ClipGlobalNorm(1.0), gpuopt.SGD(lr=1.0))).step(np.array([3.0, -4.0]))
    >>> w
    array([-0.6,  0.8])

    """

    limit: Hyper = bounded(1.0, 0)

    def before(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.before`."""
        return p, _scaled(xp, g, xp.total_norm(g), h.limit), {}


@dataclass(frozen=True)
class AdaptiveClip(Transform):
    """Adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171): a leaf's norm bounds that of its gradient.

    ``limit = clipping*max(norm(p), eps);  g *= min(1, limit / norm(g))``

    Parameters
    ----------
    clipping
        Largest norm of the gradient as a fraction of the parameter's norm, at least 0.
    eps
        Least value of the parameter's norm, at least 0, for parameters that start at 0.

    Warnings
    --------
    Norms are of the whole leaf. The paper uses the norms of each row of a matrix and each filter of a convolution.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([3.0, 4.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.AdaptiveClip(0.5), gpuopt.SGD(lr=1.0))).step(np.array([30.0, 40.0]))
    >>> w
    array([1.5, 2. ])

    """

    clipping: Hyper = bounded(0.01, 0)
    eps: Hyper = bounded(1e-3, 0)

    def before(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.before`."""
        own = xp.norm(p)
        return p, _scaled(xp, g, xp.norm(g), h.clipping * xp.where(own > h.eps, own, h.eps)), {}


@dataclass(frozen=True)
class Centralize(Transform):
    """Gradient centralization (Yong et al. 2020, arXiv:2004.01461): ``g -= mean(g)``.

    Parameters
    ----------
    outputs
        Axis of the outputs, each with a mean of its own as in the paper: 0 for weights ``(out, in)`` like PyTorch's, -1 for
        ``(in, out)`` like Keras'. Leaves with fewer than two axes are left alone. None: one mean of the whole leaf, as in
        Optax.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> w = np.array([[0.0, 0.0]])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.Centralize(), gpuopt.SGD(lr=1.0))).step(np.array([[1.0, 2.0]]))
    >>> w
    array([[ 0.5, -0.5]])

    """

    outputs: int | None = field(default=None, metadata={"kind": End()})

    def before(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.before`."""
        if self.outputs is None:
            return p, -xp.sum(g) / xp.sum(xp.ones_like(xp.real(g))) + g, {}
        n = g.ndim
        if n < 2:
            return p, g, {}
        axes = tuple(axis for axis in range(n) if axis != self.outputs % n)
        return p, g - xp.sum(g, axis=axes, keepdims=True) / math.prod(g.shape[axis] for axis in axes), {}
