"""A place: an array library and a device for which there is a fused engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gpuopt.arrays import is_cupy, is_numpy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gpuopt.engines.memory import Layout
    from gpuopt.engines.table import Table


class Lookup(Protocol):
    """Finds the addresses of the gradients of a step."""

    def __call__(self, gradients: list[Any], leaves: list[Any]) -> list[int] | None:
        """Record the address of each gradient that fits at a glance, and 0 for None.

        Returns
        -------
        list of int or None
            Rows that need a full check: another leaf than before, one that has changed, or a gradient that does not fit
            at a glance. None if there are none, and all addresses are as they were.

        """

    def record(self, row: int, gradient: Any, *, once: bool = False) -> None:
        """Record the address of a gradient that has been checked; with ``once`` for this step alone."""


class Kernel(Protocol):
    """Compiled code that updates all leaves of a table."""

    def expect(self) -> object:
        """Make ready for a step, which is about to be prepared."""

    def judging(self) -> Sequence[Callable[[], object]]:
        """Return functions written in C that judge the gradients, or none if no `judge` was asked for; they run first in a step."""

    def unjudging(self) -> Sequence[Callable[[], object]]:
        """Return functions written in C that undo the last judgement, for a step that fails before it writes."""

    def prepare(self) -> Sequence[Callable[[], object]]:
        """Return functions that update the leaves, once the table is filled in for this step.

        The functions are written in C: see `gpuopt.engines.interrupts.in_one_go`. `Place.restoring` belongs after them.
        """

    def updating(self) -> Sequence[Callable[[], object]]:
        """As `prepare`, but without the reduction passes, whose numbers `know` has brought."""

    def reduce(self, k: int) -> NDArray[Any]:
        """Return what reduction pass ``k`` adds up of each chunk, of shape (chunks, columns)."""

    def know(self, numbers: NDArray[Any]) -> None:
        """Receive the numbers of each row, which later passes need."""

    def advancing(self, moves: NDArray[Any]) -> Callable[[], Sequence[Callable[[], object]]]:
        """Return a `prepare` whose functions first copy the arrays from elsewhere to the addresses in the table.

        Parameters
        ----------
        moves
            int64 of shape (rows, 1 + slots, 2), filled in before each step: of the parameter and each slot the address
            where it is, and the bytes of an element, or 0 for what stays.

        """

    def moved(self) -> Sequence[Callable[[], object]]:
        """Return functions written in C that bring new addresses of the table to the device; they run first in a step."""

    def sums(self) -> NDArray[Any]:
        """Return the sums of squares of the gradients, of shape (rows, 3); see `gpuopt.engines.norms`."""

    def chunk_sums(self) -> NDArray[Any]:
        """Return the sums of squares of each chunk of the table, of shape (chunks, 3)."""

    def scale(self, factors: NDArray[Any]) -> None:
        """Set the factor of the gradient of each row."""


class Place(ABC):
    """An array library and a device for which there is a fused engine. Equal places are the same object."""

    name: str
    """As in "numpy" or "cupy:1"."""

    @abstractmethod
    def pointers(self, arrays: Sequence[Any]) -> list[int]:
        """Addresses of the first elements."""

    @abstractmethod
    def zeros(self, layouts: Sequence[Layout]) -> list[Any]:
        """Return zeroed arrays, side by side in one buffer."""

    @abstractmethod
    def room(self, layouts: Sequence[Layout], offsets: Sequence[int], nbytes: int) -> tuple[list[Any], int]:
        """Return new arrays of any content, at these offsets in one buffer, and the address of that buffer."""

    @abstractmethod
    def stand_in(self, layout: Layout) -> Any:
        """Return an array of this layout, for `lookup` alone: it has no memory."""

    @abstractmethod
    def lookup(self, leaves: Sequence[Any], parameters: Sequence[Any], addresses: NDArray[Any]) -> Lookup:
        """Return the object that finds the addresses of the gradients in each step.

        Parameters
        ----------
        leaves
            As the user holds them.
        parameters
            Of each leaf, the array that a gradient must be laid out like.
        addresses
            int64 of shape (leaves,), where the addresses are recorded.

        """

    @abstractmethod
    def kernel(self, table: Table, before: Any, updating: Any = None) -> Kernel:
        """Compile the kernel of a table.

        Parameters
        ----------
        table
            What it walks over.
        before
            A kernel of the same leaves or None: hands over what it knows of them.
        updating
            The kernel that updates the leaves, if this is one of a stage before: both go by the same verdict.

        """

    @abstractmethod
    def copying(self, target: Any, source: Any) -> list[Callable[[], object]]:
        """Return functions written in C that copy one array of this place into another."""

    def restoring(self) -> Sequence[Callable[[], object]]:
        """Return functions written in C that restore what calls of this place change for the whole thread, such as the current device."""
        return ()


def place_of(array: Any) -> Place | None:
    """Return the place of an array, or None if no fused engine can be had for it."""
    if is_numpy(array):
        return _cpu()
    if is_cupy(array):
        return _cuda(array.device.id)
    return None


def places_of(arrays: Sequence[Any]) -> list[Place | None]:
    """Return `place_of` each, faster for many."""
    cpu = _cpu()
    return [cpu if type(a) is np.ndarray else place_of(a) for a in arrays]


def host() -> Place:
    """Return the place of NumPy's arrays.

    Raises
    ------
    RuntimeError
        If no machine code can be made here.

    """
    place = _cpu()
    if place is None:
        raise RuntimeError("no machine code can be made on this machine, which works out the numbers of a rule")
    return place


@cache
def _cpu() -> Place | None:
    from gpuopt.engines.cpu.kernel import CPU

    return CPU.get()


@cache
def _cuda(device: int) -> Place:
    from gpuopt.engines.cuda.kernel import CUDA

    return CUDA(device)
