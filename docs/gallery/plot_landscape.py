"""
Rules compared on a landscape
=============================

Rosenbrock's valley is steep across and flat along. Where a rule gets to depends on what it makes of that.
"""

import matplotlib.pyplot as plt
import numpy as np

import gpuopt

rules = {
    "SGD, momentum": gpuopt.SGD(lr=5e-4, momentum=0.9),
    "Adam": gpuopt.Adam(lr=0.05),
    "RMSProp": gpuopt.RMSProp(lr=0.02),
    "L-BFGS": gpuopt.LBFGS(lr=0.5),
}
figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
x, y = np.meshgrid(np.linspace(-1.8, 1.6, 200), np.linspace(-0.8, 2.4, 200))
axis.contour(x, y, np.log10(1e-2 + (1 - x) ** 2 + 100 * (y - x**2) ** 2), levels=12, cmap="Greys", linewidths=0.7)
for name, rule in rules.items():
    p = np.array([-1.2, 1.5])
    opt = gpuopt.Optimizer(p, rule)
    seen = [p.copy()]
    for _ in range(400):
        a, b = p
        opt.step(np.array([-2 * (1 - a) - 400 * a * (b - a**2), 200 * (b - a**2)]))
        seen.append(p.copy())
    axis.plot(*np.array(seen).T, ".-", markersize=2, linewidth=0.8, label=f"{name}: ends at {p.round(2)}")
axis.plot(1, 1, "k*", markersize=12)
axis.set(xlim=(-1.8, 1.6), ylim=(-0.8, 2.4))
axis.legend()
