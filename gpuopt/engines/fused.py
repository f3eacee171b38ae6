"""One step for many leaves of one place: one call on the CPU, one launch on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.engines import array, cpu, cuda
from gpuopt.engines.memory import dense_layout, same_strides
from gpuopt.engines.segments import PARAMETER, Segment, Table
from gpuopt.engines.trace import trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.memory import Layout, Overlaps
    from gpuopt.rules.base import Rule


def fusable(place: str) -> bool:
    """Whether there is a fused engine for a place (see `gpuopt.backends.place`)."""
    return place == "numpy" or place.startswith("cupy:")


def zeros(place: str, layouts: Sequence[Layout]) -> list[Any]:
    """Return zeroed arrays, side by side in one buffer of that place."""
    return cpu.zeros(layouts) if place == "numpy" else cuda.zeros(layouts, _device(place))


def copy(place: str, g: Any, p: Any) -> Any:
    """Return a gradient cast and laid out like its parameter."""
    (new,) = zeros(place, [dense_layout(p)])
    array.assign(new, g)
    return new


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
        library = cpu if place == "numpy" else cuda
        self._place = place
        self._parameters = [p for _, p, _ in leaves.values()]
        self._table = Table(
            [
                Segment(p.size, group, str(p.dtype), (library.pointer(p), *map(library.pointer, slots)))
                for group, p, slots in leaves.values()
            ],
            rules,
        )
        self.members = list(leaves)
        self._sizes = np.array([p.nbytes for p in self._parameters])
        self._lookup = library.Lookup(self._parameters, self._table.gradients)
        self._is_bound = False  # whether the last gradients are in the table, and none is in the way
        self._known: dict[bytes, list[int]] = {}
        self._reach = reach
        self.kernel: cpu.CPUKernel | cuda.CUDAKernel = (
            cpu.CPUKernel(self._table) if place == "numpy" else cuda.CUDAKernel(self._table, _device(place))
        )

    def computes(self, rules: Sequence[Rule]) -> bool:
        """Whether the programs of these rules are the compiled ones."""
        return all(trace(rules[group]) == program for group, program in self._table.programs.items())

    def bind(self, gradients: list[Any], checked: Callable[[Any, int], Any]) -> None:
        """Take these gradients, of all leaves; None leaves a leaf alone.

        A gradient that cannot be read where it is, is replaced by a copy: one that is not laid out like its parameter, or
        that this step would write to while it reads (a gradient may be its own parameter, but not another one's).

        Parameters
        ----------
        gradients
            Of all leaves, these or others.
        checked
            Called with a gradient and its leaf: returns it as an array that fits its parameter, or raises.

        """
        own = gradients if len(gradients) == len(self.members) else [gradients[i] for i in self.members]
        were_bound, self._is_bound = self._is_bound, False  # if Ctrl-C ends this, nothing half-done is believed
        others = self._lookup(own)
        if others is None and were_bound:
            self._is_bound = True
            return
        for row in others or ():
            i, p = self.members[row], self._parameters[row]
            g = gradients[i] = checked(own[row], i)
            if g.dtype == p.dtype and same_strides(g, p):
                self._lookup.take(row, g)
            else:
                self._copy(row, gradients)
        for row in self._in_the_way():
            self._copy(row, gradients)
        self._is_bound = True

    def _copy(self, row: int, gradients: list[Any]) -> None:
        i = self.members[row]
        gradients[i] = copy(self._place, gradients[i], self._parameters[row])
        self._lookup.take(row, gradients[i], once=True)

    def _in_the_way(self) -> list[int]:
        """The rows whose gradient lies where a step writes before it has read it."""
        addresses = self._table.gradients.tobytes()
        if addresses not in self._known:
            starts = self._table.gradients
            rows = self._reach(starts, starts + self._sizes) & (starts != self._table.rows[:, PARAMETER])
            if len(self._known) == 8:  # a loop that makes new gradients gets the same few addresses over and over
                self._known.clear()
            self._known[addresses] = np.flatnonzero(rows).tolist()
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
