"""A step over leaves of any kind: a leaf is fused where that can be, and else updated by the array engine."""

from __future__ import annotations

import math
import operator
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import arrays as libraries
from gpuopt.engines import array, memory, storage
from gpuopt.engines.complexes import arithmetic_dtype, slot_dtype
from gpuopt.engines.dependence import agrees, dependence
from gpuopt.engines.fused import FusedStep, Leaf
from gpuopt.engines.interrupts import in_one_go
from gpuopt.engines.norms import chunk_sums_of_squares, is_finite, judge, sums_of_squares
from gpuopt.engines.place import place_of
from gpuopt.engines.table import CHUNK
from gpuopt.engines.trace import SCALE, Program, traced
from gpuopt.rules.slots import Filled, Real, Shared, Slot, is_number, shape_of, starts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.choice import Engine
    from gpuopt.engines.dependence import Path
    from gpuopt.engines.norms import Guard
    from gpuopt.engines.place import Place
    from gpuopt.engines.whole import Parts
    from gpuopt.rules.base import Rule


class Step:
    """The leaves, each with the engine that updates it.

    Parameters
    ----------
    arrays
        The parameters.
    held
        The same, as the user holds them: perhaps of a subclass of NumPy's arrays.
    groups
        Of each parameter, the index of its rule.
    rules
        One for each group.
    state
        The slots of each leaf that exist already, by name; missing slots of its rule are made, and start where it says.
    engine
        "auto", "array" or "fused".
    guard
        What to look for in the gradients before a step.
    before
        The step of the same leaves that this one replaces, if there is one: what a GPU knows of the state goes over, if the
        same GPU is to decide.
    idle
        Leaves that are never updated, whatever is given as their gradients.
    precision
        How leaves of 16 bits and their slots are kept; see `gpuopt.engines.storage`.
    parts
        If ``arrays`` are parts of leaves: of which ones. Rules that add up then need `begin`, and for each pass `reduce` and
        `know`, before the step.

    Attributes
    ----------
    inherits
        Whether what a GPU knew has gone over; if not, `overdue` and `count_skipped` of the former step have the last word.
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
        self._places = [place_of(a) for a in arrays]
        self._programs = [traced(rule, twice=True) for rule in rules]
        self._elementwise = [program is not None and program.is_elementwise for program in self._programs]
        homes: list[set[str]] = [set() for _ in rules]
        for a, place, group in zip(arrays, self._places, groups, strict=True):
            homes[group].add(place.name if place else libraries.place(a))
        can_be_fused = _can_be_fused(rules, self._programs, list(map(sorted, homes)), engine)
        together = [
            i
            for i, (a, place, group) in enumerate(zip(arrays, self._places, groups, strict=True))
            if i not in idle
            and engine != "array"
            and place is not None
            and (can_be_fused[group] or (engine == "fused" and memory.is_without_gaps(a)))
        ]
        fused = set(together)
        kept_at = [place if i in fused else None for i, place in enumerate(self._places)]
        self.slots = _with_new_slots(arrays, self._places, kept_at, [rules[g] for g in groups], state, precision)
        split = [
            i
            for i, a in enumerate(arrays)
            if precision == "split" and storage.way_of(libraries.dtype_of(a), precision) and i not in idle
        ]
        for i, low in zip(split, _lower_bits([arrays[i] for i in split], [state[i] for i in split]), strict=True):
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
                [a for i, p in enumerate(self._places) if p is place for a in (arrays[i], *_arrays_of(self.slots[i]))]
            )
            for place in dict.fromkeys(self._places)
            if place is not None
        }
        declared = [starts(rule.slots) for rule in rules]
        names = list(map(_arrays_first, declared))
        numbers = [sum(map(is_number, own.values())) for own in declared]
        self._fused: list[FusedStep] = []
        # GPUs first: their launches may fail, and nothing has been written then.
        places = dict.fromkeys(place for i in together if (place := self._places[i]))
        # If one GPU holds everything, it decides by itself, and nothing need cross to the host.
        decides = len(places) == 1 and not self._alone
        heir = before if before and decides and before._judge is not None else None
        for place in sorted(places, key=lambda place: (place.name == "numpy", place.name)):
            leaves = {
                i: Leaf(
                    groups[i],
                    held[i],
                    arrays[i],
                    tuple(map(self.slots[i].__getitem__, names[groups[i]])),
                    storage.way_of(libraries.dtype_of(arrays[i]), precision),
                    self.slots[i].get(storage.LOW, self._numbers[i]),
                    numbers[groups[i]],
                )
                for i in together
                if self._places[i] is place
            }
            former = heir._fused[0] if heir else None
            self._fused.append(FusedStep(place, leaves, rules, self._reach[place], former, parts))
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

    @property
    def _judge(self) -> Any:
        """The kernel of a GPU that decides by itself."""
        kernel = self._fused[0].kernel if self._decides else None
        return kernel if hasattr(kernel, "judge") else None

    def computes(self, rules: Sequence[Rule]) -> bool:
        """Whether other rules need no other program and no other slots, only other hyperparameters."""
        if all(
            new is old or (reads is not None and agrees(new, reads))
            for new, old, reads in zip(rules, self.rules, self._dependences, strict=True)
        ):
            return True
        same = all(_kinds(new) == _kinds(old) for new, old in zip(rules, self.rules, strict=True))
        if not same or [traced(rule) for rule in rules] != self._programs:
            return False
        return all(step.computes(rules) for step in self._fused)  # complex leaves have programs of their own

    @cached_property
    def _dependences(self) -> list[dict[Path, Any] | None]:
        """What of each rule has a say in its program; so has it of those that `computes` found alike."""
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

    def look(self, gradients: Sequence[Any], limit: float, *, wait_for_host: bool) -> list[int]:
        """Measure the gradients (of `bind`) and decide by how much they are scaled, and whether the step is left out.

        Parameters
        ----------
        limit
            The norm to clip to.
        wait_for_host
            Where a GPU decides by itself: after a step with a bad gradient, to leave out all others, too.

        Returns
        -------
        list of int
            Leaves whose gradient is not finite, for which the caller is not to go on; not known, and empty, where a GPU
            decides by itself.

        """
        if self._guard is None:
            return []
        clip, skip, scale = self._guard.clip, self._guard.skip, self._guard.scale
        if self._judge is not None:
            self._judge.judge(clip, limit, sticky=wait_for_host, skip=skip, scale=scale)
            return []
        sums = np.zeros((len(self._arrays), 3))
        for step in self._fused:
            step.measure(sums)
        for i in self._alone:
            g, p = gradients[i], self._arrays[i]
            if g is not None and (libraries.is_numpy(p) or libraries.is_cupy(p)):
                flat = memory.in_memory_order(libraries.to_numpy(g), p)
                with np.errstate(all="ignore"):
                    sums[i] = sums_of_squares(flat.astype(arithmetic_dtype(p), copy=False))
            elif g is not None:
                sums[i] = array.sums_of_squares(g, p)
        verdict = judge(sums, clip, limit, float(self._loss[0]))
        self.decided(verdict.norm, verdict.scales)
        if scale:
            self._next_loss = np.array(scale.next(*self._loss.tolist(), is_finite=bool(verdict.finite.all())))
        return np.flatnonzero(~verdict.finite).tolist() if skip else []

    @property
    def loss_scale(self) -> tuple[float, float]:
        """What gradients are divided by, and how many good steps there were since it changed. A GPU is waited for."""
        scale, good = self._loss.tolist() if self._judge is None else self._judge.loss_scale().get().tolist()
        return scale, good

    @property
    def scale_array(self) -> Any:
        """What gradients are divided by, as an array without axes where that is known."""
        return (self._loss if self._judge is None else self._judge.loss_scale())[0]

    def setting_scale(self, scale: float, good: float) -> list[Callable[[], object]]:
        """Return what sets `loss_scale`: functions written in C, with `restoring` after them."""
        own = np.array([scale, good])
        judge = [] if self._judge is None else self._judge.setting_scale(own)
        return [partial(operator.setitem, self._loss, ..., own), *judge]

    def settling(self) -> list[Callable[[], object]]:
        """Return what goes on with the scale that the last look at the gradients has led to: functions written in C."""
        return (
            [partial(operator.setitem, self._loss, ..., self._next_loss)] if self._guard and self._guard.scale else []
        )

    def chunk_sums(self, gradients: Sequence[Any]) -> list[NDArray[np.float64]]:
        """Return the sums of squares of each chunk of each gradient (of `bind`), of shape (chunks, 3); 0 for None.

        For a caller that decides by itself, as `gpuopt.engines.norms.judge` does, and tells `decided`. NumPy and CuPy only.
        """
        found = {i: sums for step in self._fused for i, sums in step.chunk_sums().items()}
        for i in set(range(len(self._arrays))) - found.keys():
            g, p = gradients[i], self._arrays[i]
            flat = np.zeros(p.size, p.dtype) if g is None else memory.in_memory_order(libraries.to_numpy(g), p)
            with np.errstate(all="ignore"):
                found[i] = chunk_sums_of_squares(flat.astype(arithmetic_dtype(p), copy=False))
        return [found[i] for i in range(len(self._arrays))]

    @property
    def widths(self) -> list[int]:
        """Of parts of leaves: of each reduction pass, how much it adds up of each chunk."""
        return self._fused[0].widths if self._fused else []

    def begin(self, scalars: Sequence[Mapping[str, float]], present: Sequence[bool]) -> None:
        """Before the first pass over parts of leaves: the scalars, and whether each whole leaf has a gradient."""
        self._fused[0].begin(scalars, present)

    def reduce(self, k: int) -> list[NDArray[np.float64]]:
        """Return what pass ``k`` adds up of each chunk of each part, of shape (chunks, columns)."""
        found = self._fused[0].reduce(k)
        return [
            found[i] if i in found else np.zeros((-(-a.size // CHUNK), self.widths[k]))
            for i, a in enumerate(self._arrays)
        ]

    def know(self, k: int, sums: NDArray[np.float64]) -> None:
        """Take over what pass ``k`` added up of all chunks of all whole leaves, of shape (chunks, columns)."""
        self._fused[0].know(k, sums)

    def decided(self, norm: float, scales: NDArray[np.float64]) -> None:
        """Take over the norm of all gradients, and what each gradient is multiplied by."""
        self._norm, self._scales = norm, scales
        for step in self._fused:
            step.scale(scales)

    def report(self) -> None:
        """Where a GPU decides by itself: have it tell whether it left steps out."""
        if self._judge is not None:
            self._judge.report()

    def overdue(self, *, wait: bool) -> tuple[int, list[int]] | None:
        """If a GPU left steps out (as far as it has reported or, with ``wait``, by now): how many, and for which leaves."""
        if self._judge is None or not (wait or self._judge.reported()):
            return None
        skipped = self.count_skipped()()
        if not skipped:
            return None
        finite = is_finite(self._judge.sums_found())
        return skipped, [i for i, is_good in zip(self._fused[0].members, finite, strict=True) if not is_good]

    def pardoning(self) -> Sequence[Callable[[], object]]:
        """Return what has a GPU forget that it left steps out: functions written in C, with `restoring` after them."""
        return () if self._judge is None else self._judge.pardoning()

    def restoring(self) -> Sequence[Callable[[], object]]:
        """See `gpuopt.engines.place.Place.restoring`."""
        return self._fused[0].place.restoring() if self._fused else ()  # GPUs come first, and have one for all of them

    def count_skipped(self) -> Callable[[], int]:
        """Have a GPU count the steps that it left out; the function that is returned waits for the GPU, and gives the count."""
        if self._judge is None:
            return int
        verdict = self._judge.verdict()
        return lambda: verdict()[0]

    @property
    def norm(self) -> float:
        """The norm of all gradients of the last step that was looked at; NaN if none was."""
        return self._norm if self._guard is None or self._judge is None else self._judge.verdict()()[1]

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
            Of the step, for what is rounded at random: see `gpuopt.engines.storage.split_mix`.
        first
            What is called before anything is written; written in C.

        """
        calls = self.prepare(gradients, scalars, key)
        in_one_go((*first, *calls, *self.settling(), *counts), self.restoring())

    def prepare(
        self, gradients: Sequence[Any], scalars: Sequence[Mapping[str, float]], key: int = 0
    ) -> list[Callable[[], object]]:
        """Return what updates every leaf whose gradient is not None, written in C: up to then nothing is changed."""
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

    def readable(self, x: Any, own: Any, *, is_apart: bool = False) -> Any:
        """Return the values of an array of any library as one like ``own``, which can be read until all have been written to.

        Of one ``is_apart`` it is known that it shares no memory with those that are written to.
        """
        if x is own or (is_apart and libraries.is_numpy(x) and libraries.is_numpy(own)):
            return x
        place = place_of(x)
        reach = self._reach.get(place) if place else None
        if reach and place is place_of(own) and not reach.meets(x):
            return x
        copy = libraries.zeros_like(own)
        libraries.assign(copy, x)
        return copy

    def copying(self, target: Any, source: Any) -> list[Callable[[], object]]:
        """Return what copies one array into another one of its library and device, in C where the library is."""
        place = place_of(target)
        return place.copying(target, source) if place else [array.assigning(target, source)]

    def _writes(
        self, group: int, members: list[int], gradients: Sequence[Any], h: Mapping[str, float], key: int
    ) -> list[Callable[[], object]]:
        """Compute the update of the leaves of a group, and return what writes the results."""
        rule = self.rules[group]
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
            after = [array.update(rule, *leaf, own, elementwise=True) for leaf, own in zip(before, scaled, strict=True)]
        else:
            scales = [float(self._scales[i]) for i in members]
            after = array.update_group(rule, before, h, scales if SCALE in h else None)
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
        return [
            call
            for target, new in results
            for call in ([array.assigning(target, new)] if isinstance(new, float) else self.copying(target, new))
        ]


