"""The slots of leaves: existing ones are checked, missing ones are made."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import arrays as libraries
from gpuopt.engines import array, memory, storage
from gpuopt.engines.complexes import slot_dtype
from gpuopt.engines.place import place_of
from gpuopt.rules.slots import Filled, Real, Slot, is_number, shape_of, starts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuopt.engines.place import Place
    from gpuopt.rules.base import Rule


def with_new_slots(
    arrays: Sequence[Any],
    places: Sequence[Place | None],
    homes: Sequence[Place | None],
    rules: Sequence[Rule],
    state: Sequence[Mapping[str, Any]],
    precision: str,
) -> list[dict[str, Any]]:
    """Slots of each leaf, in the order of its rule; new arrays lie side by side, one buffer for each slot and place.

    A number is an array of float64 without axes: where a fused engine keeps it up to date, in the leaf's home, else of NumPy.
    """
    of_rule = {key: starts(rule.slots) for key, rule in dict(zip(map(id, rules), rules, strict=True)).items()}
    declared = [of_rule[id(rule)] for rule in rules]
    slots = [{name: own.get(name) for name in wanted} for wanted, own in zip(declared, state, strict=True)]
    for own, starting, rule, p, kept in zip(slots, declared, rules, arrays, state, strict=True):
        if kept:
            _check_kept(own, starting, rule, p, precision)
    zeros = {id(own): {name for name, start in own.items() if start in (Filled(), Real())} for own in of_rule.values()}
    fields = {id(own): {name for name, start in own.items() if not is_number(start)} for own in of_rule.values()}
    missing: dict[tuple[Place | None, str], list[int]] = defaultdict(list)
    for i, (own, starting, place) in enumerate(zip(slots, declared, places, strict=True)):
        for name, value in own.items():
            if name not in fields[id(starting)]:
                start: Any = starting[name]
                own[name] = _number(array.number_start(rules[i], start) if value is None else value, homes[i])
            elif value is None or not _lies_like(value, arrays[i], place):
                missing[place, name].append(i)

    def like(i: int, name: str) -> tuple[Any, Any, tuple[int, ...]]:
        p, start = arrays[i], declared[i][name]
        return p, slot_dtype(rules[i], name, p, precision), shape_of(start, p.shape)

    for (place, name), members in missing.items():
        if place is not None:
            kinds = [(id(rules[i]), (p := arrays[i]).dtype, p.shape, p.strides) for i in members]
            layouts = {
                kind: memory.dense_layout(*like(i, name)) for kind, i in dict(zip(kinds, members, strict=True)).items()
            }
            new = place.zeros([layouts[kind] for kind in kinds])
        else:
            new = [libraries.zeros_like(*like(i, name)) for i in members]
        for i, value in zip(members, new, strict=True):
            slots[i][name] = value
            if (old := state[i].get(name)) is not None:
                libraries.assign(value, old)
            elif name not in zeros[id(declared[i])]:
                libraries.assign(value, array.started(name, arrays[i], i, rules[i]))
    return slots


def _lies_like(slot: Any, p: Any, place: Place | None) -> bool:
    """Whether a slot of another shape than the leaf's has its axes in the leaf's order in memory, where loops go over both."""
    if place is None or slot.shape == p.shape:
        return True
    layout = memory.dense_layout(p, slot.dtype, slot.shape)
    return memory.same_strides(slot, layout)


def _check_kept(slots: Mapping[str, Any], declared: Mapping[str, Slot], rule: Rule, p: Any, precision: str) -> None:
    """Raise ValueError unless the existing slots of a leaf are what its rule declares."""
    for name, value in slots.items():
        if value is None or is_number(declared[name]):
            continue
        known = libraries.dtype_of(value), tuple(value.shape)
        wanted = libraries.name_of(slot_dtype(rule, name, p, precision)), shape_of(declared[name], tuple(p.shape))
        if known != wanted:
            given, expected = (f"{dtype} of {shape}" for dtype, shape in (known, wanted))
            raise ValueError(f"{rule.name}: slot {name}: {given}, expected {expected}; make a new optimizer")


def lower_bits_of(leaves: Sequence[Any], state: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the array of the lower 16 bits of each leaf, from the state if it is there, else new."""
    found = [own.get(storage.LOW) for own in state]
    missing = [i for i, low in enumerate(found) if low is None]
    for place in dict.fromkeys(place_of(leaves[i]) for i in missing):
        members = [i for i in missing if place_of(leaves[i]) is place]
        layouts = [memory.dense_layout(leaves[i], np.uint16) for i in members]
        new = place.zeros(layouts) if place else [np.zeros(layout.shape, np.uint16) for layout in layouts]
        for i, low in zip(members, new, strict=True):
            found[i] = low
    return found


def _number(value: Any, home: Place | None) -> Any:
    """Return a number as a float64 array without axes; the array itself if it is one on the right device."""
    if home is None:
        return value if libraries.is_numpy(value) and value.ndim == 0 else np.array(float(value), np.float64)
    if place_of(value) is home:
        return value
    (number,) = home.zeros([memory.Layout((), np.dtype(np.float64), ())])
    libraries.assign(number, np.array(float(value), np.float64))
    return number
