"""The reference engine: a rule's ``update``, called with the arrays themselves, of whatever namespace they are.

It computes new arrays; nothing is written before all of them are there.
"""

from __future__ import annotations

import operator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import brought, current, describe, is_numpy, namespace, place, zeros_like
from gpuopt.engines import storage
from gpuopt.engines.complexes import arithmetic_dtype, as_pair, gradient_dtype, is_complex, joined, slot_dtype
from gpuopt.engines.norms import SCALES
from gpuopt.engines.numbers import Number, of_step
from gpuopt.engines.numbers import is_number as is_one_number
from gpuopt.engines.program.program import SCALE
from gpuopt.engines.reference import Group, Namespace, Unknown
from gpuopt.rules.formula import named, returned
from gpuopt.rules.lifted import Lifted, applied
from gpuopt.rules.pairs import BRANCHES, SELECTIONS, ComplexError, Pair, RealOnlyError
from gpuopt.rules.slots import Given, Leaf, Like, Real, Shared, is_number, shape_of, starts
from gpuopt.trees import flattened

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gpuopt.rules.base import Rule

BLOCK = 32_768
"""Elements of a NumPy array that are updated at a time: few enough for the temporaries to stay in the cache, and so many that Python's
own work does not count."""


def assigning(target: Any, source: Any) -> Callable[[], object]:
    """Return a call, in C where the library is, that writes an array of the same library, device and dtype into ``target``."""
    return partial(operator.setitem, target, ..., source)  # numpy.copyto asks a function in Python for its dispatch


def started(name: str, p: Any, index: int, rule: Rule, precision: str = "state32") -> Any:
    """Return a slot before the first step: a new array on the device of ``p``, or a number.

    Parameters
    ----------
    name
        Of the slot.
    p, index
        The parameter, and which of all leaves it is.
    rule
        Of the leaf; the caller's arrays are known to fit.
    precision
        How a leaf of 16 bits and its slots are kept; see `gpuopt.engines.storage`.

    """
    slot: Any = starts(rule.slots)[name]
    if is_number(slot):
        return number_start(rule, slot)
    xp, dtype = namespace(p), slot_dtype(rule, name, p, precision)

    def full(start: float) -> Any:
        both = is_complex(p) and rule.part(name) == "both"
        new = zeros_like(p, dtype, shape_of(slot, tuple(p.shape)))
        return xp.full_like(new, complex(start, start) if both else start) if start else new

    with current(p):
        match slot:
            case Like("p"):
                return xp.astype(p, dtype, copy=True)
            case Like(source) | Real(Like(source)):
                return full(rule.hyperparameter(source).at(0))
            case Given(value):
                new = xp.zeros_like(p, dtype=dtype)
                own = value if hasattr(value, "shape") else flattened(value)[0][index]
                return xp.astype(brought(own, p), dtype) + new
        return full(slot.start)


def number_start(rule: Rule, slot: Leaf | Shared) -> float:
    """Return a slot that is one number before the first step."""
    match slot.start:
        case Like(source):
            return float(rule.hyperparameter(source).at(0))
        case start:
            return float(start)


def update(
    rule: Rule,
    p: Any,
    g: Any,
    slots: Mapping[str, Any],
    h: Mapping[str, float],
    *,
    elementwise: bool = False,
    writes: bool = True,
) -> tuple[Any, dict[str, Any]]:
    """Return the new parameter and slots, all of them new arrays. The gradient is cast to the dtype of the arithmetic.

    The rule runs on whole arrays; NumPy arrays are cut into blocks if the rule is known to be elementwise. The rule gets
    copies of its arrays, unless ``writes`` is False: then it writes into none of them (see `Program.writes`).

    Raises
    ------
    TypeError
        If the rule does not return its slots, or changes a dtype.
    ValueError
        If the rule changes a shape.

    """
    if elementwise and is_numpy(p) and p.size > BLOCK:
        return _update_blocks(rule, p, g, slots, h, writes=writes)
    return update_group(rule, [(p, g, slots)], h, writes=writes)[0]


