"""What an optimizer is: hyperparameters, state slots, and one elementwise update."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from gpuopt.rules.hyper import LONGEST, Hyper, Hyperparameter, bounded, kind_of, unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    Array: TypeAlias = Any
    """An array of any array API namespace (or, while a rule is traced, a symbol)."""
else:
    Array = Any

__all__ = ["Array", "Hyper", "Rule", "bounded"]

GIVEN = {"t": "the number of the step", "p": "the parameter", "g": "the gradient"}
"""Names that `Rule.update` already has a meaning for."""


class _Signature:
    """Arguments of the constructor, for `inspect.signature`, which would show those of ``__new__``."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        _, *parameters = inspect.signature(owner.__init__).parameters.values()  # type: ignore[misc]
        return inspect.Signature(parameters)


@dataclass(frozen=True)
class Rule:
    """One optimizer, as mathematics.

    A subclass is a frozen dataclass whose fields are its hyperparameters. It names its state ``slots`` (arrays like
    the parameter that start at 0) and defines one elementwise ``update``. That single definition runs on arrays of any
    array API namespace, fused on the CPU and fused on the GPU.

    A subclass may derive from another rule, add hyperparameters and call ``super().update``.

    Raises
    ------
    TypeError
        If a hyperparameter is unknown, or neither a number nor a callable; when the class is made, if a name already
        has a meaning for ``update``; when the class is used, if ``@dataclass(frozen=True)`` was forgotten.
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

    __signature__ = _Signature()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in _annotated(cls):
            if name in GIVEN or name.startswith("_") or name in vars(Rule):
                meaning = GIVEN.get(name, "a name of gpuopt's own")
                raise TypeError(f"{cls.__name__}: a hyperparameter {name!r}, expected another name: that is {meaning}")
        slots = vars(cls).get("slots", ())
        if not isinstance(slots, property | cached_property):
            _check_slots(cls.__name__, slots)

    def __new__(cls, *args: Any, **hyperparameters: Any) -> Self:  # noqa: ARG004 - those by position are the dataclass's
        for base in cls.__mro__[: cls.__mro__.index(Rule)]:
            if issubclass(base, Rule) and "__dataclass_fields__" not in vars(base) and (names := _annotated(base)):
                cure = "put @dataclass(frozen=True) above the class"
                raise TypeError(f"{base.__name__}: {', '.join(names)} would be no hyperparameter; {cure}")
        if not hyperparameters.keys() <= cls.__dataclass_fields__.keys():
            known = cls.__signature__.parameters
            is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
            for name in [] if is_open else hyperparameters.keys() - known:
                raise unknown(cls.__name__, name, known)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in self.hyperparameters():
            object.__setattr__(self, name, self.hyperparameter(name).value)
        _check_slots(self.name, self.slots)

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

    @classmethod
    def hyperparameters(cls) -> tuple[str, ...]:
        """Names of the hyperparameters, flags included, in the order of the constructor."""
        return tuple(f.name for f in dataclasses.fields(cls))

    def hyperparameter(self, name: str) -> Hyperparameter:
        """A hyperparameter with what is allowed for it."""
        return Hyperparameter(
            f"{self.name}: {name}", getattr(self, name), kind_of(type(self).__dataclass_fields__[name])
        )

    def at(self, step: int) -> dict[str, float]:
        """All the scalars that ``update`` sees at a step (steps count from 0).

        Raises
        ------
        TypeError, ValueError
            If a schedule fails or leaves the range of its hyperparameter, or the step is not an integer from 0 to
            2**53 - 1.

        Examples
        --------
        >>> import gpuopt
        >>> gpuopt.SGD(lr=lambda step: 1 / (1 + step)).at(3)["lr"]
        0.25

        """
        if not (type(step) is int and 0 <= step < LONGEST):
            step = self._checked_step(step)
        h = self._numbers.copy()
        for name, hyperparameter in self._schedules:
            h[name] = hyperparameter.at(step)
        h["t"] = step + 1
        if type(self).coefficients is not Rule.coefficients:
            h.update(self._checked_coefficients(h, step))
        return h

    @cached_property
    def _numbers(self) -> dict[str, Any]:
        return {h: getattr(self, h) for h in self.hyperparameters() if not self.hyperparameter(h).is_schedule}

    @cached_property
    def _schedules(self) -> list[tuple[str, Hyperparameter]]:
        every = ((name, self.hyperparameter(name)) for name in self.hyperparameters())
        return [(name, hyperparameter) for name, hyperparameter in every if hyperparameter.is_schedule]

    def _checked_step(self, step: Any) -> int:
        try:
            number = operator.index(step)
        except TypeError:
            raise TypeError(f"{self.name}: step {step!r:.40}, expected an integer") from None
        if not 0 <= number < LONGEST:
            shown = number if number.bit_length() < 100 else f"of {number.bit_length():,} bits"
            raise ValueError(f"{self.name}: step {shown}, expected an integer from 0 to 2**53 - 1")
        return number

    def _checked_coefficients(self, h: dict[str, Any], step: int) -> Mapping[str, float]:
        where = f"{self.name}: coefficients at step {step}"
        try:
            found: Mapping[str, Any] = self.coefficients(SimpleNamespace(**h))
        except ArithmeticError as error:
            raise ValueError(f"{where}: {type(error).__name__}: {error}; expected numbers") from error
        for name, value in found.items():
            if name in GIVEN or name.startswith("_"):
                meaning = GIVEN.get(name, "a name of gpuopt's own")
                raise TypeError(f"{where}: {name!r}, expected another name: that is {meaning}")
            if type(value) is not float and not isinstance(value, Real):
                raise TypeError(f"{where}: {name}: got {value!r:.80} ({type(value).__name__}), expected a number")
        return found


def _annotated(cls: type) -> list[str]:
    """Names that a class annotates itself, which makes them fields of a dataclass."""
    if sys.version_info >= (3, 14):
        import annotationlib

        own = annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    else:
        own = vars(cls).get("__annotations__", {})
    no_fields = "ClassVar", "KW_ONLY"
    return [name for name, annotation in own.items() if not any(word in str(annotation) for word in no_fields)]


def _check_slots(rule: str, slots: Any) -> None:
    expected = 'a tuple of names, such as ("m", "v")'
    if isinstance(slots, str) or not isinstance(slots, Iterable) or not all(isinstance(name, str) for name in slots):
        raise TypeError(f"{rule}: slots = {slots!r:.80}, expected {expected}")
    for name in slots:
        if name in GIVEN or name.startswith("_") or not name.isidentifier():
            meaning = f": that is {GIVEN[name]}" if name in GIVEN else ""
            raise TypeError(f"{rule}: a slot {name!r}, expected another name{meaning}")
    if len({*slots}) < len([*slots]):
        raise TypeError(f"{rule}: slots = {slots!r:.80}, expected each name once")
