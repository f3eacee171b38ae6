"""Choosing an array library and a device, and saying why.

Importing this imports neither CuPy nor ``array_api_compat`` and touches no device.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import sys
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from gpuopt import diagnosis, nvrtc
from gpuopt.arrays import describe, fetch, is_cupy, is_numpy, namespace, place, to_cupy, to_numpy
from gpuopt.diagnosis import gpu_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import DTypeLike, NDArray

__all__ = [
    "Backend",
    "BackendUnavailable",
    "Device",
    "Report",
    "backend",
    "describe",
    "fetch",
    "gpu_failure",
    "is_cupy",
    "is_numpy",
    "namespace",
    "place",
    "report",
    "to_numpy",
]


class BackendUnavailable(RuntimeError):  # noqa: N818  (the name is part of the public contract)
    """An array library or device that was asked for cannot be had; the message says why and what to do.

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
        One sentence: why this one.

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

    @functools.cached_property
    def xp(self) -> Any:
        """The library's array API namespace, from array-api-compat."""
        if self.device is None:
            import array_api_compat.numpy as xp
        else:
            import array_api_compat.cupy as xp
        return xp

    def asarray(self, x: Any, dtype: DTypeLike | None = None) -> Any:
        """`x` as an array of this library on this device, copied only where that is needed.

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
                with x.device:  # from GPU to GPU CuPy does not wait for what is still being computed there
                    cupy.cuda.get_current_stream().synchronize()
                x = x.copy()  # asarray would do it too, and warn
            return to_cupy(x, dtype)

    def to_numpy(self, x: Any) -> NDArray[Any]:
        """`x`, an array of any library, as a NumPy array on the host; a NumPy array is returned as it is."""
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
        """Bytes that are free on the device, those that CuPy keeps for later among them; None for NumPy."""
        if self.device is None:
            return None
        import cupy

        with self.use():
            return int(cupy.cuda.runtime.memGetInfo()[0]) + int(cupy.get_default_memory_pool().free_bytes())

    @property
    def is_asynchronous(self) -> bool:
        """Whether the device goes on working when a call has returned, until something waits for it."""
        return self.device is not None

    def synchronize(self) -> None:
        """Wait until all work given to this device is done."""
        if self.device is not None:
            import cupy

            cupy.cuda.Device(self.device).synchronize()

    def operations(self, call: Callable[[], object]) -> list[str]:
        """Return the operations that a call gives to the device, by the names of kernels or kinds of operations.

        The call is captured as a CUDA graph and its work is not done. A host does its work at once: there are none.

        Raises
        ------
        Exception
            Whatever the call raises, as CuPy does if it waits for the device: that ends a capture.

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
                with contextlib.suppress(Exception):  # it has been ended already if the call waits
                    stream.end_capture()
                raise
            return re.findall(r'label="([^"]*)"', graph.debug_dot_str())


def backend(name: str = "auto", *, matmul: bool = False) -> Backend:
    """Choose an array library and a device.

    Parameters
    ----------
    name : {"auto", "numpy", "cupy", "cupy:N"}
        "auto" chooses CuPy where a first kernel compiles and runs, and NumPy elsewhere; the environment variable
        GPUOPT_BACKEND overrides it (and only it). "cupy" is CuPy's current device, "cupy:N" device N.
        The spellings of devices, "cpu", "cuda" and "cuda:N", mean "numpy", "cupy" and "cupy:N".
    matmul : bool
        Whether matrices will be multiplied: CuPy needs one more library for that, cuBLAS. Optimizers do not.

    Returns
    -------
    Backend
        Its ``reason`` says in one sentence why it was chosen.

    Raises
    ------
    BackendUnavailable
        CuPy was asked for, by argument or variable, and cannot be had. The message says why and what to do.
    ValueError
        The name, or the variable's value, is none of the above.

    Notes
    -----
    What was found is kept for the life of the process, except that CuPy is missing: it may be installed meanwhile.

    Examples
    --------
    >>> backend("cpu")
    Backend(name='numpy', device=None, reason='NumPy was asked for')
    >>> backend("cupu")
    Traceback (most recent call last):
    ValueError: backend 'cupu': expected "auto", "numpy", "cupy" or "cupy:N" (as a device: "cpu", "cuda" or "cuda:N")
    """
    library, index, source = _asked(name)
    reason = "NumPy was asked for" if source.startswith("backend") else source
    if library == "numpy":
        return Backend("numpy", None, reason)
    found = _find(index)
    if isinstance(found, Backend) and found.device is not None and matmul:
        found = _try_matmul(found.device) or found
    if isinstance(found, Backend):
        return found
    if library == "cupy":
        raise BackendUnavailable(f"{source}: {found}")
    return Backend("numpy", None, found)


