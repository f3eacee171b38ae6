"""Adam in one thread and in all, beside torch fused and DeepSpeedCPUAdam: with other work before each step, and after a rest.

python -m benchmarks.threads [--shapes 1x1_000_000 50x100_000] [--blocks 8] [--steps 25]

Each competitor's steps come in blocks, for the threads of OpenMP spin on after their work and would slow down others. Before
each step there are 0.3 ms of other work on one processor, or 3 ms of sleep; only the step is timed. "An empty job" is what it
costs to share out a step of no work: the difference of a step of one thread and of all threads on arrays that are left alone.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

import gpuopt
from benchmarks import peers
from benchmarks.optimizers import TORCH_FUSED, shape, shown
from benchmarks.timing import PAUSE, duration, machine, table, versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.optimizers import Shape
    from benchmarks.timing import Step

SHAPES = ((1, 500_000), (1, 1_000_000), (1, 3_000_000), (50, 100_000), (1, 10_000_000), (200, 1_000))
WORK, REST = 0.3e-3, 3e-3
ONE, ALL, EMPTY, DEEPSPEED = "gpuopt, one thread", "gpuopt, all threads", "an empty job", "DeepSpeedCPUAdam"


def work() -> None:
    """Compute on one processor."""
    x, end = np.ones(20_000), time.perf_counter() + WORK
    while time.perf_counter() < end:
        x *= 1.0000001


def rest() -> None:
    """Let everybody sleep."""
    time.sleep(REST)


def in_threads(threads: int, step: Step) -> Step:
    """The step in so many threads."""

    def stepped() -> None:
        gpuopt.set_num_threads(threads)
        step()

    return stepped


def deepspeed_step(of: Shape) -> Step:
    """One step of DeepSpeed's Adam for the CPU."""
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    params = [torch.nn.Parameter(torch.tensor(a)) for a in peers.leaves(of, 0)]
    for p, g in zip(params, peers.leaves(of, 1), strict=True):
        p.grad = torch.tensor(g)
    return DeepSpeedCPUAdam(params, lr=peers.LR, adamw_mode=False).step  # type: ignore[no-any-return]


def empty_step(of: Shape) -> Step:
    """A step that leaves all leaves alone, shared out as one that does not."""
    opt = gpuopt.Optimizer(peers.leaves(of, 0), gpuopt.Adam())
    none = [None] * of[0]
    return lambda: opt.step(none)


def in_blocks(steps: dict[str, Step], before: Callable[[], None], blocks: int, count: int) -> dict[str, float]:
    """Median seconds of each step."""
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(blocks):
        for name, step in steps.items():
            time.sleep(PAUSE)
            for k in range(count + 2):
                before()
                start = time.perf_counter()
                step()
                if k > 1:
                    samples[name].append(time.perf_counter() - start)
    return {name: median(own) for name, own in samples.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=shape, default=SHAPES, help="leaves x elements, as in 50x100_000")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25, help="of a block")
    options = parser.parse_args()
    installed = versions("torch", "deepspeed")
    threads = gpuopt.get_num_threads()
    print(f"{machine()['processor']}, {threads} threads; {installed}")
    rows = []
    for of in options.shapes:
        adam = next(case for case in peers.CASES if case.name == "Adam")
        steps = {
            ONE: in_threads(1, peers.ours(adam.rule, of, "fused")),
            ALL: in_threads(threads, peers.ours(adam.rule, of, "fused")),
            f"{EMPTY}, one thread": in_threads(1, empty_step(of)),
            f"{EMPTY}, all threads": in_threads(threads, empty_step(of)),
        }
        if installed["torch"]:
            steps[TORCH_FUSED] = peers.torch_step(adam, of, fused=True)
        if installed["deepspeed"]:
            steps[DEEPSPEED] = deepspeed_step(of)
        for label, before in (("0.3 ms of work", work), ("3 ms of rest", rest)):
            found = in_blocks(steps, before, options.blocks, options.steps if of[0] * of[1] < 5e6 else 5)
            empty = found[f"{EMPTY}, all threads"] - found[f"{EMPTY}, one thread"]
            beside = [f"{found[ALL] / found[name]:.2f}" if name in found else "-" for name in (TORCH_FUSED, DEEPSPEED)]
            times = duration(found[ONE]), duration(found[ALL]), f"{found[ONE] / found[ALL]:.2f}"
            rows.append((shown(of), label, *times, *beside, duration(max(empty, 0.0))))
            print(*rows[-1], sep=" | ", flush=True)
    header = ("shape", "before a step", ONE, ALL, "speed-up", f"of {TORCH_FUSED}", f"of {DEEPSPEED}", EMPTY)
    print("\n" + table(header, rows))


if __name__ == "__main__":
    main()
