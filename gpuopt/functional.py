"""The same rules as pure functions: for immutable arrays, and for those who prefer it so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gpuopt import leaves
from gpuopt.backends import describe, place
from gpuopt.engines import array
from gpuopt.groups import match

if TYPE_CHECKING:
    from gpuopt.groups import Rules


class State(NamedTuple):
    """The state of all leaves.

    Attributes
    ----------
    steps
        Steps taken so far.
    slots
        By slot, a tree like the parameters; None for a leaf whose rule has no such slot.

    """

    steps: int
    slots: dict[str, Any]


def init(rule: Rules, params: Any) -> State:
    """Return the state before the first step.

    Parameters
    ----------
    rule
        One rule, or several by glob, as for `Optimizer`.
    params
        Arrays of float32 or float64 of any array API library, in any nesting.

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
    _, rules, groups = match(rule, tree)
    names = dict.fromkeys(name for own in rules for name in own.slots)
    return State(
        0,
        {
            name: tree.build(
                [
                    array.zeros_like(a) if name in rules[group].slots else None
                    for a, group in zip(arrays, groups, strict=True)
                ]
            )
            for name in names
        },
    )


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
    _, rules, groups = match(rule, tree)
    given: Any = state
    if not (isinstance(given, State) and type(given.steps) is int and given.steps >= 0):
        raise TypeError(f"state: {state!r:.80}, expected what gpuopt.init or gpuopt.update returned")
    gradients = [
        None if g is None else leaves.gradient(g, p, tree, i)
        for i, (g, p) in enumerate(zip(tree.leaves_of(grads, "grads"), arrays, strict=True))
    ]
    slots = {name: tree.leaves_of(own, f"state.slots[{name!r}]") for name, own in state.slots.items()}
    for i, (p, group) in enumerate(zip(arrays, groups, strict=True)):
        for name in rules[group].slots:
            own: Any = slots[name][i] if name in slots else None
            if not leaves.is_array(own) or (place(own), own.shape, own.dtype) != (place(p), p.shape, p.dtype):
                given = f"{describe(own)} of {own.shape}, {own.dtype}" if leaves.is_array(own) else describe(own)
                expected = f"a {describe(p)} of {p.shape}, {p.dtype} like its parameter"
                raise ValueError(
                    f"{tree.name(i, f'state.slots[{name!r}]')}: {given}, expected {expected}; gpuopt.init makes one"
                )
    scalars = [own.at(state.steps) for own in rules]
    for i, (p, g, group) in enumerate(zip(arrays, gradients, groups, strict=True)):
        if g is not None:
            before = {name: slots[name][i] for name in rules[group].slots}
            arrays[i], new = array.update(rules[group], p, g, before, scalars[group])
            for name, value in new.items():
                slots[name][i] = value
    return tree.build(arrays), State(state.steps + 1, {name: tree.build(own) for name, own in slots.items()})
