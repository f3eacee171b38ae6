"""
An oscillator fitted to its equation
====================================

Coefficients of sines and cosines are fitted to a few noisy samples and, everywhere, to ``x'' + 2 d x' + w^2 x = 0``, whose damping
and frequency are unknown, too. Every part has a rate of its own.
"""

import matplotlib.pyplot as plt
import numpy as np

import gpuopt

rng = np.random.default_rng(1)
t = np.linspace(0, 6, 300)
truth = np.exp(-0.3 * t) * np.cos(2.0 * t)
seen = np.arange(0, 130, 8)
data = truth[seen] + 0.03 * rng.normal(size=seen.size)

waves = np.pi * np.arange(24) / 8
phase = np.outer(t, waves)
basis = np.concatenate([np.cos(phase), np.sin(phase)], 1)
first = np.concatenate([-waves * np.sin(phase), waves * np.cos(phase)], 1)
second = np.concatenate([-(waves**2) * np.cos(phase), -(waves**2) * np.sin(phase)], 1)

params = {"c": np.zeros(48), "damping": np.array(0.1), "stiffness": np.array(3.0)}
rules = {
    "c": gpuopt.Adam(lr=gpuopt.schedules.cosine(0.03, steps=6000)),
    "*": gpuopt.chain(gpuopt.Adam(lr=5e-3), gpuopt.NonNegative()),
}
opt = gpuopt.Optimizer(params, rules)
for _ in range(6000):
    c, d, k = params["c"], params["damping"], params["stiffness"]
    misfit = basis[seen] @ c - data
    x, v, a = basis @ c, first @ c, second @ c
    residual = a + 2 * d * v + k * x
    weight = 0.02 / t.size
    opt.step(
        {
            "c": basis[seen].T @ misfit / seen.size + weight * (second + 2 * d * first + k * basis).T @ residual,
            "damping": weight * np.sum(residual * 2 * v),
            "stiffness": weight * np.sum(residual * x),
        }
    )

figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
axis.plot(t, truth, color="0.7", linewidth=4, label="truth")
axis.plot(t, basis @ params["c"], label="fit")
axis.plot(t[seen], data, "k.", label="samples")
axis.set_title(
    f"damping {params['damping']:.2f} (0.30), frequency {np.sqrt(params['stiffness'] - params['damping'] ** 2):.2f} (2.00)"
)
axis.legend()
