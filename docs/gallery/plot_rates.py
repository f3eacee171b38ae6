"""
Learning rates: too small, too large, and a way out of a local minimum
======================================================================

Plain descent with a rate that is too small stagnates, with one that is too large it bounces, and with a good one it stays in the
nearest valley. Momentum rolls on.
"""

import matplotlib.pyplot as plt
import numpy as np

import gpuopt


def f(x):
    return x**4 - 4 * x**2 + x


def slope(x):
    return 4 * x**3 - 8 * x + 1


def path(rule, start=2.0, steps=60):
    x = np.array([start])
    opt = gpuopt.Optimizer(x, rule)
    seen = [start]
    for _ in range(steps):
        opt.step(slope(x))
        seen.append(float(x[0]))
    return np.array(seen)


cases = {
    "0.001: too small": gpuopt.SGD(lr=0.001),
    "0.09: bounces": gpuopt.SGD(lr=0.09),
    "0.02: stays in the local minimum": gpuopt.SGD(lr=0.02),
    "0.02 and momentum: rolls out of it": gpuopt.SGD(lr=0.02, momentum=0.85),
}
figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, sharey=True, layout="constrained")
grid = np.linspace(-2.2, 2.2, 300)
for axis, (title, rule) in zip(axes.flat, cases.items(), strict=True):
    seen = path(rule)
    axis.plot(grid, f(grid), color="0.7")
    axis.plot(seen, f(seen), "o-", markersize=3, linewidth=0.8)
    axis.set_title(title)
