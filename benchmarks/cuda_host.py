"""What the host does for a step of CuPy arrays, launches left out: ``python -m benchmarks.cuda_host``.

Microseconds a step and a leaf, for gradients that are new at every step, as each backward pass makes them, and for the
same ones again. It needs a device, which may be an emulated one: the device does nothing.
"""

from __future__ import annotations

import gc
import time
from statistics import median
from typing import Any
from unittest import mock

import gpuopt
from gpuopt.engines.cuda import kernel as cuda

LEAVES = (1, 50, 400, 1000)
KINDS = ("fresh", "same")
STEPS = 30
"""In a sample; of so many fresh gradients all are made before it."""


def seconds(leaves: int, kind: str, samples: int = 15) -> float:
    """Median of the seconds that the host takes for a step."""
    params = _arrays(leaves)
    optimizer = gpuopt.Optimizer(params, gpuopt.Adam(), engine="fused")
    found = []
    for _ in range(samples + 1):
        sets = [_arrays(leaves)] * STEPS if kind == "same" else [_arrays(leaves) for _ in range(STEPS)]
        gc.disable()
        start = time.perf_counter()
        for grads in sets:
            optimizer.step(grads)
        found.append((time.perf_counter() - start) / STEPS)
        gc.enable()
    return median(found[1:])


def _arrays(count: int) -> list[Any]:
    """New arrays, side by side in one buffer."""
    import cupy

    buffer = cupy.zeros((count, 4, 3), "f4")
    return [buffer[i] for i in range(count)]


def main() -> None:
    """Print the table."""
    print("| leaves | gradients | us a step | us a leaf |\n|---:|---|---:|---:|")
    with (
        mock.patch.object(cuda.CUDAKernel, "_launch", return_value=int),
        mock.patch.object(cuda.CUDAKernel, "_send_addresses"),
    ):
        for leaves in LEAVES:
            for kind in KINDS:
                took = 1e6 * seconds(leaves, kind)
                print(f"| {leaves} | {kind} | {took:.1f} | {took / leaves:.3f} |")


if __name__ == "__main__":
    main()
