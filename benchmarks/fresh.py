"""What only a fresh process shows: the time to import, the first step, the memory that a step takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from statistics import median

_IMPORT = """
import numpy, time
start = time.perf_counter()
import gpuopt
gpuopt.Adam
print(time.perf_counter() - start)
"""

_FIRST_STEP = """
import numpy, gpuopt, time
params, grads = numpy.ones(1000, "f4"), numpy.ones(1000, "f4")
optimizer = gpuopt.Optimizer
start = time.perf_counter()
optimizer(params, gpuopt.Adam(), engine="fused").step(grads)
print(time.perf_counter() - start)
"""

# The peak is taken twice: of what Python and NumPy allocate, and of the pages of the process, where the system can
# start its record anew.
_PEAK = """
import gc, numpy, gpuopt, tracemalloc
from pathlib import Path
rng = numpy.random.default_rng(0)
params, grads = ([rng.standard_normal({size}, "f4") for _ in range({count})] for _ in range(2))
optimizer = gpuopt.Optimizer(params, gpuopt.Adam(), engine={engine!r})
optimizer.step(grads), optimizer.step(grads)
gc.collect()
def kib(key):
    return int(next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(key)).split()[1])
try:
    Path("/proc/self/clear_refs").write_text("5")
    before = kib("VmRSS")
    optimizer.step(grads)
    pages = 1024 * max(0, kib("VmHWM") - before)
except OSError:
    pages = 0
tracemalloc.start()
optimizer.step(grads)
print(max(tracemalloc.get_traced_memory()[1], pages))
"""


def _figure(code: str, times: int) -> float:
    """Return the median of the numbers that fresh processes print, after one that compiles the modules to bytecode."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        environment["PYTHONPYCACHEPREFIX"] = folder
        figures = [
            float(
                subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.PIPE).stdout
            )
            for _ in range(1 + times)
        ]
    return median(figures[1:])


def import_seconds() -> float:
    """Seconds that ``import gpuopt`` and its first name take when NumPy is there already."""
    return _figure(_IMPORT, 5)


def first_step_seconds() -> float:
    """Seconds for an optimizer and its first step, kernel included, after the import."""
    return _figure(_FIRST_STEP, 5)


def peak_bytes(shape: tuple[int, int], engine: str) -> float:
    """Bytes that a step of Adam takes beyond parameters, gradients and state."""
    return _figure(_PEAK.format(count=shape[0], size=shape[1], engine=engine), 1)
