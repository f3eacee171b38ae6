"""What a network makes of the plane: its classes or numbers over two features, with the training samples."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import pictures
from gpuopt.errors import UsageError
from gpuopt.suggest import printable
from gpuopt.training.config import Config
from gpuopt.training.data import Dataset, load, spiral
from gpuopt.training.model import Perceptron, initial_params

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpuopt.pictures import Axes, Figure
    from gpuopt.runs.record.history import History
    from gpuopt.training.activations import Activation
    from gpuopt.training.model import Params

__all__ = ["plane", "rehearsal"]

GRID = 120
LUMINANCE = (0.299, 0.587, 0.114)
"""What red, green and blue have of a grey (ITU-R BT.601)."""
SHOWN = 1000
"""Samples at most in a picture."""
NAMED = 40
"""Classes at most in a legend."""
LIGHT = "summer"
"""Colours that grow lighter with the number; black can be seen on all of them."""


def plane(run: History, data: Dataset | None = None) -> Figure | None:
    """What the network of a run makes of two-dimensional data, from its checkpoint; None if they are not.

    Classes: the regions, with their boundaries. Numbers: the first one predicted.

    Raises
    ------
    UsageError, CheckpointError, OSError
        If data or checkpoint cannot be read.
    """
    from gpuopt import tensorfile

    file = run.folder.checkpoint
    if not file.exists() or tensorfile.read(file, lambda *_: False)[0]["params/layers.0.w"].shape[0] != 2:
        return None
    saved, _ = tensorfile.read(file, lambda name, *_: name.startswith("params/"))
    config = Config.from_json(run.content.get("config"))
    data = data or dataset(config)
    if data.features != 2:
        raise UsageError(f"{config.data}: {data.features} features, expected 2 as in the run's checkpoint")
    layers = [{name: saved[f"params/layers.{i}.{name}"] for name in "wb"} for i in range(len(config.hidden) + 1)]
    return _plane(data, {"layers": layers}, config.activation)


def _plane(data: Dataset, params: Params, activation: Activation = "relu") -> Figure:
    labels = [f"class {label}" for label in data.classes or ()]
    figure, (axes,) = pictures.figure(6.0, 5.2, labels=labels[:NAMED])
    (left, bottom), (right, top) = _frame(data)
    x, y = np.meshgrid(np.linspace(left, right, GRID), np.linspace(bottom, top, GRID))
    grid = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
    with np.errstate(all="ignore"):
        outputs = Perceptron(np, data.classes is not None, activation=activation).outputs(params, grid)
    axes.grid(visible=False)
    if data.classes is None:
        _surface(figure, axes, data, (x, y, outputs[:, 0].reshape(x.shape)))
    else:
        _regions(axes, data, (x, y, outputs.reshape(*x.shape, -1)), labels[:NAMED])
        pictures.legend(figure)
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel=_axis(data, 0), ylabel=_axis(data, 1))
    return figure


def dataset(config: Config) -> Dataset:
    """The data that a run was trained on."""
    if config.data is None:
        return spiral(np.random.RandomState(config.seed))
    return load(config.data, **dataclasses.asdict(config.reading))


def rehearsal() -> Figure:
    """Something in the plane."""
    params = initial_params(np.random.RandomState(0), [2, 8, 3])
    return _plane(spiral(np.random.RandomState(0)), params)


def _frame(data: Dataset) -> tuple[Any, Any]:
    """The corners of what is shown: the training samples, with a margin."""
    low, high = data.train.x.min(axis=0), data.train.x.max(axis=0)
    margin = np.where(high > low, 0.08 * (high - low), 1)
    return low - margin, high + margin


def _regions(axes: Axes, data: Dataset, predicted: Any, labels: Sequence[str]) -> None:
    x, y, outputs = predicted
    assert data.classes is not None
    index = outputs.argmax(axis=2)
    colors = np.array([_rgb(pictures.style(k).color) for k in range(len(data.classes))])
    # Blended with white to a lightness of its own, each can be told from the others without its colour, too.
    lightness = np.linspace(0.93, 0.65, len(colors))
    shares = (1 - lightness) / (1 - colors @ LUMINANCE)
    pale = 1 - np.minimum(shares, 1)[:, None] * (1 - colors)
    dx, dy = (x[0, 1] - x[0, 0]) / 2, (y[1, 0] - y[0, 0]) / 2  # a pixel reaches half a cell further than its middle
    extent = (x[0, 0] - dx, x[0, -1] + dx, y[0, 0] - dy, y[-1, 0] + dy)
    shown = np.rint(255 * pale).astype(np.uint8)[index]
    axes.imshow(shown, extent=extent, origin="lower", aspect="auto", interpolation="nearest")
    for k in np.unique(index)[:-1]:  # a boundary has two sides
        ahead = outputs[..., k] - np.delete(outputs, k, axis=2).max(axis=2, initial=-np.inf)
        axes.contour(x, y, ahead, levels=[0], colors="black", linewidths=0.9)
    every = -(-len(data.train) // SHOWN)
    samples, targets = data.train.x[::every], data.train.y[::every]
    for k, label in itertools.zip_longest(range(len(data.classes)), labels):
        of = pictures.style(k)
        axes.plot(
            *samples[targets == k].T, linestyle="none", marker=of.marker, markersize=4, color=of.color,
            markeredgecolor="black", markeredgewidth=0.5, label=label,
        )  # fmt: skip


def _surface(figure: Figure, axes: Axes, data: Dataset, predicted: Any) -> None:
    every = -(-len(data.train) // SHOWN)
    samples, targets = data.train.x[::every], data.train.y[::every, 0]
    low, high = float(targets.min()), float(targets.max())
    levels = np.linspace(low, high, 11) if high > low else np.array([low - 1, low, low + 1])
    drawn = axes.contourf(*predicted, levels=levels, cmap=LIGHT, extend="both")
    lines = axes.contour(*predicted, levels=levels, colors="black", linewidths=0.6)
    axes.clabel(lines, fontsize=7)
    axes.scatter(*samples.T, c=targets, cmap=LIGHT, vmin=levels[0], vmax=levels[-1], s=16, edgecolors="black", lw=0.5)
    figure.subplots_adjust(right=0.98)  # of which the colour bar takes its share
    figure.colorbar(drawn, ax=axes, fraction=0.2).set_label(
        "Prediction; in the points: target (as the network sees it)"
    )


def _axis(data: Dataset, number: int) -> str:
    """A feature's name and units."""
    name = pictures.plain(printable(data.prepared.inputs[number], 30))
    scaled = (
        "as the network sees it" if data.prepared.shift.any() or np.any(data.prepared.scale != 1) else "as in the data"
    )
    return f"{name} ({scaled})"


def _rgb(color: str) -> list[float]:
    return [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
