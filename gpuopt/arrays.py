"""Arrays of any library: their library and device, whether they can be updated, and conversions between them."""

from __future__ import annotations

import functools
import re
import sys
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import DTypeLike, NDArray


ON_HOST = 1
"""DLPack's number for the host's memory."""


def is_numpy(x: object) -> bool:
    """Whether `x` is a NumPy array (a NumPy scalar is not one)."""
    return isinstance(x, np.ndarray)


def is_cupy(x: object) -> bool:
    """Whether `x` is a CuPy array. CuPy is not imported for it: without CuPy there are no such arrays."""
    ndarray = getattr(sys.modules.get("cupy"), "ndarray", None)
    return ndarray is not None and isinstance(x, ndarray)


def is_tensor(x: Any) -> bool:
    """Whether ``x`` is a tensor of torch. Torch is not imported for it: without torch there are no such tensors."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(x, tensor)


def is_array(x: Any) -> bool:
    """Whether ``x`` is an array of some array API library."""
    import array_api_compat

    return is_numpy(x) or is_cupy(x) or (not isinstance(x, np.generic) and array_api_compat.is_array_api_obj(x))


def is_real(x: Any) -> bool:
    """Whether an array is of a floating, integer or boolean dtype."""
    if is_numpy(x) or is_cupy(x):
        return x.dtype.kind in "fiub" or str(x.dtype) == "bfloat16"
    return bool(namespace(x).isdtype(x.dtype, ("real floating", "integral", "bool")))


def namespace(x: Any) -> Any:
    """The array API namespace of an array; of a NumPy array it is NumPy itself."""
    if is_numpy(x):
        return np  # array_api_compat's twin of NumPy imports all of it, f2py included, which takes 0.15 s
    import array_api_compat

    return array_api_compat.array_namespace(x)


def place(x: Any) -> str:
    """Where an array lives: its library and device. Arrays of the same place can be used together.

    Examples
    --------
    >>> place(np.zeros(3))
    'numpy'
    """
    if isinstance(x, np.ndarray | np.generic):
        return "numpy"
    if is_cupy(x):
        return f"cupy:{x.device.id}"
    library = type(x).__module__.partition(".")[0]
    device = getattr(x, "device", None)
    if device is None:
        return library
    if hasattr(device, "device_set"):  # of JAX's arrays on several devices
        return f"{library}:sharded"
    *_, name = re.findall(r"[:\w]+", str(device))  # array-api-strict writes array_api_strict.Device('CPU_DEVICE')
    return f"{library}:{name}"


def are_together(a: Any, b: Any) -> bool:
    """Whether two arrays are of one library and device; a traced array has no known device."""
    here, there = place(a), place(b)
    if here == there or is_numpy(a) or is_numpy(b) or (":" in here and ":" in there):
        return here == there
    return namespace(a) is namespace(b)


def are_equal(one: Any, other: Any) -> bool:
    """Whether two values are equal, arrays among them or within them by all their elements."""
    if one is other:
        return True
    if hasattr(one, "shape") or hasattr(other, "shape"):
        both = hasattr(one, "shape") and hasattr(other, "shape")
        return both and one.dtype == other.dtype and np.array_equal(to_numpy(detached(one)), to_numpy(detached(other)))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(are_equal(x, other[name]) for name, x in one.items())
    if isinstance(one, list | tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(are_equal, one, other))
    return bool(one == other)


def describe(x: object) -> str:
    """`x` in words, for messages: an array by its `place`, anything else by its type.

    Examples
    --------
    >>> describe(np.zeros(3)), describe([1.0]), describe(None)
    ('numpy array', 'list', 'None')
    """
    if isinstance(x, np.generic):
        return "numpy scalar"
    if hasattr(x, "__array_namespace__") or hasattr(x, "__dlpack__"):
        return f"{place(x)} array"
    return "None" if x is None else type(x).__name__


def dtype_of(x: Any) -> str:
    """Name of an array's dtype, the same in every library: ``"float32"``."""
    return name_of(x.dtype)


def name_of(dtype: Any) -> str:
    """Name of a dtype, the same in every library: ``"float32"``."""
    return _numpys_name(dtype) if isinstance(dtype, np.dtype) else str(dtype).rpartition(".")[2]


