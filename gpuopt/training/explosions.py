"""Trainings that explode: how that is noticed, and what follows.

Whether the parameters are sound is looked at where a GPU is waited for anyway, before a checkpoint and after an epoch
whose metrics are reported: the loss of some training samples, and whether all parameters and state are finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuopt import schedules
from gpuopt.rules import Rule
from gpuopt.training.snapshots import Snapshot

if TYPE_CHECKING:
    from gpuopt.training.config import OnExplosion
    from gpuopt.training.loop import Training

__all__ = ["Explosions", "Progress"]

JUMP = 10.0
"""A loss so many times the last good one, and above the first one, has exploded."""
FACTOR = 0.5
"""Of the learning rate, after each rollback."""
ROLLBACKS = 10
"""As many at most in a run."""


@dataclass
class Progress:
    """What a checkpoint keeps of it."""

    first: float = math.nan
    """Loss of the samples before the first step."""
    last: float = math.nan
    """Loss of the samples when it was last found good."""
    rollbacks: int = 0
    skipped: int = 0
    """Steps left out that no row of the metrics has told yet."""


class Explosions:
    """Keeps the last good state of a training, and does what the policy says when the training has left it.

    Parameters
    ----------
    policy : {"stop", "skip", "rollback"}
        What follows. "stop": back to the last good state, and the training ends. "rollback": back to it, with a lower
        learning rate; after `ROLLBACKS` of them as "stop". "skip": the optimizer leaves out steps whose gradients are
        not finite; if the parameters are not sound in spite of that, as "stop".

    Attributes
    ----------
    good : Snapshot
        The last good state.
    progress : Progress
    message : str or None
        Why the training was stopped.
    """

    def __init__(self, policy: OnExplosion) -> None:
        self.policy = policy
        self.progress = Progress()
        self.message: str | None = None

    def start(self, training: Training) -> None:
        """Take the state that a training starts with, or goes on with, as a good one."""
        self._seen = training.optimizer.skipped
        if math.isnan(self.progress.first):
            self.progress.first = self.progress.last = training.probe()
        self.good = Snapshot.of(training)

    def is_sound(self, training: Training) -> bool:
        """Look at a training: take its state as the last good one, or else do what the policy says."""
        self._count_skipped(training)
        loss, now = training.probe(), Snapshot.of(training)
        if now.is_finite and not self._jumped(loss):
            self.good, self.progress.last = now, loss
            return True
        what = f"the loss is {loss:.4g}" if now.is_finite else "NaN or infinity in the parameters or their state"
        reason = f"{what} after step {now.steps} (it was {self.progress.last:.4g} after step {self.good.steps})"
        self.good.restore(training)
        training.row = None
        self._act(training, reason, now.steps)
        return False

    def tell_skipped(self, training: Training) -> None:
        """Write down how many steps were left out."""
        self._count_skipped(training)
        if self.progress.skipped:
            training.tell({"event": "skip", "step": training.optimizer.steps, "skipped": self.progress.skipped})
            self.progress.skipped = 0

    def _act(self, training: Training, reason: str, step: int) -> None:
        event = {"event": "explosion", "step": step, "reason": reason, "back_to_step": self.good.steps}
        if self.policy == "rollback" and self.progress.rollbacks < ROLLBACKS:
            self.progress.rollbacks += 1
            lower_learning_rate(training, FACTOR)
            self.good = Snapshot.of(training)
            event |= {"action": "rollback", "rollbacks": self.progress.rollbacks, "lr": training.optimizer.lr}
        else:
            limit = f", and {ROLLBACKS} rollbacks did not help" if self.policy == "rollback" else ""
            self.message = f"the training exploded: {reason}{limit}"
            event |= {"action": "stop"}
            training.stop(self.message)
        training.tell(event)

    def _jumped(self, loss: float) -> bool:
        return not loss <= max(self.progress.first, JUMP * self.progress.last)  # NaN, too

    def _count_skipped(self, training: Training) -> None:
        skipped = training.optimizer.skipped
        self.progress.skipped += skipped - self._seen
        self._seen = skipped


def lower_learning_rate(training: Training, factor: float) -> None:
    """Multiply the learning rate, of a schedule at every step."""
    rule: Any = training.optimizer.rule
    assert isinstance(rule, Rule)
    lr = getattr(rule, "lr")  # noqa: B009  (not every rule has one; those of this package do)
    training.optimizer.tune(lr=schedules.scaled(lr, factor) if isinstance(lr, schedules.Schedule) else factor * lr)
