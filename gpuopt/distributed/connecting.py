"""The choice of a transport: how arrays are sent between processes."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from gpuopt.arrays import describe, is_cupy
from gpuopt.distributed import nccl
from gpuopt.distributed.mpi import MPI, Direct, Staged, cuda_aware
from gpuopt.distributed.transport import Transport

Way: TypeAlias = Literal["auto", "host", "nccl", "mpi"]
WAYS: tuple[Way, ...] = ("auto", "host", "nccl", "mpi")


def connect(comm: Any, example: Any, way: str, timeout: float | None) -> Transport:
    """Return the transport to the other processes for arrays like ``example``.

    Raises
    ------
    TypeError, ValueError, ImportError
        If the transport is not available; the message has cause and cure.

    """
    if way not in WAYS:
        raise ValueError(f"transport: {way!r}, expected one of {', '.join(map(repr, WAYS))}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout: {timeout!r}, expected seconds, more than 0, or None to wait for ever")
    if comm is None:
        return Transport()
    if not is_cupy(example):
        if way in {"nccl", "mpi"}:
            raise ValueError(
                f"transport: {way!r} carries CuPy arrays; params are of {describe(example)}, expected 'host'"
            )
        return MPI(comm, timeout)
    return _for_devices(comm, example, way, timeout)


def _for_devices(comm: Any, example: Any, way: str, timeout: float | None) -> Transport:
    """Return the transport for CuPy arrays."""
    staged = Staged(comm, timeout)
    device = example.device.id
    if way == "mpi":
        if not cuda_aware():
            raise ValueError(
                "transport: 'mpi', but this MPI library says that it cannot read a GPU's memory (MPIX_Query_cuda_support); "
                "expected 'nccl' or 'host'"
            )
        return Direct(comm, timeout)
    if way == "host" or staged.size == 1:
        return staged
    missing = nccl.why_unavailable()
    shared = nccl.shared_device(staged, device) if way == "auto" else None  # else NCCL itself refuses
    found = next(filter(None, staged.told(missing or shared)), None)  # from all processes, so that all choose the same
    if found is None:
        return nccl.connected(staged, comm, timeout, device)
    if way == "nccl":
        raise ValueError(f"transport: 'nccl', but {found}")
    return staged
