"""Very many small leaves: to make an optimizer, to step, to save it and to load it.

python -m benchmarks.leaves [--leaves 100_000]
"""

from __future__ import annotations

import argparse
import tempfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

import gpuopt

if TYPE_CHECKING:
    from collections.abc import Callable


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """Return the median time that a call takes."""
    samples = []
    for _ in range(times):
        start = perf_counter()
        call()
        samples.append(perf_counter() - start)
    return median(samples)


def nested(count: int) -> dict[str, dict[str, Any]]:
    """Return arrays of two elements in dicts of a hundred."""
    return {f"block{i}": {f"w{k}": np.ones(2, "f4") for k in range(100)} for i in range(-(-count // 100))}


def main() -> None:
    """Print a table of times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, default=100_000)
    count = parser.parse_args().leaves
    params, grads = nested(count), nested(count)
    others = {
        "OrderedDicts": OrderedDict((key, OrderedDict(own)) for key, own in grads.items()),
        "another order": dict(reversed(grads.items())),
    }
    made: list[gpuopt.Optimizer] = []
    print(f"{count:,} leaves of two elements, Adam")
    rows = {"to make the optimizer": seconds(lambda: made.append(gpuopt.Optimizer(params, gpuopt.Adam())))}
    opt = made[0]
    opt.step(grads)  # records where the gradients are
    rows["a step"] = seconds(lambda: opt.step(grads), 5)
    for name, other in others.items():
        rows[f"the first step with gradients in {name}"] = seconds(partial(opt.step, other))
        rows[f"a step with gradients in {name}"] = seconds(partial(opt.step, other), 5)
    rows["a step with new gradients"] = median(seconds(partial(opt.step, nested(count))) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "state.safetensors")
        rows["to save"] = seconds(lambda: gpuopt.save(file, opt))
        rows["to load"] = seconds(lambda: gpuopt.load(file, opt))
    rows["state_dict and load_state_dict"] = seconds(lambda: opt.load_state_dict(opt.state_dict()))
    for name, time in rows.items():
        print(f"{name:48} {time:8.3f} s")


if __name__ == "__main__":
    main()
