"""Trainings that explode: how that is noticed, and what follows.

Whether a training is sound is looked at before a checkpoint and when a row of metrics is judged: its loss, and whether all
parameters and state are finite. What is not sound is not saved. A NaN or an infinity is acted upon at once; a loss that
jumped, if it does not come back: many a training that ends well begins with a bump.

"stop": back to the last good state, and the training ends. "rollback": back to it, with a lower learning rate; after
`ROLLBACKS` of them as "stop". "skip": the optimizer leaves out steps whose gradients are not finite, and the loss may be what
it is, which is only told; parameters that are not finite in spite of that, as "stop".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from gpuopt import schedules
from gpuopt.runs.saving.snapshots import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuopt.runs.loop import Loop

__all__ = ["Explosions", "OnExplosion", "Progress"]

OnExplosion: TypeAlias = Literal["stop", "skip", "rollback"]

PATIENCE = 100
"""Steps that a loss which jumped has to come back."""
FACTOR = 0.5
"""The learning rate is multiplied by this after each rollback."""
ROLLBACKS = 10
"""Rollbacks that a run may have."""


@dataclass
class Progress:
    """What a checkpoint keeps of the watch for explosions."""

    first: float = math.nan
    """Loss of the samples before the first step."""
    last: float = math.nan
    """Loss of the samples when it was last found good."""
    rollbacks: int = 0
    skipped: int = 0
    """Steps left out that no row of the metrics has told yet."""
    jumped_at: int | None = None
    """Where nobody acts upon a loss that jumped: the step at which it was first seen; -1 once it has been told."""


@dataclass(frozen=True)
class Sight:
    """A training at one moment. A GPU is waited for when somebody asks what was seen."""

    state: Snapshot
    loss: Callable[[], float]
    skipped: Callable[[], int]


class Explosions:
    """Keeps the last good state of a training, and does what the policy says when the training has left it."""

    good: Snapshot

    def __init__(self, policy: OnExplosion) -> None:
        self.policy = policy
        self.progress = Progress()
        self.message: str | None = None  # why the training was stopped

    def start(self, run: Loop) -> None:
        """Record the state that a training starts with, or goes on with, as a good one."""
        self._seen = run.optimizer.skipped if self.policy == "skip" else 0
        self._suspected_at: int | None = None
        self._worse, self._jump = run.worse, run.jump
        if math.isnan(self.progress.first):
            self.progress.first = self.progress.last = run.probe()()
        self.good = Snapshot.of(run)

    def look(self, run: Loop) -> Sight:
        """Look at a training, for `is_sound` or `judge`, without waiting for a GPU."""
        skipped = run.optimizer.count_skipped() if self.policy == "skip" else int
        return Sight(Snapshot.of(run), run.probe(), skipped)

    def is_sound(self, sight: Sight) -> bool:
        """Whether it is, what was seen; its state is then the last good one."""
        skipped = sight.skipped()
        self.progress.skipped += skipped - self._seen
        self._seen = skipped
        self._loss, now = sight.loss(), sight.state
        if not (math.isfinite(self.progress.first) and self.progress.first):
            self.progress.first = self.progress.last = self._loss
        self._is_finite = now.is_finite
        jumped = self._jumped(self._loss)
        sound = self._is_finite and (self.policy == "skip" or not jumped)
        if sound:
            self.good, self._suspected_at = now, None
            if not jumped:
                self.progress.last = self._loss
        return sound

    def accept(self, run: Loop) -> bool:
        """Take the state of now for the last good one if it is sound; whether it is."""
        return self.is_sound(self.look(run))

    def judge(self, run: Loop, sight: Sight) -> bool:
        """Return `is_sound` for a reported epoch, after doing what the policy says where the state is not sound and stays so."""
        sound, step = self.is_sound(sight), sight.state.steps
        if self.progress.skipped:
            run.tell({"event": "skip", "step": step, "skipped": self.progress.skipped})
            self.progress.skipped = 0
        if sound:
            self._tell_jump(run, step)
            return True
        if self._suspected_at is None:
            self._suspected_at = step
        if self._is_finite and step - self._suspected_at < PATIENCE:
            if step == run.total and not math.isfinite(self._loss):
                _tell_of_loss(run, self._loss, step, "and the parameters are finite: they stay")
            return False
        self._suspected_at = None
        what = (
            f"the loss is {self._loss:.4g}" if self._is_finite else "NaN or infinity in the parameters or their state"
        )
        reason = f"{what} after step {step} (it was {self.progress.last:.4g} after step {self.good.steps})"
        self.good.restore(run)
        self._act(run, reason, step)
        return False

    def conclude(self, run: Loop) -> None:
        """At the end, record the state as a good one, unless it is not even finite."""
        if self.message is None and not self.is_sound(now := self.look(run)):
            if self._is_finite:
                self.good = now.state
            else:
                self.good.restore(run)

    def _tell_jump(self, run: Loop, step: int) -> None:
        """Say once that the loss jumped and does not come back, though no policy asks for more."""
        progress = self.progress
        if progress.jumped_at == -1:
            return
        if not self._jumped(self._loss):
            progress.jumped_at = None
        elif progress.jumped_at is None:
            progress.jumped_at = step
        elif step - progress.jumped_at >= PATIENCE:
            progress.jumped_at = -1
            _tell_of_loss(run, self._loss, step, "though all gradients are finite: none is skipped")

    def _act(self, run: Loop, reason: str, step: int) -> None:
        event = {"event": "explosion", "step": step, "reason": reason, "back_to_step": self.good.steps}
        if self.policy == "rollback" and self.progress.rollbacks < ROLLBACKS:
            self.progress.rollbacks += 1
            for pattern, rule in run.rules.items():
                if "lr" in rule.hyperparameters():
                    lr = getattr(rule, "lr")  # noqa: B009  (not every rule has one)
                    lower = schedules.scaled(lr, FACTOR) if isinstance(lr, schedules.Schedule) else FACTOR * lr
                    run.optimizer.tune(pattern, lr=lower)
            self.good = Snapshot.of(run)
            event |= {"action": "rollback", "rollbacks": self.progress.rollbacks, "lr": run.hyperparameters().get("lr")}
        else:
            limit = f", and {ROLLBACKS} rollbacks did not help" if self.policy == "rollback" else ""
            self.message = f"the training exploded: {reason}{limit}"
            event |= {"action": "stop"}
            run.stop(self.message)
        run.tell(event)

    def _jumped(self, loss: float) -> bool:
        first, last = self.progress.first, self.progress.last
        if not (math.isfinite(loss) and first):  # nothing to compare with
            return not math.isfinite(loss)
        return loss > min(_times(self._worse, first), max(first, _times(self._jump, last)))


def _tell_of_loss(run: Loop, loss: float, step: int, why: str) -> None:
    """Tell of a loss that nothing follows from."""
    reason = f"the loss is {loss:.4g} after step {step}, {why}"
    run.tell({"event": "explosion", "step": step, "reason": reason, "action": "none"})


def _times(factor: float, loss: float) -> float:
    """So many times as bad a loss, which may be negative."""
    return loss + (factor - 1) * abs(loss)
