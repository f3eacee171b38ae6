"""The training loop, and the protocol of what hangs on it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpuopt import schedules
from gpuopt.backends import fetch, gpu_failure
from gpuopt.rules import Rule
from gpuopt.training.config import spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gpuopt.backends import Backend
    from gpuopt.optimizer import Optimizer
    from gpuopt.rules.base import Hyper
    from gpuopt.training.config import Config
    from gpuopt.training.data import Dataset, Samples
    from gpuopt.training.model import Params, Perceptron

    Array: TypeAlias = Any
    Row: TypeAlias = dict[str, Any]

__all__ = ["Callback", "Position", "Training"]

BLOCK = 8192  # samples that are evaluated at once
PROBED = 1024  # samples at most that tell whether the training goes well


class Callback:
    """What hangs on the loop: progress, metrics, checkpoints, and your own. Every method may be left out.

    Each one gets the `Training`: ``training.stop(reason)`` ends it after the current step, ``training.tune(lr=0.01)``
    changes hyperparameters from the next one on.

    Examples
    --------
    >>> class Patience(Callback):
    ...     def epoch(self, training):
    ...         if training.row and training.row["loss"] < 0.1:
    ...             training.stop("good enough")
    """

    def start(self, training: Training) -> None:
        """Before the first step, of a resumed training too."""

    def step(self, training: Training) -> None:
        """After each step."""

    def epoch(self, training: Training) -> None:
        """After each epoch; ``training.row`` has its metrics, or is None if it is not reported."""

    def reported(self, training: Training, row: Row) -> None:
        """When the metrics of an epoch are there: after `epoch`; on a GPU one step later, so that it has work meanwhile."""

    def event(self, training: Training, event: Mapping[str, Any]) -> None:
        """When something out of the ordinary happened; ``event["event"]`` says what."""

    def end(self, training: Training) -> None:
        """After the training: finished, stopped after a step, or broken off by ``training.error``.

        Who was started is ended, whatever happened, and the last one started first.
        """


def device(backend: Backend) -> str:
    """A backend's device as the command line calls it."""
    return "cpu" if backend.device is None else f"cuda:{backend.device}"


@dataclass
class Position:
    """Where a training stands: with the optimizer's state, all that it needs to go on."""

    epoch: int = 0
    """Epochs done."""
    batch: int = 0
    """Batches of the current epoch done."""
    score: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Of these batches, if the epoch is reported."""
    seconds: float = 0.0
    """Time that the training took until here."""
    norms: list[float] = field(default_factory=lambda: [math.nan, math.nan])
    """Of gradient and update in the epoch's last batch, if that is done and the epoch is reported."""
    lr: float = math.nan
    """The learning rate there, likewise."""


