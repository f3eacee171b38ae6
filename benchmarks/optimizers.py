"""One step of every rule: our engines beside torch, Optax, hand-written NumPy and the limit of memory.

python -m benchmarks.optimizers [--rules Adam SGD] [--shapes 1x10_000_000 1000x64] [--repeat 15] [--out FOLDER]

Prints tables, and saves them as ``optimizers.json`` and ``optimizers.png``. What threads gain between other work, what it
costs to wake them, and DeepSpeed's Adam: ``python -m benchmarks.threads``.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import gpuopt
from benchmarks import fresh, peers
from benchmarks.timing import duration, in_turn, machine, table, versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.timing import Step, Timing

    Shape: TypeAlias = tuple[int, int]
    Timings: TypeAlias = dict[str, dict[Shape, dict[str, Timing]]]
    """By rule, shape and competitor."""

SHAPES = ((1, 10_000_000), (50, 100_000), (200, 1_000), (1_000, 64))

FUSED, ARRAY, NEW = "gpuopt fused", "gpuopt array", "gpuopt fused, new gradients"
LIMIT, NUMPY_LIMIT = "limit (our engine)", "limit (NumPy)"
TORCH_FUSED, TORCH_FOREACH, TORCH_LOOP = "torch fused", "torch foreach", "torch loop"
OPTAX, OPTAX_DONATED, BY_HAND = "Optax jit", "Optax jit, donated", "NumPy by hand"


@dataclass(frozen=True)
class Goal:
    """A figure and what it may be at most; with several peers, against the fastest of them."""

    what: str
    at_most: float
    measured: float

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.measured <= self.at_most


RATIOS: Sequence[tuple[Sequence[str], Sequence[str], Mapping[Shape, float]]] = (
    (("SGD", "SGD momentum", "AdaGrad", "RMSProp", "Adam"), (LIMIT,), {SHAPES[0]: 1.15}),
    (
        ("SGD", "SGD momentum", "AdaGrad", "Adam"),
        (TORCH_FUSED,),
        dict(zip(SHAPES, (1.0, 0.7, 0.2, 0.2), strict=True)),
    ),
    (("RMSProp",), (TORCH_FOREACH, TORCH_LOOP), {SHAPES[0]: 0.25}),
    (("SGD", "SGD momentum", "AdaGrad", "RMSProp", "Adam"), (OPTAX,), {SHAPES[0]: 0.5}),
    (("SGD", "SGD momentum", "AdaGrad", "RMSProp", "Adam"), (OPTAX_DONATED,), {SHAPES[0]: 0.5}),
    (("Adam",), (BY_HAND,), {SHAPES[0]: 0.06}),
)
"""Rules, peers, and by shape what our fused engine may take of the best peer's time."""


def competitors(case: peers.Case, shape: Shape, threads: int, installed: Mapping[str, str | None]) -> dict[str, Step]:
    """Everyone who has this rule."""
    steps: dict[str, Step] = {
        FUSED: peers.ours(case.rule, shape, "fused"),
        NEW: peers.ours(case.rule, shape, "fused", new_gradients=True),
        LIMIT: peers.ours(peers.traffic(tuple(case.rule.slots)), shape, "fused"),
        NUMPY_LIMIT: peers.numpy_traffic(len(case.rule.slots), shape, threads),
        ARRAY: peers.ours(case.rule, shape, "array"),
        BY_HAND: case.by_hand(peers.leaves(shape, 0), peers.leaves(shape, 1)),
    }
    if installed["torch"]:
        if case.name != "RMSProp":  # of which torch has no fused version
            steps[TORCH_FUSED] = peers.torch_step(case, shape, fused=True)
        steps[TORCH_FOREACH] = peers.torch_step(case, shape, foreach=True)
        steps[TORCH_LOOP] = peers.torch_step(case, shape, foreach=False)
    if installed["jax"] and installed["optax"]:
        steps[OPTAX] = peers.optax_step(case, shape, donate=False)
        steps[OPTAX_DONATED] = peers.optax_step(case, shape, donate=True)
    return steps


def shown(shape: Shape) -> str:
    """``50 x 100,000``."""
    return f"{shape[0]:,} x {shape[1]:,}"


def report(timings: dict[str, Timing]) -> str:
    """Medians, minima, and what our fused engine takes of each peer's time."""
    ours = timings[FUSED]
    rows = [
        (
            name,
            duration(t.median),
            duration(t.minimum),
            f"{ours.median / t.median:.3f}",
            f"{ours.minimum / t.minimum:.3f}",
        )
        for name, t in timings.items()
    ]
    return table(("", "median", "minimum", "ours/this", "of minima"), rows)


def ratio_goals(timings: Timings) -> list[Goal]:
    """The goals among ratios of medians, for what has been measured."""
    goals = []
    for rules, names, limits in RATIOS:
        for rule in rules:
            for shape, at_most in limits.items():
                measured = timings.get(rule, {}).get(shape, {})
                if there := [measured[name].median for name in names if name in measured]:
                    what = f"{rule}, {shown(shape)}, against {' or '.join(names)}"
                    goals.append(Goal(what, at_most, measured[FUSED].median / min(there)))
    return goals


