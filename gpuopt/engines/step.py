"""A step over leaves of any kind: those that can be fused are, the others run on the arrays themselves."""

from __future__ import annotations

import math
from operator import call
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from gpuopt import backends
from gpuopt.engines import array, fused, memory
from gpuopt.engines.cpu import CPUKernel
from gpuopt.engines.cuda import CUDAKernel
from gpuopt.engines.emit_cuda import STICKY
from gpuopt.engines.guard import is_finite, judge, sums_of_squares
from gpuopt.engines.trace import SCALE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gpuopt.engines.guard import Guard
    from gpuopt.rules.base import Rule

Engine: TypeAlias = Literal["auto", "array", "fused"]
ENGINES: tuple[Engine, ...] = ("auto", "array", "fused")


class Step:
    """The leaves, each with the engine that updates it.

    Parameters
    ----------
    arrays
        The parameters.
    groups
        Of each parameter, the index of its rule.
    rules
        One for each group.
    state
        What the slots of each leaf are already; those that the rule names and are not there start at 0.
    engine
        "auto", "array" or "fused".
    guard
        What to look for in the gradients before a step.

    Attributes
    ----------
    slots
        Of each leaf, by name.
    at_once
        What updates all leaves, if that is a single call of machine code; otherwise None.

    """

    def __init__(
        self,
        arrays: Sequence[Any],
        groups: Sequence[int],
        rules: Sequence[Rule],
        state: Sequence[Mapping[str, Any]],
        engine: Engine,
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard
        self._arrays, self._groups, self._rules = arrays, groups, rules
        self._places = [backends.place(a) for a in arrays]
        self.slots = _with_new_slots(arrays, self._places, [rules[g].slots for g in groups], state)
        self._alone = [i for i, a in enumerate(arrays) if engine == "array" or not can_fuse(a, self._places[i])]
        # One leaf of each kind that is updated alone: what its rule cannot do shows on it before anything is changed.
        self._samples = list({(groups[i], self._places[i], str(arrays[i].dtype)): i for i in self._alone}.values())
        for i in self._samples:
            array.try_out(rules[groups[i]], arrays[i], rules[groups[i]].at(0))
        self._reach = {
            place: memory.Overlaps(
                [a for i, p in enumerate(self._places) if p == place for a in (arrays[i], *self.slots[i].values())]
            )
            for place in set(self._places)
            if fused.fusable(place)
        }
        together = sorted(set(range(len(arrays))) - set(self._alone))
        self._fused = []
        # GPUs first: their launches may fail, and nothing has been written then.
        for place in sorted({self._places[i] for i in together}, key=lambda place: (place == "numpy", place)):
            members = {i: (groups[i], arrays[i], self.slots[i].values()) for i in together if self._places[i] == place}
            self._fused.append(fused.FusedStep(place, members, rules, self._reach[place]))
        self._scales = np.ones(len(arrays))
        self._norm = math.nan
        # If one GPU holds everything, it decides by itself, and nothing need cross to the host.
        only = self._fused[0].kernel if len(self._fused) == 1 and not self._alone else None
        self._judge = only if isinstance(only, CUDAKernel) else None
        self.at_once = only.at_once if isinstance(only, CPUKernel) else None

    def take(self, rules: Sequence[Rule]) -> bool:
        """Go on with other hyperparameters, unless what is computed depends on them; return whether it does not."""
        same = all(new.slots == old.slots for new, old in zip(rules, self._rules, strict=True))
        if same and all(step.computes(rules) for step in self._fused):
            self._rules = rules
            return True
        return False

    def scalars(self, step: int) -> list[dict[str, float]]:
        """Return what `Rule.at` gives for each group."""
        return [rule.at(step) for rule in self._rules]

    def bind(self, gradients: list[Any], checked: Callable[[Any, int], Any]) -> None:
        """Take the gradients of the next step; None leaves a leaf alone.

        Parameters
        ----------
        gradients
            Of each leaf, whatever was given. Then as they can be read during the step: copies of those that cannot where
            they are.
        checked
            Called with a gradient and the number of its leaf, unless the gradient is known to fit: returns it as an array
            that fits its parameter, or raises an error.

        """
        for i in self._alone:
            if gradients[i] is not None:
                gradients[i] = checked(gradients[i], i)
                if self._is_touched(i, gradients[i]):
                    gradients[i] = fused.copy(self._places[i], gradients[i], self._arrays[i])
        for step in self._fused:
            step.bind(gradients, checked)

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
        clip, skip = self._guard.clip, self._guard.skip
        if self._judge is not None:
            self._judge.judge(clip, limit, STICKY if wait_for_host else skip)
            return []
        sums = np.zeros((len(self._arrays), 3))
        for step in self._fused:
            step.measure(sums)
        for i in self._alone:
            g, p = gradients[i], self._arrays[i]
            if g is not None and fused.fusable(self._places[i]):
                flat = memory.in_memory_order(backends.to_numpy(g), p)
                with np.errstate(all="ignore"):
                    sums[i] = sums_of_squares(flat.astype(p.dtype, copy=False))
            elif g is not None:
                sums[i] = array.sums_of_squares(g, p)
        verdict = judge(sums, clip, limit)
        self._norm, self._scales = verdict.norm, verdict.scales
        for step in self._fused:
            step.impose(verdict.scales)
        return np.flatnonzero(~verdict.finite).tolist() if skip else []

    def report(self) -> bool:
        """Where a GPU decides by itself: have it tell how many steps it left out; return whether it was asked to."""
        return self._judge is not None and self._judge.report()

    def overdue(self, *, wait: bool) -> tuple[int, list[int]] | None:
        """If a GPU left steps out: how many by its report (with ``wait``, by now), and the leaves that are to blame."""
        if self._judge is None:
            return None
        skipped = self.count_skipped()() if wait else self._judge.reported()
        if not skipped:
            return None
        finite = is_finite(self._judge.sums_found())
        self._judge.pardon()
        return skipped, [i for i, is_good in zip(self._fused[0].members, finite, strict=True) if not is_good]

    def count_skipped(self) -> Callable[[], int]:
        """Count the steps that a GPU left out; what is returned waits for it."""
        if self._judge is None:
            return int
        verdict = self._judge.verdict()
        return lambda: verdict()[0]

    @property
    def norm(self) -> float:
        """Of all gradients of the last step that was looked at; NaN if none was."""
        return self._norm if self._guard is None or self._judge is None else self._judge.verdict()()[1]

    def __call__(
        self, gradients: Sequence[Any], scalars: Sequence[Mapping[str, float]], count: Callable[[], None]
    ) -> None:
        """Update every leaf whose gradient is not None, and count the step.

        Parameters
        ----------
        gradients
            As `bind` left them.
        scalars
            Of each group, what `Rule.at` gave.
        count
            Called when all is done; if the step is taken `at_once`, nothing can come in between.

        """
        if self.at_once is not None:
            self._fused[0].take(scalars)
            both: tuple[Callable[[], None], ...] = (self.at_once, count)
            any(map(call, both))  # in C, where Python looks for no signal
            return
        writes = [self._update_alone(i, gradients[i], scalars) for i in self._alone if gradients[i] is not None]
        for i in self._samples:
            if self._places[i] == "numpy":  # those of other places have been computed by now
                array.try_out(self._rules[self._groups[i]], self._arrays[i], scalars[self._groups[i]])
        for step in self._fused:
            step.take(scalars)
        for step in self._fused:
            step()
        for write in writes:
            write()
        count()

    def readable(self, x: Any, own: Any) -> Any:
        """An array to be written into one of these, so that it can be read until all have been written to."""
        place = backends.place(x)
        if place != backends.place(own):
            copy = backends.to_numpy(x)
            if copy.shape != tuple(own.shape):
                raise TypeError(f"it is read as an array of shape {copy.shape}")
            return copy
        if x is own or (place in self._reach and not self._reach[place](*memory.byte_bounds(x))):
            return x
        copy = array.zeros_like(own)
        array.assign(copy, x)
        return copy

    def _is_touched(self, i: int, g: Any) -> bool:
        """Whether a step could write to the gradient of a leaf that is updated alone, before it is read."""
        p, place = self._arrays[i], self._places[i]
        if place not in self._reach:
            return False  # such leaves are computed before anything is written
        (start, end), own = memory.byte_bounds(g), memory.byte_bounds(p)
        itself = (start, end) == own and g.dtype == p.dtype and memory.same_strides(g, p)
        return not itself and bool(self._reach[place](start, end))

    def _update_alone(self, i: int, g: Any, scalars: Sequence[Mapping[str, float]]) -> Callable[[], None]:
        rule, p, slots, h = self._rules[self._groups[i]], self._arrays[i], self.slots[i], scalars[self._groups[i]]
        if SCALE in h:
            h = {**h, SCALE: float(self._scales[i])}
        if self._places[i] == "numpy":
            return lambda: array.update_numpy(rule, p, g, slots, h)
        new_p, new_slots = array.update(rule, p, g, slots, h)

        def write() -> None:
            array.assign(p, new_p)
            for name, new in new_slots.items():
                array.assign(slots[name], new)

        return write


def can_fuse(a: Any, place: str) -> bool:
    """Whether a parameter can be updated by a fused engine."""
    return fused.fusable(place) and memory.is_dense(a.shape, a.strides, a.dtype.itemsize)


def _with_new_slots(
    arrays: Sequence[Any], places: Sequence[str], names: Sequence[tuple[str, ...]], state: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Slots of each leaf, in the order of the rule; the new ones lie side by side, one buffer for each slot and place."""
    slots = [{name: own.get(name) for name in wanted} for wanted, own in zip(names, state, strict=True)]
    missing: dict[tuple[str, str], list[int]] = {}
    for i, own in enumerate(slots):
        for name, value in own.items():
            if value is None:
                missing.setdefault((places[i], name), []).append(i)
    for (place, name), members in missing.items():
        if fused.fusable(place):
            new = fused.zeros(place, [memory.dense_layout(arrays[i]) for i in members])
        else:
            new = [array.zeros_like(arrays[i]) for i in members]
        for i, value in zip(members, new, strict=True):
            slots[i][name] = value
    return slots
