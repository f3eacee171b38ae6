"""Pictures of what a trained network does.

Over two features its regions or its surface; predicted against true, residuals, confusion, the samples it gets most wrong.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import pictures
from gpuopt.errors import UsageError
from gpuopt.suggest import printable
from gpuopt.training.applied import losses
from gpuopt.training.config import Config
from gpuopt.training.data import Dataset, spiral
from gpuopt.training.model import Perceptron, initial_params
from gpuopt.training.preparing import dataset

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gpuopt.pictures import Axes, Figure
    from gpuopt.runs.record.history import History
    from gpuopt.training.applied import Model
    from gpuopt.training.model import Activation, Params

__all__ = ["outcomes", "plane", "rehearsal"]

SHOWN, SHOWN_IN_PLANE = 2000, 1000
"""Samples at most in a picture of points."""
MOST = 100_000
"""Samples at most that are predicted for a picture."""
CLASSES, NAMED = 30, 40
"""At most in a confusion matrix, as more could not be read; at most in a legend."""
WORST = 12
"""Samples that are shown."""
GRID, PLANE_GRID = 400, 120
LUMINANCE = (0.299, 0.587, 0.114)
"""What red, green and blue have of a grey (ITU-R BT.601)."""
LIGHT = "summer"
"""Colours that grow lighter with the number; black can be seen on all of them."""


def plane(run: History, data: Dataset | None = None) -> Figure | None:
    """What the network of a run makes of two-dimensional data, from its checkpoint; None if they are not.

    Classes: the regions, with their boundaries. Numbers: the first one predicted.
    """
    from gpuopt import tensorfile

    file = run.folder.checkpoint
    if not file.exists() or tensorfile.outline(file)[0]["params/layers.0.w"].shape[0] != 2:
        return None
    saved, _ = tensorfile.read(file, lambda names, _: [name.startswith("params/") for name in names])
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
    x, y = np.meshgrid(np.linspace(left, right, PLANE_GRID), np.linspace(bottom, top, PLANE_GRID))
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
    colors = np.array([pictures.rgb(pictures.style(k).color) for k in range(len(data.classes))]) / 255
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
    samples, targets = _thin(data.train.x, data.train.y, most=SHOWN_IN_PLANE)
    for k, label in itertools.zip_longest(range(len(data.classes)), labels):
        of = pictures.style(k)
        axes.plot(
            *samples[targets == k].T, linestyle="none", marker=of.marker, markersize=4, color=of.color,
            markeredgecolor="black", markeredgewidth=0.5, label=label,
        )  # fmt: skip


def _surface(figure: Figure, axes: Axes, data: Dataset, predicted: Any) -> None:
    samples, targets = _thin(data.train.x, data.train.y[:, 0], most=SHOWN_IN_PLANE)
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
    is_scaled = data.prepared.shift.any() or np.any(data.prepared.scale != 1)
    return f"{name} ({'as the network sees it' if is_scaled else 'as in the data'})"


def outcomes(model: Model, data: Dataset, *, is_validation: bool) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of each picture, of the test set if there is one, else of the training set."""
    part, of = (data.train, "the training set") if data.test is None else (data.test, "the test set")
    of = "the validation part" if is_validation and data.test is not None else of
    every = -(-len(part) // MOST)
    chosen = np.arange(0, len(part), every)
    x, y = part.x[chosen], part.y[chosen]
    outputs = model.outputs_of(x)
    if not np.isfinite(outputs).all():
        return
    if data.classes is None:
        true, predicted = model.target.numbers(y), model.target.numbers(outputs)
        if model.layers[0] == 1 and model.target.outputs == 1:
            yield "curve", f"The fitted curve, and {of}", _curve(model, x, true)
        against = f"Predicted against true, {of}; on the line they are the same"
        yield "predicted", against, _errors(model, true, predicted, residuals=False)
        residuals = f"Residuals: predicted minus true, {of}"
        yield "residuals", residuals, _errors(model, true, predicted, residuals=True)
        return
    if len(data.classes) <= CLASSES:
        counted = np.zeros((len(data.classes),) * 2, int)
        np.add.at(counted, (y, outputs.argmax(axis=1)), 1)
        caption = f"Confusion matrix, {of}: samples of each class, and what is predicted for them"
        yield "confusion", caption, _confusion(model, counted)
    shape = model.prepared.shape
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] in {1, 3}):
        yield "worst", f"The samples of {of} with the largest loss: true, predicted", _worst(model, x, y, outputs)