class Training:
    """A network, its data on the device, its optimizer, and how far the training is.

    Attributes
    ----------
    config : Config
    backend : Backend
    data : Dataset
    network : Perceptron
    optimizer : Optimizer
    folder : Path or None
        The run folder, if there is one.
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
    """

    def __init__(
        self, config: Config, backend: Backend, data: Dataset, network: Perceptron, optimizer: Optimizer
    ) -> None:
        self.config = config
        self.backend = backend
        self.data = data
        self.network = network
        self.optimizer = optimizer
        self.folder: Path | None = None
        self.epoch = 0
        self.stopped: str | None = None
        self.error: BaseException | None = None
        self._train = self._on_device(data.train)
        self._test = None if data.test is None else self._on_device(data.test)
        self._batch = 0
        self._nothing = backend.asarray([0.0, 0.0])  # the score of no samples
        self._score = self._nothing  # of this epoch's batches
        self._norms = self._unmeasured = backend.asarray([math.nan, math.nan])  # of its last step
        self._lr = math.nan  # likewise
        self._began = time.perf_counter()
        self._halted: float | None = None  # the time, while it stands still
        self._callbacks: Sequence[Callback] = ()
        self._moved = False
        self._row: Callable[[], Row] | None = None
        self._announced = True
        every = math.ceil(len(data.train) / PROBED)
        self._probed = tuple(part[::every, :] for part in self._train)
        if backend.name == "numpy":
            _touch_workspace()

    @property
    def device(self) -> str:
        """The device as the command line calls it."""
        return device(self.backend)

    @property
    def seconds(self) -> float:
        """Time that the training took, without its interruptions."""
        return time.perf_counter() - self._began if self._halted is None else self._halted

    @property
    def position(self) -> Position:
        """Where it stands; set it to go on from there."""
        if self._batch == 0:  # a GPU need not be asked
            return Position(self.epoch, seconds=self.seconds)
        score, norms = (x.tolist() for x in fetch([self._score, self._norms])())
        return Position(self.epoch, self._batch, score, self.seconds, norms, self._lr)

    @position.setter
    def position(self, position: Position) -> None:
        self.epoch, self._batch = position.epoch, position.batch
        self._score = self.backend.asarray(position.score)
        self._norms, self._lr = self.backend.asarray(position.norms), position.lr
        self._began = time.perf_counter() - position.seconds
        self._moved = True

    def stop(self, reason: str) -> None:
        """End the training after the current step."""
        self.stopped = reason

    def tell(self, event: Mapping[str, Any]) -> None:
        """Let all callbacks know of an event, which has a name, ``event["event"]``, and anything else in JSON's types.

        Its ``step`` is that of now, if it has none.
        """
        event = {"event": event["event"], "step": self.optimizer.steps, **event}
        for callback in self._callbacks:
            callback.event(self, event)

    def tune(self, by: str = "callback", /, **hyperparameters: Hyper | str) -> None:
        """Change hyperparameters from the next step on, and tell it: an event for each.

        Parameters
        ----------
        by
            Who changes it.
        **hyperparameters
            Numbers, schedules, or the text of one as `gpuopt.schedules.parse` reads it.

        Raises
        ------
        TypeError, ValueError
            If there is no such hyperparameter, or its range is left. Nothing is changed then.

        Examples
        --------
        >>> class Drop(Callback):
        ...     def epoch(self, training):
        ...         if training.epoch == 100:
        ...             training.tune(lr=0.01)
        """
        rule, step = self.optimizer.rule, self.optimizer.steps
        assert isinstance(rule, Rule)
        before = rule.at(step)
        steps = self.config.epochs * self.batches
        given: dict[str, Hyper] = {}
        for name, value in hyperparameters.items():
            if isinstance(value, str):
                try:
                    given[name] = schedules.parse(value, initial=before.get(name, 0.0), steps=steps)
                except ValueError as error:
                    raise ValueError(f"{name}={value}: expected a number or a schedule: {error}") from None
            elif not callable(value) or isinstance(value, schedules.Schedule):
                given[name] = value
            else:
                raise TypeError(f"tune: {name}: {value!r}, expected a number or a schedule of gpuopt.schedules")
        known = {name: value for name, value in given.items() if name in rule.hyperparameters()}
        changed = dataclasses.replace(rule, **known)
        after = changed.at(step)
        if any(callable(value) for value in known.values()):
            for later in spread(step, steps, changed):  # what a schedule gives is in range, too
                changed.at(later)
        self.optimizer.tune(**given)
        for name, value in given.items():
            event = {"event": "tune", "step": step, "name": name, "old": before[name], "new": after[name], "by": by}
            self.tell(event | ({"schedule": value.to_dict()} if isinstance(value, schedules.Schedule) else {}))

    @property
    def row(self) -> Row | None:
        return None if self._row is None else self._row()

    @property
    def is_reported(self) -> bool:
        """Whether the last epoch has a row."""
        return self._row is not None

    def probe(self) -> Callable[[], float]:
        """Measure the loss of some training samples with the parameters as they are; what is returned waits for it."""
        samples = len(self._probed[0])
        arrive = fetch([self._scored(self._probed, self.optimizer.params)])
        return lambda: self._mean(arrive()[0], samples)[0]

    def now(self) -> Row:
        """As `row`, but of this moment, and of some training samples."""
        return self._measuring(self.epoch, {"": (self._scored(self._probed), len(self._probed[0]))})()

    @contextlib.contextmanager
    def interruption(self) -> Iterator[None]:
        """What is done in it takes no time of the training's."""
        self._halted = self.seconds
        try:
            yield
        finally:
            self._began, self._halted = time.perf_counter() - self._halted, None

    def run(self, callbacks: Sequence[Callback] = ()) -> None:
        """Train until the last epoch, or until it is stopped."""
        self._callbacks = callbacks
        # Explosions show in the metrics.
        with self.backend.use(), np.errstate(all="ignore"), contextlib.ExitStack() as ends:
            try:
                for callback in callbacks:
                    callback.start(self)
                    ends.callback(callback.end, self)
                while self._goes_on or not self._announced:
                    if self._goes_on:
                        self.run_epoch()
                    else:
                        self._announce()  # which may bring it back to an earlier epoch
            except BaseException as error:
                self.error = error
                if gpu_failure(error) is not None:
                    with contextlib.suppress(Exception):  # what was measured before may still come
                        self._announce()
                raise

    def evaluate(self) -> Row:
        """Loss and accuracy with the parameters as they are, over the training set and the test set."""
        with self.backend.use(), np.errstate(all="ignore"):
            found: Row = {}
            for prefix, samples in (("", self._train), ("test_", self._test)):
                if samples is not None:
                    (score,) = fetch([self._scored(samples)])()
                    found |= self._named(prefix, score, len(samples[0]))
            return found

    @property
    def _goes_on(self) -> bool:
        return self.epoch < self.config.epochs and self.stopped is None

    def run_epoch(self) -> None:
        """Take the steps that are left of the current epoch, or until it is stopped."""
        network, optimizer = self.network, self.optimizer
        params = optimizer.params
        reported = self._is_reported(self.epoch + 1)
        self._moved = False
        for x, y in self._batches():
            outputs, grads = network.gradients(params, x, y)
            score = self._score + network.score(outputs, y) if reported else self._score
            measured = reported and self._batch + 1 == self.batches
            before = [network.xp.asarray(p, copy=True) for p in _arrays(params)] if measured else []
            lr = optimizer.lr if measured else math.nan
            optimizer.step(grads)  # the last thing that may fail: until then the position is that before the step
            self._batch, self._score, self._norms, self._lr = self._batch + 1, score, self._unmeasured, lr
            if measured:
                self._norms = self._measured(grads, before)
            if self._announce():
                for callback in self._callbacks:
                    callback.step(self)
            if self._moved or (self.stopped is not None and self._batch < self.batches):
                return  # in the middle of the epoch
        self._row, self._announced = (self._report() if reported else None), not reported
        self.epoch, self._batch = self.epoch + 1, 0
        self._score, self._norms, self._lr = self._nothing, self._unmeasured, math.nan
        if self._row is not None and self.optimizer.listens:  # before anybody saves
            row = self._row()
            self.optimizer.tell(row.get("test_loss") or row["loss"] or 0.0)
        for callback in self._callbacks:
            callback.epoch(self)
        if not self.backend.is_asynchronous:
            self._announce()

    def _announce(self) -> bool:
        """Tell the last reported epoch's metrics, if nobody has been told yet; return whether it stands where it stood."""
        if not self._announced:
            self._announced, row = True, self.row
            assert row is not None
            for callback in self._callbacks:
                callback.reported(self, row)
        return not self._moved

    @property
    def batches(self) -> int:
        """Steps in an epoch."""
        return self.config.batches(len(self.data.train))

    def _is_reported(self, epoch: int) -> bool:
        return epoch % self.config.report_every == 0 or epoch in (1, self.config.epochs)

    def _batches(self) -> Iterator[tuple[Array, Array]]:
        """What is left of the epoch. Its order depends on the seed and the epoch alone, not on what was before."""
        x, y = self._train
        size = len(x) if self.config.batch_size == "full" else self.config.batch_size
        if size >= len(x):
            yield from [(x, y)][self._batch :]
            return
        random = np.random.RandomState([self.config.seed, self.epoch])
        order = self.backend.asarray(random.permutation(len(x)))
        for first in range(self._batch * size, len(x), size):
            chosen = order[first : min(first + size, len(x))]
            yield self.network.xp.take(x, chosen, axis=0), self.network.xp.take(y, chosen, axis=0)

    def _report(self) -> Callable[[], Row]:
        """The metrics of the epoch whose last step was taken; what is returned waits for them."""
        scores = {"": (self._score, len(self.data.train))}
        if self._test is not None:
            scores["test_"] = self._scored(self._test), len(self._test[0])
        return self._measuring(self.epoch + 1, scores)

    def _measuring(self, epoch: int, scores: Mapping[str, tuple[Array, int]]) -> Callable[[], Row]:
        """A row of metrics: scores of so many samples, and where the training is."""
        rule, step = self.optimizer.rule, self.optimizer.steps
        assert isinstance(rule, Rule)
        lr = rule.at(max(0, step - 1))["lr"] if math.isnan(self._lr) else self._lr  # of the last step
        arrive = fetch([self._norms, *(score for score, _ in scores.values())])

        @functools.cache
        def row() -> Row:
            norms, *found = arrive()
            measured: Row = {}
            for (prefix, (_, samples)), score in zip(scores.items(), found, strict=True):
                measured |= self._named(prefix, score, samples)
            gradient_norm, update_norm = norms.tolist()
            measured |= {"lr": lr, "gradient_norm": gradient_norm, "update_norm": update_norm}
            return {"epoch": epoch, "step": step, **measured, "seconds": round(self.seconds, 3)}

        return row

    def _measured(self, grads: Params, before: list[Array]) -> Array:
        """The norms of gradient and update, on the device: a GPU is not waited for."""
        xp = self.network.xp
        updates = [p - old for p, old in zip(_arrays(self.optimizer.params), before, strict=True)]
        squares = [
            sum(xp.sum(xp.astype(x, xp.float64) ** 2) for x in arrays) for arrays in (list(_arrays(grads)), updates)
        ]
        return xp.sqrt(xp.stack(squares))

    def _scored(self, samples: tuple[Array, Array], params: Params | None = None) -> Array:
        """The score of all samples, a block at a time; without parameters, by those to evaluate with."""
        params = self.optimizer.evaluation() if params is None else params
        x, y = samples
        score = self._nothing
        for first in range(0, len(x), BLOCK):
            block = slice(first, min(first + BLOCK, len(x)))
            score = score + self.network.score(self.network.outputs(params, x[block, :]), y[block, :])
        return score

    def _named(self, prefix: str, score: NDArray[Any], samples: int) -> Row:
        loss, accuracy = self._mean(score, samples)
        return {f"{prefix}loss": loss, f"{prefix}accuracy": accuracy}

    def _mean(self, score: NDArray[Any], samples: int) -> tuple[float, float | None]:
        loss, correct = (score / samples).tolist()
        return loss, correct if self.network.classifies else None

    def _on_device(self, samples: Samples) -> tuple[Array, Array]:
        """Features, and targets as the network wants them, one-hot for classes."""
        y = samples.y if self.data.classes is None else np.eye(self.data.outputs, dtype=np.float32)[samples.y]
        return self.backend.asarray(samples.x), self.backend.asarray(y)


def _arrays(params: Params) -> Iterator[Array]:
    return (x for layer in params["layers"] for x in layer.values())


def _touch_workspace() -> None:
    """Make OpenBLAS, which multiplies for most NumPys, as fast as it can be on one processor.

    Its products of up to a few hundred columns use only the beginning of its workspace, but prefetch from what follows. As
    long as nobody has written there, no page is mapped, and each prefetch searches the page tables in vain: products took
    three times as long. One wider product writes there.
    """
    np.ones((256, 128), np.float32) @ np.ones((128, 512), np.float32)
