"""
Learning rates: too small, too large, much too large
====================================================

Plain descent with a rate that is too small stagnates, with one that is too large it bounces from side to side, with one that is
much too large it explodes. With a good one it stays in the nearest valley, even if there is a deeper one:
:ref:`sphx_glr_auto_gallery_plot_momentum.py`.
"""

import matplotlib.pyplot as plt
import numpy as np

import gpuopt


def f(x):
    return x**4 - 4 * x**2 + x


def slope(x):
    return 4 * x**3 - 8 * x + 1


def path(rule, start=1.6, steps=60):
    x = np.array([start])
    opt = gpuopt.Optimizer(x, rule)
    seen = [start]
    while len(seen) <= steps and abs(seen[-1]) < 10:
        opt.step(slope(x))
        seen.append(x.item())
    return np.array(seen)


cases = {
    "0.001: stagnates": gpuopt.SGD(lr=0.001),
    "0.02: arrives": gpuopt.SGD(lr=0.02),
    "0.14: bounces": gpuopt.SGD(lr=0.14),
    "0.35: explodes": gpuopt.SGD(lr=0.35),
}
figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
grid = np.linspace(-3, 2.5, 300)
for axis, (title, rule) in zip(axes.flat, cases.items(), strict=True):
    seen = path(rule)
    axis.plot(grid, f(grid), color="0.7")
    axis.plot(seen, f(seen), "o-", markersize=3, linewidth=0.8)
    axis.set(title=title)
    if np.ptp(seen) < 1:
        axis.set(xlim=(0.6, 2), ylim=(-2.8, -0.5))
    else:
        axis.set(xlim=(-3, 2.5), ylim=(-8, 30))