def update_group(
    rule: Rule,
    leaves: Sequence[tuple[Any, Any, Mapping[str, Any]]],
    h: Mapping[str, float],
    scales: Sequence[float] | None = None,
    *,
    writes: bool = True,
) -> list[tuple[Any, dict[str, Any]]]:
    """Return the new parameter and slots of each leaf, all of them new arrays, or numbers.

    Parameters
    ----------
    rule
        Of the group.
    leaves
        Parameter, gradient (which is cast to the dtype of the arithmetic) and slots.
    h
        What `Rule.at` gave.
    scales
        Of each leaf, what its gradient is scaled by.
    writes
        As for `update`.

    Raises
    ------
    TypeError
        If the rule does not return its slots, changes a dtype, or returns other shared numbers for one leaf than for
        another; if it asks for totals over leaves of several libraries.
    ValueError
        If the rule changes a shape.

    """
    group = Group(rule.name)
    while True:
        new = []
        for i, (p, g, slots) in enumerate(leaves):
            with suppress(Unknown):
                own = {**h, SCALE: scales[i]} if scales else h
                new.append(_update(rule, p, g, slots, own, group, writes=writes))
        if not group.settle():
            break
        places = sorted({place(p) for p, _, _ in leaves})
        if len({own.partition(":")[0] for own in places}) > 1:
            raise TypeError(
                f"{rule.name}.update asks for totals over leaves of {' and '.join(places)}, expected one place"
            )
    for name in (name for name, slot in starts(rule.slots).items() if isinstance(slot, Shared)):
        values = [own[name] for _, own in new]
        if any(value != values[0] and not (value != value and values[0] != values[0]) for value in values):  # noqa: PLR0124
            raise TypeError(
                f"{rule.name}.update returned the shared number {name} as {values[0]} and {values[1:]}, expected one"
                " number, made of totals over all leaves (xp.total...)"
            )
    return new


def _update(
    rule: Rule, p: Any, g: Any, slots: Mapping[str, Any], h: Mapping[str, float], group: Group, *, writes: bool
) -> tuple[Any, dict[str, Any]]:
    xp, name = namespace(p), rule.name
    declared = starts(rule.slots)
    shape, stored, kinds = p.shape, p.dtype, {slot: x.dtype for slot, x in slots.items() if hasattr(x, "dtype")}
    arithmetic, pairs = arithmetic_dtype(p), is_complex(p)

    def argument(x: Any, dtype: Any) -> Any:
        if writes or x.dtype != dtype:
            x = xp.astype(x, dtype)
        # NumPy would make numbers of what is computed with arrays without axes.
        return x if shape else xp.reshape(x, (1,))

    with np.errstate(all="ignore"), current(p):
        p, g = argument(p, arithmetic), argument(g, arithmetic)
        own = {
            slot: Number(x)
            if is_number(declared[slot])
            else argument(x, kinds[slot] if arithmetic == stored else arithmetic)
            for slot, x in slots.items()
        }
        functions: Any = Namespace(xp, p, group)
        given: list[Any] = [p, g, *own.values()]
        if pairs:
            functions, given = Lifted(functions), [as_pair(x) for x in given]
            own = dict(zip(own, given[2:], strict=True))
        new_p, new_slots = _called(rule, functions, *given[:2], *named(name, own, of_step(xp, h)))
    if set(new_slots) != set(slots):
        raise TypeError(f"{name}.update returned the slots {sorted(new_slots)}, expected {sorted(slots)}")

    parts = (part for x in given for part in ((x.re, x.im) if isinstance(x, Pair) else (x,)))
    given_ones = set() if writes else set(map(id, parts))
    real = given[0].re.dtype if pairs else p.dtype

    def kept(what: str, new: Any) -> Any:
        """Return the new value of a slot: a number, or an array that is not one of the arrays given to the update."""
        if what in declared and is_number(declared[what]):
            if not is_one_number(new):
                raise TypeError(f"{name}.update returned {what}: {describe(new)}, expected a number")
            return float(new)
        parts = [new.re, new.im] if isinstance(new, Pair) else [new]
        arrays = [x for x in parts if not is_one_number(x)]
        if not arrays:
            given = "a complex number" if isinstance(new, Pair) else f"the number {new}"
            raise TypeError(f"{name}.update returned {what}: {given}, expected an array like the parameter")
        dtype = slot_dtype(rule, what, p) if pairs and what != "p" else p.dtype
        expected = p.shape if what == "p" else shape_of(declared[what], p.shape)
        if isinstance(new, Pair) and dtype == real:
            raise TypeError(f"{name}.update returned complex numbers for {what}, expected real ones")
        for part in arrays:  # a part may be a number: beside a complex number a real one has no imaginary part
            _check_returned(
                f"{name}.update returned {what}", part, real if isinstance(new, Pair) else dtype, real, expected
            )
        if isinstance(new, Pair):
            new = joined(new, p)
        elif id(new) in given_ones:
            new = xp.asarray(new, copy=True)
        if new.dtype != dtype:  # a real number is a complex one, too
            new = xp.astype(new, dtype)
        if new.dtype != (kind := kinds.get(what, stored)):
            with np.errstate(all="ignore"):
                new = xp.astype(new, kind)
        return new if shape else xp.reshape(new, ())

    with current(p):
        return kept("p", new_p), {slot: kept(slot, new_slots[slot]) for slot in slots}


