"""
Handwritten digits
==================

`gpuopt.training.train` makes a classifier in one call. The digits are those of MNIST if a file ``mnist.npz`` (with ``x_train``,
``y_train``, ``x_test`` and ``y_test``) lies here, else the smaller ones that come with scikit-learn.
"""

import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import gpuopt
from gpuopt.training import Config, load_model, train

if Path("mnist.npz").exists():
    with np.load("mnist.npz") as file:
        x, y, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
else:
    digits = load_digits()
    images = digits.images.astype(np.float32) / 16
    x, y, x_test, y_test = images[:1400], digits.target[:1400], images[1400:], digits.target[1400:]

rule = gpuopt.chain(gpuopt.AdamW(lr=gpuopt.schedules.cosine(0.01, steps=40 * 11), weight_decay=0.01), gpuopt.EMA(0.95))
config = Config(hidden=(64,), epochs=40, batch_size=-(-len(x) // 11), optimizer=rule, seed=0)
with tempfile.TemporaryDirectory() as folder:
    result = train(config, data=(x, y, x_test, y_test), out=f"{folder}/run", report=False)
    rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    model = load_model(f"{folder}/run")

odds = model.predict_proba(x_test)
wrong = np.flatnonzero(odds.argmax(1) != y_test)
worst = wrong[np.argsort(odds[wrong, y_test[wrong]])][:8]

figure = plt.figure(figsize=(10, 4), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[2, 3])
axis = left.subplots()
epochs = [row for row in rows if "loss" in row]
axis.semilogy([row["epoch"] for row in epochs], [row["loss"] for row in epochs], label="training")
axis.semilogy([row["epoch"] for row in epochs], [row["test_loss"] for row in epochs], label="test")
axis.set(xlabel="epoch", ylabel="loss", title=f"accuracy {result.test_accuracy:.3f} on {len(x_test)} others")
axis.legend()
right.suptitle("the ones that it gets most wrong")
for axis, k in zip(right.subplots(2, 4).flat, worst, strict=False):
    axis.imshow(x_test[k], cmap="gray_r")
    axis.set_title(f"{y_test[k]}, taken for {odds[k].argmax()}", fontsize=9)
for axis in right.axes:
    axis.axis("off")