def choices(name: str = "auto") -> int:
    """Return how many devices `backend` has to choose from: 0 if one is named, or there is none.

    Examples
    --------
    >>> choices("cpu"), choices("cuda:1")
    (0, 0)
    """
    library, index, _ = _asked(name)
    if library == "numpy" or index is not None:
        return 0
    try:
        devices = _count_devices()
    except ModuleNotFoundError:
        return 0
    return devices if isinstance(devices, int) else 0


def _asked(name: str) -> tuple[str, int | None, str]:
    """The library, the device's index, and who asks: the caller, or the variable that overrides "auto"."""
    source = f"backend {name!r}"
    library, index = _parse(name, source)
    if library == "auto" and (override := os.environ.get("GPUOPT_BACKEND")):
        source = f"GPUOPT_BACKEND={override!r}"
        library, index = _parse(override, source)
    return library, index, source


def _parse(name: str, source: str) -> tuple[str, int | None]:
    """Split the name of a backend or device into "auto", "numpy" or "cupy" and the device's index."""
    match = re.fullmatch(r"(auto|numpy|cpu)|(?:cupy|cuda)(?::(\d{1,9}))?", str(name).strip().lower())
    if match is None:
        known = '"auto", "numpy", "cupy" or "cupy:N" (as a device: "cpu", "cuda" or "cuda:N")'
        raise ValueError(f"{source}: expected {known}")
    host, index = match.groups()
    if host is None:
        return "cupy", None if index is None else int(index)
    return "numpy" if host == "cpu" else host, None


# Looking for CuPy and a device that works

_KERNEL: Final = 'extern "C" __global__ void answer(int* x) { *x = 41; }'


def _find(index: int | None) -> Backend | str:
    """CuPy on a device, by default its current one, or what is wrong with it."""
    try:
        devices = _count_devices()
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
def _count_devices() -> int | str:
    """The number of devices that CuPy sees, at least one, or why there is none.

    Raises
    ------
    ModuleNotFoundError
        CuPy is not installed. (Only this is not remembered.)
    """
    with _quiet():
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
    """Compile and run a kernel the way that the fused engine does, and one of CuPy's own."""
    import cupy

    runtime = cupy.cuda.runtime
    try:
        with _quiet(), cupy.cuda.Device(index):
            kernel = nvrtc.loaded(nvrtc.compiled(_KERNEL), "answer")
            x = cupy.empty(1, dtype=np.int32)
            kernel((1,), (1,), (x,))
            x += 1  # CuPy's kernels, unlike ours, include CUDA's headers
            answer = int(x.get()[0])
            name, capability = _properties(runtime.getDeviceProperties(index))
    except Exception as error:  # noqa: BLE001
        return diagnosis.failure(error, f"a first kernel on cupy:{index}")
    if answer != 42:
        return diagnosis.failure(ArithmeticError(f"it gave {answer}, not 42"), f"a first kernel on cupy:{index}")
    driver = diagnosis.driver_version() or 0
    found = f"{name}, compute capability {capability}, driver for CUDA {diagnosis.version(driver)}"
    return Backend("cupy", index, diagnosis.with_note(f"CuPy {cupy.__version__} runs on cupy:{index} ({found})"))


@functools.cache
def _try_matmul(index: int) -> str | None:
    """Multiply two matrices, which only then loads cuBLAS; what is wrong with it."""
    import cupy

    try:
        with _quiet(), cupy.cuda.Device(index):
            one = cupy.ones((1, 1), np.float32)
            (one @ one).get()
    except Exception as error:  # noqa: BLE001
        return diagnosis.failure(error, f"a first product of matrices on cupy:{index}")
    return None