def _check_returned(what: str, x: Any, dtype: Any, real: Any, shape: tuple[int, ...]) -> None:
    """Raise an error unless an update returned an array of the expected shape and of the expected dtype (or its real dtype)."""
    if not hasattr(x, "dtype"):
        raise TypeError(f"{what}: {describe(x)}, expected an array")
    if x.dtype not in (dtype, real):
        raise TypeError(
            f"{what} with dtype {x.dtype}, expected {dtype}: an operand was of another dtype; Python's numbers, hyperparameters "
            "and functions of xp leave it as it is"
        )
    if x.shape != shape:
        raise ValueError(f"{what} with shape {x.shape}, expected {shape}")


def _called(rule: Rule, *arguments: Any) -> tuple[Any, ...]:
    """Call the rule's update and return its result. An error for what no engine can run names the rule."""
    what = f"{rule.name}.update"
    try:
        return returned(what, applied(rule, rule.update, *arguments), "p", "slots")
    except RealOnlyError:
        raise
    except ComplexError as error:
        raise TypeError(f"{what} {error}") from None
    except ValueError as error:
        if "truth value of an array" not in str(error):  # of NumPy and CuPy
            raise
        raise TypeError(f"{what} {BRANCHES}, expected {SELECTIONS}") from error


@np.errstate(all="ignore")  # for the casts that nditer makes: as in the fused engines, infinities and NaN pass silently
def _update_blocks(
    rule: Rule, p: Any, g: Any, slots: Mapping[str, Any], h: Mapping[str, float], *, writes: bool
) -> tuple[Any, dict[str, Any]]:
    before = [p, *slots.values(), g]
    after = [None] * (1 + len(slots))
    access = [["readonly"]] * len(before) + [["writeonly", "allocate"]] * len(after)
    flags = ["external_loop", "buffered", "zerosize_ok"]
    kept = [p.dtype, *(x.dtype for x in slots.values())]
    g = g.astype(gradient_dtype(g, p), copy=False)
    dtypes = [*kept, g.dtype, *kept]
    with np.nditer([*before, *after], flags, access, dtypes, casting="same_kind", buffersize=BLOCK) as blocks:  # type: ignore[call-overload]
        for block in blocks:
            (block_p, *block_slots, block_g), (new_p, *new_slots) = block[: len(before)], block[len(before) :]
            named = dict(zip(slots, block_slots, strict=True))
            new_p[...], computed = _update(rule, block_p, block_g, named, h, Group(rule.name), writes=writes)
            for slot, new in zip(slots, new_slots, strict=True):
                new[...] = computed[slot]
        made = blocks.operands[len(before) :]
    return made[0], dict(zip(slots, made[1:], strict=True))


