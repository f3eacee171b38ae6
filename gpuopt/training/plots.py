"""Pictures of runs: metrics by step with what happened on the way, and what a network makes of the plane."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import pictures
from gpuopt.training.data import Dataset, load, spiral
from gpuopt.training.errors import UsageError
from gpuopt.training.model import Perceptron, initial_params
from gpuopt.training.progress import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gpuopt.pictures import Axes, Figure
    from gpuopt.training.history import Run
    from gpuopt.training.model import Params

__all__ = ["figures", "overlay", "plane"]

STEPS = "Step (updates of the parameters)"
GRID = 120
LUMINANCE = (0.299, 0.587, 0.114)
"""What red, green and blue have of a grey (ITU-R BT.601)."""
SHOWN = 1000
"""Samples at most in a picture."""
NAMED = 40
"""Classes at most in a legend."""
LIGHT = "summer"
"""Colours that grow lighter with the number; black can be seen on all of them."""


@dataclass(frozen=True)
class Panel:
    """A picture of some metrics: what it is called, its axis, and what each line shows."""

    name: str
    axis: str
    lines: dict[str, str]


PANELS = (
    Panel("loss", "Loss", {"loss": "training set", "test_loss": "test set"}),
    Panel("accuracy", "Accuracy (share of samples)", {"accuracy": "training set", "test_accuracy": "test set"}),
    Panel("learning_rate", "Learning rate (per step)", {"lr": "learning rate"}),
    Panel("norms", "Euclidean norm (no unit)", {"gradient_norm": "gradient, before clipping", "update_norm": "update"}),
)


def figures(run: Run) -> Iterator[tuple[str, Figure]]:
    """The pictures of one run and their names; what it has no metrics for is left out."""
    for panel in PANELS:
        if any(run.points(key)[0] for key in panel.lines):
            lines = [(label, run, key) for key, label in panel.lines.items()]
            figure, (axes,) = pictures.figure(labels=list(panel.lines.values()))
            _draw(axes, panel, lines)
            pictures.legend(figure)
            margin = 0.02 * run.steps
            axes.set_xlim(-margin, run.steps + margin)
            for step, numbers in _marks(run):
                pictures.mark(axes, step, numbers)
            yield panel.name, figure


def overlay(runs: Sequence[Run]) -> Figure:
    """Several runs over each other, in one picture with a part for each metric."""
    parts = [(panel, key) for panel in PANELS for key in panel.lines if any(run.points(key)[0] for run in runs)]
    rows = max(1, (len(parts) + 1) // 2)
    figure, every = pictures.figure(12.8, 3.9 * rows, rows, 2, [run.name for run in runs])
    for axes in every[len(parts) :]:
        axes.remove()
    for axes, (panel, key) in zip(every, parts, strict=False):
        _draw(axes, panel, [(run.name, run, key) for run in runs])
        axes.set_title(key.replace("lr", "learning rate").replace("_", " ").capitalize(), fontsize=11)
        for number, run in enumerate(runs):
            for event in run.events:
                height = 1 - 0.05 * (number % 10)  # those at one step do not hide each other
                pictures.mark(axes, event["step"], of=pictures.style(number), height=height)
    pictures.legend(figure)
    return figure


def plane(run: Run) -> Figure | None:
    """What the network of a run makes of two-dimensional data, from its checkpoint; None if they are not.

    Classes: the regions, with their boundaries. Numbers: the first one predicted.

    Raises
    ------
    UsageError, CheckpointError, OSError
        If data or checkpoint cannot be read.
    """
    from gpuopt import checkpoint

    file = run.folder.checkpoint
    if not file.exists() or checkpoint.read(file, lambda *_: False)[0]["params/layers.0.w"].shape[0] != 2:
        return None
    saved, _ = checkpoint.read(file, lambda name, *_: name.startswith("params/"))
    data = dataset(run)
    if data.features != 2:
        raise UsageError(f"{run.config.data}: {data.features} features, expected 2 as in the run's checkpoint")
    layers = [{name: saved[f"params/layers.{i}.{name}"] for name in "wb"} for i in range(len(run.config.hidden) + 1)]
    return _plane(data, {"layers": layers})


def _plane(data: Dataset, params: Params) -> Figure:
    labels = [f"class {label}" for label in data.classes or ()]
    figure, (axes,) = pictures.figure(6.0, 5.2, labels=labels[:NAMED])
    (left, bottom), (right, top) = _frame(data)
    x, y = np.meshgrid(np.linspace(left, right, GRID), np.linspace(bottom, top, GRID))
    grid = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
    with np.errstate(all="ignore"):
        outputs = Perceptron(np, data.classes is not None).outputs(params, grid)
    axes.grid(visible=False)
    if data.classes is None:
        _surface(figure, axes, data, (x, y, outputs[:, 0].reshape(x.shape)))
    else:
        _regions(axes, data, (x, y, outputs.reshape(*x.shape, -1)), labels[:NAMED])
        pictures.legend(figure)
    axes.set(
        xlim=(left, right), ylim=(bottom, top), xlabel="Feature 0 (as in the data)", ylabel="Feature 1 (as in the data)"
    )
    return figure


def dataset(run: Run) -> Dataset:
    """The data that a run was trained on."""
    config = run.config
    if config.data is None:
        return spiral(np.random.RandomState(config.seed))
    return load(config.data, **dataclasses.asdict(config.reading))


def get_ready() -> None:
    """Load what draws."""
    import safetensors  # noqa: F401  (for `plane`)

    pictures.figure()


def rehearse(run: Run, until: Callable[[], bool]) -> None:
    """Draw a run for nobody, or a part of it, and something in the plane: what is drawn next takes less time."""

    def drawn() -> Iterator[tuple[str, Figure]]:
        yield from figures(run)
        params = initial_params(np.random.RandomState(0), [2, 8, 3])
        yield "boundary", _plane(spiral(np.random.RandomState(0)), params)

    pictures.pngs(itertools.takewhile(lambda _: not until(), drawn()))


def explained(run: Run) -> list[tuple[int, int, str]]:
    """Number, step and explanation of each event."""
    return [(number, event["step"], explain(event)) for number, event in enumerate(run.events, 1)]


def _marks(run: Run) -> list[tuple[int, str]]:
    """The steps with events, and their numbers; those that come too close to the one before have none."""
    numbers: dict[int, list[int]] = {}
    for number, event in enumerate(run.events, 1):
        numbers.setdefault(event["step"], []).append(number)
    marks: list[tuple[int, str]] = []
    last = -math.inf
    for step, own in sorted(numbers.items()):
        label = f"{own[0]}" if len(own) == 1 else f"{own[0]}, {own[1]}" if len(own) == 2 else f"{own[0]}...{own[-1]}"
        room = step - last > run.steps * (0.012 * (len(label) + 2))
        marks.append((step, label if room else ""))
        last = step if room else last
    return marks


def _draw(axes: Axes, panel: Panel, lines: Sequence[tuple[str, Run, str]]) -> None:
    """Draw the lines for which there are points, each in the style of its place among all."""
    values: list[float] = []
    losses = set()
    for number, (label, run, key) in enumerate(lines):
        steps, shown = run.points(key)
        if steps:
            pictures.draw_line(axes, steps, shown, number, label)
            values += shown
            losses.add("cross-entropy, nats" if run.classifies else "mean squared error")
    if panel.name == "accuracy":
        axes.set_ylim(-0.03, 1.03)
    else:
        pictures.scale(axes, values, from_zero=panel.name == "learning_rate")
    axes.set(xlabel=STEPS, ylabel=f"Loss ({' or '.join(sorted(losses))})" if panel.name == "loss" else panel.axis)
    axes.xaxis.get_major_locator().set_params(integer=True)


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
    figure.colorbar(drawn, ax=axes, fraction=0.2).set_label("Prediction; in the points: target (units of the target)")


def _rgb(color: str) -> list[float]:
    return [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
