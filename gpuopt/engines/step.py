"""A step over leaves of any kind: a leaf is fused where that can be, and else updated by the array engine."""

from __future__ import annotations

import math
from itertools import repeat, zip_longest
from operator import setitem
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import arrays as libraries
from gpuopt.cached import cached_property
from gpuopt.engines import array, memory, storage
from gpuopt.engines.fusable import fused_leaves, try_whole
from gpuopt.engines.fused import FusedStep, Leaf, fused_steps
from gpuopt.engines.interrupts import each, in_one_go
from gpuopt.engines.judging import Judging
from gpuopt.engines.place import place_of, places_of
from gpuopt.engines.program.dependence import agrees, dependence
from gpuopt.engines.program.program import SCALE
from gpuopt.engines.program.programs import Programs
from gpuopt.engines.slots import lower_bits_of, with_new_slots
from gpuopt.engines.table import CHUNK
from gpuopt.rules.slots import Shared, is_number, starts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.choice import Engine
    from gpuopt.engines.norms import Guard
    from gpuopt.engines.parts import Parts
    from gpuopt.engines.program.dependence import Path
    from gpuopt.rules.base import Rule


class Step(Judging):
    """The leaves, each with the engine that updates it.

    Parameters
    ----------
    arrays
        The parameters.
    held
        The parameters as the user holds them: perhaps of a subclass of NumPy's arrays.
    groups
        For each parameter, the index of its rule.
    rules
        One for each group.
    state
        The slots of each leaf that exist already, by name; missing slots of its rule are made, and start where it says.
    engine
        "auto", "array" or "fused".
    guard
        What to look for in the gradients before a step.
    before
        The step of the same leaves that this step replaces, if any. What a GPU has decided so far goes over to the new step,
        if the same GPU decides again.
    idle
        Leaves that are never updated, whatever is given as their gradients.
    precision
        How leaves of 16 bits and their slots are kept; see `gpuopt.engines.storage`.
    parts
        Which leaves the ``arrays`` are parts of, if they are parts. Rules that add up then need `begin`, and for each pass `reduce` and
        `know`, before the step.

    Attributes
    ----------
    inherits
        Whether the decisions of a GPU went over from ``before``; if not, ask `overdue` and `count_skipped` of ``before``.
    slots
        Of each leaf, by name.
    rules
        One for each group, which may be replaced by others that this step `computes`.

    """

    def __init__(
        self,
        arrays: Sequence[Any],
        held: Sequence[Any],
        groups: Sequence[int],
        rules: Sequence[Rule],
        state: Sequence[Mapping[str, Any]],
        engine: Engine,
        guard: Guard | None = None,
        before: Step | None = None,
        idle: Collection[int] = (),
        precision: str = "state32",
        parts: Parts | None = None,
    ) -> None:
        self._guard = guard
        self._precision = precision
        self._arrays, self._groups = arrays, groups
        self._numbers = [*map(storage.number_of, parts.leaf_of, parts.starts)] if parts else range(len(arrays))
        self.rules = rules
        self._places = places_of(arrays)
        programs = Programs(rules)
        kinds = [
            (group, place, a.dtype, tuple(a.shape))
            for group, place, a in zip(groups, self._places, arrays, strict=True)
        ]
        first = {kind: i for i, kind in reversed([*enumerate(kinds)])}  # of many leaves few are unlike the others
        found = {kind: programs.get(groups[i], arrays[i]) for kind, i in reversed(first.items())}
        self._programs = [found[kind] for kind in kinds]
        if engine != "array":
            tried = [i for i, place in enumerate(self._places) if place and i not in idle]
            try_whole(self._programs, tried, groups, arrays, rules, strict=engine == "fused")
        known = [(self._programs[i], groups[i], arrays[i]) for i in first.values()]
        apart = {k for own, k, a in known if own is None or not own.is_elementwise or programs.sees(k, a)}
        self._elementwise = [k not in apart for k in range(len(rules))]
        writing = {k for own, k, _ in known if own is None or own.writes}
        self._writing = [k in writing for k in range(len(rules))]
        together = fused_leaves(
            engine, self._programs, groups, arrays, self._places, rules, idle, are_parts=parts is not None
        )
        fused = set(together)
        kept_at = [place if i in fused else None for i, place in enumerate(self._places)]
        self.slots = with_new_slots(arrays, self._places, kept_at, [rules[g] for g in groups], state, precision)
        split = [
            i
            for i, a in enumerate(arrays)
            if precision == "split" and storage.precision_of(libraries.dtype_of(a), precision) and i not in idle
        ]
        for i, low in zip(split, lower_bits_of([arrays[i] for i in split], [state[i] for i in split]), strict=True):
            self.slots[i][storage.LOW] = low
        self._alone = sorted(set(range(len(arrays))) - set(together) - set(idle))
        # One leaf of each kind that is updated alone: what its rule cannot do shows now.
        for i in {
            (groups[i], libraries.place(arrays[i]), libraries.dtype_of(arrays[i])): i for i in self._alone
        }.values():
            rule = rules[groups[i]]
            array.try_out(rule, arrays[i], rule.at(0), elementwise=self._elementwise[groups[i]])
        self._reach = {
            place: memory.Overlaps(
                [  # slots may be numbers, which the host keeps
                    a
                    for p, own, slots in zip(self._places, arrays, self.slots, strict=True)
                    if p is place
                    for a in (own, *slots.values())
                    if isinstance(a, np.ndarray) == (place.name == "numpy") and getattr(a, "size", False)
                ]
            )
            for place in dict.fromkeys(self._places)
            if place is not None
        }
        self._fused: list[FusedStep] = []
        # GPUs first: their launches may fail, and nothing has been written then.
        places = dict.fromkeys(place for i in together if (place := self._places[i]))
        # If one GPU holds everything, it decides by itself, and nothing need cross to the host.
        decides = len(places) == 1 and not self._alone
        heir = before if before and decides and before._judge is not None else None
        precisions = {kind: storage.precision_of(libraries.dtype_of(arrays[i]), precision) for kind, i in first.items()}
        for place in sorted(places, key=lambda place: (place.name == "numpy", place.name)):
            leaves = {
                i: Leaf(
                    groups[i],
                    held[i],
                    arrays[i],
                    self._programs[i] or programs.of(groups[i], arrays[i]),
                    self.slots[i],
                    precisions[kinds[i]],
                    self.slots[i].get(storage.LOW, self._numbers[i]),
                )
                for i in together
                if self._places[i] is place
            }
            former = heir._fused[0] if heir else None
            self._fused += fused_steps(place, leaves, rules, self._reach[place], former, parts)
        decides = decides and len(self._fused) == 1
        heir = heir if decides else None
        self._scales = np.ones(len(arrays))
        scale = guard.scale if guard else None
        self._loss = self._next_loss = np.array([scale.initial if scale else 1.0, 0.0])
        self._norm = math.nan
        self._decides = decides
        self.inherits = heir is not None
        if scale and not heir:
            if before:
                self._loss = self._next_loss = np.array(before.loss_scale)
            in_one_go(self.setting_scale(*self._loss), self.restoring())

    def computes(self, rules: Sequence[Rule]) -> bool:
        """Whether this step can use other rules without recompiling: only their hyperparameters differ, not programs or slots."""
        if all(
            new is old or (reads is not None and agrees(new, reads))
            for new, old, reads in zip(rules, self.rules, self._dependences, strict=True)
        ):
            return True
        if not all(_kinds(new) == _kinds(old) for new, old in zip(rules, self.rules, strict=True)):
            return False
        programs = Programs(rules)
        leaves = zip(self._programs, self._groups, self._arrays, strict=True)
        both = {(id(own), id(new)): (own, new) for own, group, a in leaves for new in [programs.get(group, a)]}
        return all(own == new for own, new in both.values())

    @cached_property
    def _dependences(self) -> list[dict[Path, Any] | None]:
        """For each rule, the values that its program depends on; the same for all rules that `computes` accepts."""
        return [dependence(rule) for rule in self.rules]

    def scalars(self, step: int, carried: Sequence[Mapping[str, float] | None]) -> list[dict[str, float]]:
        """Return what `Rule.at` gives for each group, from its carried numbers."""
        return [rule.at(step, own) if own else rule.at(step) for rule, own in zip(self.rules, carried, strict=True)]

    def bind(self, gradients: list[Any], leaves: list[Any], checked: Callable[[int, Any, Any], Any]) -> None:
        """Record the gradients of the next step; None leaves a leaf alone.

        Parameters
        ----------
        gradients
            Of each leaf, whatever was given. Afterwards arrays that the step can read: a copy replaces a gradient that it
            could not read where it is.
        leaves
            The parameters that the user holds now.
        checked
            Called with the number of a leaf, its gradient and its parameter, unless both are known to fit: returns the
            gradient as an array that fits (or None), or raises an error.

        """
        for i in self._alone:
            gradients[i] = checked(i, gradients[i], leaves[i])
        for step in self._fused:
            step.bind(gradients, leaves, checked)

    @property
    def widths(self) -> list[int]:
        """Of parts of leaves: of each reduction pass, how much it adds up of each chunk."""
        return [max(own) for own in zip_longest(*(step.widths for step in self._fused), fillvalue=0)]

    def begin(self, scalars: Sequence[Mapping[str, float]], present: Sequence[bool]) -> None:
        """Before the first pass over parts of leaves: the scalars, and whether each whole leaf has a gradient."""
        for step in self._fused:
            step.begin(scalars, present)

    def reduce(self, k: int) -> list[NDArray[np.float64]]:
        """Return what pass ``k`` adds up of each chunk of each part, of shape (chunks, columns)."""
        width = self.widths[k]
        sums = [np.zeros((-(-a.size // CHUNK), width)) for a in self._arrays]
        for step in self._fused:
            if k < len(step.widths):
                for i, own in step.reduce(k).items():
                    sums[i][:, : own.shape[1]] = own
        return sums

    def know(self, k: int, sums: NDArray[np.float64]) -> None:
        """Take over what pass ``k`` added up of all chunks of all whole leaves, of shape (chunks, columns)."""
        for step in self._fused:
            if k < len(step.widths):
                step.know(k, np.ascontiguousarray(sums[:, : step.widths[k]]))

    def restoring(self) -> Sequence[Callable[[], object]]:
        """See `gpuopt.engines.place.Place.restoring`."""
        return self._fused[0].place.restoring() if self._fused else ()  # GPUs come first, and have one for all of them

    def __call__(
        self,
        gradients: Sequence[Any],
        scalars: Sequence[Mapping[str, float]],
        *counts: Callable[[], None],
        key: int = 0,
        first: Sequence[Callable[[], object]] = (),
    ) -> None:
        """Update every leaf whose gradient is not None, and count the step: all of it, or nothing.

        Parameters
        ----------
        gradients
            As `bind` left them.
        scalars
            Of each group, what `Rule.at` gave.
        *counts
            What counts the step; written in C.
        key
            The key of the step, for random rounding: see `gpuopt.engines.storage.split_mix`.
        first
            What is called before anything is written; written in C.

        """
        calls = self.prepare(gradients, scalars, key)
        in_one_go((*first, *calls, *self.settling(), *counts), self.restoring())

    def prepare(
        self, gradients: Sequence[Any], scalars: Sequence[Mapping[str, float]], key: int = 0
    ) -> list[Callable[[], object]]:
        """Return functions written in C that update every leaf whose gradient is not None. Nothing changes before they run."""
        calls: list[Callable[[], object]] = []
        for step in self._fused:
            calls += step.prepare(scalars, key)
        if self._alone:
            for group in range(len(self.rules)):
                members = [i for i in self._alone if self._groups[i] == group and gradients[i] is not None]
                calls += self._writes(group, members, gradients, scalars[group], key) if members else []
        return calls

    def evaluation(self, scalars: Sequence[Mapping[str, float]]) -> list[Any]:
        """Return for each leaf the array to evaluate with: itself, or the average that its rule keeps.

        Parameters
        ----------
        scalars
            Of each group, what `Rule.at` gave for the last step.

        """
        return [
            array.evaluation(self.rules[group], p, slots, scalars[group], self._precision)
            for p, group, slots in zip(self._arrays, self._groups, self.slots, strict=True)
        ]

    def unreadable(self, sources: Sequence[Any], targets: Sequence[Any]) -> list[int]:
        """Return which arrays cannot be read where they are until all leaves and slots have been written to.

        Those of another place than what they are for, and those that share memory with what is written to.
        """
        places, homes = places_of(sources), places_of(targets)
        found = [i for i, (place, home) in enumerate(zip(places, homes, strict=True)) if not place or place is not home]
        for place, reach in self._reach.items():
            members = [i for i, (own, home) in enumerate(zip(places, homes, strict=True)) if own is home is place]
            meeting = reach(*memory.bounds([sources[i] for i in members]))
            found += [members[k] for k in np.flatnonzero(meeting)]
        return found

    @staticmethod
    def copying(pairs: Sequence[tuple[Any, Any]]) -> list[Callable[[], object]]:
        """Return what writes into each target an array of its library and device, in C where the library is; to be called once."""
        homes = [None if type(target) is np.ndarray else place_of(target) for target, _ in pairs]
        calls = [call for home, pair in zip(homes, pairs, strict=True) if home for call in home.copying(*pair)]
        others = [pair for home, pair in zip(homes, pairs, strict=True) if not home]
        return [*calls, each(setitem, [target for target, _ in others], repeat(...), [source for _, source in others])]

    def _writes(
        self, group: int, members: list[int], gradients: Sequence[Any], h: Mapping[str, float], key: int
    ) -> list[Callable[[], object]]:
        """Compute the update of the leaves of a group, and return what writes the results."""
        rule, writes = self.rules[group], self._writing[group]
        declared = starts(rule.slots)
        before = [
            (
                storage.loaded(self._arrays[i], self.slots[i], self._precision),
                gradients[i],
                {
                    name: float(self.slots[i][name]) if is_number(slot) else self.slots[i][name]
                    for name, slot in declared.items()
                },
            )
            for i in members
        ]
        if self._elementwise[group]:
            scaled = [{**h, SCALE: float(self._scales[i])} if SCALE in h else h for i in members]
            after = [
                array.update(rule, *leaf, own, elementwise=True, writes=writes)
                for leaf, own in zip(before, scaled, strict=True)
            ]
        else:
            scales = [float(self._scales[i]) for i in members]
            after = array.update_group(rule, before, h, scales if SCALE in h else None, writes=writes)
        results = [
            pair
            for i, (new_p, new_slots) in zip(members, after, strict=True)
            for pair in [
                *storage.stored(new_p, self._arrays[i], self.slots[i], self._precision, key, self._numbers[i]),
                *((self.slots[i][name], new) for name, new in new_slots.items()),
            ]
        ]
        shared = {name: after[0][1][name] for name, slot in declared.items() if isinstance(slot, Shared)}
        others = [i for i, own in enumerate(self._groups) if own == group and i not in members]
        results += [(self.slots[i][name], new) for i in others for name, new in shared.items()]
        return self.copying(results)


def _kinds(rule: Rule) -> tuple[Any, dict[str, str]]:
    """The slots of a rule, and what they hold of a complex leaf."""
    return rule.slots, {name: rule.part(name) for name in rule.slots}
