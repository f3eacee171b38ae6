"""Why CuPy or its device cannot be had, in one sentence: "cause; cure"."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import textwrap
from typing import Final

from gpuopt import nvrtc

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


def failure(error: Exception, what: str) -> str:
    """A failure of CUDA in one sentence, with a cure."""
    words = _words(error)
    sentence = next(s for pattern, s in _FAILURES.items() if re.search(pattern, f"{words} {_said(error)}"))
    major = _cuda_major()
    # CUDA 13 dropped devices older than compute capability 7.5; else the device is newer than the toolkit.
    another = _install(12000) if major >= 13 else _toolkit(major)
    return with_note(sentence.format(error=words, what=what, toolkit=_toolkit(major), another=another))


def broken(error: BaseException) -> str:
    """The import of CuPy raises this."""
    if "libcuda.so" in _words(error):
        return no_driver()
    if driver_version() is None and any(name.startswith("cupy-rocm") for name in packages()):
        return for_rocm()
    return with_note(f"import cupy fails ({_words(error)}); {_install(driver_version())}")


def not_installed() -> str:
    """There is no CuPy."""
    driver = driver_version()
    if driver is None:
        cause = f"CuPy is not installed, and no NVIDIA driver was found ({_DRIVER} does not load)"
        return f"{cause}; to use an NVIDIA GPU install its driver, then {_install(driver)}"
    return f"CuPy is not installed; for the NVIDIA driver found here (for CUDA {version(driver)}) {_install(driver)}"


def for_rocm() -> str:
    """The CuPy that is installed is the one for AMD's GPUs."""
    cause = "the installed CuPy is for AMD GPUs (ROCm), and gpuopt has code for NVIDIA GPUs alone"
    driver = driver_version()
    if driver is None:
        return f"{cause}; use NumPy arrays, which are updated on the CPU"
    return f"{cause}; for the NVIDIA driver found here (for CUDA {version(driver)}) {_install(driver)}"


def no_driver() -> str:
    """There is a CuPy, and no driver of NVIDIA's."""
    cause = f"no NVIDIA driver was found ({_DRIVER} does not load)"
    return with_note(f"{cause}; to use an NVIDIA GPU install its driver, or start the container with access to the GPU")


def old_driver(driver: int, needed: int) -> str:
    """The driver is for an older CUDA than the major version that CuPy is built for."""
    cause = f"the NVIDIA driver (for CUDA {version(driver)}) is too old for this CuPy, which needs CUDA {needed}.0"
    update = f"update the driver to {_DRIVERS.get(needed, 'the newest')} or newer"
    return with_note(f"{cause}; {update}, or {_install(driver)}" if extra(driver) else f"{cause}; {update}")


def no_such_device(index: int, devices: int) -> str:
    """There are devices, but fewer."""
    seen = "only cupy:0" if devices == 1 else f"cupy:0 to cupy:{devices - 1}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    note = f", as CUDA_VISIBLE_DEVICES={visible!r} hides and renumbers devices" if visible else ""
    return f"there is no device cupy:{index}; choose one that CuPy sees, {seen}{note}"


def no_device(driver: int) -> str:
    """There is a driver, and no device."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        cure = "unset it, or set it to the GPU's index, as in 0"
        return with_note(f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU; {cure}")
    cause = f"the NVIDIA driver (for CUDA {version(driver)}) sees no GPU"
    return with_note(f"{cause}; see what nvidia-smi says, and start a container with access to the GPU")


def with_note(sentence: str) -> str:
    """Add what to do where several wheels overwrote each other's files, unless they are removed anyway."""
    found = packages()
    if len(found) < 2:
        return sentence
    cure = "" if "pip uninstall" in sentence else f"; {_install(driver_version())}"
    return f"{sentence} (note: {' and '.join(found)} overwrite each other{cure})"


# Facts that can be had without CuPy

_DRIVER: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# The first driver for a major version of CUDA, as NVIDIA's release notes have it for Linux.
_DRIVERS: Final = {12: "525.60", 13: "580.65"}


def driver_version() -> int | None:
    """The version of CUDA that the NVIDIA driver is for, as in 12090; None without a driver."""
    found = ctypes.c_int(0)
    try:
        status = ctypes.CDLL(_DRIVER).cuDriverGetVersion(ctypes.byref(found))
    except (OSError, AttributeError):
        return None
    return found.value if status == 0 and found.value > 0 else None


def version(number: int) -> str:
    """A version of CUDA as people write it: 12040 is 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


_BUILT_FOR: Final = ("cuda11x", "cuda12x", "cuda13x", "rocm-4-3", "rocm-5-0", "rocm-7-0")


def packages() -> list[str]:
    """The installed distributions of CuPy; more than one is a mistake."""
    import importlib.metadata  # which takes a third of the time of importing this package

    installed = []
    for name in ("cupy", *(f"cupy-{built_for}" for built_for in _BUILT_FOR)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(name)
            installed.append(name)
    return installed


def extra(driver: int | None) -> str | None:
    """The extra of gpuopt with the newest CuPy that the driver can run."""
    if driver is None or driver < 12000:
        return None
    return "cuda13" if driver >= 13000 else "cuda12"


def _install(driver: int | None) -> str:
    """How to get the CuPy that fits the driver, in words."""
    remove = "".join(f"`pip uninstall -y {name}`, " for name in packages())
    update = "" if driver is None or extra(driver) else f"update the driver to {_DRIVERS[12]} or newer, then "
    return f'{update}run {remove}`pip install "gpuopt[{extra(driver) or "cuda12"}]"`'


def _cuda_major() -> int:
    """The CUDA that the imported CuPy is built for, as in 12."""
    import cupy

    return int(cupy.cuda.runtime.runtimeGetVersion()) // 1000


def _toolkit(major: int) -> str:
    """How to get the libraries and headers of CUDA that CuPy uses at run time, in words."""
    wheel, found = f"cupy-cuda{major}x", packages()
    if len(found) > 1:
        return _install(driver_version())  # which brings them, too
    if wheel in found:
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
