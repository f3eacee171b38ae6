"""
Deconvolution with positivity
=============================

A blurred and noisy picture is unblurred by least squares. Without a constraint the noise comes back; with `gpuopt.NonNegative` in
the chain every step ends at a picture that can be.
"""

import matplotlib.pyplot as plt
import numpy as np

import gpuopt

rng = np.random.default_rng(0)
n = 96
truth = np.zeros((n, n))
truth[rng.integers(8, n - 8, 40), rng.integers(8, n - 8, 40)] = rng.uniform(0.5, 1.0, 40)
truth[40:56, 30:50] += 0.5
grid = np.fft.fftfreq(n)
blur = np.exp(-200 * (grid[:, None] ** 2 + grid[None, :] ** 2) / 2)


def blurred(x):
    return np.fft.ifft2(np.fft.fft2(x) * blur).real


data = blurred(truth) + 0.01 * rng.normal(size=truth.shape)


def unblurred(rule):
    x = np.zeros_like(data)
    opt = gpuopt.Optimizer(x, rule)
    for _ in range(300):
        opt.step(blurred(blurred(x) - data))  # the blur is its own adjoint
    return x


free = unblurred(gpuopt.Adam(lr=0.02))
positive = unblurred(gpuopt.chain(gpuopt.Adam(lr=0.02), gpuopt.NonNegative()))

pictures = {"truth": truth, "data": data, "Adam": free, "Adam, not negative": positive}
figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
    axis.imshow(picture, vmin=-0.2, vmax=1, cmap="gray")
    axis.set_title(f"{title}\nerror {np.linalg.norm(picture - truth) / np.linalg.norm(truth):.2f}")
    axis.axis("off")
