"""Choosing an array library, saying why, and moving arrays.

With ``nvrtc.py`` and ``engines/cuda.py`` this is the only file that names CuPy. Importing it imports neither CuPy nor
``array_api_compat`` and touches no device.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import re
import sys
import textwrap
import threading
import warnings
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from gpuopt import nvrtc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
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
    "place",
    "report",
    "to_numpy",
]


class BackendUnavailable(RuntimeError):  # noqa: N818  (the name is part of the public contract)
    """An array library or device that was asked for cannot be had; the message says why and what to do."""


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
            return cupy.asarray(x, dtype=dtype)

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
    def is_asynchronous(self) -> bool:
        """Whether the device goes on working when a call has returned, until something waits for it."""
        return self.device is not None

    def synchronize(self) -> None:
        """Wait until all work given to this device is done."""
        if self.device is not None:
            import cupy

            cupy.cuda.Device(self.device).synchronize()

    def operations(self, call: Callable[[], object]) -> list[str] | None:
        """Return the operations that a call gives to the device, by the names of kernels or kinds of operations.

        The call is captured as a CUDA graph and its work is not done. None if the call waits for the device, which ends a
        capture. A host does its work at once: there are none.
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
            except Exception:  # noqa: BLE001 - CuPy and CUDA refuse in several ways
                with contextlib.suppress(Exception):
                    stream.end_capture()
                return None
            return re.findall(r'label="([^"]*)"', graph.debug_dot_str())


