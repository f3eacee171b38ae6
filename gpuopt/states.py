"""State dicts: rules as plain values and back, and the check whether a state fits an optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpuopt import schedules
from gpuopt.arrays import assign, describe, detached, dtype_of, hindrance_of, zeros_like
from gpuopt.engines.storage import Stochastic
from gpuopt.rules.hyper import LONGEST, as_float, as_index
from gpuopt.rules.slots import Shared, is_number, shape_of, starts
from gpuopt.suggest import listed, printable, told_of_each

if TYPE_CHECKING:
    from gpuopt.engines.storage import Precision
    from gpuopt.rules.base import Rule
    from gpuopt.tuning import Tuned


Key: TypeAlias = tuple[str, ...]
"""Of an array in a state: ``("params", path)`` or ``("state", path, slot)``."""

KEYS = {"steps", "skipped", "accumulated", "seed", "scale", "rules", "params", "state"}
"""Keys of a state."""
_NOTHING = object()
MOST = 20
"""Largest number of problems that a message names; further ones are counted."""


def rules_to_plain(
    patterns: Sequence[str], rules: Sequence[Rule], tuned: Sequence[Tuned], carried: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Return the entry ``rules`` of a state dict: by pattern, a rule's name, what was tuned and the carried numbers."""
    return {
        pattern: {
            "name": rule.name,
            "tuned": {n: v.to_dict() if isinstance(v, schedules.Schedule) else v for n, v in own.items()},
            **({"carried": dict(numbers)} if numbers else {}),
        }
        for pattern, rule, own, numbers in zip(patterns, rules, tuned, carried, strict=True)
    }


def carried_of(state: Mapping[str, Any], rules: Mapping[str, Rule], problems: list[str]) -> list[dict[str, float]]:
    """Return the carried numbers in a state, for each group; what does not fit is appended to ``problems``."""
    found = []
    for pattern, rule in rules.items():
        own = state.get("rules", {}).get(pattern, {}).get("carried", {})
        if not isinstance(own, Mapping):
            problems.append(f"rules/{pattern}: carried numbers {own!r:.40}, expected a dict")
            own = {}
        names = own.keys()
        if names != rule.carried.keys():
            shown = listed(sorted(map(str, names)), shown=repr)
            problems.append(f"rules/{pattern}: carried numbers [{shown}], expected {sorted(rule.carried)}")
        known = {name: own[name] for name in names & rule.carried.keys()}
        problems += [
            f"rules/{pattern}: carried number {name}: {value!r:.40}, expected a finite number"
            for name, value in known.items()
            if not _is_finite(value)
        ]
        kept = {name: float(value) for name, value in known.items() if _is_finite(value)}
        found.append({name: kept.get(name, start) for name, start in rule.carried.items()} if names else {})
    return found


def _is_finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(as_float(value))


def skipped_of(state: Mapping[str, Any], problems: list[str]) -> int:
    """Return how many steps had been left out in a state; what does not fit is appended to ``problems``."""
    given = as_index(state.get("skipped", 0))
    if given is None or given < 0:
        problems.append(f"skipped: {state['skipped']!r:.40}, expected a number of steps")
        return 0
    return given


def accumulated_of(state: Mapping[str, Any], every: int, problems: list[str]) -> int:
    """Return how many gradients are waiting in a state; what does not fit is appended to ``problems``."""
    given = as_index(state.get("accumulated", 0))
    if given is None or not 0 <= given < every:
        problems.append(f"accumulated: {state['accumulated']!r:.40} gradients, expected fewer than every={every}")
        return 0
    return given


def precision_of(state: Mapping[str, Any], own: Precision | Stochastic, problems: list[str]) -> Precision | Stochastic:
    """Return an optimizer's ``own`` precision, with the seed in a state; what does not fit is appended to ``problems``."""
    given = state.get("seed")
    if not isinstance(own, Stochastic):
        problems += ["seed: unexpected; it is of precision='stochastic'"] if given is not None else []
        return own
    try:
        return Stochastic(given)  # type: ignore[arg-type]
    except ValueError as error:
        problems.append(f"seed: {error}")
        return own


def scale_of(state: Mapping[str, Any], *, is_dynamic: bool, problems: list[str]) -> tuple[float, float] | None:
    """Return the scale of the loss in a state and its good steps, None if there are none; what does not fit is appended."""
    if not is_dynamic:
        problems += ["scale: unexpected; it is of a DynamicScale"] if state.get("scale") is not None else []
        return None
    match state.get("scale"):
        case None:
            return None
        case (scale, good) if (
            _is_finite(scale) and scale > 0 and _is_finite(good) and good >= 0 and float(good).is_integer()
        ):
            return float(scale), float(good)
    problems.append(f"scale: {state['scale']!r:.40}, expected a positive number and a number of steps")
    return None


