"""The same rules as pure functions: for immutable arrays, and for those who prefer it so."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuopt import leaves
from gpuopt.arrays import are_together, describe, dtype_of, is_array, namespace
from gpuopt.engines import array, storage
from gpuopt.engines.complexes import slot_dtype
from gpuopt.engines.pure import pure_step
from gpuopt.engines.storage import Stochastic
from gpuopt.groups import Frozen, match
from gpuopt.rules.hyper import is_traced
from gpuopt.rules.slots import Filled, Shared, Slot, is_number, shape_of, starts
from gpuopt.suggest import listed
from gpuopt.trees import flattened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuopt.engines.pure import PureStep
    from gpuopt.engines.storage import Precision
    from gpuopt.groups import Rules
    from gpuopt.rules.base import Rule
    from gpuopt.trees import Tree


class State(NamedTuple):
    """The state of all leaves.

    Attributes
    ----------
    steps
        Steps taken so far.
    slots
        By slot, a tree like the parameters, of arrays or of numbers; None for a leaf whose rule has no such slot.
    carried
        By pattern of a rule (``"*"`` for a single one), the numbers of the host that it carries from step to step.
    precision
        Empty for "state32"; else the name of the precision, with the seed of what is rounded at random: a name that is a key
        is no leaf of this tree.

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
    carried: Mapping[str, Mapping[str, float]] = {}  # not a proxy of one: no other library takes that for a tree
    precision: Mapping[str, Any] = {}

    def __repr__(self) -> str:
        more = {"carried": self.carried, "precision": self.precision}
        shown = "".join(f", {name}={value!r}" for name, value in more.items() if value)
        return f"State(steps={self.steps!r}, slots={self.slots!r}{shown})"


def init(rule: Rules, params: Any, *, precision: Precision | Stochastic = "state32") -> State:
    """Return the state before the first step.

    Parameters
    ----------
    rule
        One rule, or several by glob, as for `Optimizer`.
    params
        Arrays of float16, bfloat16, float32, float64, complex64 or complex128 of any array API library, in any nesting.
    precision
        Of leaves of 16 bits, as for `Optimizer`, with the same bits. The state remembers it: `update` is not told again.

    Raises
    ------
    TypeError, ValueError
        As `Optimizer`, but for what only matters in place.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> gpuopt.init(gpuopt.SGD(momentum=0.9), {"w": np.ones(2)})
    State(steps=0, slots={'v': {'w': array([0., 0.])}})

    """
    tree, arrays = leaves.parameters(params, in_place=False)
    patterns, rules, groups = match(rule, tree)
    leaves.check_rules(tree, arrays, rules, groups)
    kept = storage.checked(precision)
    way, moving = storage.name_of(kept), _moving(rules, groups)
    leaves.check_precision(tree, arrays, moving, way)
    slots: dict[str, list[Any]] = {name: [None] * len(arrays) for own in rules for name in own.slots}
    for i, (p, group) in enumerate(zip(arrays, groups, strict=True)):
        for name in rules[group].slots:
            slots[name][i] = array.started(name, p, i, rules[group], way)
    if way == "split":
        slots[storage.LOW] = [storage.lower_bits(p, way) if i in moving else None for i, p in enumerate(arrays)]
    named: dict[str, Any] = {} if way == "state32" else {way: kept.seed if isinstance(kept, Stochastic) else {}}
    return State(0, {name: tree.build(own) for name, own in slots.items()}, _carried(patterns, rules), named)


