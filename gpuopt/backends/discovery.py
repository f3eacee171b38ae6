"""The search for CuPy and a working device; results are kept for the life of the process."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gpuopt import diagnosis, nvrtc
from gpuopt.backends.base import Backend

if TYPE_CHECKING:
    from collections.abc import Iterator


_KERNEL: Final = 'extern "C" __global__ void answer(int* x) { *x = 41; }'


def find(index: int | None) -> Backend | str:
    """Return CuPy on a device, by default its current one, or the reason why it cannot be used."""
    try:
        devices = count_devices()
    except ModuleNotFoundError:
        return diagnosis.not_installed()
    if isinstance(devices, str):
        return devices
    if index is None:
        import cupy

        try:
            index = int(cupy.cuda.runtime.getDevice())
        except Exception as error:  # noqa: BLE001  (a forked child may count devices and yet use none)
            return diagnosis.failure(error, "looking for a GPU")
    if index >= devices:
        return diagnosis.no_such_device(index, devices)
    return _try_device(index)


@functools.cache
def count_devices() -> int | str:
    """Return the number of devices that CuPy sees, at least one, or the reason why there is none.

    Raises
    ------
    ModuleNotFoundError
        CuPy is not installed; this result is not cached.
    """
    with quiet():
        try:
            import cupy

            runtime = cupy.cuda.runtime
            if runtime.is_hip:
                return diagnosis.for_rocm()
            needed = runtime.runtimeGetVersion()
        except BaseException as error:  # a broken installation raises anything, SystemExit too
            is_missing = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
            if is_missing or isinstance(error, KeyboardInterrupt):
                raise
            return diagnosis.broken(error)
        # Without a driver, and with one that is too old, CUDA reports the same cudaErrorInsufficientDriver.
        driver = diagnosis.driver_version()
        if driver is None:
            return diagnosis.no_driver()
        if driver // 1000 < needed // 1000:
            return diagnosis.old_driver(driver, needed // 1000)
        try:
            devices = int(runtime.getDeviceCount())
        except Exception as error:  # noqa: BLE001
            if "NoDevice" not in str(error):
                return diagnosis.failure(error, "looking for a GPU")
            devices = 0
        return devices or diagnosis.no_device(driver)


@functools.cache
def _try_device(index: int) -> Backend | str:
    """Run a kernel compiled as in the fused engine, and one of CuPy's; return the backend or the reason of a failure."""
    import cupy

    runtime = cupy.cuda.runtime
    try:
        with quiet(), cupy.cuda.Device(index):
            kernel = nvrtc.loaded(nvrtc.compiled(_KERNEL), "answer")
            x = cupy.empty(1, dtype=np.int32)
            kernel((1,), (1,), (x,))
            x += 1  # CuPy's kernels, unlike ours, include CUDA's headers
            answer = int(x.get()[0])
            name, capability = identity(runtime.getDeviceProperties(index))
    except Exception as error:  # noqa: BLE001
        return diagnosis.failure(error, f"a first kernel on cupy:{index}")
    if answer != 42:
        return diagnosis.failure(ArithmeticError(f"it gave {answer}, not 42"), f"a first kernel on cupy:{index}")
    driver = diagnosis.driver_version() or 0
    found = f"{name}, compute capability {capability}, driver for CUDA {diagnosis.version(driver)}"
    return Backend("cupy", index, diagnosis.with_note(f"CuPy {cupy.__version__} runs on cupy:{index} ({found})"))


@functools.cache
def try_matmul(index: int) -> str | None:
    """Multiply two matrices, which loads cuBLAS; return the reason of a failure, or None."""
    import cupy

    try:
        with quiet(), cupy.cuda.Device(index):
            one = cupy.ones((1, 1), np.float32)
            (one @ one).get()
    except Exception as error:  # noqa: BLE001
        return diagnosis.failure(error, f"a first product of matrices on cupy:{index}")
    return None


if hasattr(os, "register_at_fork"):  # CUDA does not survive a fork, so a child searches again
    os.register_at_fork(after_in_child=count_devices.cache_clear)
    os.register_at_fork(after_in_child=_try_device.cache_clear)
    os.register_at_fork(after_in_child=try_matmul.cache_clear)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings of CuPy: the user gets one sentence instead, and a filter may turn warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def identity(properties: dict[str, Any]) -> tuple[str, str]:
    """Return a device's name and compute capability."""
    return properties["name"].decode(errors="replace"), f"{properties['major']}.{properties['minor']}"
