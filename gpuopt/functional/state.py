"""The state of the pure functions, and the check of a given state."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuopt import leaves
from gpuopt.arrays import are_together, describe, is_array
from gpuopt.engines import storage
from gpuopt.engines.storage import Stochastic
from gpuopt.rules.hyper import is_traced, is_traced_integer
from gpuopt.rules.slots import Slot, is_number, shape_of
from gpuopt.suggest import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuopt.engines.storage import Precision
    from gpuopt.rules.base import Rule


class State(NamedTuple):
    """The state of all leaves.

    Attributes
    ----------
    steps
        Number of steps taken so far.
    slots
        For each slot a tree like the parameters, of arrays or numbers; None for a leaf whose rule has no such slot.
    carried
        For each pattern of a rule (``"*"`` for a single one) its `Rule.carried` numbers.
    precision
        Empty for "state32"; else ``{name: seed}``, with an empty seed unless it rounds at random. The name is a key, since a
        string cannot be a leaf of a tree under `jax.jit`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> state = gpuopt.init(gpuopt.SGD(momentum=0.9), np.zeros(2))
    >>> state.steps, state.slots["v"]
    (0, array([0., 0.]))
    """

    steps: int
    slots: dict[str, Any]
    carried: Mapping[str, Mapping[str, float]] = {}  # not a MappingProxyType, which JAX does not take for a tree
    precision: Mapping[str, Any] = {}

    def __repr__(self) -> str:
        more = {"carried": self.carried, "precision": self.precision}
        shown = "".join(f", {name}={value!r}" for name, value in more.items() if value)
        return f"State(steps={self.steps!r}, slots={self.slots!r}{shown})"


def check_state(state: Any, patterns: Sequence[str], rules: Sequence[Rule]) -> None:
    """Raise TypeError if this is no `State`, ValueError if it belongs to other rules."""
    given: Any = getattr(state, "carried", None)
    if not (isinstance(state, State) and isinstance(given, Mapping) and type(state.slots) is dict):
        raise TypeError(f"state: {state!r:.80}, expected what gpuopt.init or gpuopt.update returned")
    known = {*(name for rule in rules for name in rule.slots), storage.LOW}
    if extra := [repr(name) for name in state.slots if name not in known]:
        names = " and ".join(dict.fromkeys(rule.name for rule in rules))
        raise ValueError(
            f"state.slots: unexpected {listed(extra)}; {names} has none of that name, gpuopt.init makes a state"
        )
    carried = {pattern: own.keys() if isinstance(own, Mapping) else own for pattern, own in given.items()}
    expected = {pattern: rule.carried.keys() for pattern, rule in zip(patterns, rules, strict=True) if rule.carried}
    if carried != expected:
        shown = {pattern: [*names] for pattern, names in expected.items()}
        raise ValueError(f"state.carried: {state.carried!r:.80}, expected numbers {shown}; gpuopt.init makes a state")
    for pattern, own in given.items():
        for name, number in own.items():
            if not (isinstance(number, float | int) or is_traced(number)):
                where = f"state.carried[{pattern!r}][{name!r}]"
                raise TypeError(f"{where}: {number!r:.80}, expected a number; gpuopt.init makes one")


def steps_of(state: Any) -> Any:
    """Return the steps of a state as an int, or as the traced integer that they are."""
    steps: Any
    number = steps = state.steps if isinstance(state, State) else None
    if is_traced_integer(steps):
        try:
            number = operator.index(steps)
        except TypeError:
            return steps
    if type(number) is not int or number < 0:
        raise TypeError(f"state: {state!r:.80}, expected what gpuopt.init or gpuopt.update returned")
    return number


def precision_of(state: State) -> Precision | Stochastic:
    """Return the precision of a state."""
    if not state.precision:
        return "state32"
    (name, seed), *others = state.precision.items()
    if others or name not in storage.PRECISIONS:
        raise ValueError(
            f"state.precision: {state.precision!r:.80}, expected what gpuopt.init or gpuopt.update returned"
        )
    return Stochastic(seed) if name == "stochastic" else storage.checked(name)


def scalars_of(
    patterns: Sequence[str], rules: Sequence[Rule], steps: Any, carried: Mapping[str, Mapping[str, float]]
) -> list[dict[str, float]]:
    """Return `Rule.at` of each rule, with its carried numbers."""
    return [
        rule.at(steps, {**rule.carried, **carried.get(pattern, {})}) if rule.carried else rule.at(steps)
        for pattern, rule in zip(patterns, rules, strict=True)
    ]


def carried_after(
    patterns: Sequence[str], rules: Sequence[Rule], scalars: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    return {
        pattern: {name: h[name] for name in rule.carried}
        for pattern, rule, h in zip(patterns, rules, scalars, strict=True)
        if rule.carried
    }


def carried_at_first(patterns: Sequence[str], rules: Sequence[Rule]) -> dict[str, dict[str, float]]:
    return {pattern: dict(rule.carried) for pattern, rule in zip(patterns, rules, strict=True) if rule.carried}


def if_known(number: Any) -> Any:
    """Return a number as a float, unless it is traced."""
    if not is_traced(number):
        return number
    try:
        return float(number)
    except TypeError:
        return number


def number_of(own: Any, rule: Rule, name: str) -> Any:
    """Return a slot that is a number as a float: ``jax.jit`` returns it as an array."""
    if is_traced(known := if_known(own)):
        raise TypeError(
            f"{name}: a number of the host that is not known yet; {rule.name} cannot be traced, expected an update outside "
            "of jit"
        )
    return known


def check_slot(own: Any, slot: Slot, p: Any, dtype: Any, name: str) -> None:
    if is_number(slot):
        if isinstance(own, float):
            return
        expected = "a number"
    else:
        shape = shape_of(slot, tuple(p.shape))
        leaves.check_alive(own, name)
        leaves.check_unmasked(own, name)
        if is_array(own) and are_together(own, p) and (tuple(own.shape), own.dtype) == (shape, dtype):
            return
        expected = f"a {describe(p)} of {shape}, {dtype} like its parameter"
    given = f"{describe(own)} of {own.shape}, {own.dtype}" if is_array(own) else describe(own)
    raise ValueError(f"{name}: {given}, expected {expected}; gpuopt.init makes one")
