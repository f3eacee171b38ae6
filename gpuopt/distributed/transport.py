"""The interface for messages between processes, and its implementation for a single process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

Message: TypeAlias = tuple[int, Any]
"""The other process, and a flat array."""


class Transport:
    """The transport of a single process, and the interface of all others.

    Attributes
    ----------
    rank, size
        Index of this process, and number of processes.
    way
        How arrays are sent: "alone", "host", "nccl" or "mpi".

    """

    rank, size = 0, 1
    way = "alone"

    def highest(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the largest of each number over all processes; collective."""
        return numbers

    def told(self, thing: Any) -> list[Any]:
        """Gather a small object from each process; collective."""
        return [thing]

    def say(self, thing: Any) -> None:
        """On rank 0: send a small object to all others, which `hear` it."""

    def hear(self) -> Any:
        """On all but rank 0: wait, without a time-out, for the object that rank 0 will `say`."""
        raise NotImplementedError

    def reserve(self, example: Any, nbytes: int) -> None:
        """Allocate the memory of a later call that sends ``nbytes`` of arrays like ``example``."""

    def exchange(self, sends: Iterable[Message], receives: Iterable[Message]) -> None:
        """Send and receive arrays; the messages between two processes are in the order of the lists."""

    def gather(self, flat: Any, cuts: Sequence[int]) -> None:
        """Fill in the shares of the others; process ``k`` owns the elements ``cuts[k]`` to ``cuts[k + 1]``."""

    def gather_at_first(self, flat: Any, cuts: Sequence[int]) -> None:
        """As `gather`, but only rank 0 receives; on the others ``flat`` may be their share alone."""

    def broadcast(self, flat: Any) -> None:
        """Overwrite an array with that of rank 0."""

    def here(self) -> tuple[int, int]:
        """Return the index of this process among those of its machine, and their number; collective."""
        return 0, 1

    def leave(self, patience: float = 0.0) -> None:
        """End all processes, ``patience`` seconds from now."""
