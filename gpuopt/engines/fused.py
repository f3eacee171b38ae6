"""One step for many leaves of one place: one call on the CPU, one launch on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.engines import cpu, cuda
from gpuopt.engines.memory import same_strides
from gpuopt.engines.segments import PARAMETER, Segment, Table
from gpuopt.engines.trace import trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.memory import Layout, Overlaps
    from gpuopt.rules.base import Rule


def fusable(place: str) -> bool:
    """Whether there is a fused engine for a place (see `gpuopt.backends.place`)."""
    return place == "numpy" or place.startswith("cupy:")


def zeros(place: str, layouts: Sequence[Layout]) -> list[Any]:
    """Return zeroed arrays, side by side in one buffer of that place."""
    return cpu.zeros(layouts) if place == "numpy" else cuda.zeros(layouts, _device(place))


class FusedStep:
    """A table of leaves and the kernel that updates them all.

    Parameters
    ----------
    place
        "numpy" or "cupy:N".
    leaves
        By a number of the caller's: group, parameter and slots, all dense, with the same strides and dtype.
    rules
        Of each group.
    reach
        All that a step may write to in this place.

    """

    def __init__(
        self,
        place: str,
        leaves: Mapping[int, tuple[int, Any, Iterable[Any]]],
        rules: Sequence[Rule],
        reach: Overlaps,
    ) -> None:
        self._address = cpu.pointer if place == "numpy" else cuda.pointer
        self._table = Table(
            [
                Segment(p.size, group, str(p.dtype), (self._address(p), *map(self._address, slots)))
                for group, p, slots in leaves.values()
            ],
            rules,
        )
        self._rows = {i: row for row, i in enumerate(leaves)}
        self.members = np.array(list(leaves))
        self._parameters = [p for _, p, _ in leaves.values()]
        self._sizes = np.array([p.nbytes for p in self._parameters])
        self._in_the_way: set[int] = set()
        self._known: dict[tuple[int, ...], tuple[NDArray[np.int64], set[int]]] = {}
        self._reach = reach
        self.kernel: cpu.CPUKernel | cuda.CUDAKernel = (
            cpu.CPUKernel(self._table) if place == "numpy" else cuda.CUDAKernel(self._table, _device(place))
        )

    def computes(self, rules: Sequence[Rule]) -> bool:
        """Whether the programs of these rules are the compiled ones."""
        return all(trace(rules[group]) == program for group, program in self._table.programs.items())

    def bind(self, gradients: Mapping[int, Any]) -> set[int]:
        """Take these gradients from now on; None leaves a leaf alone.

        Returns
        -------
        set of int
            Those that cannot be read where they are: not laid out like their parameter, or in the way of this step,
            which would write to them while it reads (a gradient may be its own parameter, but not another one's).

        """
        refused, moved = set(), False
        own, parameters, address = self._table.gradients.tolist(), self._parameters, self._address
        for i, g in gradients.items():
            row = self._rows.get(i)
            if row is None:
                continue
            at, p = 0, parameters[row]
            if g is not None:
                if g.dtype == p.dtype and (g.strides == p.strides or same_strides(g, p)):
                    at = address(g)
                else:
                    refused.add(i)
            if at != own[row]:
                own[row] = at
                moved = True
        if moved:
            self._table.gradients[:], self._in_the_way = self._looked_up(tuple(own))
        return refused | (self._in_the_way & gradients.keys()) if self._in_the_way else refused

    def _looked_up(self, addresses: tuple[int, ...]) -> tuple[NDArray[np.int64], set[int]]:
        """The addresses as an array, and the leaves whose gradient lies where a step writes before it has read it."""
        if addresses not in self._known:
            starts = np.array(addresses)
            in_the_way = self._reach(starts, starts + self._sizes) & (starts != self._table.rows[:, PARAMETER])
            if len(self._known) == 8:  # a loop that makes new gradients gets the same few addresses over and over
                self._known.clear()
            self._known[addresses] = starts, set(self.members[in_the_way].tolist())
        return self._known[addresses]

    def measure(self, sums: NDArray[np.float64]) -> None:
        """Fill in the sums of squares of the gradients of these leaves; see `gpuopt.engines.guard`."""
        sums[self.members] = self.kernel.sums()

    def impose(self, scales: NDArray[np.float64]) -> None:
        """Take the factors of the gradients, of all leaves."""
        self.kernel.impose(scales[self.members])

    def take(self, scalars: Sequence[Mapping[str, float]]) -> None:
        """Take the scalars of the next step: of each group, what `Rule.at` gave."""
        self._table.set_coefficients(scalars)

    def __call__(self) -> None:
        """Update all leaves that have a gradient."""
        self.kernel()


def _device(place: str) -> int:
    return int(place.removeprefix("cupy:"))
