"""An array library and one of its devices."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gpuopt.arrays import is_cupy, to_cupy, to_numpy
from gpuopt.cached import cached_property

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import DTypeLike, NDArray


class BackendUnavailable(RuntimeError):  # noqa: N818  (the name is part of the public contract)
    """The requested array library or device is not available; the message has the cause and the cure.

    Examples
    --------
    >>> import gpuopt
    >>> try:
    ...     backend = gpuopt.backend("cupy:99")
    ... except gpuopt.BackendUnavailable:  # the message says why, and what to do
    ...     backend = gpuopt.backend("numpy")
    >>> backend.name
    'numpy'
    """


@dataclass(frozen=True)
class Backend:
    """An array library and one of its devices, as returned by `backend`.

    Attributes
    ----------
    name : "numpy" or "cupy"
    device : int or None
        Index of the CUDA device; None for NumPy.
    reason : str
        Why it was chosen, in one sentence.

    Examples
    --------
    >>> cpu = backend("numpy")
    >>> cpu.name, cpu.device, str(cpu)
    ('numpy', None, 'numpy')
    >>> cpu.asarray([1, 2], dtype="float32")
    array([1., 2.], dtype=float32)
    """

    name: Literal["numpy", "cupy"]
    device: int | None
    reason: str = field(compare=False)

    def __str__(self) -> str:
        return self.name if self.device is None else f"{self.name}:{self.device}"

    @cached_property
    def xp(self) -> Any:
        """The library's array API namespace, from array-api-compat."""
        if self.device is None:
            import array_api_compat.numpy as xp
        else:
            import array_api_compat.cupy as xp
        return xp

    def asarray(self, x: Any, dtype: DTypeLike | None = None) -> Any:
        """Return `x` as an array of this library on this device, copied only if needed.

        Parameters
        ----------
        x : array of any library, number or nested sequence
        dtype : dtype, optional
            Default: that of `x`.
        """
        if self.device is None:
            return np.asarray(to_numpy(x), dtype=dtype)
        import cupy

        with self.use():
            if is_cupy(x) and x.device.id != self.device:
                with x.device:  # CuPy's copy between GPUs does not wait for pending work on the other one
                    cupy.cuda.get_current_stream().synchronize()
                x = x.copy()  # asarray would do it too, and warn
            return to_cupy(x, dtype)

    def to_numpy(self, x: Any) -> NDArray[Any]:
        """Return an array of any library as a NumPy array on the host; a NumPy array is returned itself."""
        return to_numpy(x)

    def use(self) -> AbstractContextManager[object]:
        """Return a context manager that makes this device the current one (it does nothing for NumPy)."""
        if self.device is None:
            return contextlib.nullcontext()
        import cupy

        device: AbstractContextManager[object] = cupy.cuda.Device(self.device)
        return device

    @property
    def free(self) -> int | None:
        """Free bytes on the device, including the free blocks of CuPy's memory pool; None for NumPy."""
        if self.device is None:
            return None
        import cupy

        with self.use():
            return int(cupy.cuda.runtime.memGetInfo()[0]) + int(cupy.get_default_memory_pool().free_bytes())

    @property
    def is_asynchronous(self) -> bool:
        """Whether calls return before the device has done their work."""
        return self.device is not None

    def synchronize(self) -> None:
        """Wait until all work given to this device is done."""
        if self.device is not None:
            import cupy

            cupy.cuda.Device(self.device).synchronize()

    def operations(self, call: Callable[[], object]) -> list[str]:
        """Return the device operations of a call: the names of kernels, or kinds of operations; empty for NumPy.

        The call is captured as a CUDA graph; its operations are not executed.

        Raises
        ------
        Exception
            Whatever the call raises. CuPy raises if the call waits for the device, which ends a capture.

        """
        if self.device is None:
            return []
        import cupy

        with self.use():
            stream = cupy.cuda.Stream(non_blocking=True)
            try:
                with stream:
                    stream.begin_capture()
                    call()
                    graph = stream.end_capture()
            except BaseException:
                with contextlib.suppress(Exception):  # the capture has ended already if the call waited
                    stream.end_capture()
                raise
            return re.findall(r'label="([^"]*)"', graph.debug_dot_str())
