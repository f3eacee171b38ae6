"""The base class of all transforms, which are put around a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuopt.rules.base import Array, Hyper, bounded
from gpuopt.rules.formula import Formula

if TYPE_CHECKING:
    from typing import TypeAlias

    New: TypeAlias = dict[str, Any]

__all__ = ["Array", "Hyper", "Transform", "bounded"]


@dataclass(frozen=True)
class Transform(Formula):
    """Base class of a transform: a formula that runs before or after a rule's update in a `chain`.

    A subclass is a frozen dataclass whose fields are its hyperparameters, with ``slots``, ``carried`` and ``coefficients``
    as in a `Rule`. It defines `before`, `after` or both; together they return every slot. ``h.lr`` is the rule's
    learning rate, unless the transform has a hyperparameter of that name.

    Examples
    --------
    Weight decay that uses the parameter from before the step:

    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> import gpuopt
    >>> @dataclass(frozen=True)
    ... class Shrink(gpuopt.Transform):
    ...     factor: gpuopt.Hyper = gpuopt.bounded(0.5, 0, 1)
    ...
    ...     def after(self, xp, old, new, g, s, h):
    ...         return new - h.lr * h.factor * old, {}
    >>> w = np.array([1.0, 2.0])
    >>> gpuopt.Optimizer(w, gpuopt.chain(gpuopt.SGD(lr=0.1), Shrink())).step(np.zeros(2))
    >>> w
    array([0.95, 1.9 ])

    """

    projects = False
    """Whether `after` is a projection, which looks at ``new`` alone: what is evaluated, such as an average, is projected, too."""

    def before(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, Array, New]:  # noqa: ARG002
        """Return the parameter and the gradient for the rule, and the new slots.

        Parameters
        ----------
        xp, p, g, s, h
            As for `Rule.update`: ``s`` and ``h`` have the transform's own slots and hyperparameters.

        """
        return p, g, {}

    def after(self, xp: Any, old: Array, new: Array, g: Array, s: Any, h: Any) -> tuple[Array, New]:  # noqa: ARG002
        """Return the new parameter and the new slots.

        Parameters
        ----------
        old, new
            The parameter before the step, and after the rule and the transforms before this one.
        g
            The gradient that the rule was given.
        xp, s, h
            As for `before`; ``s`` has the new slots that `before` returned.

        """
        return new, {}

    @property
    def evaluates(self) -> bool:
        """Whether `evaluation` gives something else than what it gets."""
        return type(self).evaluation is not Transform.evaluation

    def evaluation(self, xp: Any, p: Array, s: Any, h: Any) -> Array:  # noqa: ARG002
        """Return the parameter to evaluate with, in place of ``p``; see `Rule.evaluation`."""
        return p
