"""What is done to a gradient before the rule sees it, element by element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpuopt.transforms.base import Array, Hyper, Transform, bounded


@dataclass(frozen=True)
class Maximize(Transform):
    """Go uphill: ``g = -g``. Where a gradient also has a penalty or a decay, `Maximize` stands first."""

    def before(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.before`."""
        return p, -g, {}


@dataclass(frozen=True)
class ClipValue(Transform):
    """Cut every element of the gradient to ``[-limit, limit]``, of a complex one both components; a NaN stays.

    Parameters
    ----------
    limit
        At least 0.

    """

    limit: Hyper = bounded(1.0, 0)

    components = True

    def before(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, Array, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Transform.before`."""
        return p, xp.where(g > h.limit, h.limit, xp.where(g < -h.limit, -h.limit, g)), {}
