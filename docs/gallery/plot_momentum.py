"""
Momentum rolls out of a local minimum
=====================================

Plain descent stays in the first valley that it meets. With momentum it comes with speed: with too little it falls back, with
enough it rolls over the hill and comes to rest in the deeper valley.
"""

import matplotlib.pyplot as plt
import numpy as np

import gpuopt


def f(x):
    return x**4 - 4 * x**2 + x


def slope(x):
    return 4 * x**3 - 8 * x + 1


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
grid = np.linspace(-2.2, 2.2, 300)
left.plot(grid, f(grid), color="0.7")
for momentum in (0.0, 0.8, 0.9):
    x = np.array([2.0])
    opt = gpuopt.Optimizer(x, gpuopt.SGD(lr=0.03, momentum=momentum))
    seen = [2.0]
    for _ in range(100):
        opt.step(slope(x))
        seen.append(x.item())
    path = np.array(seen)
    left.plot(path, f(path), "o-", markersize=3, linewidth=0.8, label=f"momentum {momentum}")
    right.plot(f(path), label=f"ends at {path[-1]:.2f}")
left.set(xlabel="x", ylabel="f")
right.set(xlabel="step", ylabel="f")
left.legend()
right.legend()
