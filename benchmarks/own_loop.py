"""What `gpuopt.Run` costs a step: the same loop with it and without, on NumPy, and on CuPy where there is a GPU.

python -m benchmarks.own_loop [--steps 20000] [--repeat 5]

Prints a table in microseconds a step. Rows of metrics and looks at how it goes are among it, about a thousand and a hundred a run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import gpuopt
from benchmarks.timing import table


def bare(xp: Any, steps: int) -> float:
    """Seconds of the loop alone."""
    w = xp.ones(100)
    opt = gpuopt.Optimizer(w, gpuopt.Adam())
    begin = time.perf_counter()
    for _ in range(steps):
        opt.step(2 * w)
        (w * w).sum()
    return time.perf_counter() - begin


def with_run(xp: Any, steps: int, **more: Any) -> float:
    """Seconds of the same with a `Run`."""
    w = xp.ones(100)
    with (
        tempfile.TemporaryDirectory() as folder,
        gpuopt.Run(folder, gpuopt.Optimizer(w, gpuopt.Adam()), report=False, **more) as run,
    ):
        begin = None
        for _ in run.steps(steps):
            begin = begin or time.perf_counter()
            run.step(2 * w, loss=(w * w).sum())
        assert begin is not None
        return time.perf_counter() - begin


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    names = ["numpy"]
    try:
        gpuopt.backend("cupy")
        names.append("cupy")
    except gpuopt.BackendUnavailable as error:
        print(error)
    rows = []
    for name in names:
        xp = gpuopt.backend(name).xp
        taken: dict[str, list[float]] = {"alone": [], "with Run": [], "added": []}
        for _ in range(options.repeat):
            alone, both = (f(xp, options.steps) / options.steps * 1e6 for f in (bare, with_run))
            for key, value in zip(taken, (alone, both, both - alone), strict=True):
                taken[key].append(value)
        rows.append([name, *(f"{statistics.median(values):.1f}" for values in taken.values())])
    print(table(["us a step", "alone", "with Run", "added"], rows))


if __name__ == "__main__":
    main()
