"""What learns: a network, its samples on the device, and the optimizer. Steps by batches, and what is measured of them."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpuopt.backends import fetch
from gpuopt.training.feed import feed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from gpuopt.backends import Backend
    from gpuopt.optimizer import Optimizer
    from gpuopt.runs.loop import Row
    from gpuopt.training.config import Config
    from gpuopt.training.data import Dataset
    from gpuopt.training.feed import Feed
    from gpuopt.training.model import Params, Perceptron

    Array: TypeAlias = Any

__all__ = ["Learner", "hash_of"]

BLOCK = 8192  # samples that are evaluated at once
PROBED = 1024  # samples at most that tell whether the training goes well


class Learner:
    """A network, its data on the device, and its optimizer; it knows of no run. All but the samples need `needed` bytes there."""

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
        self.optimizer = optimizer
        classes = None if data.classes is None else data.outputs
        self._size = len(data.train) if config.batch_size == "full" else min(config.batch_size, len(data.train))
        self.batches = config.batches(len(data.train))  # steps in an epoch
        self._train = feed(backend, data.train, classes, self._size, needed)
        self._test = None if data.test is None else feed(backend, data.test, classes, BLOCK, needed)
        self.nothing = backend.asarray([0.0, 0.0])  # the score of no samples
        self._feeding: tuple[tuple[int, int], Iterator[tuple[Array, Array]]] | None = None  # what comes next
        self._probed = self._train.every(math.ceil(len(data.train) / PROBED))
        if backend.name == "numpy":
            _touch_workspace()

    @property
    def units(self) -> dict[str, str]:
        """What metrics are counted in."""
        unit = "cross-entropy, nats" if self.network.classifies else "mean squared error"
        return {"loss": unit, "test_loss": unit}

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Compute on the backend's device, without NumPy's warnings: overflows and NaN show in the metrics."""
        with self.backend.use(), np.errstate(all="ignore"):
            yield

    def reports(self, epoch: int) -> bool:
        """Whether an epoch, counted from 1, is one whose metrics are reported."""
        return epoch % self.config.report_every == 0 or epoch in (1, self.config.epochs)

    def samples(self, epoch: int, batch: int) -> tuple[Array, Array]:
        """A batch of an epoch. Their order depends on the seed and the epoch alone, not on what was before."""
        if self._feeding is None or self._feeding[0] != (epoch, batch):
            order = None
            if self.batches > 1:  # to make a generator takes longer than many a step
                order = np.random.RandomState([self.config.seed, epoch]).permutation(len(self._train))
            self._feeding = (epoch, batch), self._train.batches(order, self._size, batch)
        _, batches = self._feeding
        self._feeding = (epoch, batch + 1), batches
        return next(batches)

    def update(self, x: Array, y: Array, *, scored: bool, measured: bool) -> tuple[Array, Array]:
        """Update by the gradient of a batch; return its score and the square of the gradient's norm, if they are wanted.

        The optimizer's step is the last thing that may fail: until then nothing has changed.
        """
        network, optimizer = self.network, self.optimizer
        key = hash_of(self.config.seed, optimizer.steps) if network.dropout else 0
        outputs, grads = network.gradients(optimizer.params, x, y, *([key] if key else []))
        score = network.score(outputs, y) if scored else None
        optimizer.step(grads)
        return score, self._square(_arrays(grads)) if measured else None

    def copies(self) -> list[Array]:
        """The parameters as they are now."""
        return [self.network.xp.asarray(p, copy=True) for p in _arrays(self.optimizer.params)]

    def norms(self, square: Array, before: list[Array]) -> Array:
        """The norms of gradient and update, on the device: a GPU is not waited for."""
        xp = self.network.xp
        updates = (p - old for p, old in zip(_arrays(self.optimizer.params), before, strict=True))
        return xp.sqrt(xp.stack([square, self._square(updates)]))

    def probe(self, params: Params | None = None) -> tuple[Array, int]:
        """The score of some training samples, and how many these are; without parameters, with those to evaluate with."""
        return self._scored([self._probed], params), len(self._probed[0])

    def test(self) -> tuple[Array, int] | None:
        """The score of the test set, and how many samples it has, if there is one."""
        return None if self._test is None else (self._scored(self._test.blocks(BLOCK)), len(self._test))

    def named(self, prefix: str, score: NDArray[Any], samples: int) -> Row:
        """Metrics of a score, by name."""
        loss, correct = (score / samples).tolist()
        named = {f"{prefix}loss": loss, f"{prefix}accuracy": correct if self.network.classifies else None}
        target = self.data.target
        if target.is_scaled and target.outputs == 1:
            named[f"{prefix}rmse"] = math.sqrt(loss) * float(target.scale[0]) if loss >= 0 else math.nan
        return named

    def evaluate(self) -> Row:
        """Metrics with the parameters as they are, over the training set and the test set."""
        found: Row = {}
        for prefix, samples in (("", self._train), ("test_", self._test)):
            if samples is not None:
                (score,) = fetch([self._scored(samples.blocks(BLOCK))])()
                found |= self.named(prefix, score, len(samples))
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
        r2 = float((1 - squares / spread).mean())
        return {"rmse": float(np.sqrt((squares * target.scale**2 / len(samples)).mean())), "r2": r2}

    def _square(self, arrays: Iterable[Array]) -> Array:
        """The sum of the squares of all elements."""
        xp = self.network.xp
        return sum(xp.sum(xp.astype(x, xp.float64) ** 2) for x in arrays)

    def _scored(self, blocks: Iterable[tuple[Array, Array]], params: Params | None = None) -> Array:
        """The score of all samples, a block at a time; without parameters, by those to evaluate with."""
        params = self.optimizer.evaluation() if params is None else params
        score = self.nothing
        for x, y in blocks:
            score = score + self.network.score(self.network.outputs(params, x), y)
        return score


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
