"""The same rules as pure functions: for immutable arrays, and for those who prefer it so."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuopt import leaves
from gpuopt.arrays import describe, is_array, place
from gpuopt.engines import array
from gpuopt.engines.complexes import slot_dtype
from gpuopt.groups import Frozen, match
from gpuopt.rules.slots import Shared, Slot, is_number, starts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuopt.groups import Rules
    from gpuopt.rules.base import Rule


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

    """

    steps: int
    slots: dict[str, Any]
    carried: Mapping[str, Mapping[str, float]] = MappingProxyType({})

    def __repr__(self) -> str:
        carried = f", carried={self.carried!r}" if self.carried else ""
        return f"State(steps={self.steps!r}, slots={self.slots!r}{carried})"


def init(rule: Rules, params: Any) -> State:
    """Return the state before the first step.

    Parameters
    ----------
    rule
        One rule, or several by glob, as for `Optimizer`.
    params
        Arrays of float32, float64, complex64 or complex128 of any array API library, in any nesting.

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
    leaves.check_complex(tree, arrays, rules, groups)
    slots: dict[str, list[Any]] = {name: [None] * len(arrays) for own in rules for name in own.slots}
    for i, (p, group) in enumerate(zip(arrays, groups, strict=True)):
        for name in rules[group].slots:
            try:
                slots[name][i] = array.started(name, p, i, rules[group])
            except ValueError as error:
                raise ValueError(f"{rules[group].name}: {name} of {tree.name(i, 'params')}: {error}") from None
    return State(0, {name: tree.build(own) for name, own in slots.items()}, _carried(patterns, rules))


def update(rule: Rules, params: Any, grads: Any, state: State) -> tuple[Any, State]:
    """Return the parameters and the state after a step; the arguments are left as they are.

    Parameters
    ----------
    rule, params
        As for `init`.
    grads
        A gradient for each parameter, in the same nesting; None leaves a parameter and its state alone.
    state
        Of `init`, or of the step before.

    Raises
    ------
    TypeError, ValueError
        As `Optimizer.step`.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> rule, w = gpuopt.SGD(lr=0.1), np.array([1.0, 2.0])
    >>> gpuopt.update(rule, w, np.array([1.0, 1.0]), gpuopt.init(rule, w))
    (array([0.9, 1.9]), State(steps=1, slots={}))

    """
    tree, arrays = leaves.parameters(params, in_place=False)
    patterns, rules, groups = match(rule, tree)
    given: Any = state
    if not (isinstance(given, State) and type(given.steps) is int and given.steps >= 0):
        raise TypeError(f"state: {state!r:.80}, expected what gpuopt.init or gpuopt.update returned")
    gradients = [
        None if g is None or isinstance(rules[groups[i]], Frozen) else leaves.gradient(g, p, tree, i)
        for i, (g, p) in enumerate(zip(tree.leaves_of(grads, "grads"), arrays, strict=True))
    ]
    slots = {name: tree.leaves_of(own, f"state.slots[{name!r}]") for name, own in state.slots.items()}
    for i, (p, group) in enumerate(zip(arrays, groups, strict=True)):
        for name, slot in starts(rules[group].slots).items():
            own, dtype = slots[name][i] if name in slots else None, slot_dtype(rules[group], name, p)
            _check_slot(own, slot, p, dtype, tree.name(i, f"state.slots[{name!r}]"))
    carried = {**_carried(patterns, rules), **state.carried}
    scalars = [
        own.at(state.steps, carried[pattern]) if pattern in carried else own.at(state.steps)
        for own, pattern in zip(rules, patterns, strict=True)
    ]
    for group, own in enumerate(rules):
        members = [i for i, g in enumerate(gradients) if g is not None and groups[i] == group]
        before = [(arrays[i], gradients[i], {name: slots[name][i] for name in own.slots}) for i in members]
        after = array.update_group(own, before, scalars[group]) if members else []
        for i, (p, new) in zip(members, after, strict=True):
            arrays[i] = p
            for name, value in new.items():
                slots[name][i] = value
        for name in (name for name, slot in starts(own.slots).items() if isinstance(slot, Shared) and members):
            for i in (i for i, there in enumerate(groups) if there == group):
                slots[name][i] = slots[name][members[0]]
    return tree.build(arrays), State(
        state.steps + 1,
        {name: tree.build(own) for name, own in slots.items()},
        {
            pattern: {name: scalars[group][name] for name in rules[group].carried}
            for group, pattern in enumerate(patterns)
            if rules[group].carried
        },
    )


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
    slots = {name: tree.leaves_of(own, f"state.slots[{name!r}]") for name, own in state.slots.items()}
    last = [
        {**own.at(max(state.steps - 1, 0)), **state.carried.get(pattern, {})}
        for own, pattern in zip(rules, patterns, strict=True)
    ]
    return tree.build(
        [
            array.evaluation(rules[group], p, {name: slots[name][i] for name in rules[group].slots}, last[group])
            for i, (p, group) in enumerate(zip(arrays, groups, strict=True))
        ]
    )


def _carried(patterns: Sequence[str], rules: Sequence[Rule]) -> dict[str, dict[str, float]]:
    return {pattern: dict(rule.carried) for pattern, rule in zip(patterns, rules, strict=True) if rule.carried}


def _check_slot(own: Any, slot: Slot, p: Any, dtype: Any, name: str) -> None:
    if is_number(slot):
        if isinstance(own, float):
            return
        expected = "a number"
    else:
        if is_array(own) and (place(own), own.shape, own.dtype) == (place(p), p.shape, dtype):
            return
        expected = f"a {describe(p)} of {p.shape}, {dtype} like its parameter"
    given = f"{describe(own)} of {own.shape}, {own.dtype}" if is_array(own) else describe(own)
    raise ValueError(f"{name}: {given}, expected {expected}; gpuopt.init makes one")
