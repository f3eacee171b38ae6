"""The run that trains a network: epochs of batches, and a row of metrics for each that is reported."""

from __future__ import annotations

import dataclasses
import functools
import math
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpuopt.backends import fetch
from gpuopt.errors import Interrupted, UsageError
from gpuopt.rules import Rule
from gpuopt.runs.loop import Callback, is_number
from gpuopt.runs.remembering import EMPTY
from gpuopt.runs.run import Run
from gpuopt.suggest import listed, printable
from gpuopt.training.applied import write_model
from gpuopt.training.result import Result, device

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from gpuopt.runs.loop import Row
    from gpuopt.training.learner import Array, Learner

__all__ = ["Training"]


@dataclass
class Position:
    """Where a training stands: with the optimizer's state, all that it needs to go on."""

    epoch: int = 0
    """Epochs done."""
    batch: int = 0
    """Batches of the current epoch done."""
    score: Any = field(default_factory=lambda: [0.0, 0.0])
    """Of these batches, if the epoch is reported; while it goes on, on the device."""
    norms: Any = field(default_factory=lambda: [math.nan, math.nan])
    """Likewise: of gradient and update in the epoch's last batch, if that is done and the epoch is reported."""
    lr: float = math.nan
    """The learning rate there, likewise."""

    @classmethod
    def checked(cls, given: Row) -> Position:
        """Make one of what stands in a checkpoint; TypeError or ValueError if it cannot."""
        position = cls(**{name: value for name, value in given.items() if name not in {"seconds", *EMPTY}})
        if not all(type(n) is int and 0 <= n < 2**63 for n in (position.epoch, position.batch)):
            raise ValueError(f"expected whole numbers, got {position}")
        (loss, correct), (gradient_norm, update_norm) = position.score, position.norms
        if not all(map(is_number, (loss, correct, gradient_norm, update_norm, position.lr))):
            raise ValueError(f"expected numbers, got {position}")
        return position