@functools.cache
def _numpys_name(dtype: np.dtype[Any]) -> str:
    return str(dtype)  # cached, since it takes NumPy 3 us


def hindrance_of(x: Any) -> Literal["read-only", "requires grad"] | None:
    """Return why an array cannot be updated in place, or None if it can."""
    if is_numpy(x):
        return None if x.flags.writeable else "read-only"
    import array_api_compat

    if getattr(x, "requires_grad", False):
        return "requires grad"
    return None if array_api_compat.is_writeable_array(x) else "read-only"


def alias(x: Any) -> Any:
    """Return another array over the same memory: a change of its dtype, shape or flags does not affect ``x``."""
    return x.view() if is_numpy(x) or is_cupy(x) else x


def is_deleted(x: Any) -> bool:
    """Whether a JAX array has been deleted, for instance donated; False for a traced one."""
    try:
        return bool(x.is_deleted())
    except (AttributeError, TypeError):
        return False


def detached(x: Any) -> Any:
    """Return a tensor without its autograd graph, which parameters and state would keep alive."""
    return x.detach() if getattr(x, "requires_grad", False) else x


def current(x: Any) -> AbstractContextManager[object]:
    """Return a context in which the device of ``x`` is CuPy's current one; it does nothing for other libraries."""
    return x.device if is_cupy(x) else nullcontext()


def zeros_like(x: Any, dtype: Any = None, shape: tuple[int, ...] | None = None) -> Any:
    """Return a new array of zeros like ``x``, on its device; of another dtype or shape, if one is given."""
    xp, dtype = namespace(x), dtype or x.dtype
    with current(x):
        if shape is None or shape == tuple(x.shape):
            return xp.zeros_like(x, dtype=dtype)
        if is_numpy(x) or is_cupy(x):
            return xp.zeros(shape, dtype=dtype)
        import array_api_compat

        return xp.zeros(shape, dtype=dtype, device=array_api_compat.device(x))


def to_numpy(x: Any) -> NDArray[Any]:
    """`x`, an array of any library or a nested sequence, as a NumPy array on the host.

    A NumPy array is returned as it is, everything else is copied where that is needed.
    """
    if is_tensor(x) and dtype_of(x) == "bfloat16":  # NumPy's arrays of the same bits have their dtype from elsewhere
        import ml_dtypes

        return np.asarray(x.detach().view(sys.modules["torch"].int16)).view(ml_dtypes.bfloat16)
    return x.get(order="A") if is_cupy(x) else np.asarray(x)


def read_into(host: NDArray[Any], x: Any) -> None:
    """Copy a flat array of NumPy or CuPy into memory of the host that is there already, of the same dtype."""
    if is_cupy(x):
        x.get(out=host)
    else:
        host[:] = x


def to_cupy(x: Any, dtype: DTypeLike | None = None) -> Any:
    """`x`, an array of any library, a number or a nested sequence, as a CuPy array on the current device, of all its bits."""
    import cupy

    if not (is_cupy(x) or isinstance(x, list | tuple)) and not np.ndim(x):
        # What has no axes and equals 0 CuPy does not copy, but fills with zeros: -0.0 would lose its sign.
        return cupy.asarray(np.asarray(x)[np.newaxis], dtype)[0]
    return cupy.asarray(x, dtype)


def brought(source: Any, target: Any) -> Any:
    """The values of an array as one of the library and device of another array; the array itself if it is one.

    From GPU to GPU they go through the host: CuPy does not wait for what is still being computed there.
    """
    if place(source) == place(target):
        return source
    if is_numpy(target):
        return to_numpy(source)
    with current(target):
        if is_cupy(target):
            return to_cupy(to_numpy(source))
        import array_api_compat

        return namespace(target).asarray(to_numpy(source), device=array_api_compat.device(target))


