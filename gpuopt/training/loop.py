"""The loop that trains a network: epochs, batches, what is measured of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpuopt.backends import fetch
from gpuopt.rules import Rule
from gpuopt.runs.loop import Loop, is_number
from gpuopt.training.feed import feed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gpuopt.backends import Backend
    from gpuopt.optimizer import Optimizer
    from gpuopt.runs.loop import Callback, Row
    from gpuopt.training.config import Config
    from gpuopt.training.data import Dataset
    from gpuopt.training.feed import Feed
    from gpuopt.training.model import Params, Perceptron

    Array: TypeAlias = Any

__all__ = ["Training"]

BLOCK = 8192  # samples that are evaluated at once
PROBED = 1024  # samples at most that tell whether the training goes well


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
    norms: list[float] = field(default_factory=lambda: [math.nan, math.nan])
    """Of gradient and update in the epoch's last batch, if that is done and the epoch is reported."""
    lr: float = math.nan
    """The learning rate there, likewise."""

    @classmethod
    def checked(cls, given: Row) -> Position:
        """Make one of what stands in a checkpoint; TypeError or ValueError if it cannot."""
        position = cls(**given)
        if not all(type(n) is int and 0 <= n < 2**63 for n in (position.epoch, position.batch)):
            raise ValueError(f"expected whole numbers, got {position}")
        (loss, correct), (gradient_norm, update_norm) = position.score, position.norms
        if not all(map(is_number, (loss, correct, gradient_norm, update_norm, position.lr))):
            raise ValueError(f"expected numbers, got {position}")
        return position


