"""The base class of all rules, which are the optimizers."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from gpuopt.rules.formula import Formula
from gpuopt.rules.hyper import Hyper, bounded

if TYPE_CHECKING:
    from collections.abc import Iterable

    Array: TypeAlias = Any
    """An array of any array API namespace (or, while a rule is traced, a symbol)."""
else:
    Array = Any

__all__ = ["Array", "Hyper", "Rule", "bounded", "classes_in"]

T = TypeVar("T")


@dataclass(frozen=True)
class Rule(Formula):
    """Base class of an optimizer: its hyperparameters, its state, and the formula of one step.

    A subclass is a frozen dataclass whose fields are its hyperparameters. It names its state, the ``slots`` (arrays like
    the parameter that start at 0), and defines one elementwise ``update``. The same ``update`` runs on arrays of any
    array API namespace and is compiled for the CPU and the GPU.

    A subclass may derive from another rule, add hyperparameters and call ``super().update``.

    Raises
    ------
    TypeError
        If a hyperparameter is unknown, or neither a number nor a callable; if the subclass uses a name that ``update``
        already has a meaning for; if it lacks ``@dataclass(frozen=True)``.
    ValueError
        If a number is outside of its declared range.

    Examples
    --------
    A new optimizer, sign descent with momentum (Lion, Chen et al. 2023, arXiv:2302.06675):

    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> import gpuopt
    >>> @dataclass(frozen=True)
    ... class Lion(gpuopt.Rule):
    ...     lr: gpuopt.Hyper = gpuopt.bounded(1e-4, 0)
    ...     beta1: gpuopt.Hyper = gpuopt.bounded(0.9, 0, 1)
    ...     beta2: gpuopt.Hyper = gpuopt.bounded(0.99, 0, 1)
    ...
    ...     slots = ("m",)
    ...
    ...     def update(self, xp, p, g, s, h):
    ...         direction = xp.sign(h.beta1 * s.m + (1 - h.beta1) * g)
    ...         return p - h.lr * direction, {"m": h.beta2 * s.m + (1 - h.beta2) * g}
    >>> w = np.array([1.0, -1.0])
    >>> gpuopt.Optimizer(w, Lion(lr=0.1)).step(np.array([3.0, -0.2]))
    >>> w
    array([ 0.9, -0.9])

    """

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """Return the new parameter and the new slots.

        Parameters
        ----------
        xp
            The array API namespace of the arrays. Control flow on values is ``xp.where``.
        p, g
            Parameter and gradient, of one shape and dtype. Formulas of ``+ - * / sqrt``, comparisons and sums have the same
            bits in every engine and on every device. Operations on whole arrays, such as matrix products, are
            ``xp.whole(f, u)``, which has the bits of the arrays' library.
        s
            The slots, by attribute: ``s.m``.
        h
            The hyperparameters of this step as numbers, ``h.t = step + 1``, and the numbers from ``coefficients``.
            Arithmetic on these alone is done on the host in float64 and rounded once to the arrays' dtype.

        Returns
        -------
        tuple
            The new parameter, and a dict with the new value of each slot.

        """
        raise NotImplementedError(f"{self.name} defines no update")

    @property
    def evaluates(self) -> bool:
        """Whether `evaluation` gives something else than the parameter."""
        return type(self).evaluation is not Rule.evaluation

    def evaluation(self, xp: Any, p: Array, s: Any, h: Any) -> Array:  # noqa: ARG002 - for subclasses
        """Return the parameter to evaluate the model with: the average, if the rule keeps one, else ``p``.

        Parameters
        ----------
        xp, p, s, h
            As for `update`, but for totals over all leaves, which there are none of; ``h`` is that of the last step.

        """
        return p


def classes_in(folders: Iterable[str], package: str, base: type[T]) -> dict[str, type[T]]:
    """Return the public classes that the files of a package define and that derive from a base class, by name.

    Parameters
    ----------
    folders, package
        The package's ``__path__`` and ``__name__``.
    base
        The base class, which is left out.

    """
    files = [file.name for file in pkgutil.iter_modules(folders, f"{package}.")]
    modules = [importlib.import_module(file) for file in files if not file.rpartition(".")[2].startswith("_")]
    return {
        name: thing
        for module in modules
        for name, thing in vars(module).items()
        if isinstance(thing, type) and issubclass(thing, base) and thing is not base
        if thing.__module__ == module.__name__ and not name.startswith("_")
    }
