"""How samples reach the network: all of them on the device, or batch by batch from the host, ahead of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpuopt.arrays import Courier
from gpuopt.errors import UsageError
from gpuopt.limits import available

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from gpuopt.backends import Backend
    from gpuopt.training.data import Samples

    Array: TypeAlias = Any
    Batch: TypeAlias = tuple[Array, Array]

__all__ = ["Feed", "feed"]


class Feed:
    """Samples on their way to the device, in the same order and with the same bits wherever they are."""

    def __init__(self, backend: Backend, samples: Samples, classes: int | None) -> None:
        self._backend, self._samples, self._classes = backend, samples, classes

    def __len__(self) -> int:
        return len(self._samples)

    def batches(self, order: NDArray[np.int64] | None, size: int, first: int) -> Iterator[Batch]:
        """Batches of this size in this order, from the batch `first` on; without an order all samples at once."""
        if order is None:
            return self._sent([slice(None)])
        chosen = self._placed(order)
        return self._sent(
            chosen[begin : min(begin + size, len(self))] for begin in range(first * size, len(self), size)
        )

    def blocks(self, size: int) -> Iterator[Batch]:
        """All samples as they stand, so many at once."""
        return self._sent(slice(begin, min(begin + size, len(self))) for begin in range(0, len(self), size))

    def every(self, step: int) -> Batch:
        """Every ``step``-th sample, with its target."""
        return next(self._sent([slice(None, None, step)]))

    def _placed(self, order: NDArray[np.int64]) -> Array:
        """The order, where the samples are."""
        return order

    def _sent(self, parts: Iterable[Any]) -> Iterator[Batch]:
        """The samples of each part, a slice or some of the order, on the device."""
        raise NotImplementedError

    def _targets(self, chosen: Any) -> NDArray[Any]:
        """The targets of these samples as the network's loss wants them: one-hot for classes."""
        y = self._samples.y[chosen]
        if self._classes is None:
            return np.asarray(y)
        marked = np.zeros((len(y), self._classes), np.float32)
        marked[np.arange(len(y)), y] = 1
        return marked


class Resident(Feed):
    """All samples are on the device."""

    def __init__(self, backend: Backend, samples: Samples, classes: int | None) -> None:
        super().__init__(backend, samples, classes)
        self._x, self._y = backend.asarray(samples.x), backend.asarray(self._targets(slice(None)))

    def _placed(self, order: NDArray[np.int64]) -> Array:
        return self._backend.asarray(order)

    def _sent(self, parts: Iterable[Any]) -> Iterator[Batch]:
        xp = self._backend.xp
        for part in parts:
            if isinstance(part, slice):
                yield self._x[part, :], self._y[part, :]
            else:
                yield xp.take(self._x, part, axis=0), xp.take(self._y, part, axis=0)


class Streamed(Feed):
    """Samples stay on the host or in their file; each batch is on its way while the step before it runs."""

    def __init__(self, backend: Backend, samples: Samples, classes: int | None) -> None:
        super().__init__(backend, samples, classes)
        self._courier = Courier(backend.device)

    def _sent(self, parts: Iterable[Any]) -> Iterator[Batch]:
        waiting = iter(parts)

        def send() -> Any:
            part = next(waiting, None)
            return None if part is None else self._courier.send([self._samples.x[part], self._targets(part)])

        following = send()
        while following is not None:
            arrive, following = following, send()
            x, y = arrive()
            yield x, y


def feed(backend: Backend, samples: Samples, classes: int | None, batch: int, needed: int) -> Feed:
    """The samples on the device where they fit beside `needed` bytes; else on the host. UsageError if not even a batch fits."""
    width = samples.x.shape[1] + (classes if classes is not None else samples.y.shape[1])
    resident, room = 4 * len(samples) * width, (available() if backend.free is None else backend.free)
    if isinstance(samples.x, np.ndarray) and (backend.device is None or resident + needed <= room):
        return Resident(backend, samples, classes)
    several = 3 * 4 * batch * width  # the one that is computed with, and those on their way
    if several + needed > room and math.isfinite(room):
        both = f"{(several + needed) / 2**30:,.1f} GiB, for which {room / 2**30:,.1f} GiB are too few"
        raise UsageError(f"--batch-size {batch}: three batches and the network take {both}; a smaller one fits")
    return Streamed(backend, samples, classes)