def backend(name: str = "auto", *, matmul: bool = False) -> Backend:
    """Choose an array library and a device.

    Parameters
    ----------
    name : {"auto", "numpy", "cupy", "cupy:N"}
        "auto" takes CuPy where a first kernel compiles and runs, and NumPy elsewhere; the environment variable
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
    source = f"backend {name!r}"
    library, index = _parse(name, source)
    reason = "NumPy was asked for"
    if library == "auto" and (override := os.environ.get("GPUOPT_BACKEND")):
        source = reason = f"GPUOPT_BACKEND={override!r}"
        library, index = _parse(override, source)
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


# Looking for CuPy and a device that works. What is wrong is told as one sentence: "cause; cure".

# Failures of CUDA by what the exception says (the first row that matches), and their sentences, in which {error} is
# the exception in one line and {what} was being done.
_FAILURES: Final = {
    "libnvrtc|nvrtc64": "NVRTC, the compiler that CuPy needs at run time, was not found; {toolkit}",
    "libcublas|cublas(Lt)?64": "cuBLAS, with which CuPy multiplies matrices, was not found; {toolkit}",
    "(cannot|could not) open source file": (
        "the CUDA headers that CuPy's kernels include were not found ({error}); {toolkit}"
    ),
    "gpu-architecture|NO_BINARY|NoKernelImage|INVALID_IMAGE|InvalidKernelImage|_PTX|Ptx": (
        "the installed CUDA compiles no code for this device and driver ({error}); {another}"
    ),
    "MemoryAllocation|OUT_OF_MEMORY|OutOfMemory": (
        "the device has no memory left ({error}); end the processes that hold it, which nvidia-smi lists"
    ),
    "DevicesUnavailable|DEVICE_UNAVAILABLE": (
        "another process holds the device for itself ({error}); wait for it or choose another device"
    ),
    "InitializationError|NOT_INITIALIZED": (
        "CUDA does not start in this process, as after a fork ({error}); "
        'start worker processes with multiprocessing\'s "spawn" method'
    ),
    "": "{what} failed ({error}); see what nvidia-smi and cupy.show_config() say",
}
_KERNEL: Final = 'extern "C" __global__ void answer(int* x) { *x = 41; }'


def _find(index: int | None) -> Backend | str:
    """CuPy on a device, by default its current one, or what is wrong with it."""
    try:
        devices = _count_devices()
    except ModuleNotFoundError:
        return _not_installed()
    if isinstance(devices, str):
        return devices
    if index is None:
        import cupy

        try:
            index = int(cupy.cuda.runtime.getDevice())
        except Exception as error:  # noqa: BLE001  (a forked child may count devices and yet use none)
            return _failure(error, "looking for a GPU")
    if index >= devices:
        return _no_such_device(index, devices)
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
            needed = runtime.runtimeGetVersion()
        except ModuleNotFoundError as error:
            if error.name == "cupy":
                raise
            return _broken(error)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  (a broken installation raises anything, SystemExit too)
            return _broken(error)
        # Without a driver, and with one that is too old, CUDA reports the same cudaErrorInsufficientDriver.
        driver = _driver_version()
        if driver is None:
            return _with_note(_no_driver())
        if driver // 1000 < needed // 1000:
            return _with_note(_old_driver(driver, needed // 1000))
        try:
            devices = int(runtime.getDeviceCount())
        except Exception as error:  # noqa: BLE001
            if "NoDevice" not in str(error):
                return _failure(error, "looking for a GPU")
            devices = 0
        return devices or _with_note(_no_device(driver))


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
        return _failure(error, f"a first kernel on cupy:{index}")
    if answer != 42:
        return _failure(ArithmeticError(f"it gave {answer}, not 42"), f"a first kernel on cupy:{index}")
    driver = _driver_version() or 0
    found = f"{name}, compute capability {capability}, driver for CUDA {_version(driver)}"
    return Backend("cupy", index, _with_note(f"CuPy {cupy.__version__} runs on cupy:{index} ({found})"))


@functools.cache
def _try_matmul(index: int) -> str | None:
    """Multiply two matrices, which only then loads cuBLAS; what is wrong with it."""
    import cupy

    try:
        with _quiet(), cupy.cuda.Device(index):
            one = cupy.ones((1, 1), np.float32)
            (one @ one).get()
    except Exception as error:  # noqa: BLE001
        return _failure(error, f"a first product of matrices on cupy:{index}")
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


def _failure(error: Exception, what: str) -> str:
    """A failure of CUDA in one sentence, with a cure."""
    words = _words(error)
    sentence = next(s for pattern, s in _FAILURES.items() if re.search(pattern, f"{words} {_said(error)}"))
    major = _cuda_major()
    # CUDA 13 dropped devices older than compute capability 7.5; else the device is newer than the toolkit.
    another = _install(12000) if major >= 13 else _toolkit(major)
    return _with_note(sentence.format(error=words, what=what, toolkit=_toolkit(major), another=another))


def _broken(error: BaseException) -> str:
    if "libcuda.so" in _words(error):
        return _with_note(_no_driver())
    return _with_note(f"import cupy fails ({_words(error)}); {_install(_driver_version())}")


def _not_installed() -> str:
    driver = _driver_version()
    if driver is None:
        cause = f"CuPy is not installed, and no NVIDIA driver was found ({_DRIVER} does not load)"
        return f"{cause}; to use an NVIDIA GPU install its driver, then {_install(driver)}"
    return f"CuPy is not installed; for the NVIDIA driver found here (for CUDA {_version(driver)}) {_install(driver)}"


def _no_driver() -> str:
    cause = f"no NVIDIA driver was found ({_DRIVER} does not load)"
    return f"{cause}; to use an NVIDIA GPU install its driver, or start the container with access to the GPU"


def _old_driver(driver: int, needed: int) -> str:
    cause = f"the NVIDIA driver (for CUDA {_version(driver)}) is too old for this CuPy, which needs CUDA {needed}.0"
    update = f"update the driver to {_DRIVERS.get(needed, 'the newest')} or newer"
    return f"{cause}; {update}, or {_install(driver)}" if _extra(driver) else f"{cause}; {update}"


def _no_such_device(index: int, devices: int) -> str:
    seen = "only cupy:0" if devices == 1 else f"cupy:0 to cupy:{devices - 1}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    note = f", as CUDA_VISIBLE_DEVICES={visible!r} hides and renumbers devices" if visible else ""
    return f"there is no device cupy:{index}; choose one that CuPy sees, {seen}{note}"


def _no_device(driver: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU; unset it, or set it to the GPU's index, as in 0"
    cause = f"the NVIDIA driver (for CUDA {_version(driver)}) sees no GPU"
    return f"{cause}; see what nvidia-smi says, and start a container with access to the GPU"


def _with_note(sentence: str) -> str:
    """Add what to do where several wheels overwrote each other's files, unless they are removed anyway."""
    packages = _packages()
    if len(packages) < 2:
        return sentence
    cure = "" if "pip uninstall" in sentence else f"; {_install(_driver_version())}"
    return f"{sentence} (note: {' and '.join(packages)} overwrite each other{cure})"


# Facts that can be had without CuPy

_DRIVER: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


# The first driver for a major version of CUDA, as NVIDIA's release notes have it for Linux.
_DRIVERS: Final = {12: "525.60", 13: "580.65"}


def _driver_version() -> int | None:
    """The version of CUDA that the NVIDIA driver is for, as in 12090; None without a driver."""
    version = ctypes.c_int(0)
    try:
        status = ctypes.CDLL(_DRIVER).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value if status == 0 and version.value > 0 else None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _packages() -> list[str]:
    """The installed distributions of CuPy; more than one is a mistake."""
    import importlib.metadata  # which takes a third of the time of importing this package

    installed = []
    for name in ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(name)
            installed.append(name)
    return installed


def _extra(driver: int | None) -> str | None:
    """The extra of gpuopt with the newest CuPy that the driver can run."""
    if driver is None or driver < 12000:
        return None
    return "cuda13" if driver >= 13000 else "cuda12"


def _install(driver: int | None) -> str:
    """How to get the CuPy that fits the driver, in words."""
    remove = "".join(f"`pip uninstall -y {name}`, " for name in _packages())
    update = "" if driver is None or _extra(driver) else f"update the driver to {_DRIVERS[12]} or newer, then "
    return f'{update}run {remove}`pip install "gpuopt[{_extra(driver) or "cuda12"}]"`'


