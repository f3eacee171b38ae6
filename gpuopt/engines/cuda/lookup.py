"""Looking up a step's CuPy arrays: where the gradients are, and whether leaves and gradients are what they were."""

from __future__ import annotations

import weakref
from itertools import compress, repeat
from operator import attrgetter, call, is_, is_not
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

NOWHERE = 1
"""Address of a gradient without elements: CuPy has 0, which is that of a gradient that is missing."""

_shape = attrgetter("shape")
address = attrgetter("data.ptr")
_layout = attrgetter("data.device_id", "dtype", "shape", "strides")


class Lookup:
    """See `gpuopt.engines.place.Lookup`; looks at all arrays at once, because a loop in Python would be slow."""

    def __init__(self, leaves: Sequence[Any], parameters: Sequence[Any], addresses: NDArray[np.int64]) -> None:
        import cupy

        self._kind = cupy.ndarray
        self._addresses = addresses
        self._leaves = list(leaves)
        self._shapes = list(map(_shape, leaves))
        self._parameters = list(parameters)
        self._layouts = list(map(_layout, parameters))
        self._none_absent = [False] * len(self._leaves)
        self._empty = [row for row, p in enumerate(parameters) if not p.size]
        self._known: list[Callable[[], Any]]
        self._absent: list[bool]
        self._ids: list[int] = []
        self._forget()

    def __call__(self, gradients: list[Any], leaves: list[Any]) -> list[int] | None:
        """See `gpuopt.engines.place.Lookup`."""
        others = set()
        if any(map(is_not, leaves, self._leaves)) or list(map(_shape, leaves)) != self._shapes:
            others = {i for i, p in enumerate(leaves) if p is not self._leaves[i] or p.shape != self._shapes[i]}
        looked, absent = gradients, self._none_absent
        if set(map(type, gradients)) != {self._kind}:  # in place of what has no layout, its parameter is looked at
            absent = list(map(is_, gradients, repeat(None)))
            looked = [g if type(g) is self._kind else p for g, p in zip(gradients, self._parameters, strict=True)]
        # None is what a dead reference gives, too
        if not others and not any(map(is_not, gradients, map(call, self._known))) and absent == self._absent:
            return None
        self._forget()  # if an exception ends this, nothing half-done is believed
        if looked is not gradients:
            others.update(i for i, g in enumerate(gradients) if g is not None and type(g) is not self._kind)
        layouts = list(map(_layout, looked))
        if layouts != self._layouts:
            others.update(i for i, layout in enumerate(layouts) if layout != self._layouts[i])
        # A weak reference costs time, too: it is made for an array that comes twice, and so may come again.
        before, self._ids = self._ids, list(map(id, looked))
        known: list[Callable[[], Any]] = list(map(weakref.ref, looked)) if before == self._ids else list(self._known)
        self._addresses[:] = list(map(address, looked))
        self._addresses[self._empty] = NOWHERE
        for row in (*others, *compress(range(len(absent)), absent)):
            known[row], self._addresses[row] = _nothing, 0
        self._known, self._absent = known, absent
        return sorted(others)

    def record(self, row: int, gradient: Any, *, once: bool = False) -> None:
        """See `gpuopt.engines.place.Lookup`."""
        self._known[row] = _nothing  # if an exception ends this, nothing half-done is believed
        self._addresses[row] = address(gradient) or NOWHERE
        if not once:
            self._known[row] = weakref.ref(gradient)

    def _forget(self) -> None:
        """Have the next call check every gradient, as if there had been no step before."""
        self._known = [_nothing] * len(self._leaves)
        self._absent = []


def _nothing() -> None:
    """Stand in for the weak reference to the gradient of a leaf that has had none."""
