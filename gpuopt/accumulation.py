"""Accumulation: the mean of several gradients, gathered call by call, for one update."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import zeros_like
from gpuopt.engines.complexes import arithmetic_dtype
from gpuopt.engines.step import Step
from gpuopt.rules.base import Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gpuopt.engines.choice import Engine

SUM, COUNT = "every.sum", "every.count"
"""Names among the slots of a leaf: no rule has a slot with a dot, no chain a member of that name."""


@dataclass(frozen=True)
class Gather(Rule):
    """``p = (p + g) / divisor``; the first time, ``p = g / divisor``."""

    def at(self, step: int, given: Mapping[str, float] | None = None) -> dict[str, float]:  # noqa: ARG002
        """What `update` reads; the values are the caller's."""
        return {"first": 0.0, "divisor": 1.0}

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Rule.update`."""
        return xp.where(h.first > 0, g, p + g) / h.divisor, {}


class Accumulation:
    """Sums of the gradients since the last update, one a leaf; then their mean.

    A sum is an array like the parameter, and gathering is a step like any other: sums are what it updates, all of them in
    one call or launch.

    Parameters
    ----------
    arrays
        The parameters that are updated.
    every
        Gradients for one update.
    engine
        Of the optimizer.

    Attributes
    ----------
    sums
        Of each leaf; after the last gradient the mean.
    counts
        Gradients that each leaf has got, None left out.
    taken
        Calls so far, from 0 to ``every``, where the next one begins anew.

    """

    def __init__(self, arrays: Sequence[Any], every: int, engine: Engine) -> None:
        self.every = every
        self.sums = [zeros_like(a, arithmetic_dtype(a)) for a in arrays]
        self.counts = [0] * len(arrays)
        self.taken = 0
        self._step = Step(self.sums, self.sums, [0] * len(arrays), [Gather()], [{} for _ in arrays], engine)

    @property
    def waiting(self) -> int:
        """Gradients that are waiting for their update."""
        return self.taken % self.every

    @property
    def completes(self) -> bool:
        """Whether the next gradient is the last one before an update."""
        return self.waiting + 1 == self.every

    def add(self, gradients: Sequence[Any], checked: Callable[[int, Any, Any], Any]) -> list[Any]:
        """Add a gradient to each sum, or raise and change nothing.

        Parameters
        ----------
        gradients
            Of each leaf; None adds nothing.
        checked
            As of `Step.bind`.

        Returns
        -------
        list
            Of each leaf, the mean if this was the last gradient; None for a leaf that got none at all.

        """
        begins, ends = self.waiting == 0, self.completes
        counts = [(not begins) * n + (g is not None) for n, g in zip(self.counts, gradients, strict=True)]
        ready = [
            zeros_like(own) if g is None and (begins or (ends and n)) else g
            for g, n, own in zip(gradients, counts, self.sums, strict=True)
        ]
        self._step.bind(ready, self.sums, checked)
        h = {"first": float(begins), "divisor": float(self.every if ends else 1)}
        self._step(ready, [h], partial(vars(self).update, counts=counts, taken=self.waiting + 1))
        return [own if n else None for own, n in zip(self.sums, counts, strict=True)]

    def slots(self, i: int) -> dict[str, Any]:
        """What there is of a leaf to be saved: nothing, unless gradients are waiting."""
        return {SUM: self.sums[i], COUNT: np.array(float(self.counts[i]))} if self.waiting else {}
