"""How an optimizer of many processes is made: the shares of each leaf, their slots, and the agreement on all options."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import gpuopt
from gpuopt.arrays import current, is_cupy, is_numpy, place
from gpuopt.distributed.agreement import agreed
from gpuopt.distributed.layout import Layout, axes, flat_like
from gpuopt.distributed.parts import OwnParts
from gpuopt.distributed.reduction import Reduction, empty
from gpuopt.distributed.saving import Saved
from gpuopt.engines import array, memory, storage
from gpuopt.engines.norms import DynamicScale
from gpuopt.engines.parts import Parts
from gpuopt.engines.place import host
from gpuopt.engines.program.trace import traced
from gpuopt.engines.step import Step
from gpuopt.gradients import clipped
from gpuopt.rules.slots import Given, is_number, starts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuopt.rules.base import Rule


class SetUp(Saved):
    """Base class of the optimizer of many processes: its construction."""

    mine: range
    measures: bool
    _parts: int
    _average: bool
    _met = False
    """Whether the processes have agreed on leaves, rules and options."""

    def _setting(self, rules: list[Rule]) -> dict[str, Any]:
        """Versions, leaves, rules and options, which must be the same on all processes."""
        by_pattern = dict(zip(self._patterns, rules, strict=True))
        return {
            "gpuopt": gpuopt.__version__,
            "leaves": {
                path: (a.shape, str(a.dtype), axes(a)) for path, a in zip(self._tree.paths, self._arrays, strict=True)
            },
            "rules": {pattern: rule.name for pattern, rule in by_pattern.items()},
            "hyperparameters": {pattern: rule.at(0) for pattern, rule in by_pattern.items()},
            "clip": self._clip_by if self._clip is None else (self._clip.by, self._clip.limit.at(0)),
            "nonfinite": self._nonfinite,
            "precision": self._precision,
            "scale": self._scale,
            "shard": self._shard,
            "parts": self._parts,
            "average": self._average,
            "transport": self._transport.way,
        }

    def _read_leaves(self) -> None:
        super()._read_leaves()
        places = sorted({place(a) for a in self._arrays})
        if len(places) > 1 or not (is_numpy(self._arrays[0]) or is_cupy(self._arrays[0])):
            raise TypeError(f"params: arrays of {' and '.join(places)}, expected NumPy's, or CuPy's on one device")
        for i, a in enumerate(self._arrays):
            name = self._tree.name(i, "params")
            if not memory.is_without_gaps(a):
                raise ValueError(f"{name}: strides {a.strides}, expected an array without gaps; copy it")
        self._layout = Layout(self._transport, self._arrays, shard=self._shard)
        buckets, example = self._layout.buckets, self._arrays[0]
        options = {"average": self._average, "everywhere": not self._shard}
        self._reduction = Reduction(self._transport, buckets, self._parts, example, **options)
        self._added = OwnParts(self.mine, self._parts, buckets, example, partial(self._tree.name, root="grads"))

    def _prepared(self, rules: list[Rule], before: Step | None = None) -> Step:
        for pattern, rule in zip(self._patterns, rules, strict=True):
            program = traced(rule)
            if program is None or program.extents:
                raise TypeError(
                    f"rule {pattern!r}: {rule.name} looks at whole leaves, of which a process has only parts; expected a "
                    "rule whose update can be traced: elementwise operations, sums, norms and totals; for this one give "
                    "gpuopt.Optimizer the sum of all gradients in each process"
                )
            if not program.is_elementwise or any(map(is_number, starts(rule.slots).values())):
                host()  # raises if the machine code for numbers cannot be had
        if not self._met:
            self._agree(None, self._setting(rules))
            self._met = True
            # Slots may start as copies of the parameters, so these are made equal first.
            flat = dict(enumerate(self._layout.flat))
            self._layout.spread(flat, agreed(self._transport, partial(self._layout.room, flat)), from_first=True)
        own, leaf_of = self._layout.own, self._layout.leaf_of
        groups = [self._groups[leaf] for leaf in leaf_of]
        slots = self._with_numbers(rules, before.slots if before else self._given_slots(rules))
        idle = [s for s, leaf in enumerate(leaf_of) if leaf not in self._rows]
        seen = clipped(rules, self._clip, self._scale)
        parts = Parts(leaf_of, [a.size for a in self._arrays], [piece.start for _, piece in self._layout.segments])
        way = storage.name_of(self._precision)
        return Step(own, own, groups, seen, slots, self._engine, None, before, idle, way, parts)

    def _with_numbers(self, rules: list[Rule], slots: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the slots of segments; slots that are numbers are shared by all segments of a leaf."""
        found = [dict(own) for own in slots]
        for i, a in enumerate(self._arrays):
            of_leaf = [s for s, leaf in enumerate(self._layout.leaf_of) if leaf == i]
            for name, slot in starts(rules[self._groups[i]].slots).items():
                if is_number(slot) and name not in found[of_leaf[0]]:
                    number = empty(a, 1, "float64").reshape(())
                    number[...] = slot.start
                    for s in of_leaf:
                        found[s][name] = number
        return found

    def _given_slots(self, rules: list[Rule]) -> list[dict[str, Any]]:
        """Return the slots that start as arrays of the caller, which are like a leaf, cut into segments."""
        way = storage.name_of(self._precision)
        given = {
            (i, name): array.started(name, a, i, rules[self._groups[i]], way)
            for i, a in enumerate(self._arrays)
            for name, slot in starts(rules[self._groups[i]].slots).items()
            if isinstance(slot, Given)
        }
        whole = {key: flat_like(x, x) for key, x in given.items()}
        return [
            {name: copied(x[piece.start : piece.stop]) for (i, name), x in whole.items() if i == piece.leaf}
            for _, piece in self._layout.segments
        ]

    @property
    def _clip_by(self) -> str | None:
        return None if self._clip is None or self._clip.by == "value" else self._clip.by

    @property
    def _looks(self) -> bool:
        looks = self.measures or self._clip_by is not None or self._nonfinite != "ignore"
        return looks or isinstance(self._scale, DynamicScale)


def copied(a: Any) -> Any:
    """Return a copy with the same layout in memory."""
    with current(a):
        return a.copy(order="K")