def _cuda_major() -> int:
    """The CUDA that the imported CuPy is built for, as in 12."""
    import cupy

    return int(cupy.cuda.runtime.runtimeGetVersion()) // 1000


def _toolkit(major: int) -> str:
    """How to get the libraries and headers of CUDA that CuPy uses at run time, in words."""
    wheel, packages = f"cupy-cuda{major}x", _packages()
    if len(packages) > 1:
        return _install(_driver_version())  # which brings them, too
    if wheel in packages:
        return f'run `pip install -U "{wheel}[ctk]"`'
    return f"install the CUDA Toolkit {major} and set CUDA_PATH to its folder"


def _words(error: BaseException) -> str:
    """The innermost cause of an exception, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return textwrap.shorten(f"{type(error).__name__}: {_said(error)}", 200, placeholder=" ...")


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  (what is broken may not even tell how)
        return "without words"


def gpu_failure(error: BaseException) -> str | None:
    """What happened to the GPU, in one line; None if `error` says nothing of a GPU.

    Of errors that led to one another, the first one counts: after some of them every call of CUDA fails.

    Examples
    --------
    >>> gpu_failure(ValueError("x")) is None
    True
    """
    first = None
    cause: BaseException | None = error
    while cause is not None:
        of_cupy = type(cause).__module__.partition(".")[0] in {"cupy", "cupy_backends"}
        if of_cupy or isinstance(cause, nvrtc.CompilationError):
            first = cause
        cause = cause.__cause__ or cause.__context__
    if first is None:
        return None
    words = _words(first)
    memory = re.match(r"Out of memory allocating ([\d,]+) bytes \(allocated so far: ([\d,]+) bytes", str(first))
    if memory is None:
        return words
    needed, used = (int(number.replace(",", "")) for number in memory.groups())
    had = ""
    with contextlib.suppress(Exception):
        free, total = map(int, sys.modules["cupy"].cuda.runtime.memGetInfo())
        had = f"; of the device's {_size(total)}, {_size(free)} are free"
    return f"out of memory: {_size(needed)} were needed beyond the {_size(used)} in use{had}"


def _size(nbytes: int) -> str:
    """A number of bytes in the unit that fits."""
    power = min(max(nbytes.bit_length() - 1, 0) // 10, 3)
    return f"{nbytes / 1024**power:.4g} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


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
        What ``backend("auto")`` takes: "numpy" or, say, "cupy:0"; None where GPUOPT_BACKEND asks for what
        cannot be had.
    reason : str
        Why, in one sentence.
    training : str
        What `gpuopt train` takes where that is another one, and why; else "".
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
    """Tell what there is: versions, driver, devices, and the backend that "auto" takes. It never raises.

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
        cupy, runtime = library.__version__, _version(library.cuda.runtime.runtimeGetVersion())
        if isinstance(count, int):
            devices = tuple(_device(index) for index in range(count))
    driver = _driver_version()
    return Report(
        gpuopt=sys.modules["gpuopt"].__version__,  # imports run downward: not from here to the package
        python=platform.python_version(),
        numpy=np.__version__,
        cupy=cupy,
        cupy_packages=tuple(_packages()),
        driver=None if driver is None else _version(driver),
        runtime=runtime,
        extra=_extra(driver),
        devices=devices,
        backend=name,
        reason=reason,
        training="" if trains == name else f"{trains or 'none'}: {why}",
    )


def _chosen(*, matmul: bool) -> tuple[str | None, str]:
    """What "auto" takes, and why."""
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


# Whose array is it?


def is_numpy(x: object) -> bool:
    """Whether `x` is a NumPy array (a NumPy scalar is not one)."""
    return isinstance(x, np.ndarray)


def is_cupy(x: object) -> bool:
    """Whether `x` is a CuPy array. CuPy is not imported for it: without CuPy there are no such arrays."""
    ndarray = getattr(sys.modules.get("cupy"), "ndarray", None)
    return ndarray is not None and isinstance(x, ndarray)


def namespace(x: Any) -> Any:
    """The array API namespace of an array; of a NumPy array it is NumPy itself."""
    if is_numpy(x):
        return np  # array_api_compat's twin of NumPy imports all of it, f2py included, which takes 0.15 s
    import array_api_compat

    return array_api_compat.array_namespace(x)


def to_numpy(x: Any) -> NDArray[Any]:
    """`x`, an array of any library or a nested sequence, as a NumPy array on the host.

    A NumPy array is returned as it is, everything else is copied where that is needed.
    """
    return x.get(order="A") if is_cupy(x) else np.asarray(x)


# Memory that a device still writes to must not be given to anybody else, even if nobody asks for what arrives there.
_on_their_way: deque[tuple[Any, list[NDArray[Any]]]] = deque()
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
    with _fetching if devices else contextlib.nullcontext():
        copies = [_begin(x) for x in arrays]
        arrivals = [_arrival(device, copies) for device in devices]

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
    *_, name = re.findall(r"[:\w]+", str(device))  # array-api-strict writes array_api_strict.Device('CPU_DEVICE')
    return f"{library}:{name}"


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
