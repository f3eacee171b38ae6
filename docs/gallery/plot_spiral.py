"""
A hand-written network on the spiral
====================================

Forward and backward pass are ten lines of NumPy; the optimizer is one.
"""

import matplotlib.pyplot as plt
import numpy as np

import gpuopt

rng = np.random.default_rng(0)
angle = np.concatenate([np.linspace(4 * k, 4 * (k + 1), 100) + 0.2 * rng.normal(size=100) for k in range(3)])
radius = np.tile(np.linspace(0, 1, 100), 3)
x = np.stack([radius * np.sin(angle), radius * np.cos(angle)], 1)
label = np.repeat(np.arange(3), 100)

params = {
    "w1": rng.normal(size=(2, 64)) * 0.5,
    "b1": np.zeros(64),
    "w2": rng.normal(size=(64, 3)) * 0.1,
    "b2": np.zeros(3),
}


def forward(x):
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
    scores = hidden @ params["w2"] + params["b2"]
    odds = np.exp(scores - scores.max(1, keepdims=True))
    return hidden, odds / odds.sum(1, keepdims=True)


losses = {}
start = {name: value.copy() for name, value in params.items()}
for name, rule in {
    "SGD": gpuopt.SGD(lr=0.5, momentum=0.9),
    "RMSProp": gpuopt.RMSProp(lr=0.01),
    "Adam": gpuopt.Adam(lr=0.02),
}.items():
    for key, value in start.items():
        params[key][...] = value
    opt = gpuopt.Optimizer(params, rule)
    losses[name] = []
    for _ in range(1000):
        hidden, odds = forward(x)
        losses[name].append(-np.log(odds[np.arange(300), label]).mean())
        error = odds.copy()
        error[np.arange(300), label] -= 1
        error /= 300
        back = (error @ params["w2"].T) * (hidden > 0)
        opt.step({"w1": x.T @ back, "b1": back.sum(0), "w2": hidden.T @ error, "b2": error.sum(0)})

side = np.linspace(-1.2, 1.2, 200)
plane = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, own in losses.items():
    left.semilogy(own, label=name)
left.set(xlabel="step", ylabel="loss")
left.legend()
right.contourf(side, side, forward(plane)[1].argmax(1).reshape(200, 200), levels=[-0.5, 0.5, 1.5, 2.5], alpha=0.4)
right.scatter(*x.T, c=label, s=8)
