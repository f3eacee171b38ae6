"""What processes say to each other and send: the interface, and a process alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

Message: TypeAlias = tuple[int, Any]
"""The other process, and a flat array."""


class Transport:
    """One process alone: nobody to talk to.

    Attributes
    ----------
    rank, size
        This process, and how many there are.
    way
        How arrays travel: "alone", "host", "nccl" or "mpi".

    """

    rank, size = 0, 1
    way = "alone"

    def highest(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the largest of each number over all processes."""
        return numbers

    def told(self, thing: Any) -> list[Any]:
        """Return a small object of each process."""
        return [thing]

    def say(self, thing: Any) -> None:
        """On rank 0: let all others `hear` a small object."""

    def hear(self) -> Any:
        """On all but rank 0: wait, however long it takes, for what rank 0 has to `say`."""
        raise NotImplementedError

    def reserve(self, example: Any, nbytes: int) -> None:
        """Allocate what one call needs that moves so many bytes of arrays like this one: before processes count on it."""

    def exchange(self, sends: Iterable[Message], receives: Iterable[Message]) -> None:
        """Send arrays and receive others; between two processes in the order of the lists."""

    def gather(self, flat: Any, cuts: Sequence[int]) -> None:
        """Fill an array, of which each process has its own share, with the shares of the others."""

    def gather_at_first(self, flat: Any, cuts: Sequence[int]) -> None:
        """As `gather`, on rank 0 alone; on the others ``flat`` may be the own share."""

    def broadcast(self, flat: Any) -> None:
        """Fill an array with that of rank 0."""

    def here(self) -> tuple[int, int]:
        """Return which of the processes of this machine this is, and how many there are; collective."""
        return 0, 1

    def leave(self, patience: float = 0.0) -> None:
        """End all processes with this one, after so many seconds."""