def counts_of(
    given: Mapping[tuple[str, ...], Any], slot: str, paths: Mapping[int, str], most: int, problems: list[str]
) -> dict[int, int]:
    """Return how many gradients of each leaf are waiting; what is no such number is appended to ``problems``."""
    counts = {}
    for i, path in paths.items():
        number = float(given.get(("state", path, slot), 0))
        if number not in range(most + 1):
            problems.append(f"state/{path}/{slot}: {number}, expected a number of gradients up to {most}")
            number = 0
        counts[i] = int(number)
    return counts


def tuned_of(
    state: Mapping[str, Any], patterns: Sequence[str], original: Sequence[Rule], problems: list[str]
) -> list[Tuned]:
    """Return what was tuned in a state, for each group.

    Parameters
    ----------
    state
        Nested as `check_nesting` wants it.
    patterns, original
        The groups of the optimizer, and their rules before anything was tuned.
    problems
        What does not fit is appended: a key that no state has, the steps are no number of steps, the rules are others, a
        value is refused.

    """
    problems += told_of_each([*map(str, state.keys() - KEYS)], "unexpected")
    steps, given = as_index(state.get("steps")), state.get("rules", {})
    if steps is None or not 0 <= steps < LONGEST:
        said = f"{state.get('steps')!r:.40}" if steps is None else f"{as_float(steps):g}"
        problems.append(f"steps: {said}, expected a number of steps")
    expected = {pattern: rule.name for pattern, rule in zip(patterns, original, strict=True)}
    shown = {pattern: own["name"] for pattern, own in given.items()}
    tuned: list[Tuned] = []
    if len(shown) > max(MOST, len(expected)):
        problems.append(f"rules: {len(shown):,} groups, expected {expected}")
    elif shown != expected:
        problems.append(f"rules: {shown}, expected {expected}")
    else:
        for pattern, rule in zip(patterns, original, strict=True):
            try:
                tuned.append({name: _restored(value) for name, value in given[pattern]["tuned"].items()})
                dataclasses.replace(rule, **tuned[-1])
            except (TypeError, ValueError) as error:
                problems.append(f"rules/{pattern}: {error}")
    return tuned


def expected_arrays(
    paths: Sequence[str],
    arrays: Sequence[Any],
    groups: Sequence[int],
    rules: Sequence[Rule],
    slot_dtype: Callable[[Rule, str, Any], Any],
) -> dict[Key, Any]:
    """Return what the arrays of a state must be like, by their keys.

    Parameters
    ----------
    paths, arrays, groups
        Of each leaf: its path, the parameter, and the index of its rule.
    rules
        One for each group.
    slot_dtype
        From a rule, the name of a slot and the parameter, the dtype of the slot.

    """
    expected: dict[Key, Any] = {("params", path): a for path, a in zip(paths, arrays, strict=True)}
    declared = [starts(rule.slots) for rule in rules]
    others: dict[tuple[int, Any, tuple[int, ...]], dict[str, tuple[Any, tuple[int, ...]]]] = {}
    for path, a, group in zip(paths, arrays, groups, strict=True):
        kind = group, a.dtype, tuple(a.shape)
        if kind not in others:  # of many leaves few are unlike the others
            _, dtype, shape = kind
            arrays_ = {slot: start for slot, start in declared[group].items() if not is_number(start)}
            like = {
                slot: (slot_dtype(rules[group], slot, a), shape_of(start, shape)) for slot, start in arrays_.items()
            }
            others[kind] = {slot: own for slot, own in like.items() if own[0] != dtype or own[1] != shape}
        for slot, start in declared[group].items():
            if is_number(start):
                expected["state", path, slot] = np.zeros(())
            else:
                other = others[kind].get(slot)
                expected["state", path, slot] = zeros_like(a, *other) if other else a
    return expected


def check_shared(
    given: Mapping[Key, Any],
    paths: Sequence[str],
    groups: Sequence[int],
    rules: Sequence[Rule],
    problems: list[str],
) -> None:
    """Append where leaves of a group have different values of a number that they share; the arguments as of `expected_arrays`."""
    for group, rule in enumerate(rules):
        for slot in (slot for slot, start in starts(rule.slots).items() if isinstance(start, Shared)):
            keys = [("state", path, slot) for path, own in zip(paths, groups, strict=True) if own == group]
            values = {str(float(given[key])) for key in keys if key in given}
            if len(values) > 1:
                problems.append(f"state/*/{slot}: {listed(sorted(values), 3)}, expected one number for all leaves")


