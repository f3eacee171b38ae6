"""Choosing an array library and a device, and saying why."""

from __future__ import annotations

import os
import re

from gpuopt.backends import discovery
from gpuopt.backends.base import Backend, BackendUnavailable


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
    The result is kept for the life of the process, unless CuPy is missing: it may be installed meanwhile.

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
    found = discovery.find(index)
    if isinstance(found, Backend) and found.device is not None and matmul:
        found = discovery.try_matmul(found.device) or found
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
        devices = discovery.count_devices()
    except ModuleNotFoundError:
        return 0
    return devices if isinstance(devices, int) else 0


def _asked(name: str) -> tuple[str, int | None, str]:
    """Return library, index of the device, and source of the choice: the argument, or GPUOPT_BACKEND."""
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
