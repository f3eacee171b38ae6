"""Where a training stands, copied to the host: what a checkpoint is made of, and what a training can go back to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import optree

from gpuopt.backends import fetch

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuopt.runs.loop import Loop, Row

    State: TypeAlias = dict[str, Any]

__all__ = ["Snapshot"]


@dataclass(frozen=True)
class Snapshot:
    """The optimizer's state and the position of a training at one moment, after so many steps."""

    steps: int
    position: Row
    _arriving: Callable[[], State]

    @classmethod
    def of(cls, run: Loop) -> Snapshot:
        """Make a snapshot. In the middle of an epoch a GPU is waited for, at its end it is not: its copies come in time."""
        state, skipped = run.optimizer._state_of_now()
        held: Any = {name: state[name] for name in ("params", "state")} | {"arrays": run.arrays}
        arrays, structure = optree.tree_flatten(held)
        arrive = fetch(arrays)
        return cls(state["steps"], run.position, lambda: {**state, **skipped(), **structure.unflatten(arrive())})

    @property
    def state(self) -> State:
        """As `Optimizer.state_dict` gives it, with the loop's ``arrays``; all of them copies, on the host."""
        return self._arriving()

    @property
    def is_finite(self) -> bool:
        """Whether no parameter and no state is NaN or infinite."""
        state = self.state
        return all(
            np.isfinite(x).all() for slots in (state["params"], *state["state"].values()) for x in slots.values()
        )

    def restore(self, run: Loop) -> None:
        """Put the training back to here; the time that it took stays."""
        state = dict(self.state)
        run.put_back(state.pop("arrays"))
        run.optimizer.load_state_dict(state)
        run.position = self.position | {"seconds": run.seconds}