def update(rule: Rules, params: Any, grads: Any, state: State, *, donate: bool = False) -> tuple[Any, State]:
    """Return the parameters and the state after a step; the arguments are left as they are.

    Leaves of NumPy or CuPy that fill their memory are updated together, in one pass over memory, as by `Optimizer`; all
    others by the operations of their library, which may be traced, compiled and differentiated: ``jax.jit(lambda p, g, s:
    gpuopt.update(rule, p, g, s))``.

    Parameters
    ----------
    rule, params
        As for `init`.
    grads
        A gradient for each parameter, in the same nesting; None leaves a parameter and its state alone.
    state
        Of `init`, or of the step before. Its count of steps may be an integer of the library that is not known yet.
    donate
        Whether what is returned may be the arrays of ``params`` and ``state``, written to, if they are fused, writable and
        share no memory: no memory is taken then. What was given is not to be used any more.

    Raises
    ------
    TypeError, ValueError
        As `Optimizer.step`; or if a schedule or coefficients cannot be computed from a step that is not known yet.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> rule, w = gpuopt.SGD(lr=0.1), np.array([1.0, 2.0])
    >>> gpuopt.update(rule, w, np.array([1.0, 1.0]), gpuopt.init(rule, w))
    (array([0.9, 1.9]), State(steps=1, slots={}))

    """
    found, spec = flattened(params)
    key = _key(rule, spec)
    plan = _plans.pop(key, None)  # while it is not there, no other thread is in it
    given: Any = state
    if plan is not None and isinstance(given, State) and type(given.steps) is int and given.steps >= 0:
        slots = plan.slots_of(state)
        if slots is not None and (done := plan.step(found, slots, grads, state, donate=donate)):
            _keep(key, plan)
            return done
    return _update(rule, params, grads, state, key, donate=donate)


def _update(rule: Rules, params: Any, grads: Any, state: State, key: Any, *, donate: bool) -> tuple[Any, State]:
    """Check everything, then update, fused where that can be."""
    tree, arrays = leaves.parameters(params, in_place=False)
    patterns, rules, groups = match(rule, tree)
    given: Any = state
    _check_state(given, patterns, rules)
    steps = _steps(given)
    carried = {
        pattern: {name: _if_known(number) for name, number in own.items()} for pattern, own in state.carried.items()
    }
    precision = _precision(given)
    way, moving = storage.name_of(precision), _moving(rules, groups)
    leaves.check_precision(tree, arrays, moving, way)
    gradients = [
        None if g is None or isinstance(rules[groups[i]], Frozen) else leaves.gradient(g, p, tree, i, attached=True)
        for i, (g, p) in enumerate(zip(tree.leaves_of(grads, "grads"), arrays, strict=True))
    ]
    slots = {name: tree.leaves_of(own, f"state.slots[{name!r}]") for name, own in state.slots.items()}
    for i, (p, group) in enumerate(zip(arrays, groups, strict=True)):
        for name, slot in starts(rules[group].slots).items():
            where, own = tree.name(i, f"state.slots[{name!r}]"), rules[group]
            if is_number(slot) and name in slots:
                slots[name][i] = _number(slots[name][i], own, where)
            _check_slot(slots[name][i] if name in slots else None, slot, p, slot_dtype(own, name, p, way), where)
    if (fused := pure_step(arrays, groups, rules)) is not None:
        frozen = [i for i, group in enumerate(groups) if isinstance(rules[group], Frozen)]
        plan = _Plan(rule, tree, patterns, rules, frozen, fused, [*slots])
        together = [a for _, own in sorted(slots.items()) for a in own]
        now = state._replace(steps=steps, carried=carried)
        if done := plan.step(arrays, together, tree.build(gradients), now, donate=donate):
            _keep(key, plan)
            return done
    scalars = _scalars(patterns, rules, steps, carried)
    low = slots.get(storage.LOW, [None] * len(arrays))
    for i, p in enumerate(arrays):
        if i in moving and storage.way_of(dtype_of(p), way) == "split":
            _check_slot(low[i], Filled(), p, namespace(p).uint16, tree.name(i, f"state.slots[{storage.LOW!r}]"))
    key = storage.key_of(precision, steps)
    for group, own in enumerate(rules):
        members = [i for i, g in enumerate(gradients) if g is not None and groups[i] == group]
        before = [
            (
                storage.loaded(arrays[i], {storage.LOW: low[i]}, way),
                gradients[i],
                {name: slots[name][i] for name in own.slots},
            )
            for i in members
        ]
        after = array.update_group(own, before, scalars[group]) if members else []
        for i, (p, new) in zip(members, after, strict=True):
            arrays[i], *rest = (x for _, x in storage.stored(p, arrays[i], {storage.LOW: low[i]}, way, key, i))
            low[i] = rest[0] if rest else None
            for name, value in new.items():
                slots[name][i] = value
        for name in (name for name, slot in starts(own.slots).items() if isinstance(slot, Shared) and members):
            for i in (i for i, there in enumerate(groups) if there == group):
                slots[name][i] = slots[name][members[0]]
    return tree.build(arrays), State(
        steps + 1,
        {name: tree.build(own) for name, own in slots.items()},
        _carried_after(patterns, rules, scalars),
        state.precision,
    )