def shared(source: Any, target: Any) -> Any:
    """A view of an array of another library as one of the library of NumPy's or CuPy's ``target``.

    The array itself, if it is of that library, or if its memory cannot be shared: nothing is copied.
    """
    if is_numpy(source) or is_cupy(source) or not (is_numpy(target) or is_cupy(target)):
        return source
    library: Any = np if is_numpy(target) else sys.modules["cupy"]
    refusals = (AttributeError, BufferError, RuntimeError, TypeError, ValueError)
    try:
        with current(target):
            return library.from_dlpack(detached(source))
    except refusals:
        pass
    try:  # what NumPy's DLPack has no name for, such as JAX's bfloat16, the library itself may lend
        if is_numpy(target) and source.__dlpack_device__()[0] == ON_HOST:
            return np.asarray(source)
    except refusals:
        pass
    return source


def assign(target: Any, source: Any) -> None:
    """Write the values of an array of any library and device into ``target``, cast to its dtype."""
    new = brought(source, target)
    with current(target), np.errstate(all="ignore"):
        if is_numpy(target):
            np.copyto(target, new, casting="unsafe")
        else:
            target[...] = namespace(target).astype(new, target.dtype, copy=False)


# Memory that a device still writes to must not be given to anybody else, even if nobody asks for what arrives there.
_on_their_way: deque[tuple[Any, list[NDArray[Any]]]] = deque()
MOST_ON_THEIR_WAY = 64
"""Copies between host and device."""
_fetching = threading.Lock()  # CuPy loads cupyx when it is first used, which is not safe in several threads


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
    devices = {x.device.id for x in arrays if is_cupy(x)}
    with _fetching if devices else nullcontext():
        copies = [_begin(x) for x in arrays]
        arrivals = [_arrival(device, copies) for device in devices]

    @functools.cache  # what has arrived stays, whatever becomes of the device
    def wait() -> list[NDArray[Any]]:
        for arrival in arrivals:
            arrival.synchronize()
        return copies

    return wait


def _begin(x: Any) -> NDArray[Any]:
    """Begin to copy one array, and return the array into which its values arrive."""
    if not is_cupy(x) or not x.size:
        copy = to_numpy(x)
        return copy.copy(order="K") if copy is x else copy
    import cupyx

    with x.device:
        order = "F" if x.flags.f_contiguous and not x.flags.c_contiguous else "C"
        # Into any other memory CUDA copies only when it is waited for.
        copy = cupyx.empty_pinned(x.shape, x.dtype, order)
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


class Courier:
    """Brings arrays from the host to a device while that computes: in pinned memory, on a stream of its own.

    Parameters
    ----------
    device : int or None
        A CUDA device, or None: on the host there is nothing to bring.

    Examples
    --------
    >>> arrive = Courier(None).send([np.zeros(2)])
    >>> arrive()
    [array([0., 0.])]
    """

    def __init__(self, device: int | None) -> None:
        self._device = device
        self._stream: Any = None

    def send(self, arrays: Sequence[NDArray[Any]]) -> Callable[[], list[Any]]:
        """Begin to copy; neither host nor device is waited for.

        Returns
        -------
        callable
            Gives the arrays on the device: what is launched on its current stream from then on finds them whole.
        """
        if self._device is None:
            return lambda: list(arrays)
        import cupy
        import cupyx

        with cupy.cuda.Device(self._device):
            if self._stream is None:
                self._stream = cupy.cuda.Stream(non_blocking=True)
            own = cupy.cuda.get_current_stream()
            pinned = [cupyx.empty_pinned(x.shape, x.dtype) for x in arrays]
            for copy, x in zip(pinned, arrays, strict=True):
                copy[...] = x
            # What is given out may be memory that the device still reads for an earlier batch.
            there = [cupy.empty(x.shape, x.dtype) for x in arrays]
            before = cupy.cuda.Event(disable_timing=True)
            before.record(own)
            self._stream.wait_event(before)
            for new, copy in zip(there, pinned, strict=True):
                if new.size:
                    new.set(copy, stream=self._stream)
            arrival = cupy.cuda.Event(disable_timing=True)
            arrival.record(self._stream)
        while _on_their_way and _on_their_way[0][0].done:
            _on_their_way.popleft()
        if len(_on_their_way) > MOST_ON_THEIR_WAY:  # the host is far ahead: no more pinned memory for that
            _on_their_way[0][0].synchronize()
        _on_their_way.append((arrival, pinned))

        def arrive() -> list[Any]:
            with cupy.cuda.Device(self._device):
                cupy.cuda.get_current_stream().wait_event(arrival)
            return there

        return arrive
