"""Adam over many processes of one machine: ours over MPI, beside torch over gloo, DDP's way and ZeRO's.

mpiexec -n 2 python -m benchmarks.distributed [--leaves 10] [--size 1_000_000] [--repeat 15] [--only DDP]

Every process has its own gradients; a step makes the mean of them and updates all parameters. All take turns, each between
two barriers, with as many threads a process as processors are for it; what counts is the slowest process of each sample.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

import gpuopt
import gpuopt.distributed

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKET = 25 << 20
"""Bytes that torch's DDP reduces at once."""


def arrays(leaves: int, size: int, seed: int) -> list[Any]:
    """Return leaves of float32."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size, np.float32) for _ in range(leaves)]


def ours(comm: MPI.Intracomm, leaves: int, size: int, *, shard: bool) -> tuple[Callable[[], object], int]:
    """Return a step, and the bytes of state that this process keeps."""
    opt = gpuopt.distributed.Optimizer(arrays(leaves, size, 0), gpuopt.Adam(), comm, shard=shard)
    grads = arrays(leaves, size, 1 + comm.rank)
    kept = sum(x.nbytes for slots in opt._step.slots for x in slots.values())
    return lambda: opt.step(grads), kept


def mpi(comm: MPI.Intracomm, leaves: int, size: int) -> tuple[Callable[[], object], int]:
    """Return what is written by hand: an Allreduce of each leaf, and an optimizer behind it."""
    params, grads = arrays(leaves, size, 0), arrays(leaves, size, 1 + comm.rank)
    total = [np.empty_like(g) for g in grads]
    opt = gpuopt.Optimizer(params, gpuopt.Adam())

    def step() -> None:
        for g, t in zip(grads, total, strict=True):
            comm.Allreduce(g, t)
            np.divide(t, np.float32(comm.size), out=t)
        opt.step(total)

    step()
    return step, 2 * sum(p.nbytes for p in params)


def torchs(comm: MPI.Intracomm, leaves: int, size: int, *, zero: bool) -> tuple[Callable[[], object], int]:
    """Return the same of torch."""
    import torch
    import torch.distributed as dist
    from torch.distributed.optim import ZeroRedundancyOptimizer

    params = [torch.from_numpy(p).requires_grad_() for p in arrays(leaves, size, 0)]
    for p, g in zip(params, arrays(leaves, size, 1 + comm.rank), strict=True):
        p.grad = torch.from_numpy(g)
    opt: Any
    if zero:
        opt = ZeroRedundancyOptimizer(params, optimizer_class=torch.optim.Adam, lr=1e-3, fused=True)
    else:
        opt = torch.optim.Adam(params, lr=1e-3, fused=True)
    buckets = [part for p in params for part in p.grad.split(BUCKET // 4)]

    def step() -> None:
        waits = [dist.all_reduce(bucket, async_op=True) for bucket in buckets]
        for wait, bucket in zip(waits, buckets, strict=True):
            wait.wait()
            bucket.div_(comm.size)
        opt.step()

    step()
    local = opt.optim if zero else opt
    return step, sum(x.nbytes for own in local.state.values() for x in own.values() if x.ndim)


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, default=10)
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument(
        "--only", default="", help="beside ours only what has this in its name: all take memory at once"
    )
    chosen = parser.parse_args()
    comm = MPI.COMM_WORLD
    threads = max(1, len(os.sched_getaffinity(0)) // comm.size)
    gpuopt.set_num_threads(threads)
    size = chosen.leaves, chosen.size
    makes: dict[str, Callable[[], tuple[Callable[[], object], int]]] = {
        "gpuopt.distributed": lambda: ours(comm, *size, shard=True),
        "gpuopt.distributed, shard=False": lambda: ours(comm, *size, shard=False),
        "Allreduce of MPI, gpuopt.Optimizer": lambda: mpi(comm, *size),
    }
    try:
        import torch
        import torch.distributed as dist
    except ImportError:
        print("torch is not installed: left out")
    else:
        torch.set_num_threads(threads)
        file = comm.bcast(tempfile.mktemp())
        dist.init_process_group("gloo", init_method=f"file://{file}", rank=comm.rank, world_size=comm.size)
        makes["torch Adam fused, all_reduce as DDP"] = lambda: torchs(comm, *size, zero=False)
        makes["torch ZeroRedundancyOptimizer"] = lambda: torchs(comm, *size, zero=True)

    steps = {name: make() for name, make in makes.items() if chosen.only in name or name == "gpuopt.distributed"}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(chosen.repeat):
        for name, (step, _) in steps.items():
            comm.Barrier()
            start = time.perf_counter()
            step()
            samples[name].append(comm.allreduce(time.perf_counter() - start, MPI.MAX))
    if comm.rank == 0:
        library = MPI.Get_library_version().split(",")[0].splitlines()[0]
        print(f"{comm.size} processes of {threads} threads, {chosen.leaves} x {chosen.size:_} float32, {library}")
        for name, (_, kept) in steps.items():
            times = samples[name]
            print(
                f"{name:38} median {1e3 * median(times):8.1f} ms, least {1e3 * min(times):8.1f}, state {kept / 1e6:7.1f} MB"
            )


if __name__ == "__main__":
    main()
