"""When a training is saved, what is kept, and how it is found again."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import TYPE_CHECKING

from gpuopt.training.background import Background
from gpuopt.training.errors import UsageError
from gpuopt.training.explosions import Explosions, Progress
from gpuopt.training.loop import Callback, Position
from gpuopt.training.metrics import Metrics
from gpuopt.training.snapshots import Snapshot

if TYPE_CHECKING:
    from gpuopt.training.config import Config
    from gpuopt.training.folder import RunFolder
    from gpuopt.training.loop import Row, Training

__all__ = ["Checkpoints"]

HURRY = 1.0
"""Seconds that somebody waits at most who wants to leave at once."""


class Checkpoints(Callback):
    """Saves every so many steps or seconds, and when the training ends; only what is sound.

    A copy is taken in memory and written beside the training. The best state is copied when its metrics are reported,
    and written with the next checkpoint: a run that is killed before finds it again when it repeats these steps.

    Attributes
    ----------
    folder : RunFolder
    metrics : Metrics
    explosions : Explosions
    steps : int
        Of the last checkpoint that is on the disk as a whole.
    """

    def __init__(self, folder: RunFolder, config: Config) -> None:
        self.folder = folder
        self.metrics = Metrics(folder.metrics)
        self.explosions = Explosions(config.on_explosion)
        self.steps = 0
        self._every_steps, self._every_seconds = config.checkpoint_interval
        self._keep = config.keep
        self._background = Background()
        self._lowest = math.inf
        self._best: Snapshot | None = None  # if it is not written yet

    def restore(self, training: Training) -> None:
        """Put a training and its metrics back to the last checkpoint; to the beginning if there is none yet.

        Raises
        ------
        UsageError
            If checkpoint or metrics are damaged.
        """
        extra = self.folder.load(training.optimizer)
        if extra is None:
            self.metrics.restore(0, 0)
            return
        try:
            position = Position(**extra["position"])
            explosions = Progress(**extra["explosions"])
            lowest = math.inf if extra["lowest"] is None else float(extra["lowest"])
            written, checksum = extra["metrics"]
            loss, correct = position.score
            counts = (position.epoch, position.batch, explosions.rollbacks, explosions.skipped, written, checksum)
            if not all(type(n) is int and 0 <= n < 2**63 for n in counts):
                raise ValueError(f"expected whole numbers, got {counts}")  # noqa: TRY301
            gradient_norm, update_norm = position.norms
            measured = (loss, correct, position.seconds, gradient_norm, update_norm, position.lr)
            numbers = (*measured, explosions.first, explosions.last)
            if not all(type(x) in {int, float} for x in numbers) or not math.isfinite(position.seconds):
                raise ValueError(f"expected numbers, got {numbers}")  # noqa: TRY301
            if explosions.jumped_at is not None and type(explosions.jumped_at) is not int:
                raise ValueError(f"expected a step, got {explosions.jumped_at!r}")  # noqa: TRY301
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{self.folder.checkpoint}: is no checkpoint of a training: {error!r}") from None
        self.metrics.restore(written, checksum)
        training.position, self.explosions.progress, self._lowest = position, explosions, lowest
        self.steps = training.optimizer.steps

    def start(self, training: Training) -> None:
        self.explosions.start(training)
        self._plan(training)

    def step(self, training: Training) -> None:
        self._background.look()
        steps = training.optimizer.steps
        due = training.seconds >= self._next if self._every_steps is None else steps % self._every_steps == 0
        if due:
            self._plan(training)
            if self.explosions.is_sound(self.explosions.look(training)):
                self.save()

    def epoch(self, training: Training) -> None:
        if training.is_reported:
            self._sight = self.explosions.look(training)

    def reported(self, training: Training, row: Row) -> None:
        if training.error is None and self.explosions.judge(training, self._sight):
            loss: float = row["test_loss"] if "test_loss" in row else row["loss"]
            if loss < self._lowest:
                self._lowest, self._best = loss, self.explosions.good

    def end(self, training: Training) -> None:
        if training.error is None:  # a step may have been broken off in its middle
            self.explosions.conclude(training)
            self.save()
            self._background.wait()
        else:
            with contextlib.suppress(OSError):
                self._background.wait(None if isinstance(training.error, Exception) else HURRY)

    def rescue(self, training: Training) -> None:
        """Save a training whose device fails, if it still gives what is on it."""
        now = Snapshot.of(training)
        if now.is_finite:
            self.explosions.good = now
        self.save()
        self._background.wait()

    def wait(self) -> None:
        """Wait for what is being written."""
        self._background.wait()

    def save(self) -> None:
        """Write the last good state."""
        self._background.wait()
        now, best = self.explosions.good, self._best
        state, best_state = now.state, best.state if best is not None else None  # a GPU may fail while they are written
        extra = {
            "position": dataclasses.asdict(now.position),
            "metrics": [self.metrics.written, self.metrics.checksum],
            "explosions": dataclasses.asdict(self.explosions.progress),
            "lowest": self._lowest if math.isfinite(self._lowest) else None,
        }
        self._best = None

        def write() -> None:
            self.metrics.sync()
            if best_state is not None:
                self.folder.save_best(best_state, extra)
            if self._keep > 1 and self.steps not in (0, now.steps):
                self.folder.keep(self.steps)
            self.folder.save(state, extra)
            self.steps = now.steps
            self.folder.forget_all_but(self._keep - 1)

        self._background.start(write)

    def _plan(self, training: Training) -> None:
        self._next = training.seconds + self._every_seconds