class Training(Loop):
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

    def __init__(
        self,
        config: Config,
        backend: Backend,
        data: Dataset,
        network: Perceptron,
        optimizer: Optimizer,
        needed: int = 0,
    ) -> None:
        self.config = config
        self.backend = backend
        self.data = data
        self.network = network
        super().__init__(optimizer)
        self.epoch = 0
        classes = None if data.classes is None else data.outputs
        size = len(data.train) if config.batch_size == "full" else min(config.batch_size, len(data.train))
        self._train = feed(backend, data.train, classes, size, needed)
        self._test = None if data.test is None else feed(backend, data.test, classes, BLOCK, needed)
        self._batch = 0
        self._nothing = backend.asarray([0.0, 0.0])  # the score of no samples
        self._score = self._nothing  # of this epoch's batches
        self._norms = self._unmeasured = backend.asarray([math.nan, math.nan])  # of its last step
        self._lr = math.nan  # likewise
        self._feeding: tuple[tuple[int, int], Iterator[tuple[Array, Array]]] | None = (
            None  # epoch and batch that come next
        )
        self._row: Callable[[], Row] | None = None
        self.is_asynchronous = backend.is_asynchronous
        every = math.ceil(len(data.train) / PROBED)
        self._probed = self._train.every(every)
        if backend.name == "numpy":
            _touch_workspace()

    @property
    def device(self) -> str:
        """The device as the command line calls it."""
        return device(self.backend)

    def _place(self) -> Row:
        if self._batch == 0:  # a GPU need not be asked
            return dataclasses.asdict(Position(self.epoch))
        score, norms = (x.tolist() for x in fetch([self._score, self._norms])())
        return dataclasses.asdict(Position(self.epoch, self._batch, score, norms, self._lr))

    def _move(self, position: Row) -> None:
        to = Position.checked({name: value for name, value in position.items() if name != "seconds"})
        if to.epoch * self.batches + to.batch != self.optimizer.steps:  # a best one's, as it once was
            to = Position(*divmod(self.optimizer.steps, self.batches))
        self.epoch, self._batch = to.epoch, to.batch
        self._score = self.backend.asarray(to.score)
        self._norms, self._lr = self.backend.asarray(to.norms), to.lr
        if self._batch == self.batches:  # saved by an older version between its last step and its row
            self._end_epoch(reported=self._is_reported(self.epoch + 1))

    def impatience(self, lowest: float, since: int, step: int) -> str:  # noqa: ARG002
        best = f"the lowest test loss, {lowest:.6g}, is that of epoch {since // self.batches}"
        return f"{best}; patience of {self.config.patience} epochs"

    @property
    def row(self) -> Row | None:
        return None if self._row is None else self._row()

    def probe(self) -> Callable[[], float]:
        """Measure the loss of some training samples with the parameters as they are; what is returned waits for it."""
        samples = len(self._probed[0])
        arrive = fetch([self._scored([self._probed], self.optimizer.params)])
        return lambda: self._mean(arrive()[0], samples)[0]

    def now(self) -> Row:
        """As `row`, but of this moment, and of some training samples."""
        measured = self._measuring(self.epoch, {"": (self._scored([self._probed]), len(self._probed[0]))})()
        return measured | {"epochs": self.config.epochs, "units": self.units}

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Compute on the backend's device, without NumPy's warnings: overflows and NaN show in the metrics."""
        with self.backend.use(), np.errstate(all="ignore"):
            yield

    def run(self, callbacks: Sequence[Callback] = ()) -> None:
        """Train until the last epoch, or until it is stopped."""
        with self._computing(), self._driven(callbacks) as steps:
            for _ in steps:
                self.take_step()

    def evaluate(self) -> Row:
        """Loss and accuracy with the parameters as they are, over the training set and the test set."""
        with self._computing():
            found: Row = {}
            for prefix, samples in (("", self._train), ("test_", self._test)):
                if samples is not None:
                    (score,) = fetch([self._scored(samples.blocks(BLOCK))])()
                    found |= self._named(prefix, score, len(samples))
                    if not self.network.classifies:
                        found |= {f"{prefix}{name}": value for name, value in self._errors(samples).items()}
            return found

    def _errors(self, samples: Feed) -> dict[str, float]:
        """Of a regression, in the target's own units: root mean squared error, and coefficient of determination."""
        xp, target, params = self.network.xp, self.data.target, self.optimizer.evaluation()
        sums = 0.0
        first = None
        for x, y in samples.blocks(BLOCK):
            wide, outputs = xp.astype(y, xp.float64), xp.astype(self.network.outputs(params, x), xp.float64)
            first = wide[:1, :] if first is None else first  # sums of differences: nothing is lost far from 0
            of = wide - first
            sums = sums + xp.stack([xp.sum((outputs - wide) ** 2, axis=0), xp.sum(of, axis=0), xp.sum(of**2, axis=0)])
        (found,) = fetch([sums])()
        squares, total, spread = found
        spread = spread - total**2 / len(samples)
        with np.errstate(all="ignore"):
            r2 = float((1 - squares / spread).mean())
        return {"rmse": float(np.sqrt((squares * target.scale**2 / len(samples)).mean())), "r2": r2}

    def become(self, file: Path) -> None:
        """Take the parameters and the optimizer's state of a checkpoint."""
        from gpuopt import checkpoint

        with self.backend.use():
            checkpoint.load(file, self.optimizer)

    def take_step(self) -> None:
        """Take a step; after the last one of an epoch that is reported, measure that."""
        network, optimizer = self.network, self.optimizer
        batch, params = self._batch, optimizer.params
        reported, is_last = self._is_reported(self.epoch + 1), batch + 1 == self.batches
        x, y = self._samples(batch)
        before = [network.xp.asarray(p, copy=True) for p in _arrays(params)] if reported and is_last else []
        lr = optimizer.lr if before else math.nan
        score, square = self._update(x, y, scored=reported, measured=bool(before))
        self._batch, self._score = batch + 1, self._score + score if reported else self._score
        if is_last:
            if before:
                self._norms, self._lr = self._measured(square, before), lr
            self._end_epoch(reported=reported)

    def _update(self, x: Array, y: Array, *, scored: bool, measured: bool) -> tuple[Array, Array]:
        """Update by the gradient of a batch; return its score and the square of the gradient's norm, if they are wanted.

        The update is the last thing that may fail: until then the position is that before the step.
        """
        network, optimizer = self.network, self.optimizer
        key = hash_of(self.config.seed, optimizer.steps) if network.dropout else 0
        outputs, grads = network.gradients(optimizer.params, x, y, *([key] if key else []))
        score = network.score(outputs, y) if scored else None
        optimizer.step(grads)
        return score, self._square(_arrays(grads)) if measured else None

    def _end_epoch(self, *, reported: bool) -> None:
        self._row = self._report() if reported else None
        self.epoch, self._batch = self.epoch + 1, 0
        self._score, self._norms, self._lr = self._nothing, self._unmeasured, math.nan
        if self._row is not None:
            if self.optimizer.listens:  # before anybody saves
                row = self._row()
                self.optimizer.tell(row.get("test_loss") or row["loss"] or 0.0)
            self._record(self._row)
        for callback in self._callbacks:
            callback.epoch(self)

    @property
    def units(self) -> dict[str, str]:
        """What metrics are counted in."""
        unit = "cross-entropy, nats" if self.network.classifies else "mean squared error"
        return {"loss": unit, "test_loss": unit}

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.config.epochs * self.batches

    @property
    def batches(self) -> int:
        """Steps in an epoch."""
        return self.config.batches(len(self.data.train))

    def _is_reported(self, epoch: int) -> bool:
        return epoch % self.config.report_every == 0 or epoch in (1, self.config.epochs)

    def _samples(self, batch: int) -> tuple[Array, Array]:
        """A batch of the epoch. Their order depends on the seed and the epoch alone, not on what was before."""
        if self._feeding is None or self._feeding[0] != (self.epoch, batch):
            size = len(self._train) if self.config.batch_size == "full" else self.config.batch_size
            random = np.random.RandomState([self.config.seed, self.epoch])
            order = None if size >= len(self._train) else random.permutation(len(self._train))
            self._feeding = (self.epoch, batch), self._train.batches(order, size, batch)
        _, batches = self._feeding
        self._feeding = (self.epoch, batch + 1), batches
        return next(batches)

    def _report(self) -> Callable[[], Row]:
        """The metrics of the epoch whose last step was taken; what is returned waits for them."""
        scores = {"": (self._score, len(self.data.train))}
        if self._test is not None:
            scores["test_"] = self._scored(self._test.blocks(BLOCK)), len(self._test)
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

    def _measured(self, square: Array, before: list[Array]) -> Array:
        """The norms of gradient and update, on the device: a GPU is not waited for."""
        xp = self.network.xp
        updates = (p - old for p, old in zip(_arrays(self.optimizer.params), before, strict=True))
        return xp.sqrt(xp.stack([square, self._square(updates)]))

    def _square(self, arrays: Iterable[Array]) -> Array:
        """The sum of the squares of all elements."""
        xp = self.network.xp
        return sum(xp.sum(xp.astype(x, xp.float64) ** 2) for x in arrays)

    def _scored(self, blocks: Iterable[tuple[Array, Array]], params: Params | None = None) -> Array:
        """The score of all samples, a block at a time; without parameters, by those to evaluate with."""
        params = self.optimizer.evaluation() if params is None else params
        score = self._nothing
        for x, y in blocks:
            score = score + self.network.score(self.network.outputs(params, x), y)
        return score

    def _named(self, prefix: str, score: NDArray[Any], samples: int) -> Row:
        loss, accuracy = self._mean(score, samples)
        named = {f"{prefix}loss": loss, f"{prefix}accuracy": accuracy}
        target = self.data.target
        if target.is_scaled and target.outputs == 1:
            named[f"{prefix}rmse"] = math.sqrt(loss) * float(target.scale[0]) if loss >= 0 else math.nan
        return named

    def _mean(self, score: NDArray[Any], samples: int) -> tuple[float, float | None]:
        loss, correct = (score / samples).tolist()
        return loss, correct if self.network.classifies else None


def hash_of(seed: int, step: int) -> int:
    """A number of 32 bits, other than 0, for each step of each seed."""
    return int(np.random.RandomState([seed, step & 0xFFFFFFFF, step >> 32]).randint(1, 2**31))


def _arrays(params: Params) -> Iterator[Array]:
    return (x for layer in params["layers"] for x in layer.values())


def _touch_workspace() -> None:
    """Make OpenBLAS, which multiplies for most NumPys, as fast as it can be on one processor.

    Its products of up to a few hundred columns use only the beginning of its workspace, but prefetch from what follows. As
    long as nobody has written there, no page is mapped, and each prefetch searches the page tables in vain: products took
    three times as long. One wider product writes there.
    """
    np.ones((256, 128), np.float32) @ np.ones((128, 512), np.float32)