def process_goals() -> list[Goal]:
    """What fresh processes show."""
    goals = [
        Goal("import gpuopt, after NumPy, s", 0.1, fresh.import_seconds()),
        Goal("first step in a fresh process, s", 0.4, fresh.first_step_seconds()),
    ]
    for engine in ("fused", "array"):
        goals += [
            Goal(f"extra memory of a step, {engine}, {shown(s)}, MiB", 1.0, fresh.peak_bytes(s, engine) / 2**20)
            for s in SHAPES
        ]
    return goals


def chart(timings: Timings, path: Path) -> None:
    """Save the medians as bars, in units of our fused engine's."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shapes = list(next(iter(timings.values())))
    figure, grid = plt.subplots(
        len(shapes), len(timings), figsize=(3.6 * len(timings), 2.6 * len(shapes)), squeeze=False, layout="constrained"
    )
    for column, (rule, by_shape) in enumerate(timings.items()):
        for row, (shape, measured) in enumerate(by_shape.items()):
            axes, names = grid[row, column], list(measured)[::-1]
            factors = [measured[name].median / measured[FUSED].median for name in names]
            bars = axes.barh(names, factors, color=["#c43" if name.startswith("gpuopt") else "#68a" for name in names])
            axes.bar_label(bars, [duration(measured[name].median) for name in names], padding=2, fontsize=7)
            axes.axvline(1, color="black", linewidth=0.5)
            axes.set(xscale="log", xlim=(min(0.5, *factors), 4 * max(factors)), title=f"{rule}, {shown(shape)}")
            axes.tick_params(labelsize=7)
            axes.title.set_size(9)
    figure.supxlabel("a step, in units of gpuopt's fused engine")
    figure.savefig(path, dpi=120)


def save(folder: Path, name: str, content: dict[str, Any], timings: Timings) -> None:
    """Save everything as JSON, and the medians as a chart."""
    content["timings"] = [
        {
            "rule": rule,
            "shape": shape,
            "competitor": competitor,
            "median": timing.median,
            "minimum": timing.minimum,
            "samples": timing.samples,
        }
        for rule, by_shape in timings.items()
        for shape, measured in by_shape.items()
        for competitor, timing in measured.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    if versions("matplotlib")["matplotlib"]:
        chart(timings, folder / f"{name}.png")
    else:
        print("no chart: matplotlib is not installed")
    print(f"saved in {folder}")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that the measurements of steps share."""
    names = [case.name for case in peers.CASES]
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", choices=names, default=names, metavar="RULE", help=", ".join(names))
    parser.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, help="leaves x elements, such as 50x100_000")
    parser.add_argument("--repeat", type=int, default=15, help="samples of each competitor (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder (default: %(default)s)")
    return parser


def shape(text: str) -> Shape:
    count, _, size = text.partition("x")
    return int(count), int(size)


def _set_threads(threads: int | None) -> int:
    """Bind the process to as many processors, before torch and XLA count them; return how many it may use."""
    if hasattr(os, "sched_setaffinity"):
        usable = sorted(os.sched_getaffinity(0))[:threads]
        os.sched_setaffinity(0, usable)
        return len(usable)
    return os.cpu_count() or 1


def main() -> None:
    """Measure, print and save."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, help="processors to use, the same for all (default: all there are)")
    parser.add_argument(
        "--huge-pages", action="store_true", help="have torch ask for huge pages, as NumPy does of itself"
    )
    parser.add_argument("--no-processes", action="store_true", help="leave out what only fresh processes show")
    options = parser.parse_args()

    threads = _set_threads(options.threads)
    if options.huge_pages:
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    installed = versions("numpy", "torch", "jax", "optax")
    about = machine()
    print(f"{about['processor']}, {threads} threads, load {about['load']}, float32, {options.repeat} samples each")
    print(f"gpuopt {gpuopt.__version__}", end=", ")
    print(", ".join(f"{name} {version or 'is not installed: left out'}" for name, version in installed.items()))
    print(
        f"{LIMIT}: a rule without arithmetic but with the same arrays; {NUMPY_LIMIT}: the same reads and writes by NumPy"
    )

    timings: Timings = {name: {} for name in options.rules}
    for case in peers.CASES:
        for shape in options.shapes if case.name in options.rules else ():
            steps = competitors(case, shape, threads, installed)
            timings[case.name][shape] = in_turn(steps, repeat=options.repeat)
            del steps  # their arrays, before those of the next ones
            print(f"\n{case.name}, {shown(shape)}\n{report(timings[case.name][shape])}", flush=True)

    goals = ratio_goals(timings) + ([] if options.no_processes else process_goals())
    rows = [(g.what, f"{g.measured:.3f}", f"{g.at_most}", "yes" if g.met else "NO") for g in goals]
    print(f"\n{table(('goals', 'measured', 'at most', 'met'), rows)}\n")
    about |= {
        "threads": threads,
        "versions": {"gpuopt": gpuopt.__version__} | installed,
        "repeat": options.repeat,
        "torch huge pages": options.huge_pages,
    }
    save(
        options.out,
        "optimizers",
        {"machine": about, "goals": [asdict(g) | {"met": g.met} for g in goals]},
        timings,
    )


if __name__ == "__main__":
    main()
