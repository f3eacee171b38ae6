"""The run folder: what a run was, how it went, and where it stands.

==========================  =====================================================================
``config.json``             everything needed to repeat the run
``metrics.jsonl``           a row for each reported epoch
``checkpoint.safetensors``  parameters, optimizer state and the position in the data
``summary.json``            how it ended; only there when it did
==========================  =====================================================================
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuopt.training.errors import UsageError
from gpuopt.training.loop import Callback, Position

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuopt.optimizer import Optimizer
    from gpuopt.training.loop import Training

__all__ = ["Checkpoints", "Metrics", "RunFolder"]


class RunFolder:
    """The files of a run, by name.

    Parameters
    ----------
    path
        The folder; `create` makes it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.summary = self.path / "summary.json"

    @classmethod
    def create(cls, out: str | Path | None, name: str) -> RunFolder:
        """Make the folder `out`; by default one in ``runs``, called by the data's name and the time.

        Raises
        ------
        UsageError
            If there is something already, or the folder cannot be made.
        """
        if out is None:
            now = dt.datetime.now().strftime("%Y%m%d-%H%M%S")
            names = (f"{name}-{now}{end}" for end in itertools.chain([""], (f"-{n}" for n in itertools.count(2))))
            path = next(path for path in (Path("runs", name) for name in names) if not path.exists())
        else:
            path = Path(out)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            cure = f"choose another one, or continue the run in it with --resume {path}"
            raise UsageError(f"--out {path}: exists already; {cure}") from None
        except OSError as error:
            raise UsageError(f"--out {path}: cannot be made: {error.strerror}") from None
        return cls(path)

    def read_config(self) -> dict[str, Any]:
        """The content of ``config.json``."""
        try:
            content = json.loads(self.config.read_text())
        except OSError as error:
            reason = "is no run folder: it has no config.json" if self.path.is_dir() else error.strerror
            raise UsageError(f"--resume {self.path}: {reason}") from None
        except ValueError as error:
            raise UsageError(f"{self.config}: not readable ({error})") from None
        if not isinstance(content, dict):
            raise UsageError(f"{self.config}: expected an object")
        return content

    def restore(self, optimizer: Optimizer) -> Position:
        """Put optimizer and metrics back to the last checkpoint; to the beginning if there is none yet.

        Raises
        ------
        UsageError
            If checkpoint or metrics are damaged.
        """
        from gpuopt import checkpoint

        extra: dict[str, Any] = {"metrics_bytes": 0, "position": {}}
        if self.checkpoint.exists():
            try:
                extra = checkpoint.load(self.checkpoint, optimizer)
            except checkpoint.CheckpointError as error:
                raise UsageError(str(error)) from None
        written = self.metrics.stat().st_size if self.metrics.exists() else 0
        if written < extra["metrics_bytes"]:
            expected = f"{extra['metrics_bytes']} bytes or more, as the checkpoint has it"
            raise UsageError(f"{self.metrics}: {written} bytes, expected {expected}")
        if written:
            os.truncate(self.metrics, extra["metrics_bytes"])
        return Position(**extra["position"])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(json.dumps(_finite(content), indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _finite(content: Mapping[str, Any]) -> dict[str, Any]:
    """What exploded as None: JSON has no NaN and no infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in content.items()}


class Metrics(Callback):
    """Adds the metrics of each reported epoch to ``metrics.jsonl``."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.metrics

    def start(self, training: Training) -> None:  # noqa: ARG002
        self._file = self._path.open("a")

    def epoch(self, training: Training) -> None:
        if training.row is not None:
            self._file.write(json.dumps(_finite(training.row)) + "\n")
            self._file.flush()

    def end(self, training: Training) -> None:  # noqa: ARG002
        self._file.close()


class Checkpoints(Callback):
    """Saves every so many seconds, and when the training ends.

    Attributes
    ----------
    steps : int
        Steps done by the time of the last checkpoint.
    """

    def __init__(self, folder: RunFolder, seconds: float) -> None:
        self._folder = folder
        self._seconds = seconds
        self.steps = 0

    def start(self, training: Training) -> None:
        self.steps = training.optimizer.steps
        self._next = training.seconds + self._seconds

    def step(self, training: Training) -> None:
        if training.seconds >= self._next:
            self.save(training)

    def end(self, training: Training) -> None:
        if training.error is None:  # a step may have been broken off in its middle
            self.save(training)

    def save(self, training: Training) -> None:
        """Write the checkpoint."""
        from gpuopt import checkpoint

        position = dataclasses.asdict(training.position)
        written = self._folder.metrics.stat().st_size  # the rows until here: later ones are written again
        extra = {"position": position, "metrics_bytes": written}
        checkpoint.save(self._folder.checkpoint, training.optimizer, extra)
        self.steps = training.optimizer.steps
        self._next = training.seconds + self._seconds