def arrays_of(
    state: Mapping[str, Any],
    expected: Mapping[Key, Any],
    unreadable: Callable[[Sequence[Any], Sequence[Any]], Sequence[int]],
    problems: list[str],
) -> dict[Key, Any]:
    """Return the arrays of a state that fit, each as one of the library and device of the array that it is for.

    Parameters
    ----------
    state
        Nested as `check_nesting` wants it.
    expected
        What they are for, or arrays like that: see `expected_arrays`.
    unreadable
        Called with arrays of the state and those expected: returns which of the first must be copied into new ones like the second.
    problems
        What is missing, unexpected, of another shape or dtype is appended.

    """
    given: dict[Key, Any] = {("params", path): a for path, a in state.get("params", {}).items()}
    given |= {("state", path, s): a for path, own in state.get("state", {}).items() for s, a in own.items()}
    fitting, missing = {}, []
    for key, own in expected.items():
        new = given.pop(key, _NOTHING)
        if (
            type(new) is type(own) is np.ndarray
            and new.dtype is own.dtype
            and new.shape == own.shape
            and own.flags.writeable
        ):
            fitting[key] = new  # nearly all
        elif new is _NOTHING:
            missing.append("/".join(key))
        elif why := _why_unfit(new, own):
            problems.append(f"{'/'.join(key)}: {why}")
        else:
            fitting[key] = detached(new)
    keys = [*fitting]
    for i in unreadable([*fitting.values()], [expected[key] for key in keys]):
        key = keys[i]
        try:
            fitting[key] = _copied(fitting[key], expected[key])
        except Exception as error:  # noqa: BLE001 - each library has its own
            problems.append(f"{'/'.join(key)}: {describe(fitting[key])} that cannot be read ({error})")
    problems += told_of_each(missing, "missing") + told_of_each(["/".join(key) for key in given], "unexpected")
    return fitting


def _copied(x: Any, own: Any) -> Any:
    """Return the values of an array of any library as a new one like another array."""
    if type(x) is type(own) is np.ndarray:
        return x.copy()
    copy = zeros_like(own)
    assign(copy, x)
    return copy


def _why_unfit(new: Any, own: Any) -> str:
    """Return why something cannot be written into an array; "" if it can."""
    if not (hasattr(new, "shape") and hasattr(new, "dtype")):
        return f"{describe(new)}, expected an array"
    if tuple(new.shape) != tuple(own.shape):
        return f"shape {tuple(new.shape)}, expected {tuple(own.shape)}"
    if new.dtype is not own.dtype and dtype_of(new) != dtype_of(own):
        return f"dtype {dtype_of(new)}, expected {dtype_of(own)}"
    if isinstance(new, np.ndarray) and isinstance(new, np.ma.MaskedArray):
        return "a masked array, whose mask would get lost, expected a plain one"
    hindrance = hindrance_of(own)
    return f"this optimizer's: {hindrance} by now, expected one to write to" if hindrance else ""


def misfit(problems: Sequence[str]) -> ValueError:
    """Return the error of a state that does not fit."""
    shown = [printable(problem, 1000) for problem in sorted(problems)[:MOST]]
    more = [f"and {len(problems) - MOST:,} more"] if len(problems) > MOST else []
    between = "\n  " if len(shown) > 1 else " "
    return ValueError(between.join(["the state does not fit this optimizer:", *shown, *more]))


def check_nesting(state: Any) -> None:
    """Raise ValueError unless a state is nested as `Optimizer.state_dict` nests it."""
    parts: list[Any] = [state.get(key, {}) for key in ("rules", "params", "state")] if _is_dict(state) else [None]
    if all(map(_is_dict, parts)):
        rules, _, slots = parts
        tuned = [
            own.get("tuned") if _is_dict(own) and isinstance(own.get("name"), str) else None for own in rules.values()
        ]
        dicts: list[Any] = [*tuned, *slots.values()]
        if all(type(x) is dict or isinstance(x, Mapping) for x in dicts) and _are_names(chain.from_iterable(dicts)):
            return
    raise ValueError("the state does not fit: expected dicts nested as state_dict nests them, with names as keys")


def _is_dict(x: object) -> bool:
    return (type(x) is dict or isinstance(x, Mapping)) and _are_names(x)


def _are_names(keys: Iterable[Any]) -> bool:
    return all(issubclass(kind, str) for kind in set(map(type, keys)))


def _restored(value: Any) -> Any:
    return schedules.from_dict(value) if isinstance(value, Mapping) else value
