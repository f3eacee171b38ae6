"""The rules as pure functions, for immutable arrays and functional code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuopt import leaves
from gpuopt.arrays import dtype_of, namespace
from gpuopt.engines import array, storage
from gpuopt.engines.complexes import slot_dtype
from gpuopt.engines.memory import laid_out_like
from gpuopt.engines.pure import pure_step
from gpuopt.engines.storage import Stochastic
from gpuopt.functional.state import (
    State,
    carried_after,
    carried_at_first,
    check_slot,
    check_state,
    if_known,
    number_of,
    precision_of,
    scalars_of,
    steps_of,
)
from gpuopt.groups import Frozen, match
from gpuopt.rules.slots import Filled, Shared, is_number, starts
from gpuopt.trees import flattened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuopt.engines.pure import PureStep
    from gpuopt.engines.storage import Precision
    from gpuopt.groups import Rules
    from gpuopt.rules.base import Rule
    from gpuopt.trees import Tree

__all__ = ["State", "evaluation", "init", "update"]
State.__module__ = __name__  # pickles name the package, not its file


def init(rule: Rules, params: Any, *, precision: Precision | Stochastic = "state32") -> State:
    """Return the state before the first step.

    Parameters
    ----------
    rule
        One rule, or several by glob, as for `Optimizer`.
    params
        Arrays of float16, bfloat16, float32, float64, complex64 or complex128 of any array API library, in any nesting.
    precision
        How 16-bit leaves are stored, as for `Optimizer`, with the same bits. `update` finds it in the state.

    Raises
    ------
    TypeError, ValueError
        As `Optimizer`; read-only and overlapping arrays are allowed.

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
    return State(0, {name: tree.build(own) for name, own in slots.items()}, carried_at_first(patterns, rules), named)