@dataclass
class _Plan:
    """A fused step, and what is known of its arguments."""

    rule: Rules
    tree: Tree
    patterns: list[str]
    rules: list[Rule]
    frozen: list[int]
    fused: PureStep
    names: Sequence[str]
    """Of the slots in a state."""

    def __post_init__(self) -> None:
        # All slots are one tree: its leaves are found, and put together again, in one call.
        self._containers = self.tree.by_name(self.names)
        first = {name: k * len(self.tree.paths) for k, name in enumerate(sorted(self.names))}
        self._place_of = [first[name] + i for name, i in self.fused.slots]
        self._carries = any(rule.carried for rule in self.rules)

    def slots_of(self, state: State) -> Any:
        """Return the leaves of all slots; None if a state is not known to be one of the rules."""
        given: Any = state.slots if type(state.slots) is dict else None
        if given is None:
            return None
        try:
            slots = self._containers.flatten_up_to(given)
        except (TypeError, ValueError):
            return None
        if state.carried or self._carries:
            _check_state(state, self.patterns, self.rules)
        return slots

    def step(
        self, found: list[Any], slots: list[Any], grads: Any, state: State, *, donate: bool
    ) -> tuple[Any, State] | None:
        """Take a step; None if an array does not have the layout that it had."""
        scalars = _scalars(self.patterns, self.rules, state.steps, state.carried)
        gradients = self.tree.leaves_of(grads, "grads")
        for i in self.frozen:
            gradients[i] = None
        new = self.fused(
            [*found, *[slots[k] for k in self._place_of]],
            gradients,
            scalars,
            lambda i, g: leaves.gradient(g, found[i], self.tree, i),
            donate=donate,
        )
        if new is None:
            return None
        count = len(found)
        for k, own in zip(self._place_of, new[count:], strict=True):
            slots[k] = own
        carried = _carried_after(self.patterns, self.rules, scalars) if self._carries else {}
        by_name: Any = self._containers.unflatten(slots)
        return self.tree.build(new[:count]), State(state.steps + 1, by_name, carried, state.precision)


_plans: dict[Any, _Plan] = {}
"""By rule and containers, the fused steps of the last calls; one that is in use is not in here."""
MOST_PLANS = 32


def _key(rule: Any, spec: Any) -> Any:
    """What a plan is kept under; the plan keeps the rules alive, so that their numbers stay theirs."""
    rules = tuple((pattern, id(own)) for pattern, own in rule.items()) if isinstance(rule, dict) else id(rule)
    return rules, spec


def _keep(key: Any, plan: _Plan) -> None:
    """Keep a plan, as the newest; the oldest ones go."""
    while len(_plans) >= MOST_PLANS:
        _plans.pop(next(iter(_plans), None), None)
    _plans[key] = plan


def _check_state(state: Any, patterns: Sequence[str], rules: Sequence[Rule]) -> None:
    """Raise TypeError or ValueError if a state is none, or is one of other rules."""
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


def _steps(state: Any) -> Any:
    """The steps that a state has taken: an integer, of Python unless it is not known yet."""
    steps: Any
    number = steps = state.steps if isinstance(state, State) else None
    if is_traced(steps):
        try:
            number = operator.index(steps)
        except TypeError:
            return steps
    if type(number) is not int or number < 0:
        raise TypeError(f"state: {state!r:.80}, expected what gpuopt.init or gpuopt.update returned")
    return number


