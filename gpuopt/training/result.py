"""How a training ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuopt.backends import Backend
    from gpuopt.runs.loop import Row
    from gpuopt.training.loop import Training

__all__ = ["Result", "device"]

SPIKE = 0.02
"""What a loss is above the lowest one, in nats or squared deviations, if the difference is worth a word."""


@dataclass(frozen=True)
class Result:
    """How a run ended, as ``summary.json`` has it.

    Attributes
    ----------
    folder : str
    backend, device, reason : str
        The library it ran on, "numpy" or "cupy"; "cpu" or "cuda:N"; and why.
    epochs, steps : int
        Done in all.
    train_loss, train_accuracy, test_loss, test_accuracy : float or None
        With the final parameters, over the whole set; with ``--patience`` the best ones. The test set is what
        ``--validation`` set apart, if it did. None without a test set, and for the accuracy of a regression.
    train_rmse, train_r2, test_rmse, test_r2 : float or None
        Of a regression: root mean squared error in the target's own units, and coefficient of determination.
    lowest_loss, lowest_epoch : float and int, or None
        The lowest loss of a row of metrics, of the test set if there is one, and its epoch.
    seconds : float
        Time of the training, without its interruptions.
    stopped : str or None
        Why a callback ended it early.
    notes : tuple of str
        What in the data was taken for what, with the option that says otherwise.

    Examples
    --------
    >>> import tempfile
    >>> from gpuopt.training import Config, train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = train(Config(epochs=2, device="cpu"), out=f"{folder}/run", report=False)
    >>> result.backend, result.epochs, result.stopped
    ('numpy', 2, None)
    """

    folder: str
    backend: str
    device: str
    reason: str
    epochs: int
    steps: int
    train_loss: float
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    seconds: float
    stopped: str | None
    train_rmse: float | None = None
    train_r2: float | None = None
    test_rmse: float | None = None
    test_r2: float | None = None
    lowest_loss: float | None = None
    lowest_epoch: int | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, training: Training, final: Row) -> Result:
        """The result of a training with such metrics in the end."""
        metrics: Row = {}
        for name in ("loss", "accuracy", "rmse", "r2"):
            metrics |= {f"train_{name}": final.get(name), f"test_{name}": final.get(f"test_{name}")}
        return cls(
            folder=str(training.folder),
            backend=training.backend.name,
            device=training.device,
            reason=training.backend.reason,
            epochs=training.epoch,
            steps=training.optimizer.steps,
            seconds=round(training.seconds, 3),
            stopped=training.stopped,
            notes=training.data.notes,
            **training.lowest,
            **metrics,
        )

    @property
    def is_above_its_lowest(self) -> bool:
        """Whether it ended on a spike: with a loss far above the lowest one."""
        final = self.train_loss if self.test_loss is None else self.test_loss
        return self.lowest_loss is not None and final > max(2 * self.lowest_loss, self.lowest_loss + SPIKE)

    def _repr_html_(self) -> str:
        """For notebooks: the summary, the optimizer, its leaves, and small curves of the metrics."""
        from gpuopt.training import notebook

        return notebook.to_html(self)


def device(backend: Backend) -> str:
    """A backend's device as the command line calls it."""
    return "cpu" if backend.device is None else f"cuda:{backend.device}"