def _raw(model: Model, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The network's inputs in the features' own units."""
    return x.astype(np.float64) * model.prepared.scale + model.prepared.shift


def _thin(*arrays: Any, most: int = SHOWN) -> Iterator[NDArray[Any]]:
    """So many of the samples at most."""
    every = -(-len(arrays[0]) // most)
    return (a[::every] for a in arrays)


def _points(axes: Any, x: Any, y: Any, number: int, label: str | None = None) -> None:
    of = pictures.style(number)
    axes.plot(x, y, linestyle="none", marker=of.marker, markersize=3, color=of.color, alpha=0.6, label=label)


def _named(model: Model) -> list[str]:
    return [pictures.plain(printable(name, 30)) for name in model.target.names]


def _errors(model: Model, true: NDArray[Any], predicted: NDArray[Any], *, residuals: bool) -> Figure:
    """Points of predicted against true numbers, or of residuals against predicted ones."""
    names = _named(model)
    several = len(names) > 1
    figure, (axes,) = pictures.figure(5.2, 4.6, labels=names if several else ())
    x, y = _thin(true, predicted)
    if several:  # each in units of its own deviation, or the largest would hide the others
        x, y = (a / model.target.scale for a in (x, y))
    units = "deviations of each" if several else f"{names[0]}, its own units"
    if residuals:
        x, y = y, y - x
        axes.set(xlabel=f"Predicted ({units})", ylabel="Predicted minus true (the same units)")
    else:
        axes.set(xlabel=f"True ({units})", ylabel=f"Predicted ({units})")
    for number, name in enumerate(names):
        _points(axes, x[:, number], y[:, number], number, name if several else None)
    if residuals:
        axes.axhline(0, color="black", linewidth=0.9)
    else:
        ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
        axes.plot(ends, ends, color="black", linewidth=0.9)
    if several:
        pictures.legend(figure)
    return figure


def _curve(model: Model, x: NDArray[np.float32], true: NDArray[Any]) -> Figure:
    figure, (axes,) = pictures.figure(6.4, 4.2, labels=["samples", "prediction"])
    samples, values = _thin(x, true)
    low, high = float(x.min()), float(x.max())
    grid = np.linspace(low, high, GRID, dtype=np.float32)[:, None]
    _points(axes, _raw(model, samples)[:, 0], values[:, 0], 0, "samples")
    line = model.target.numbers(model.outputs_of(grid))[:, 0]
    axes.plot(_raw(model, grid)[:, 0], line, color=pictures.style(1).color, linewidth=2, label="prediction")
    feature = pictures.plain(printable(model.prepared.inputs[0], 30))
    axes.set(xlabel=f"{feature} (as in the data)", ylabel=f"{_named(model)[0]} (its own units)")
    pictures.legend(figure)
    return figure


def _confusion(model: Model, counted: NDArray[np.int64]) -> Figure:
    assert model.target.classes is not None
    names = [pictures.plain(printable(label, 14)) for label in model.target.classes]
    size = max(4.2, 1.8 + 0.42 * len(names))
    figure, (axes,) = pictures.figure(size + 0.6, size)
    axes.grid(visible=False)
    shares = counted / np.maximum(counted.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for row, column in np.argwhere(counted > 0):
        dark = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{counted[row, column]:,}", ha="center", va="center", fontsize=7, color=dark)
    places, is_long = range(len(names)), max(map(len, names)) > 3
    axes.set_xticks(places, names, rotation=90 if is_long else 0, fontsize=7)
    axes.set_yticks(places, names, fontsize=7)
    axes.set(xlabel="Predicted class", ylabel="True class")
    figure.subplots_adjust(bottom=0.28 if is_long else 0.14, left=0.24)
    return figure


def _worst(model: Model, x: NDArray[np.float32], y: NDArray[Any], outputs: NDArray[np.float32]) -> Figure:
    assert model.target.classes is not None
    worst = np.argsort(-losses(outputs, y), kind="stable")[:WORST]
    columns = 6
    rows = -(-len(worst) // columns)
    figure, every = pictures.figure(8.4, 1.75 * rows + 0.2, rows, columns)
    for axes in every:
        axes.set_axis_off()
    for axes, sample in zip(every, worst, strict=False):
        image = x[sample].reshape(model.prepared.shape)
        low, high = float(image.min()), float(image.max())
        shown = (image - low) / (high - low or 1)
        shown = shown[..., 0] if shown.ndim == 3 and shown.shape[-1] == 1 else shown
        axes.imshow(shown, cmap="gray", interpolation="nearest")
        true, guessed = (model.target.classes[k] for k in (y[sample], outputs[sample].argmax()))
        axes.set_title(pictures.plain(f"{printable(true, 10)}, {printable(guessed, 10)}"), fontsize=8)
    return figure
