"""Versions, driver and devices of this machine, for ``gpuopt info``."""

from __future__ import annotations

import contextlib
import platform
import sys
from dataclasses import dataclass

import numpy as np

from gpuopt import diagnosis
from gpuopt.backends import discovery
from gpuopt.backends.base import BackendUnavailable
from gpuopt.backends.choice import backend


@dataclass(frozen=True)
class Device:
    """A CUDA device. Memory is in bytes, None if the device does not report it."""

    index: int
    name: str
    compute_capability: str
    free_bytes: int | None
    total_bytes: int | None


@dataclass(frozen=True)
class Report:
    """The result of `report`, in plain values; `dataclasses.asdict` makes it ready for JSON.

    Attributes
    ----------
    gpuopt, python, numpy : str
        Versions.
    cupy : str or None
        CuPy's version; None where it is not installed or its import fails.
    cupy_packages : tuple of str
        The installed distributions of CuPy, as in ``("cupy-cuda12x",)``; more than one is a mistake.
    driver, runtime : str or None
        The CUDA versions of the NVIDIA driver and of CuPy.
    extra : str or None
        The extra of gpuopt that fits the driver, "cuda12" or "cuda13"; None without a driver new enough.
    devices : tuple of Device
        The devices that CuPy sees.
    backend : str or None
        Choice of ``backend("auto")``, such as "numpy" or "cupy:0"; None if GPUOPT_BACKEND names one that is not available.
    reason : str
        Why it was chosen, in one sentence.
    training : str
        Choice of `gpuopt train` and its reason, if it differs; else "".
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
    """Return versions, driver, devices, and the backend that "auto" chooses. It never raises.

    Examples
    --------
    >>> import numpy as np
    >>> report().numpy == np.__version__
    True
    """
    name, reason = _chosen(matmul=False)
    trains, why = _chosen(matmul=True)
    cupy = runtime = None
    devices: tuple[Device, ...] = ()
    with discovery.quiet(), contextlib.suppress(Exception):
        count = discovery.count_devices()
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
    """Return the choice of "auto" and its reason."""
    try:
        chosen = backend("auto", matmul=matmul)
    except (BackendUnavailable, ValueError) as error:
        return None, str(error)
    return str(chosen), chosen.reason


def _device(index: int) -> Device:
    import cupy

    name, capability = discovery.identity(cupy.cuda.runtime.getDeviceProperties(index))
    free = total = None
    with contextlib.suppress(Exception), cupy.cuda.Device(index):
        free, total = map(int, cupy.cuda.runtime.memGetInfo())
    return Device(index, name, capability, free, total)
