"""A loop of one's own: non-negative least squares, with all that a run remembers. ``python own_loop.py FOLDER STEPS PAUSE``."""

import sys
import time

import numpy as np

import gpuopt


def solve(folder: str, steps: int, every: int | str = "0.1s", pause: float = 0.0) -> gpuopt.Run:
    """Minimize |a x - b| over x >= 0, a part of the rows at once, with so many seconds of rest after each step."""
    random = np.random.RandomState(0)
    a = random.rand(200, 30)
    b = a @ np.maximum(random.randn(30), 0)
    x = np.full(30, 0.5)
    rule = gpuopt.chain(gpuopt.Adam(lr=gpuopt.schedules.cosine(0.05, 600)), gpuopt.NonNegative())
    with gpuopt.Run(folder, gpuopt.Optimizer({"x": x}, rule), checkpoint_every=every) as run:
        mean = run.remember("mean", np.zeros(30))
        phase = run.remember("phase", np.ones((4, 4), complex))
        own = run.remember("own", np.random.RandomState(7))
        batches = run.batches(len(b), 48)
        for step in run.steps(steps):
            chosen = next(batches)
            error = a[chosen] @ x - b[chosen] + 1e-4 * run.random.standard_normal(len(chosen))
            run.step({"x": 2 * a[chosen].T @ error / len(error)}, loss=np.mean(error**2), largest=x.max())
            mean += (x - mean) / (step + 1)
            phase *= np.exp(1j * own.rand())
            run.remember("course", [*run.remembered.get("course", []), round(float(x[0]), 6)][-5:])
            run.image("x", x)
            time.sleep(pause)
    return run


if __name__ == "__main__":
    solve(sys.argv[1], int(sys.argv[2]), pause=float(sys.argv[3]))
