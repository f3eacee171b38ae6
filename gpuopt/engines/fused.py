"""One step for many leaves of one place: one call on the CPU, one launch on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuopt.engines import cpu, cuda
from gpuopt.engines.segments import GRADIENT, Segment, Table
from gpuopt.engines.trace import trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gpuopt.engines.memory import Layout
    from gpuopt.rules.base import Rule


def fusable(place: str) -> bool:
    """Whether there is a fused engine for a place (see `gpuopt.backends.place`)."""
    return place == "numpy" or place.startswith("cupy:")


def address_in(place: str) -> Callable[[Any], int]:
    """Return the function that tells where an array of that place begins."""
    return cpu.pointer if place == "numpy" else cuda.pointer


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
        For each leaf: its group, its parameter and its slots, all dense, with the same strides and dtype.
    rules
        Of each group.

    """

    def __init__(self, place: str, leaves: Sequence[tuple[int, Any, Sequence[Any]]], rules: Sequence[Rule]) -> None:
        address = address_in(place)
        self._table = Table(
            [Segment(p.size, group, str(p.dtype), (address(p), *map(address, slots))) for group, p, slots in leaves],
            rules,
        )
        self._kernel: Callable[[], None] = (
            cpu.CPUKernel(self._table) if place == "numpy" else cuda.CUDAKernel(self._table, _device(place))
        )

    def computes(self, rules: Sequence[Rule]) -> bool:
        """Whether the programs of these rules are the compiled ones."""
        return all(trace(rules[group]) == program for group, program in self._table.programs.items())

    def bind(self, row: int, pointer: int) -> None:
        """Take the gradient at this address from now on; 0 leaves the leaf alone."""
        self._table.rows[row, GRADIENT] = pointer

    def __call__(self, scalars: Sequence[Mapping[str, float]]) -> None:
        """Update all leaves that have a gradient; ``scalars``: of each group, what `Rule.at` gave."""
        self._table.set_coefficients(scalars)
        self._kernel()


def _device(place: str) -> int:
    return int(place.removeprefix("cupy:"))
