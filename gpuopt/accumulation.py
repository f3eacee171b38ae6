"""Accumulation: the mean of several gradients, gathered call by call, for one update."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import assign, zeros_like
from gpuopt.engines.complexes import arithmetic_dtype
from gpuopt.engines.step import Step
from gpuopt.rules.base import Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gpuopt.engines.choice import Engine

SUM, COUNT = "every.sum", "every.count"
"""Names among the slots of a leaf: no rule has a slot with a dot, no chain a member of that name."""
SUM_SLOT = "sum"


@dataclass(frozen=True)
class Gather(Rule):
    """``p = p + g``; the first time, ``p = g``."""

    def at(self, step: int, given: Mapping[str, float] | None = None) -> dict[str, float]:  # noqa: ARG002
        """What `update` reads; the value is the caller's."""
        return {"first": 0.0}

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Rule.update`."""
        return xp.where(h.first > 0, g, p + g), {}


@dataclass(frozen=True)
class Mean(Rule):
    """``p = (sum + g) / divisor``; the sum stays."""

    slots = (SUM_SLOT,)

    def at(self, step: int, given: Mapping[str, float] | None = None) -> dict[str, float]:  # noqa: ARG002
        """What `update` reads; the value is the caller's."""
        return {"divisor": 1.0}

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Rule.update`."""
        return (s.sum + g) / h.divisor, {SUM_SLOT: s.sum}


class Accumulation:
    """Sums of the gradients since the last update, one a leaf; then their mean. With ``every=1`` there is nothing to gather.

    A sum is an array like the parameter, and gathering is a step like any other: sums are what it updates, all of them in
    one call or launch. The last gradient is not gathered: the mean goes into an array of its own, so that sums are as they
    were until the update is done.

    Parameters
    ----------
    arrays
        The parameters.
    updated
        The leaves that are updated, as indices of ``arrays``.
    every
        Gradients for one update.
    engine
        Of the optimizer.

    Attributes
    ----------
    sums
        Of each leaf that is updated, by index.
    counts
        Gradients that are in each sum, None left out.
    waiting
        Gradients that are waiting for their update.

    """

    def __init__(self, arrays: Sequence[Any], updated: Iterable[int], every: int, engine: Engine) -> None:
        self.every = every
        self.sums = {i: zeros_like(arrays[i], arithmetic_dtype(arrays[i])) for i in updated} if every > 1 else {}
        self.counts = dict.fromkeys(self.sums, 0)
        self.waiting = 0
        sums, groups = list(self.sums.values()), [0] * len(self.sums)
        self._step = Step(sums, sums, groups, [Gather()], [{} for _ in sums], engine)
        self._means = [zeros_like(own) for own in sums]
        self._mean = Step(self._means, self._means, groups, [Mean()], [{SUM_SLOT: own} for own in sums], engine)

    @property
    def completes(self) -> bool:
        """Whether the next gradient is the last one before an update."""
        return self.waiting + 1 == self.every

    def add(
        self, gradients: list[Any], checked: Callable[[int, Any], Any], first: Sequence[Callable[[], object]] = ()
    ) -> None:
        """Add a gradient to each sum, or raise and change nothing.

        Parameters
        ----------
        gradients
            Of each leaf; None adds nothing. If these are the last ones before an update, the means replace them, and nothing
            is added: `setting` goes with the update. None stays of a leaf that got none at all.
        checked
            Called with the index of a leaf and its gradient: returns it as an array that fits (or None), or raises an error.
        first
            What is called before anything is added; written in C.

        """
        begins, ends = self.waiting == 0, self.completes
        members, written = list(self.sums), self._means if ends else list(self.sums.values())
        counts = {i: (not begins) * n + (gradients[i] is not None) for i, n in self.counts.items()}
        ready = [
            zeros_like(own) if (g := gradients[i]) is None and (begins or (ends and counts[i])) else g
            for i, own in self.sums.items()
        ]
        step = self._mean if ends else self._step
        step.bind(ready, written, lambda row, g, _: checked(members[row], g))
        if ends:
            step(ready, [{"divisor": float(self.every)}])
            for i, own in zip(members, written, strict=True):
                gradients[i] = own if counts[i] else None
        else:
            step(ready, [{"first": float(begins)}], self.setting(self.waiting + 1, counts), first=first)

    def setting(self, waiting: int = 0, counts: Mapping[int, int] = MappingProxyType({})) -> Callable[[], None]:
        """Return what says how many gradients are in the sums: a function written in C."""
        return partial(vars(self).update, waiting=waiting, counts={i: counts.get(i, 0) for i in self.sums})

    def slots(self, i: int) -> dict[str, Any]:
        """What there is of a leaf to be saved: nothing, unless gradients are waiting."""
        if not self.waiting or i not in self.sums:
            return {}
        return {SUM: self.sums[i], COUNT: np.array(float(self.counts[i]))}

    def inherit(self, old: Accumulation, pairs: Iterable[tuple[int, int]]) -> None:
        """Go on with the gradients that wait at another one: those of each of its leaves, the second of a pair."""
        there = {i: k for i, k in pairs if i in self.sums and k in old.sums}
        self.setting(old.waiting, {i: old.counts[k] for i, k in there.items()})()
        for i, k in there.items():
            assign(self.sums[i], old.sums[k])
