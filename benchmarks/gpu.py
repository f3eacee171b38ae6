"""One step of every rule on a GPU: our fused engine beside torch fused and the copy of as many bytes.

python -m benchmarks.gpu [--rules Adam SGD] [--shapes 1x10_000_000 1000x64] [--repeat 15] [--out FOLDER]

First it does what ``gpuopt check`` does, and measures nothing where bits differ: a wrong step may well be a fast one.
Prints tables, and saves them as ``gpu.json`` and ``gpu.png``. Times are those of CUDA's events around many steps in a row:
where the host takes longer to launch a step than the device to run it, they show the host.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import gpuopt
from benchmarks import peers
from benchmarks.optimizers import FUSED, LIMIT, NEW, TORCH_FOREACH, TORCH_FUSED, arguments, report, save, shown
from benchmarks.timing import in_turn, machine, table, versions
from gpuopt.check import check

if TYPE_CHECKING:
    from benchmarks.optimizers import Shape, Timings
    from benchmarks.timing import Step

COPY = "copy (CuPy)"


def copy(slots: int, shape: Shape) -> Step:
    """Copy on the device: half of the bytes that a step moves are read, and half of them written."""
    import cupy

    nbytes = 4 * shape[0] * shape[1] * (3 + 2 * slots) // 2
    source, target = cupy.ones(nbytes, cupy.uint8), cupy.empty(nbytes, cupy.uint8)
    return lambda: cupy.copyto(target, source)


def competitors(case: peers.Case, shape: Shape, *, torch: bool) -> dict[str, Step]:
    """Everyone who has this rule on a GPU."""
    import cupy

    steps: dict[str, Step] = {
        FUSED: peers.ours(case.rule, shape, "fused", xp=cupy),
        NEW: peers.ours(case.rule, shape, "fused", xp=cupy, new_gradients=True),
        LIMIT: peers.ours(peers.traffic(tuple(case.rule.slots)), shape, "fused", xp=cupy),
        COPY: copy(len(case.rule.slots), shape),
    }
    if torch:
        if case.name != "RMSProp":  # of which torch has no fused version
            steps[TORCH_FUSED] = peers.torch_step(case, shape, "cuda", fused=True)
        steps[TORCH_FOREACH] = peers.torch_step(case, shape, "cuda", foreach=True)
    return steps


def events(step: Step, count: int) -> float:
    """Seconds a step between two events on the default stream, which torch's steps run on too."""
    import cupy

    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for _ in range(count):
        step()
    end.record()
    end.synchronize()
    milliseconds: float = cupy.cuda.get_elapsed_time(start, end)
    return max(milliseconds, 1e-6) / 1e3 / count


def torch_sees_gpu() -> bool:
    """Whether torch is installed, with CUDA."""
    if versions("torch")["torch"] is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def main() -> None:
    """Measure, print and save, if there is a GPU."""
    options = arguments(__doc__).parse_args()
    try:
        backend = gpuopt.backend("cupy")
    except gpuopt.BackendUnavailable as error:
        print(f"nothing measured: {error}")
        return
    import cupy

    properties: dict[str, Any] = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    about = machine() | {"device": properties["name"].decode(), "backend": str(backend)}
    about["versions"] = {"gpuopt": gpuopt.__version__} | versions("cupy-cuda12x", "cupy-cuda13x", "torch")
    findings = list(check())
    for finding in findings:
        (name, device), *rows = finding.rows()
        print(f"\n{table((name, device), rows)}")
    if not all(finding.agrees for finding in findings):
        print("\nnothing measured: bits differ, or were not compared")
        raise SystemExit(1)

    torch = torch_sees_gpu()
    print(f"\n{about['device']}, float32, {options.repeat} samples each; {about['versions']}")
    print(f"{LIMIT}: a rule without arithmetic but with the same arrays; {COPY}: of as many bytes as a step moves")
    if not torch:
        print("torch: not installed, or without a GPU: left out")

    timings: Timings = {name: {} for name in options.rules}
    for case in peers.CASES:
        for shape in options.shapes if case.name in options.rules else ():
            steps = competitors(case, shape, torch=torch)
            timings[case.name][shape] = in_turn(steps, repeat=options.repeat, clock=events)
            del steps
            cupy.get_default_memory_pool().free_all_blocks()
            print(f"\n{case.name}, {shown(shape)}\n{report(timings[case.name][shape])}", flush=True)
    save(options.out, "gpu", {"machine": about, "check": [asdict(finding) for finding in findings]}, timings)


if __name__ == "__main__":
    main()
