"""Where a training stands, copied to the host: what a checkpoint is made of, and what a training can go back to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpuopt.backends import to_numpy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gpuopt.training.loop import Position, Training

    State: TypeAlias = dict[str, Any]

__all__ = ["Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """The optimizer's state and the position of a training at one moment.

    Attributes
    ----------
    state : dict
        As `Optimizer.state_dict` gives it, with arrays of its own, on the host.
    position : Position
    """

    state: State
    position: Position

    @classmethod
    def of(cls, training: Training) -> Snapshot:
        """Take one; a GPU is waited for."""
        state = training.optimizer.state_dict()
        params = {path: _copy(x) for path, x in state["params"].items()}
        slots = {path: {slot: _copy(x) for slot, x in own.items()} for path, own in state["state"].items()}
        return cls({**state, "params": params, "state": slots}, training.position)

    @property
    def steps(self) -> int:
        """Steps taken until here."""
        return int(self.state["steps"])

    @property
    def is_finite(self) -> bool:
        """Whether no parameter and no state is NaN or infinite."""
        return all(np.isfinite(x).all() for x in self._arrays())

    def restore(self, training: Training) -> None:
        """Put the training back to here; the time that it took stays."""
        training.optimizer.load_state_dict(self.state)
        training.position = dataclasses.replace(self.position, seconds=training.seconds)

    def _arrays(self) -> Iterator[NDArray[Any]]:
        yield from self.state["params"].values()
        for slots in self.state["state"].values():
            yield from slots.values()


def _copy(x: Any) -> NDArray[Any]:
    host = to_numpy(x)
    return host.copy() if host is x else host