def _can_be_fused(
    rules: Sequence[Rule], programs: Sequence[Program | None], homes: Sequence[Sequence[str]], engine: Engine
) -> list[bool]:
    """Whether each group can: it can be traced, and what it adds up over all its leaves lies in one place.

    Parameters
    ----------
    homes
        Of each group, where its leaves are.

    Raises
    ------
    TypeError
        If totals would be of leaves of several libraries; with "fused", of several devices.

    """
    apart = [
        program is not None and program.has_totals and len(own) > 1
        for program, own in zip(programs, homes, strict=True)
    ]
    for rule, own, is_apart in zip(rules, homes, apart, strict=True):
        if is_apart and (engine == "fused" or len({home.partition(":")[0] for home in own}) > 1):
            devices = (
                "" if engine != "fused" else "; engine='auto' updates those of several devices of one library, too"
            )
            raise TypeError(
                f"{rule.name}.update asks for totals over leaves of {' and '.join(own)}, expected one place{devices}"
            )
    return [program is not None and not is_apart for program, is_apart in zip(programs, apart, strict=True)]


def _kinds(rule: Rule) -> tuple[Any, dict[str, str]]:
    """The slots of a rule, and what they hold of a complex leaf."""
    return rule.slots, {name: rule.part(name) for name in rule.slots}