def evaluation(rule: Rule, p: Any, slots: Mapping[str, Any], h: Mapping[str, float], precision: str = "state32") -> Any:
    """Return the array to evaluate with, a new one where it is not the parameter itself.

    ``slots`` has those of the rule, and what `gpuopt.engines.storage` keeps beside the parameter.
    """
    if not rule.evaluates:
        return p
    whole = storage.loaded(p, slots, precision)
    found = _evaluation(rule, whole, {name: slots[name] for name in starts(rule.slots)}, h)
    with current(p), np.errstate(all="ignore"):
        return namespace(p).astype(found, p.dtype, copy=False)


def _widened(p: Any, slots: Mapping[str, Any], declared: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return copies of the parameter and its slots in the dtype of the arithmetic; slots that are numbers become `Number`."""
    xp, arithmetic, stored = namespace(p), arithmetic_dtype(p), p.dtype

    def copied(x: Any) -> Any:
        return xp.astype(x, x.dtype if arithmetic == stored else arithmetic)

    own = {slot: Number(value) if is_number(declared[slot]) else copied(value) for slot, value in slots.items()}
    return copied(p), own


def _evaluation(rule: Rule, p: Any, slots: Mapping[str, Any], h: Mapping[str, float]) -> Any:
    xp = namespace(p)
    with np.errstate(all="ignore"), current(p):
        like, own = _widened(p, slots, starts(rule.slots))
        if not p.shape:  # as in `_update`
            like, own = xp.reshape(like, (1,)), {slot: _with_axis(xp, x) for slot, x in own.items()}
        wide: Any = like
        functions: Any = Namespace(xp, p, Group(rule.name))
        if is_complex(p):
            wide, own, functions = as_pair(like), {slot: as_pair(x) for slot, x in own.items()}, Lifted(functions)
        what = f"{rule.name}.evaluation"
        try:
            found = applied(rule, rule.evaluation, functions, wide, *named(rule.name, own, of_step(xp, h)))
        except Unknown:
            raise TypeError(
                f"{what} asks for totals over all leaves, expected what a slot `shared` keeps of them"
            ) from None
        real = wide.re.dtype if isinstance(wide, Pair) else like.dtype
        for part in (found.re, found.im) if isinstance(found, Pair) else (found,):
            _check_returned(
                f"{what} returned p", part, real if isinstance(found, Pair) else like.dtype, real, like.shape
            )
        found = joined(found, like) if isinstance(found, Pair) else xp.astype(found, p.dtype, copy=False)
        return xp.reshape(found, p.shape)


def _with_axis(xp: Any, x: Any) -> Any:
    return x if isinstance(x, Number) else xp.reshape(x, (1,))


def sums_of_squares(g: Any, p: Any) -> list[float]:
    """Return the three sums of `gpuopt.engines.norms` of the gradient of ``p``, in the order in which the namespace adds."""
    xp = namespace(g)
    with current(g), np.errstate(all="ignore"):
        own = as_pair(xp.astype(g, arithmetic_dtype(p)))
        parts = (own.re, own.im) if isinstance(own, Pair) else (own,)
        exact = [xp.astype(part, xp.float64) for part in parts]
        return [sum(float(xp.sum(part * scale * (part * scale))) for part in exact) for scale in SCALES]


def try_out(rule: Rule, like: Any, h: Mapping[str, float], *, elementwise: bool) -> None:
    """Run the rule once on zeros, for its errors: on one element if the rule is elementwise, else on a whole leaf.

    Raises
    ------
    TypeError, ValueError
        As `update`.

    """
    sample = like[..., : min(1, like.shape[-1])] if elementwise and like.ndim else like
    p, g = zeros_like(sample), zeros_like(sample)
    slots = {
        name: number_start(rule, slot)
        if is_number(slot)
        else zeros_like(p, slot_dtype(rule, name, p), shape_of(slot, tuple(p.shape)))
        for name, slot in starts(rule.slots).items()
    }
    update(rule, p, g, slots, h)
