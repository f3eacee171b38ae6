"""Training end to end: `gpuopt train` beside a plain NumPy script, and an epoch of MNIST's size beside torch.

python -m benchmarks.training [spiral] [mnist] [--data mnist.npz] [--repeat 5] [--out FOLDER]

Prints tables, and saves them as ``training.json``. Without ``--data`` the epoch is one of noise, which takes as long.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import gpuopt
from benchmarks.timing import duration, in_turn, machine, table, versions
from gpuopt.training import Config, Dataset, Perceptron, Samples, Training, initial_params, load
from gpuopt.training.data.preparation import Features
from gpuopt.training.data.targets import Target
from gpuopt.training.learner import Learner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.timing import Step, Timing

HIDDEN = (256, 128)
BATCH = 128


def spiral() -> dict[str, Step]:
    """The built-in run, and a plain script with the same network, optimizer and number of epochs: whole processes."""
    # As installed: Python's bytecode is kept from one process to the next.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL, check=True, env=env)

    def ours(*options: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run("gpuopt.cli", "train", "--device", "cpu", "--out", f"{folder}/run", *options)

    return {
        "gpuopt train": ours,
        "gpuopt train --no-report": lambda: ours("--no-report"),
        "plain NumPy, float32": lambda: run("benchmarks.plain_numpy"),
        "plain NumPy, float64": lambda: run("benchmarks.plain_numpy", "float64"),
    }


def noise() -> Dataset:
    """As many numbers as MNIST has."""
    random = np.random.RandomState(0)
    x = random.rand(60_000, 784).astype(np.float32)
    return Dataset(
        "noise", Samples(x, random.randint(10, size=len(x))), None, Features(784), Target(("y",), tuple(range(10)))
    )


def ours(data: Dataset) -> Step:
    """One epoch of a run, with the metrics that `gpuopt train` takes of it."""
    config = Config(data=data.name, hidden=HIDDEN, batch_size=BATCH, epochs=100, checkpoint_every=10**9)
    cpu = gpuopt.backend("cpu")
    params = initial_params(np.random.RandomState(0), [data.features, *HIDDEN, data.outputs])
    folder = tempfile.TemporaryDirectory()
    learner = Learner(config, cpu, data, Perceptron(cpu.xp), gpuopt.Optimizer(params, gpuopt.Adam()))
    training = Training(f"{folder.name}/run", learner, {"config": config.to_json()})
    steps = training.steps(training.total)

    def epoch() -> None:
        for _ in itertools.islice(steps, training.steps_per_epoch):
            training.take_step()
        assert Path(folder.name).exists()  # it stays as long as somebody has the epoch

    return epoch


def torch_epoch(data: Dataset, *, fused: bool) -> Step:
    """One epoch without metrics."""
    import torch
    from torch import nn

    x, y = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)
    widths = [data.features, *HIDDEN, data.outputs]
    layers = [part for n, m in itertools.pairwise(widths) for part in (nn.Linear(n, m), nn.ReLU())]
    network = nn.Sequential(*layers[:-1])
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(network.parameters(), fused=fused)

    def epoch() -> None:
        for chosen in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            loss(network(x[chosen]), y[chosen]).backward()
            optimizer.step()

    return epoch


def mnist(file: str | None) -> dict[str, Step]:
    """784-256-128-10 in batches of 128."""
    data = noise() if file is None else load(file)
    epochs: dict[str, Step] = {"gpuopt": ours(data)}
    if versions("torch")["torch"] is None:
        print("torch is not installed: left out")
    else:
        epochs |= {"torch, default Adam": torch_epoch(data, fused=False)}
        epochs |= {"torch, fused Adam": torch_epoch(data, fused=True)}
    return epochs


def tell(title: str, timings: Mapping[str, Timing]) -> None:
    """Print medians, minima, and the ratios of our medians to the others'."""
    own = {name: t for name, t in timings.items() if name.startswith("gpuopt")}
    rows = [
        [name, duration(t.median), duration(t.minimum)]
        + ["" if name in own else f"{ours.median / t.median:.2f}" for ours in own.values()]
        for name, t in timings.items()
    ]
    print(f"\n{title}\n{table(['', 'median', 'minimum', *[f'{name} takes of it' for name in own]], rows)}")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="spiral|mnist", help="default: both")
    parser.add_argument("--data", help="MNIST as an .npz file")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    timings: dict[str, Mapping[str, Timing]] = {}
    if "spiral" in (options.parts or ["spiral"]):
        timings["spiral"] = in_turn(spiral(), repeat=options.repeat, warmups=0)
        tell("Spiral, 2-64-3, 10,000 full-batch epochs of Adam, the whole process", timings["spiral"])
    if "mnist" in (options.parts or ["mnist"]):
        timings["mnist"] = in_turn(mnist(options.data), repeat=options.repeat, warmups=0)
        tell("An epoch of 784-256-128-10 in batches of 128, on the CPU", timings["mnist"])
    samples = {part: {name: t.samples for name, t in own.items()} for part, own in timings.items()}
    about = {"machine": machine(), "versions": versions("gpuopt", "numpy", "torch"), "seconds": samples}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "training.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