if hasattr(os, "register_at_fork"):  # CUDA does not survive a fork: a child has to look for itself
    os.register_at_fork(after_in_child=_count_devices.cache_clear)
    os.register_at_fork(after_in_child=_try_device.cache_clear)
    os.register_at_fork(after_in_child=_try_matmul.cache_clear)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep CuPy's warnings from the user, who gets one sentence, and from becoming errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# What was found, for `gpuopt info`


@dataclass(frozen=True)
class Device:
    """A CUDA device; the bytes of memory are None where the device does not tell."""

    index: int
    name: str
    compute_capability: str
    free_bytes: int | None
    total_bytes: int | None


@dataclass(frozen=True)
class Report:
    """What `report` found, in plain values; `dataclasses.asdict` makes it ready for JSON.

    Attributes
    ----------
    gpuopt, python, numpy : str
        Versions.
    cupy : str or None
        CuPy's version; None where it is not installed or its import fails.
    cupy_packages : tuple of str
        The installed distributions of CuPy, as in ``("cupy-cuda12x",)``; more than one is a mistake.
    driver, runtime : str or None
        The version of CUDA that the NVIDIA driver is for, and that CuPy is built for.
    extra : str or None
        The extra of gpuopt that fits the driver, "cuda12" or "cuda13"; None without a driver new enough.
    devices : tuple of Device
        What CuPy sees.
    backend : str or None
        What ``backend("auto")`` chooses: "numpy" or, say, "cupy:0"; None where GPUOPT_BACKEND asks for what
        cannot be had.
    reason : str
        Why, in one sentence.
    training : str
        What `gpuopt train` chooses where that is another one, and why; else "".
    """

    gpuopt: str
    python: str
    numpy: str
    cupy: str | None
    cupy_packages: tuple[str, ...]
    driver: str | None
    runtime: str | None
    extra: str | None
    devices: tuple[Device, ...]
    backend: str | None
    reason: str
    training: str


def report() -> Report:
    """Tell what there is: versions, driver, devices, and the backend that "auto" chooses. It never raises.

    Examples
    --------
    >>> found = report()
    >>> found.numpy == np.__version__
    True
    """
    name, reason = _chosen(matmul=False)
    trains, why = _chosen(matmul=True)
    cupy = runtime = None
    devices: tuple[Device, ...] = ()
    with _quiet(), contextlib.suppress(Exception):
        count = _count_devices()
        library = sys.modules["cupy"]  # imported just now, unless its import fails
        cupy, runtime = library.__version__, diagnosis.version(library.cuda.runtime.runtimeGetVersion())
        if isinstance(count, int):
            devices = tuple(_device(index) for index in range(count))
    driver = diagnosis.driver_version()
    return Report(
        gpuopt=sys.modules["gpuopt"].__version__,  # imports run downward: not from here to the package
        python=platform.python_version(),
        numpy=np.__version__,
        cupy=cupy,
        cupy_packages=tuple(diagnosis.packages()),
        driver=None if driver is None else diagnosis.version(driver),
        runtime=runtime,
        extra=diagnosis.extra(driver),
        devices=devices,
        backend=name,
        reason=reason,
        training="" if trains == name else f"{trains or 'none'}: {why}",
    )


def _chosen(*, matmul: bool) -> tuple[str | None, str]:
    """What "auto" chooses, and why."""
    try:
        chosen = backend("auto", matmul=matmul)
    except (BackendUnavailable, ValueError) as error:
        return None, str(error)
    return str(chosen), chosen.reason


def _device(index: int) -> Device:
    import cupy

    name, capability = _properties(cupy.cuda.runtime.getDeviceProperties(index))
    free = total = None
    with contextlib.suppress(Exception), cupy.cuda.Device(index):
        free, total = map(int, cupy.cuda.runtime.memGetInfo())
    return Device(index, name, capability, free, total)


def _properties(properties: dict[str, Any]) -> tuple[str, str]:
    """A device's name and compute capability."""
    return properties["name"].decode(errors="replace"), f"{properties['major']}.{properties['minor']}"
