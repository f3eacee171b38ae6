"""Timing things fairly: in turn, in one process, so that a noisy moment hits all of them alike."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Step: TypeAlias = Callable[[], object]
    """What is timed."""

PAUSE = 0.02
"""Seconds before each sample: the threads of OpenMP and XLA go on spinning for some milliseconds after their work is done."""


@dataclass(frozen=True)
class Timing:
    """Seconds a step, one for each sample."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """What the ratios are made of."""
        return median(self.samples)

    @property
    def minimum(self) -> float:
        """The quietest moment."""
        return min(self.samples)

    def over(self, other: Timing) -> float:
        """Ratio to another one that was timed in turn with this: the median over the rounds, which drift leaves alone."""
        return median(own / theirs for own, theirs in zip(self.samples, other.samples, strict=True))


def wall(step: Step, count: int) -> float:
    """Seconds a step, by the host's clock, over ``count`` steps."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def in_turn(
    steps: Mapping[str, Step],
    *,
    repeat: int,
    warmups: int = 3,
    sample: float = 0.005,
    clock: Callable[[Step, int], float] = wall,
) -> dict[str, Timing]:
    """Time every step ``repeat`` times, round robin; each round begins with another one, so that none always follows the same.

    Parameters
    ----------
    steps
        What to time, by name.
    repeat
        Samples of each.
    warmups
        Steps before the first sample: compilation, allocation, the state's first touch.
    sample
        Seconds that a sample lasts at least: of short steps, it holds many.
    clock
        Runs a step several times and returns the seconds a step.

    """
    counts = {}
    for name, step in steps.items():
        for _ in range(warmups):
            step()
        counts[name] = max(1, round(sample / clock(step, 3)))
    samples: dict[str, list[float]] = {name: [] for name in steps}
    names = deque(steps)
    for _ in range(repeat):
        for name in names:
            time.sleep(PAUSE)
            if counts[name] > 1:
                steps[name]()  # its data comes back into the cache, from which the others pushed it
            samples[name].append(clock(steps[name], counts[name]))
        names.rotate(-1)
    return {name: Timing(tuple(own)) for name, own in samples.items()}


def versions(*packages: str) -> dict[str, str | None]:
    """Versions of packages; None of those that are not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [s.partition(":")[2].strip() for s in _lines(cpuinfo) if s.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "processors": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def duration(seconds: float) -> str:
    """Three digits with a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a header, the first column to the left, the others to the right."""
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (header, rule, *rows)
    )
