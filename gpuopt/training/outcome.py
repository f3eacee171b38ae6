"""Pictures of what a trained network does: predicted against true, residuals, confusion, the samples it gets most wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import pictures
from gpuopt.suggest import printable
from gpuopt.training.model import Perceptron

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from gpuopt.pictures import Figure
    from gpuopt.training.applied import Model
    from gpuopt.training.data import Dataset

__all__ = ["outcomes"]

SHOWN = 2000
"""Samples at most in a picture of points."""
MOST = 100_000
"""Samples at most that are predicted for a picture."""
CLASSES = 30
"""At most in a confusion matrix: more could not be read."""
WORST = 12
"""Samples that are shown."""
GRID = 400


def outcomes(model: Model, data: Dataset, *, is_validation: bool) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of each picture, of the test set if there is one, else of the training set."""
    part, of = (data.train, "the training set") if data.test is None else (data.test, "the test set")
    of = "the validation part" if is_validation and data.test is not None else of
    every = -(-len(part) // MOST)
    chosen = np.arange(0, len(part), every)
    x, y = part.x[chosen], part.y[chosen]
    outputs = _outputs(model, x)
    if not np.isfinite(outputs).all():
        return
    if data.classes is None:
        true, predicted = model.target.numbers(y), model.target.numbers(outputs)
        if model.layers[0] == 1 and model.target.outputs == 1:
            yield "curve", f"The fitted curve, and {of}", _curve(model, x, true)
        yield (
            "predicted",
            f"Predicted against true, {of}; on the line they are the same",
            _against(model, true, predicted),
        )
        yield "residuals", f"Residuals: predicted minus true, {of}", _residuals(model, true, predicted)
        return
    if len(data.classes) <= CLASSES:
        counted = np.zeros((len(data.classes),) * 2, int)
        np.add.at(counted, (y, outputs.argmax(axis=1)), 1)
        yield (
            "confusion",
            f"Confusion matrix, {of}: samples of each class, and what is predicted for them",
            _confusion(model, counted),
        )
    shape = model.prepared.shape
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] in {1, 3}):
        yield "worst", f"The samples of {of} with the largest loss: true, predicted", _worst(model, x, y, outputs)


def _outputs(model: Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    wide = np.float64 if model.matmul == "float64" else None
    network = Perceptron(np, model.target.classes is not None, wide, model.activation)
    with np.errstate(all="ignore"):
        return np.asarray(network.outputs(model.params, x))


def _raw(model: Model, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The network's inputs in the features' own units."""
    return x.astype(np.float64) * model.prepared.scale + model.prepared.shift


def _thin(*arrays: NDArray[Any]) -> Iterator[NDArray[Any]]:
    every = -(-len(arrays[0]) // SHOWN)
    return (a[::every] for a in arrays)


def _points(axes: Any, x: Any, y: Any, number: int, label: str | None = None) -> None:
    of = pictures.style(number)
    axes.plot(x, y, linestyle="none", marker=of.marker, markersize=3, color=of.color, alpha=0.6, label=label)


def _named(model: Model) -> list[str]:
    return [pictures.plain(printable(name, 30)) for name in model.target.names]


def _against(model: Model, true: NDArray[Any], predicted: NDArray[Any]) -> Figure:
    names = _named(model)
    several = len(names) > 1
    figure, (axes,) = pictures.figure(5.2, 4.6, labels=names if several else ())
    shown, guessed = _thin(true, predicted)
    if several:  # each in units of its own deviation, or the largest would hide the others
        shown, guessed = (a / model.target.scale for a in (shown, guessed))
    for number, name in enumerate(names):
        _points(axes, shown[:, number], guessed[:, number], number, name if several else None)
    low, high = float(min(shown.min(), guessed.min())), float(max(shown.max(), guessed.max()))
    axes.plot([low, high], [low, high], color="black", linewidth=0.9)
    units = "deviations of each" if several else f"{names[0]}, its own units"
    axes.set(xlabel=f"True ({units})", ylabel=f"Predicted ({units})")
    if several:
        pictures.legend(figure)
    return figure


def _residuals(model: Model, true: NDArray[Any], predicted: NDArray[Any]) -> Figure:
    names = _named(model)
    several = len(names) > 1
    figure, (axes,) = pictures.figure(5.2, 4.6, labels=names if several else ())
    shown, guessed = _thin(true, predicted)
    if several:
        shown, guessed = (a / model.target.scale for a in (shown, guessed))
    for number, name in enumerate(names):
        _points(axes, guessed[:, number], (guessed - shown)[:, number], number, name if several else None)
    axes.axhline(0, color="black", linewidth=0.9)
    units = "deviations of each" if several else f"{names[0]}, its own units"
    axes.set(xlabel=f"Predicted ({units})", ylabel="Predicted minus true (the same units)")
    if several:
        pictures.legend(figure)
    return figure


def _curve(model: Model, x: NDArray[np.float32], true: NDArray[Any]) -> Figure:
    figure, (axes,) = pictures.figure(6.4, 4.2, labels=["samples", "prediction"])
    samples, values = _thin(x, true)
    low, high = float(x.min()), float(x.max())
    grid = np.linspace(low, high, GRID, dtype=np.float32)[:, None]
    _points(axes, _raw(model, samples)[:, 0], values[:, 0], 0, "samples")
    line = model.target.numbers(_outputs(model, grid))[:, 0]
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
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=7)
    axes.set_yticks(places, names, fontsize=7)
    axes.set(xlabel="Predicted class", ylabel="True class")
    figure.subplots_adjust(bottom=0.28 if max(map(len, names)) > 3 else 0.14, left=0.24)
    return figure


def _worst(model: Model, x: NDArray[np.float32], y: NDArray[Any], outputs: NDArray[np.float32]) -> Figure:
    assert model.target.classes is not None
    wide = outputs.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(y)), y]
    worst = np.argsort(-losses, kind="stable")[:WORST]
    columns = 6
    rows = -(-len(worst) // columns)
    figure, every = pictures.figure(8.4, 1.75 * rows + 0.2, rows, columns)
    for axes in every:
        axes.set_axis_off()
    for axes, sample in zip(every, worst, strict=False):
        image = x[sample].reshape(model.prepared.shape)
        low, high = float(image.min()), float(image.max())
        shown = (image - low) / (high - low or 1)
        axes.imshow(
            shown[..., 0] if shown.ndim == 3 and shown.shape[-1] == 1 else shown, cmap="gray", interpolation="nearest"
        )
        true, guessed = (model.target.classes[k] for k in (y[sample], outputs[sample].argmax()))
        axes.set_title(pictures.plain(f"{printable(true, 10)}, {printable(guessed, 10)}"), fontsize=8)
    return figure
