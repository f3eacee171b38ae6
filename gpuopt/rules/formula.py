"""The base class of rules and transforms: hyperparameters, slots, and numbers of the host."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real as RealNumber
from types import SimpleNamespace
from typing import Any, NoReturn, Self

from gpuopt.arrays import are_equal
from gpuopt.cached import cached_property
from gpuopt.rules.hyper import (
    LONGEST,
    Hyperparameter,
    as_float,
    hint_for_parameters,
    is_traced,
    is_traced_integer,
    kind_of,
    unknown,
    untraceable,
)
from gpuopt.rules.slots import Like, Part, Slot, Slots, is_number, is_real, starts
from gpuopt.suggest import bound, did_you_mean, listed

GIVEN = {"t": "the number of the step", "p": "the parameter", "g": "the gradient"}
"""Names with a fixed meaning in `Rule.update`, and that meaning."""


class _Signature:
    """Signature of ``__init__`` for `inspect.signature`, which would show that of ``__new__`` otherwise."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        _, *parameters = inspect.signature(owner.__init__).parameters.values()  # type: ignore[misc]
        return inspect.Signature(parameters)


@dataclass(frozen=True)
class Formula:  # noqa: PLW1641 - @dataclass makes __hash__
    """Base class of `Rule` and `Transform`: a formula with hyperparameters, slots and numbers of the host."""

    __signature__ = _Signature()

    components = False
    """Whether the real and the imaginary part of a complex number are treated as two independent real numbers.

    A subclass may say ``components = True``, or declare a hyperparameter ``components: bool``.
    """
    real_only = ""
    """Set by formulas that refuse complex numbers: the advice in the error message."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for method in ("__repr__", "__eq__"):  # otherwise @dataclass would replace the inherited ones
            if method not in vars(cls):
                setattr(cls, method, getattr(cls, method))
        for name in _annotated(cls):
            if name == "components":
                continue
            if name in GIVEN or name.startswith("_") or any(name in vars(base) for base in _contracts(cls)):
                meaning = GIVEN.get(name, "a name of gpuopt's own")
                raise TypeError(f"{cls.__name__}: a hyperparameter {name!r}, expected another name: that is {meaning}")
        slots = vars(cls).get("slots", ())
        if not isinstance(slots, property | functools.cached_property):
            _check_slots(cls.__name__, slots)

    def __new__(cls, *args: Any, **hyperparameters: Any) -> Self:
        # Here and not in `__post_init__`: the `__init__` of a dataclass would raise first, without a cure.
        for base in cls.__mro__[: cls.__mro__.index(Formula)]:
            if issubclass(base, Formula) and "__dataclass_fields__" not in vars(base) and (names := _annotated(base)):
                cure = "put @dataclass(frozen=True) above the class"
                raise TypeError(f"{base.__name__}: {', '.join(names)} would be no hyperparameter; {cure}")
        if not hyperparameters.keys() <= cls.__dataclass_fields__.keys():
            known = cls.__signature__.parameters
            is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
            for name in [] if is_open else hyperparameters.keys() - known:
                raise unknown(cls.__name__, name, known)
        if args:
            bound(cls.__name__, cls.__signature__, args, hyperparameters, more=hint_for_parameters(args[0]))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in self.hyperparameters():
            object.__setattr__(self, name, self.hyperparameter(name).value)
        _check_slots(self.name, self.slots)
        _check_starts(self.name, self.slots, self.hyperparameters())
        computed = type(self).coefficients is not Formula.coefficients
        _check_carried(self.name, self.carried, self.hyperparameters(), computed)

    def __repr__(self) -> str:
        """The call that makes this object; keyword-only arguments are left out where they have their defaults."""
        fields = {f.name: f for f in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in self.hyperparameters()}
        shown = {
            name: value for name, value in values.items() if not fields[name].kw_only or value != fields[name].default
        }
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def __eq__(self, other: object) -> bool:
        """Whether another object is of the same class with equal hyperparameters; arrays are equal if all their elements are."""
        if type(other) is not type(self):
            return NotImplemented
        return all(
            are_equal(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self) if f.compare
        )

    @property
    def slots(self) -> Slots:
        """Names of the state arrays, as in ``slots = ("m", "v")``, or a mapping of names to their starts.

        ``{"v": 1.0}`` starts at a number, ``{"z": like("p")}`` as a copy of the parameter, ``{"size": like("lr")}`` at a
        hyperparameter's first value. ``leaf(0.0)`` is one float64 number for each leaf, ``shared(0.0)`` one for all leaves
        of the group, ``rows(0.0)`` and ``columns(0.0)`` are one number for each row and each column of a matrix
        (see `gpuopt.rules.slots`).
        """
        return ()

    def part(self, slot: str) -> Part:
        """Kind of numbers in a slot of a complex leaf: ``"complex"``, ``"real"``, or ``"both"`` components separately."""
        if self.components:
            return "both"
        return "real" if is_real(starts(self.slots)[slot]) else "complex"

    def unfit(self, shape: tuple[int, ...]) -> str:  # noqa: ARG002 - for subclasses
        """Why this formula does not apply to leaves of this shape, and what to do instead; empty if it applies."""
        return ""

    @property
    def carried(self) -> Mapping[str, float]:
        """Numbers that are kept from step to step, with their starts, as in ``carried = {"product": 1.0}``.

        They are float64 numbers on the host and a part of the state. `coefficients` reads the old value as ``h.product``
        and returns the new one under the same name.
        """
        return {}

    @property
    def name(self) -> str:
        """Name in messages and checkpoints."""
        return type(self).__name__

    def coefficients(self, h: SimpleNamespace) -> Mapping[str, float]:  # noqa: ARG002 - for subclasses
        """Further numbers for ``update``, computed on the host once for each step.

        Plain arithmetic on ``h`` belongs in ``update``. This method is for the rest, such as a branch on ``h.t``, and
        for the new values of `carried`.
        """
        return {}

    @classmethod
    def hyperparameters(cls) -> tuple[str, ...]:
        """Names of the hyperparameters, flags included, in the order of the constructor."""
        return tuple(f.name for f in sorted(dataclasses.fields(cls), key=lambda f: bool(f.kw_only)))

    def hyperparameter(self, name: str) -> Hyperparameter:
        """The value of a hyperparameter, together with its name in messages and its allowed values."""
        return Hyperparameter(
            f"{self.name}: {name}", getattr(self, name), kind_of(type(self).__dataclass_fields__[name])
        )

    def at(self, step: int, given: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return all numbers that ``update`` reads from ``h`` at a step (steps count from 0).

        Parameters
        ----------
        step
            Steps taken so far.
        given
            The `carried` numbers of the step before; by default their starts.

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
        if given is not None or self.carried:
            h = {**self.carried, **(given or {}), **h}
        for name, hyperparameter in self._schedules:
            h[name] = hyperparameter.at(step)
        h["t"] = step + 1
        if type(self).coefficients is not Formula.coefficients:
            h.update(self._checked_coefficients(h, step))
        return h

    @cached_property
    def _numbers(self) -> dict[str, Any]:
        every = ((name, self.hyperparameter(name)) for name in self.hyperparameters())
        return {
            name: hyperparameter.value
            for name, hyperparameter in every
            if isinstance(hyperparameter.value, bool | float) and not hyperparameter.is_schedule
        }

    @cached_property
    def _schedules(self) -> list[tuple[str, Hyperparameter]]:
        every = ((name, self.hyperparameter(name)) for name in self.hyperparameters())
        return [(name, hyperparameter) for name, hyperparameter in every if hyperparameter.is_schedule]

    def _checked_step(self, step: Any) -> int:
        try:
            number = operator.index(step)
        except TypeError:
            if is_traced_integer(step):
                return step  # type: ignore[no-any-return]
            raise TypeError(f"{self.name}: step {step!r:.40}, expected an integer") from None
        if not 0 <= number < LONGEST:
            shown = number if number.bit_length() < 100 else f"of {number.bit_length():,} bits"
            raise ValueError(f"{self.name}: step {shown}, expected an integer from 0 to 2**53 - 1")
        return number

    def _checked_coefficients(self, h: dict[str, Any], step: int) -> Mapping[str, float]:
        where = f"{self.name}: coefficients at step {step}"
        try:
            found: Any = self.coefficients(SimpleNamespace(**h))
        except ArithmeticError as error:
            raise ValueError(f"{where}: {type(error).__name__}: {error}; expected numbers") from error
        except Exception as error:
            if not is_traced(step):
                raise
            raise untraceable(f"{self.name}: coefficients", error) from error
        if not isinstance(found, Mapping):
            raise TypeError(f"{where}: returned {type(found).__name__}, expected a dict of numbers")
        if is_traced(step):
            return found
        for name, value in found.items():
            if name in GIVEN or name.startswith("_"):
                meaning = GIVEN.get(name, "a name of gpuopt's own")
                raise TypeError(f"{where}: {name!r}, expected another name: that is {meaning}")
            if type(value) is not float and not isinstance(value, RealNumber):
                raise TypeError(f"{where}: {name}: got {value!r:.80} ({type(value).__name__}), expected a number")
        # Of other types, such as Fraction or int8, arrays of their own dtypes would come.
        plain = {name: x if type(x) is float or _is_short(x) else as_float(x) for name, x in found.items()}
        for name in self.carried:
            if not math.isfinite(plain.get(name, math.nan)):
                given = plain.get(name, "nothing")
                raise ValueError(f"{where}: carried number {name!r}: got {given}, expected a finite number")
        return plain


def _is_short(value: Any) -> bool:
    """Whether a number is an integer of Python, or a truth value, that float64 has."""
    return isinstance(value, int) and abs(value) < LONGEST


class Named(SimpleNamespace):
    """The ``s`` or ``h`` of `Rule.update`; an unknown name is an AttributeError that lists the known ones."""

    __slots__ = ("_kind", "_rule")

    def __init__(self, rule: str, kind: str, values: Mapping[str, Any]) -> None:
        super().__init__(**values)
        object.__setattr__(self, "_rule", rule)
        object.__setattr__(self, "_kind", kind)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        known = [own for own in vars(self) if not own.startswith("_")]
        nearest = did_you_mean(name, known)
        raise AttributeError(f"{self._rule}: no {self._kind} {name!r}{nearest}; it has {listed(known) or 'none'}")

    def __getitem__(self, name: Any) -> NoReturn:
        raise TypeError(
            f"{self._rule}: a {self._kind} is asked for by [{name!r}], expected an attribute, such as .{name}"
        )


def named(rule: str, slots: Mapping[str, Any], h: Mapping[str, Any]) -> tuple[Named, Named]:
    """Return the slots and the hyperparameters as the arguments ``s`` and ``h`` of `Rule.update`."""
    return Named(rule, "slot", slots), Named(rule, "hyperparameter", h)


def returned(what: str, value: Any, *expected: str) -> tuple[Any, ...]:
    """Return the result of a formula after a check: a tuple that ends with a dict of slots, else TypeError."""
    names = f"({', '.join(expected)})"
    if not isinstance(value, tuple | list) or len(value) != len(expected):
        given = f"{len(value)} values" if isinstance(value, tuple | list) else type(value).__name__
        raise TypeError(f"{what} returned {given}, expected {names}")
    *arrays, slots = value
    if not isinstance(slots, dict):
        raise TypeError(f"{what} returned {type(slots).__name__} for its slots, expected a dict, {{}} if it has none")
    for name, x in (*zip(expected, arrays, strict=False), *slots.items()):
        if x is None:
            raise TypeError(f"{what} returned None for {name}, expected a value")
    return tuple(value)


def _annotated(cls: type) -> list[str]:
    """Names in the annotations of the class itself: the fields that ``@dataclass`` makes."""
    if sys.version_info >= (3, 14):
        import annotationlib

        own = annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    else:
        own = vars(cls).get("__annotations__", {})
    no_fields = "ClassVar", "KW_ONLY"
    return [name for name, annotation in own.items() if not any(word in str(annotation) for word in no_fields)]


def _check_slots(rule: str, slots: Any) -> None:
    expected = 'a tuple of names, such as ("m", "v")'
    if isinstance(slots, Mapping):
        expected = "a start for each name: a number, or what gpuopt.rules.slots has"
        for name, start in slots.items():
            if isinstance(start, bool) or not isinstance(start, RealNumber | Slot):
                raise TypeError(f"{rule}: slots: {name}: {start!r:.80} ({type(start).__name__}), expected {expected}")
    # A set has another order in each process.
    if not isinstance(slots, tuple | list | Mapping) or not all(isinstance(name, str) for name in slots):
        raise TypeError(f"{rule}: slots = {slots!r:.80}, expected {expected}")
    for name in slots:
        if name in GIVEN or name.startswith("_") or not name.isidentifier():
            meaning = f": that is {GIVEN[name]}" if name in GIVEN else ""
            raise TypeError(f"{rule}: a slot {name!r}, expected another name{meaning}")
    if len({*slots}) < len([*slots]):
        raise TypeError(f"{rule}: slots = {slots!r:.80}, expected each name once")


def _check_starts(rule: str, slots: Slots, known: tuple[str, ...]) -> None:
    for name, slot in starts(slots).items():
        start = slot if isinstance(slot, Like) else getattr(slot, "start", 0.0)
        sources = known if is_number(slot) else ("p", *known)
        if isinstance(start, Like):
            if start.source not in sources:
                given = f"like({start.source!r}){did_you_mean(start.source, sources)}"
                raise TypeError(f"{rule}: slots: {name}: {given}, expected {listed(sources) or 'a number'}")
        elif isinstance(start, bool) or not isinstance(start, RealNumber):
            raise TypeError(f"{rule}: slots: {name}: starts at {start!r:.80}, expected a number")


def _check_carried(rule: str, carried: Any, known: tuple[str, ...], is_computed: bool) -> None:
    if not isinstance(carried, Mapping):
        raise TypeError(f"{rule}: carried = {carried!r:.80}, expected a dict of numbers with their starts")
    if carried and not is_computed:
        raise TypeError(f"{rule}: carried numbers {', '.join(carried)}, expected `coefficients` to return the new ones")
    for name, start in carried.items():
        if name in known:
            raise TypeError(f"{rule}: a carried number {name!r}, expected another name: that is a hyperparameter")
        given: Any = start
        if isinstance(given, bool) or not isinstance(given, RealNumber) or not math.isfinite(as_float(given)):
            raise TypeError(f"{rule}: carried number {name!r} starts at {start!r:.80}, expected a finite number")


def _contracts(cls: type) -> list[type]:
    """`Formula` and the base classes directly below it (`Rule`, `Transform`), whose attributes are reserved names."""
    return [base for base in cls.__mro__ if base is Formula or (Formula in base.__bases__ and base is not cls)]