def _precision(state: State) -> Precision | Stochastic:
    """How a state says that leaves of 16 bits are kept."""
    if not state.precision:
        return "state32"
    (name, seed), *others = state.precision.items()
    if others or name not in storage.PRECISIONS:
        raise ValueError(
            f"state.precision: {state.precision!r:.80}, expected what gpuopt.init or gpuopt.update returned"
        )
    return Stochastic(seed) if name == "stochastic" else storage.checked(name)


def _moving(rules: Sequence[Rule], groups: Sequence[int]) -> frozenset[int]:
    """Leaves that are not frozen."""
    return frozenset(i for i, group in enumerate(groups) if not isinstance(rules[group], Frozen))


def _scalars(
    patterns: Sequence[str], rules: Sequence[Rule], steps: Any, carried: Mapping[str, Mapping[str, float]]
) -> list[dict[str, float]]:
    """Return what `Rule.at` gives for each rule, from its carried numbers."""
    return [
        rule.at(steps, {**rule.carried, **carried.get(pattern, {})}) if rule.carried else rule.at(steps)
        for pattern, rule in zip(patterns, rules, strict=True)
    ]


def _carried_after(
    patterns: Sequence[str], rules: Sequence[Rule], scalars: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    return {
        pattern: {name: h[name] for name in rule.carried}
        for pattern, rule, h in zip(patterns, rules, scalars, strict=True)
        if rule.carried
    }


def evaluation(rule: Rules, params: Any, state: State) -> Any:
    """Return the tree to evaluate with: averages where a rule keeps them, the parameters otherwise.

    Parameters
    ----------
    rule, params, state
        As for `update`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> rule, w = gpuopt.chain(gpuopt.SGD(lr=1.0), gpuopt.EMA(0.5)), np.zeros(2)
    >>> w, state = gpuopt.update(rule, w, np.array([1.0, 2.0]), gpuopt.init(rule, w))
    >>> w, gpuopt.evaluation(rule, w, state)
    (array([-1., -2.]), array([-0.5, -1. ]))

    """
    tree, arrays = leaves.parameters(params, in_place=False)
    patterns, rules, groups = match(rule, tree)
    _check_state(state, patterns, rules)
    steps = _steps(state)
    way = storage.name_of(_precision(state))
    slots = {name: tree.leaves_of(own, f"state.slots[{name!r}]") for name, own in state.slots.items()}
    for i, (p, group) in enumerate(zip(arrays, groups, strict=True)):
        for name, slot in starts(rules[group].slots).items():
            own, where = slots.get(name, [None] * len(arrays))[i], tree.name(i, f"state.slots[{name!r}]")
            if not is_number(slot):
                _check_slot(own, slot, p, slot_dtype(rules[group], name, p, way), where)
    last = [
        {**own.at(max(steps - 1, 0)), **state.carried.get(pattern, {})}
        for own, pattern in zip(rules, patterns, strict=True)
    ]
    return tree.build(
        [
            array.evaluation(rules[group], p, {name: own[i] for name, own in slots.items()}, last[group], way)
            for i, (p, group) in enumerate(zip(arrays, groups, strict=True))
        ]
    )


def _carried(patterns: Sequence[str], rules: Sequence[Rule]) -> dict[str, dict[str, float]]:
    return {pattern: dict(rule.carried) for pattern, rule in zip(patterns, rules, strict=True) if rule.carried}


def _if_known(number: Any) -> Any:
    """A number as one of Python's, unless it is traced."""
    if not is_traced(number):
        return number
    try:
        return float(number)
    except TypeError:
        return number


def _number(own: Any, rule: Rule, name: str) -> Any:
    """A slot that is a number, as one of Python's: compiled code of some libraries gives it back as an array."""
    if is_traced(known := _if_known(own)):
        raise TypeError(
            f"{name}: a number of the host that is not known yet; {rule.name} cannot be traced, expected an update outside "
            "of jit"
        )
    return known


def _check_slot(own: Any, slot: Slot, p: Any, dtype: Any, name: str) -> None:
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
