"""What a person sees of a training: one live line in a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

from gpuopt.runs.loop import Callback
from gpuopt.runs.record.events import describe, explain
from gpuopt.runs.secondary import Secondary
from gpuopt.training.config import SPIKES
from gpuopt.training.config_rule import BUILT_IN_RULE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.progress import Progress

    from gpuopt.runs.loop import Row
    from gpuopt.training.loop import Training

__all__ = ["Live", "Plain", "progress"]

LINES = 10


def progress(*, plain: bool = False) -> Callback:
    """A `Live` line if the standard output is a terminal, or `Plain` lines; neither ends a training that cannot print."""
    return Secondary(Live() if is_terminal() and not plain else Plain(), "printing how it goes")


def is_terminal() -> bool:
    """Whether the standard output is one; there may be none."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return sys.stdout.isatty()
    return False


def introduce(training: Training, *, again: bool) -> None:
    """Say what is about to happen, the device and why it was chosen first; only that `again`, on another device."""
    data, network = training.data, training.config
    kind = "" if data.classes is None else f", {len(data.classes)} classes"
    word = "test" if network.validation is None else "validate"
    test = "" if data.test is None else f" and {len(data.test)} to {word}"
    widths = "-".join(map(str, [data.features, *network.hidden, data.outputs]))
    batch = "all at once" if training.steps_per_epoch == 1 else f"{network.batch_size} at once"
    lines = [f"Device:  {training.device} ({training.backend.reason})"]
    if not again:
        notes = (*data.notes, SPIKES) if network.optimizer == BUILT_IN_RULE else data.notes
        lines += [
            f"Data:    {data.name}, {len(data.train)} samples{test}, {data.features} features{kind}",
            *(f"         {note}" for note in notes),
            f"Network: {widths}, trained by {training.optimizer.rule}, {batch}",
        ]
    if training.optimizer.steps:
        lines.append(f"Resumed after {training.optimizer.steps} steps, in epoch {training.epoch + 1}")
    print("\n".join(lines), flush=True)  # noqa: T201


class Plain(Callback):
    """About ten lines in all."""

    def start(self, training: Training) -> None:
        introduce(training, again=hasattr(self, "_speed"))
        self._speed = Speed(training)
        self._shown = training.epoch * LINES // training.config.epochs

    def reported(self, training: Training, row: Row) -> None:
        epochs = training.config.epochs
        tenth = row["epoch"] * LINES // epochs
        if tenth > self._shown:
            self._shown = tenth
            where = f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
            print(f"{where}  {describe(row)}  {self._speed(training):,.0f} steps/s", flush=True)  # noqa: T201

    def event(self, training: Training, event: Mapping[str, Any]) -> None:  # noqa: ARG002
        print(explain(event), flush=True)  # noqa: T201


class Live(Callback):
    """One line that changes: epoch, metrics, steps a second, time left."""

    def start(self, training: Training) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        introduce(training, again=hasattr(self, "_speed"))
        self._speed = Speed(training)
        self._metrics = ""
        self._progress: Progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(training.config.epochs)),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[metrics]}  {task.fields[speed]:,.0f} steps/s"),
            TimeRemainingColumn(),
        )
        done, total = training.optimizer.steps, training.total
        self._task = self._progress.add_task("", completed=done, total=total, epoch=training.epoch, metrics="", speed=0)
        self._progress.start()

    def step(self, training: Training) -> None:
        if self._speed.age > 0.25:
            self._update(training)

    def reported(self, training: Training, row: Row) -> None:  # noqa: ARG002
        self._metrics = describe(row)

    def event(self, training: Training, event: Mapping[str, Any]) -> None:  # noqa: ARG002
        self._progress.console.print(explain(event), markup=False, highlight=False)

    def end(self, training: Training) -> None:
        self._update(training)
        self._progress.stop()

    def _update(self, training: Training) -> None:
        done, speed = training.optimizer.steps, self._speed(training)
        self._progress.update(self._task, completed=done, epoch=training.epoch, metrics=self._metrics, speed=speed)


class Speed:
    """Steps a second since it was last asked."""

    def __init__(self, training: Training) -> None:
        self._step, self._time = training.optimizer.steps, time.perf_counter()

    @property
    def age(self) -> float:
        """Seconds since it was last asked."""
        return time.perf_counter() - self._time

    def __call__(self, training: Training) -> float:
        steps, seconds = training.optimizer.steps - self._step, self.age
        self._step, self._time = training.optimizer.steps, time.perf_counter()
        return max(0, steps) / seconds  # a rollback goes back
