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
"""Names among the slots of a leaf. No rule has a slot with a dot, and no member of a chain is called "every"."""
SUM_SLOT = "sum"


@dataclass(frozen=True)
class Gather(Rule):
    """``p = p + g``; the first time, ``p = g``."""

    def at(self, step: int, given: Mapping[str, float] | None = None) -> dict[str, float]:  # noqa: ARG002
        """Names for `update`; the caller replaces the value."""
        return {"first": 0.0}

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Rule.update`."""
        return xp.where(h.first > 0, g, p + g), {}


@dataclass(frozen=True)
class Mean(Rule):
    """``p = (sum + g) / divisor``; the sum stays."""

    slots = (SUM_SLOT,)

    def at(self, step: int, given: Mapping[str, float] | None = None) -> dict[str, float]:  # noqa: ARG002
        """Names for `update`; the caller replaces the value."""
        return {"divisor": 1.0}

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Rule.update`."""
        return (s.sum + g) / h.divisor, {SUM_SLOT: s.sum}


class Accumulation:
    """The sum of each leaf's gradients since the last update, and their mean; unused with ``every=1``.

    Adding gradients is a step of the engine with the sums as parameters: one call or launch for all. The last gradient is
    not added: the mean is written into another array, so that the sums stay as they were until the update is done.

    Parameters
    ----------
    arrays
        The parameters.
    updated
        The leaves that are updated, as indices of ``arrays``.
    every
        Number of gradients for one update.
    engine
        The optimizer's engine.

    Attributes
    ----------
    sums
        The sum of each updated leaf, by index.
    counts
        Number of gradients in each sum, without None.
    waiting
        Number of gradients that wait for their update.

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
            One for each leaf; None adds nothing. The last ones before an update are replaced by the means and not added;
            `setting` is then called with the update. A leaf without any gradient keeps None.
        checked
            Called with the index of a leaf and its gradient: returns it as an array that fits (or None), or raises an error.
        first
            Functions to call before anything is added, written in C so that no signal interrupts them.

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
        """Return a function, written in C, that records how many gradients are in the sums."""
        return partial(vars(self).update, waiting=waiting, counts={i: counts.get(i, 0) for i in self.sums})

    def with_slots(self, slots: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """Return the slots of the leaves in a saved state: the rules', and those of gradients that are waiting."""
        if not self.waiting:
            return slots
        count = {i: np.array(float(n)) for i, n in self.counts.items()}
        return [{**own, SUM: self.sums[i], COUNT: count[i]} if i in self.sums else own for i, own in enumerate(slots)]

    def inherit(self, old: Accumulation, pairs: Iterable[tuple[int, int]]) -> None:
        """Copy the waiting gradients of another accumulation; pairs are (own leaf, leaf of the other)."""
        there = {i: k for i, k in pairs if i in self.sums and k in old.sums}
        self.setting(old.waiting, {i: old.counts[k] for i, k in there.items()})()
        for i, k in there.items():
            assign(self.sums[i], old.sums[k])