def update(rule: Rules, params: Any, grads: Any, state: State, *, donate: bool = False) -> tuple[Any, State]:
    """Return the parameters and the state after a step; the arguments are left as they are.

    NumPy and CuPy leaves without gaps, of 32 bits or more, are updated together, as by `Optimizer`; all others by the
    operations of their library, which may be traced, compiled and differentiated: ``jax.jit(lambda p, g, s:
    gpuopt.update(rule, p, g, s))``.

    Parameters
    ----------
    rule, params
        As for `init`.
    grads
        A gradient for each parameter, in the same nesting; None leaves a parameter and its state alone.
    state
        From `init` or from the step before. Its count of steps may be a traced integer.
    donate
        Whether the new values may be written into the arrays of ``params`` and ``state``, which saves memory. It happens if
        these are fused, writable and share no memory. Do not use the arguments afterwards.

    Returns
    -------
    params
        The same nesting of arrays, of the same shapes and dtypes.
    state : State

    Raises
    ------
    TypeError, ValueError
        As `Optimizer.step`; or if a schedule or coefficients cannot be computed from a traced step.

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
    plan = _taken(key)
    given: Any = state
    if plan is not None and isinstance(given, State) and type(given.steps) is int and given.steps >= 0:
        slots = plan.slots_of(state)
        if slots is not None and (done := plan.step(found, slots, grads, state, donate=donate)):
            _keep(key, plan)
            return done
    return _update(rule, params, grads, state, key, donate=donate)


def _update(rule: Rules, params: Any, grads: Any, state: State, key: Any, *, donate: bool) -> tuple[Any, State]:
    """Check all arguments, then update: fused if possible, else by the operations of the library."""
    tree, arrays = leaves.parameters(params, in_place=False)
    patterns, rules, groups = match(rule, tree)
    given: Any = state
    check_state(given, patterns, rules)
    steps = steps_of(given)
    carried = {
        pattern: {name: if_known(number) for name, number in own.items()} for pattern, own in state.carried.items()
    }
    precision = precision_of(given)
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
                slots[name][i] = number_of(slots[name][i], own, where)
            check_slot(slots[name][i] if name in slots else None, slot, p, slot_dtype(own, name, p, way), where)
    if type(steps) is int and (fused := pure_step(arrays, groups, rules)) is not None:
        frozen = [i for i, group in enumerate(groups) if isinstance(rules[group], Frozen)]
        plan = _Plan(rule, tree, patterns, rules, frozen, fused, [*slots])
        together = [a for _, own in sorted(slots.items()) for a in own]
        now = state._replace(steps=steps, carried=carried)
        if done := plan.step(arrays, together, tree.build(gradients), now, donate=donate):
            _keep(key, plan)
            return done
    scalars = scalars_of(patterns, rules, steps, carried)
    low = slots.get(storage.LOW, [None] * len(arrays))
    for i, p in enumerate(arrays):
        if i in moving and storage.precision_of(dtype_of(p), way) == "split":
            check_slot(low[i], Filled(), p, namespace(p).uint16, tree.name(i, f"state.slots[{storage.LOW!r}]"))
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
            (_, made), *rest = storage.stored(p, arrays[i], {storage.LOW: low[i]}, way, key, i)
            # Sums go along memory, and so do random bits: those of the next step, too.
            arrays[i] = laid_out_like(made, arrays[i])
            low[i] = rest[0][1] if rest else None
            for name, value in new.items():
                slots[name][i] = value
        for name in (name for name, slot in starts(own.slots).items() if isinstance(slot, Shared) and members):
            for i in (i for i, there in enumerate(groups) if there == group):
                slots[name][i] = slots[name][members[0]]
    return tree.build(arrays), State(
        steps + 1,
        {name: tree.build(own) for name, own in slots.items()},
        carried_after(patterns, rules, scalars),
        state.precision,
    )


@dataclass
class _Plan:
    """A fused step, and the structure of its arguments."""

    rule: Rules
    tree: Tree
    patterns: list[str]
    rules: list[Rule]
    frozen: list[int]
    fused: PureStep
    names: Sequence[str]
    """Names of the slots in a state."""

    def __post_init__(self) -> None:
        # All slots together are one tree, which is taken apart and built by one call each.
        self._containers = self.tree.by_name(self.names)
        first = {name: k * len(self.tree.paths) for k, name in enumerate(sorted(self.names))}
        self._place_of = [first[name] + i for name, i in (*self.fused.slots, *self.fused.numbers)]
        self._carries = any(rule.carried for rule in self.rules)

    def slots_of(self, state: State) -> Any:
        """Return the leaves of all slots; None if the structure of the state is another one."""
        given: Any = state.slots if type(state.slots) is dict else None
        if given is None:
            return None
        try:
            slots = self._containers.flatten_up_to(given)
        except (TypeError, ValueError):
            return None
        if state.carried or self._carries:
            check_state(state, self.patterns, self.rules)
        return slots

    def step(
        self, found: list[Any], slots: list[Any], grads: Any, state: State, *, donate: bool
    ) -> tuple[Any, State] | None:
        """Take a step; return None if the layout of an array has changed."""
        scalars = scalars_of(self.patterns, self.rules, state.steps, state.carried)
        gradients = self.tree.leaves_of(grads, "grads")
        for i in self.frozen:
            gradients[i] = None
        own = [slots[k] for k in self._place_of]
        arrays, numbers = own[: len(self.fused.slots)], own[len(self.fused.slots) :]
        if any(type(number) is not float for number in numbers):
            return None
        done = self.fused(
            [*found, *arrays],
            numbers,
            gradients,
            scalars,
            lambda i, g: leaves.gradient(g, found[i], self.tree, i),
            donate=donate,
        )
        if done is None:
            return None
        count, (new, numbers) = len(found), done
        for k, value in zip(self._place_of, [*new[count:], *numbers], strict=True):
            slots[k] = value
        carried = carried_after(self.patterns, self.rules, scalars) if self._carries else {}
        by_name: Any = self._containers.unflatten(slots)
        return self.tree.build(new[:count]), State(state.steps + 1, by_name, carried, state.precision)


_plans: dict[Any, list[_Plan]] = {}
"""The fused steps of recent calls, by rule and containers: one for each thread that was in one; a step in use is taken out."""
MOST_PLANS = 32


def _key(rule: Any, spec: Any) -> Any:
    """Return the key of a plan. The plan keeps its rules alive, so that no other rule gets their ``id``."""
    rules = tuple((pattern, id(own)) for pattern, own in rule.items()) if isinstance(rule, dict) else id(rule)
    return rules, spec


def _keep(key: Any, plan: _Plan) -> None:
    """Store a plan as the newest one, and drop the oldest beyond `MOST_PLANS`."""
    own = _plans.pop(key, [])
    own.append(plan)
    while len(_plans) >= MOST_PLANS:
        _plans.pop(next(iter(_plans), None), None)
    _plans[key] = own[-MOST_PLANS:]


def _taken(key: Any) -> _Plan | None:
    """Take a plan out, so that no other thread uses it meanwhile."""
    try:
        return _plans[key].pop()
    except (IndexError, KeyError):
        return None


def _moving(rules: Sequence[Rule], groups: Sequence[int]) -> frozenset[int]:
    """Return the indices of leaves that are not frozen."""
    return frozenset(i for i, group in enumerate(groups) if not isinstance(rules[group], Frozen))


def evaluation(rule: Rules, params: Any, state: State) -> Any:
    """Return the tree to evaluate the model with: the average of a rule that keeps one, else the parameters.

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
    check_state(state, patterns, rules)
    steps = steps_of(state)
    way = storage.name_of(precision_of(state))
    slots = {name: tree.leaves_of(own, f"state.slots[{name!r}]") for name, own in state.slots.items()}
    for i, (p, group) in enumerate(zip(arrays, groups, strict=True)):
        for name, slot in starts(rules[group].slots).items():
            own, where = slots.get(name, [None] * len(arrays))[i], tree.name(i, f"state.slots[{name!r}]")
            if not is_number(slot):
                check_slot(own, slot, p, slot_dtype(rules[group], name, p, way), where)
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
