"""To end a training that has stopped getting better."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from gpuopt.runs.loop import Callback

if TYPE_CHECKING:
    from gpuopt.runs.loop import Row
    from gpuopt.training.loop import Training

__all__ = ["Patience"]


class Patience(Callback):
    """Ends a training when the loss of its test set has not become lower for so many epochs.

    The best state is kept by the checkpoints. What was lowest is found in the run's metrics, so a resumed run knows it.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._lowest, self._since = math.inf, 0

    def start(self, training: Training) -> None:
        if training.folder is not None and training.optimizer.steps:
            lines = (training.folder / "metrics.jsonl").read_text().splitlines()
            for row in map(json.loads, lines):
                if "event" not in row and row["step"] <= training.optimizer.steps:
                    self._see(row)

    def reported(self, training: Training, row: Row) -> None:
        self._see(row)
        if row["epoch"] - self._since >= self._epochs:
            best = f"the lowest test loss, {self._lowest:.6g}, is that of epoch {self._since}"
            training.stop(f"{best}; patience of {self._epochs} epochs")

    def _see(self, row: Row) -> None:
        loss = row.get("test_loss")
        if loss is not None and loss < self._lowest:
            self._lowest, self._since = loss, row["epoch"]
