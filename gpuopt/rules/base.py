"""What an optimizer is: hyperparameters, state slots, and one elementwise update."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Hyper: TypeAlias = float | Callable[[int], float]
    """A hyperparameter: a number, or a schedule ``step -> number``."""
    Array: TypeAlias = Any
    """An array of any array API namespace (or, while a rule is traced, a symbol)."""
else:
    Hyper = Array = Any


def bounded(default: float, low: float = -math.inf, high: float = math.inf) -> Any:
    """Declare a hyperparameter that must lie in ``[low, high)``.

    Parameters
    ----------
    default
        The value when none is given.
    low, high
        The range; ``high`` itself is excluded, so the default ``inf`` means "finite".

    """
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class Rule:
    """One optimizer, as mathematics.

    A subclass is a frozen dataclass whose fields are its hyperparameters. It names its state ``slots`` (arrays like
    the parameter that start at 0) and defines one elementwise ``update``. That single definition runs on arrays of any
    array API namespace, fused on the CPU and fused on the GPU.

    Raises
    ------
    TypeError
        If a hyperparameter is neither a number nor a callable.
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

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state arrays; a subclass may simply say ``slots = ("m", "v")``."""
        return ()

    @property
    def name(self) -> str:
        """What messages and checkpoints call it."""
        return type(self).__name__

    def coefficients(self, h: SimpleNamespace) -> Mapping[str, float]:  # noqa: ARG002 - for subclasses
        """More scalars for ``update``, computed on the host once a step.

        Only needed for what plain arithmetic on ``h`` inside ``update`` cannot say, such as a branch on ``h.t``.
        """
        return {}

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """Return the new parameter and the new slots.

        Parameters
        ----------
        xp
            The array API namespace of the arrays. Control flow on values is ``xp.where``.
        p, g
            Parameter and gradient, of one shape and dtype.
        s
            The slots, by attribute: ``s.m``.
        h
            The hyperparameters of this step as numbers, ``h.t = step + 1``, and what ``coefficients`` returned.
            Arithmetic on these alone is done on the host in float64 and rounded once to the arrays' dtype.

        """
        raise NotImplementedError(f"{self.name} defines no update")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, self._validated(f.name, getattr(self, f.name)))

    @classmethod
    def hyperparameters(cls) -> tuple[str, ...]:
        """Names of the hyperparameters, flags included, in the order of the constructor."""
        return tuple(f.name for f in dataclasses.fields(cls))

    def at(self, step: int) -> dict[str, float]:
        """All the scalars that ``update`` sees at a step (steps count from 0).

        Raises
        ------
        ValueError
            If a schedule leaves the range of its hyperparameter.

        Examples
        --------
        >>> import gpuopt
        >>> gpuopt.SGD(lr=lambda step: 1 / (1 + step)).at(3)["lr"]
        0.25

        """
        h = self._numbers.copy()
        for name, schedule, low, high in self._schedules:
            value = schedule(step)
            fits = type(value) is float and low <= value < high and value != -math.inf  # the common case, at every step
            h[name] = value if fits else self._validated(name, value, step)
        h["t"] = step + 1
        if type(self).coefficients is not Rule.coefficients:
            h.update(self.coefficients(SimpleNamespace(**h)))
        return h

    @cached_property
    def _numbers(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in self.hyperparameters()}
        return {name: value for name, value in given.items() if not callable(value)}

    @cached_property
    def _schedules(self) -> list[tuple[str, Callable[[int], float], float, float]]:
        """With the range of each hyperparameter that has one."""
        given = {name: getattr(self, name) for name in self.hyperparameters()}
        return [(name, value, *self._range(name)) for name, value in given.items() if callable(value)]

    @classmethod
    def _range(cls, name: str) -> tuple[float, float]:
        declared = cls.__dataclass_fields__[name].metadata
        return declared.get("low", -math.inf), declared.get("high", math.inf)

    def _validated(self, name: str, value: Any, step: int | None = None) -> Any:
        """Check a value given for a hyperparameter, or what its schedule gave at ``step``; a number becomes a float."""
        low, high = self._range(name)
        is_flag = type(self).__dataclass_fields__[name].type in ("bool", bool)
        where = f"{self.name}: {name}" + ("" if step is None else f" at step {step}, by its schedule")
        if is_flag:
            if isinstance(value, bool):
                return value
            raise TypeError(f"{where}: got {value!r}, expected True or False")
        if step is None and callable(value):
            return value
        if isinstance(value, bool) or not isinstance(value, Real):
            given = f"{value!r} ({type(value).__name__})"
            raise TypeError(f"{where}: got {given}, expected a number" + (" or a schedule" if step is None else ""))
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not (math.isfinite(number) and low <= number < high):
            opening = "(" if low == -math.inf else "["
            raise ValueError(f"{where}: got {number}, expected a number in {opening}{low}, {high})")
        return number