def _arrays_first(declared: Mapping[str, Slot]) -> list[str]:
    """The names of slots in the order of a table."""
    return sorted(declared, key=lambda name: is_number(declared[name]))


def _with_new_slots(
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
    of_rule = {id(rule): starts(rule.slots) for rule in dict(zip(map(id, rules), rules, strict=True)).values()}
    declared = [of_rule[id(rule)] for rule in rules]
    slots = [{name: own.get(name) for name in wanted} for wanted, own in zip(declared, state, strict=True)]
    for own, starting, rule, p, kept in zip(slots, declared, rules, arrays, state, strict=True):
        if kept:
            _check_kept(own, starting, rule, p, precision)
    zeros = {id(own): {name for name, start in own.items() if start in (Filled(), Real())} for own in of_rule.values()}
    missing: dict[tuple[Place | None, str], list[int]] = {}
    for i, (own, starting) in enumerate(zip(slots, declared, strict=True)):
        for name, value in own.items():
            if is_number(start := starting[name]):
                own[name] = _number(start.start if value is None else value, homes[i])
            elif value is None:
                missing.setdefault((places[i], name), []).append(i)
    for (place, name), members in missing.items():
        like = [
            (arrays[i], slot_dtype(rules[i], name, arrays[i], precision), shape_of(declared[i][name], arrays[i].shape))
            for i in members
        ]
        if place is not None:
            new = place.zeros([memory.dense_layout(*own) for own in like])
        else:
            new = [libraries.zeros_like(*own) for own in like]
        for i, value in zip(members, new, strict=True):
            slots[i][name] = value
            if name not in zeros[id(declared[i])]:
                libraries.assign(value, array.started(name, arrays[i], i, rules[i]))
    return slots


def _check_kept(slots: Mapping[str, Any], declared: Mapping[str, Slot], rule: Rule, p: Any, precision: str) -> None:
    """Raise ValueError unless the slots that a leaf has are as its rule wants them by now."""
    for name, value in slots.items():
        if value is None or is_number(declared[name]):
            continue
        known = libraries.dtype_of(value), tuple(value.shape)
        wanted = libraries.name_of(slot_dtype(rule, name, p, precision)), shape_of(declared[name], tuple(p.shape))
        if known != wanted:
            given, expected = (f"{dtype} of {shape}" for dtype, shape in (known, wanted))
            raise ValueError(f"{rule.name}: slot {name}: {given}, expected {expected}; make a new optimizer")


def _lower_bits(leaves: Sequence[Any], state: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The arrays of the lower 16 bits of leaves: those of the state, or new ones."""
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
    """An array of float64 without axes, the same one if it is where it belongs."""
    if home is None:
        return value if libraries.is_numpy(value) and value.ndim == 0 else np.array(float(value), np.float64)
    if place_of(value) is home:
        return value
    (number,) = home.zeros([memory.Layout((), np.dtype(np.float64), ())])
    libraries.assign(number, np.array(float(value), np.float64))
    return number


def _arrays_of(slots: Mapping[str, Any]) -> list[Any]:
    """The arrays among the slots of a leaf, without the numbers."""
    return [slot for slot in slots.values() if getattr(slot, "shape", None) or getattr(slot, "size", 0)]