class Training(Run):
    """A `gpuopt.Run` of a network over the epochs of its data. Callbacks of `train` get it; you need not make one.

    Attributes
    ----------
    config : Config
    backend : Backend
    data : Dataset
    network : Perceptron
    optimizer : Optimizer
    folder : Path
        The run folder.
    epoch : int
        Epochs done.
    row : dict or None
        Metrics of the last epoch if it is reported; a GPU is waited for: ``epoch, step, loss, accuracy, lr, gradient_norm, update_norm,
        seconds`` and, if there is a test set, ``test_loss, test_accuracy``. The training loss and accuracy are means over
        the epoch's batches, each taken just before its step; the accuracy is None for regression. The norms are Euclidean,
        over all parameters together, of the epoch's last step: of its gradient before clipping, and of what it changed.
    stopped : str or None
        Why the training ends early.
    error : exception or None
        What broke it off.

    Examples
    --------
    >>> import tempfile
    >>> from gpuopt.training import Callback, Config, train
    >>> class Halve(Callback):
    ...     def epoch(self, training):
    ...         if training.epoch == 3:
    ...             training.tune(lr=training.optimizer.lr / 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = train(Config(epochs=5), out=f"{folder}/run", callbacks=[Halve()], report=False)
    >>> result.epochs
    5
    """

    worse, jump = 1.5, 10.0
    is_whole = True  # see `Learner.update`
    _cure = "--lr and a lower rate, --clip-norm 1 or --on-explosion rollback"
    _drawing = "gpuopt.training.report"

    def __init__(
        self,
        folder: str | Path,
        learner: Learner,
        content: Mapping[str, Any],
        *,
        callbacks: Sequence[Callback] = (),
        report: bool | None = False,
    ) -> None:
        config = self.config = learner.config
        self.backend, self.data, self.network = learner.backend, learner.data, learner.network
        self.steps_per_epoch = learner.batches
        self.result: Result | None = None
        self._learner = learner
        self._unmeasured = self.backend.asarray([math.nan, math.nan])
        self._at = Position(0, 0, learner.nothing, self._unmeasured)
        self._last: Callable[[], Row] | None = None
        self._about = dict(content)
        with learner.computing():
            super().__init__(
                folder,
                learner.optimizer,
                checkpoint_every=config.checkpoint_every,
                keep=config.keep,
                on_explosion=config.on_explosion,
                patience=None if config.patience is None else config.patience * learner.batches,
                callbacks=[ModelFile(), *callbacks],
                report=report,
                seed=config.seed,
            )
        self._go_on = f"To go on: gpuopt train --resume {shlex.quote(str(self.folder))}"

    def _identity(self) -> Row:
        return self._about

    def _expect_same(self, there: Row) -> None:
        known = {"labels_sha256": self._about["labels_sha256"], **there}  # older versions noted none
        for key, given in (("data_sha256", self.config.data), ("labels_sha256", self.config.labels)):
            if known.get(key) != self._about[key]:
                raise UsageError(f"{given}: is not the data that the run {self.folder} was started with")

    @property
    def device(self) -> str:
        """The device as the command line calls it."""
        return device(self.backend)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self._at.epoch

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def row(self) -> Row | None:
        return None if self._last is None else self._last()

    def train(self) -> Result:
        """Train until the last epoch, or until it is stopped; Interrupted if that was by a signal."""
        with self._learner.computing(), self:
            for _ in self.steps(self.total):
                self.take_step()
        if self.result is None:
            where = f"{self.optimizer.steps} steps, in epoch {self.epoch + 1} of {self.config.epochs}"
            raise Interrupted(f"stopped by {self.signals[0].name} after {where}; saved. {self._go_on}", self.signals[0])
        return self.result

    @property
    def saved_steps(self) -> int:
        """Of the last checkpoint."""
        return self._checkpoints.steps

    @property
    def lowest(self) -> Row:
        """The lowest loss that a row told, and its epoch."""
        if self._checkpoints.lowest is None:
            return {}
        return {
            "lowest_loss": self._checkpoints.lowest,
            "lowest_epoch": self._checkpoints.lowest_at // self.steps_per_epoch,
        }

    @property
    def chosen(self) -> list[Row]:
        """Changes by hand that are still to be made, as rows of the metrics."""
        return self._checkpoints.pending

    def choose(self, name: str, value: Any) -> None:
        """Let a hyperparameter be another one from the next step on, as a change by hand; TypeError or ValueError if it is none."""
        self._checkpoints.choose(self, name, value)

    def take_step(self) -> None:
        """Take a step; of the last one of an epoch that is reported, the norms are measured."""
        learner, at = self._learner, self._at
        reported = learner.reports(at.epoch + 1)
        measured = reported and at.batch + 1 == self.steps_per_epoch
        x, y = learner.samples(at.epoch, at.batch)
        before = learner.copies() if measured else []
        lr = self.optimizer.lr if measured else math.nan
        score, square = learner.update(x, y, scored=reported, measured=measured)
        self._stepped()
        at.batch, at.score = at.batch + 1, at.score + score if reported else at.score
        if measured:
            at.norms, at.lr = learner.norms(square, before), lr

    def _settle(self) -> None:
        if self._at.batch == self.steps_per_epoch:
            self._end_epoch()
        super()._settle()

    def _end_epoch(self) -> None:
        self._last = self._report() if self._learner.reports(self.epoch + 1) else None
        self._at = Position(self.epoch + 1, 0, self._learner.nothing, self._unmeasured)
        if self._last is not None:
            if self.optimizer.listens:  # before anybody saves
                row = self._last()
                self.optimizer.tell(row.get("test_loss") or row["loss"] or 0.0)
            self._record(self._last)
        for callback in self._callbacks:
            callback.epoch(self)

    def put_back(self, arrays: Mapping[str, Any]) -> None:
        if arrays:  # nobody can remember one before the first step
            raise ValueError(f"arrays of somebody's own: {listed(arrays, shown=printable)}, expected none")

    def _place(self) -> Row:
        own = super()._place()
        own = own if any(own.values()) else {}
        at = self._at
        if at.batch == 0:  # a GPU need not be asked
            return own | dataclasses.asdict(Position(at.epoch))
        score, norms = (x.tolist() for x in fetch([at.score, at.norms])())
        return own | dataclasses.asdict(Position(at.epoch, at.batch, score, norms, at.lr))

    def _move(self, position: Row) -> None:
        to = Position.checked(position)
        super()._move(EMPTY | {name: position[name] for name in EMPTY if name in position})
        if to.epoch * self.steps_per_epoch + to.batch != self.optimizer.steps:  # a best one's, as it once was
            to = Position(*divmod(self.optimizer.steps, self.steps_per_epoch))
        to.score, to.norms = self.backend.asarray(to.score), self.backend.asarray(to.norms)
        self._at = to
        if to.batch == self.steps_per_epoch:  # saved between its last step and its row
            self._end_epoch()

    def impatience(self, lowest: float, since: int, step: int) -> str:  # noqa: ARG002
        best = f"the lowest test loss, {lowest:.6g}, is that of epoch {since // self.steps_per_epoch}"
        return f"{best}; patience of {self.config.patience} epochs"

    def probe(self) -> Callable[[], float]:
        """Measure the loss of some training samples with the parameters as they are; what is returned waits for it."""
        score, samples = self._learner.probe(self.optimizer.params)
        arrive = fetch([score])
        return lambda: self._learner.named("", arrive()[0], samples)["loss"]

    def now(self) -> Row:
        """As `row`, but of this moment, and of some training samples."""
        about = {"epochs": self.config.epochs, "units": self._learner.units}
        return self._measuring(self.epoch, {"": self._learner.probe()})() | about

    def _report(self) -> Callable[[], Row]:
        """The metrics of the epoch whose last step was taken; what is returned waits for them."""
        tested = self._learner.test()
        scores = {"": (self._at.score, len(self.data.train))} | ({} if tested is None else {"test_": tested})
        return self._measuring(self.epoch + 1, scores)

    def _measuring(self, epoch: int, scores: Mapping[str, tuple[Array, int]]) -> Callable[[], Row]:
        """A row of metrics: scores of so many samples, and where the training is."""
        rule, step = self.optimizer.rule, self.optimizer.steps
        assert isinstance(rule, Rule)
        lr = rule.at(max(0, step - 1))["lr"] if math.isnan(self._at.lr) else self._at.lr  # of the last step
        arrive = fetch([self._at.norms, *(score for score, _ in scores.values())])

        @functools.cache
        def row() -> Row:
            norms, *found = arrive()
            measured: Row = {"epoch": epoch, "step": step}
            for (prefix, (_, samples)), score in zip(scores.items(), found, strict=True):
                measured |= self._learner.named(prefix, score, samples)
            measured |= {"lr": lr, **dict(zip(("gradient_norm", "update_norm"), norms.tolist(), strict=True))}
            return measured | {"seconds": round(self.seconds, 3)}

        return row

    def _summary(self) -> Row:
        """Metrics of the parameters as they are; of the best ones, if it has patience."""
        from gpuopt import checkpoint

        if self.config.patience is not None and self._files.best.exists():
            checkpoint.load(self._files.best, self.optimizer)
        self.result = Result.of(self, self._learner.evaluate())
        summary = dataclasses.asdict(self.result)
        del summary["notes"]  # they are fewer when it is resumed: what was decided is in the config by then
        return summary


class ModelFile(Callback):
    """Writes what the network needs to be applied."""

    def start(self, run: Training) -> None:
        write_model(run._files, run.data, run.config)
