"""Copying arrays to the host while the device goes on working."""

from __future__ import annotations

import functools
from collections import deque
from typing import TYPE_CHECKING, Any

from gpuopt.backends import is_cupy, to_numpy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["fetch"]

# Memory that a device still writes to must not be given to anybody else, even if nobody asks for what arrives there.
_on_their_way: deque[tuple[Any, list[NDArray[Any]]]] = deque()


def fetch(arrays: Sequence[Any]) -> Callable[[], list[NDArray[Any]]]:
    """Begin to copy arrays to the host, as they are now, without waiting for the device.

    Parameters
    ----------
    arrays : sequence of arrays of any library

    Returns
    -------
    callable
        Waits for the copies, and returns them.

    Examples
    --------
    >>> x = np.zeros(2)
    >>> arrive = fetch([x])
    >>> x += 1
    >>> arrive()
    [array([0., 0.])]
    """
    copies = [_begin(x) for x in arrays]
    arrivals = [_arrival(device, copies) for device in {x.device.id for x in arrays if is_cupy(x)}]

    @functools.cache  # what has arrived stays, whatever becomes of the device
    def wait() -> list[NDArray[Any]]:
        for arrival in arrivals:
            arrival.synchronize()
        return copies

    return wait


def _begin(x: Any) -> NDArray[Any]:
    if not is_cupy(x) or not x.size:
        copy = to_numpy(x)
        return copy.copy(order="K") if copy is x else copy
    import cupyx

    with x.device:
        order = "F" if x.flags.f_contiguous and not x.flags.c_contiguous else "C"
        copy = cupyx.empty_pinned(
            x.shape, x.dtype, order
        )  # into any other memory CUDA copies only when it is waited for
        return x.get(out=copy, blocking=False)  # type: ignore[no-any-return]


def _arrival(device: int, copies: list[NDArray[Any]]) -> Any:
    """An event after which the copies from this device are there."""
    import cupy

    with cupy.cuda.Device(device):
        arrival = cupy.cuda.Event(disable_timing=True)
        arrival.record()
    while _on_their_way and _on_their_way[0][0].done:
        _on_their_way.popleft()
    _on_their_way.append((arrival, copies))
    return arrival
