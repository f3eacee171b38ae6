"""Choosing an array library and a device, and saying why.

Importing this imports neither CuPy nor ``array_api_compat`` and touches no device.
"""

from gpuopt.arrays import describe, fetch, is_cupy, is_numpy, namespace, place, to_numpy
from gpuopt.backends.base import Backend, BackendUnavailable
from gpuopt.backends.choice import backend, choices
from gpuopt.backends.reporting import Device, Report, report
from gpuopt.diagnosis import gpu_failure

__all__ = [
    "Backend",
    "BackendUnavailable",
    "Device",
    "Report",
    "backend",
    "choices",
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

# Documents and errors name the package and not its files, so that names can move between these.
for _public in (Backend, BackendUnavailable, Device, Report, backend, choices, report):
    _public.__module__ = __name__
