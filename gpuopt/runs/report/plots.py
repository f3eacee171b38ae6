"""Pictures of runs: metrics by step with what happened on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuopt import pictures
from gpuopt.runs.record.events import NO_METRICS, explain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gpuopt.pictures import Axes, Figure
    from gpuopt.runs.record.history import History

__all__ = ["explained", "figures", "overlay"]

STEPS = "Step (updates of the parameters)"

MOST = 32
"""Pictures."""


@dataclass(frozen=True)
class Panel:
    """A picture of some metrics: what it is called, its axis, what each line shows, and what is said below."""

    name: str
    axis: str
    lines: dict[str, str]
    caption: str


PANELS = (
    Panel("loss", "", {"loss": "training set", "test_loss": "test set"}, "Loss: the mean over each reported epoch"),
    Panel("accuracy", "Accuracy (share of samples)", {"accuracy": "training set", "test_accuracy": "test set"},
          "Accuracy: the mean over each reported epoch"),
    Panel("rmse", "RMSE (units of the target)", {"rmse": "training set", "test_rmse": "test set"},
          "Root mean squared error, in the target's own units, over each reported epoch"),
    Panel("learning_rate", "Learning rate (per step)", {"lr": "learning rate"}, "Learning rate of the step"),
    Panel("norms", "Euclidean norm (no unit)", {"gradient_norm": "gradient, before clipping", "update_norm": "update"},
          "How long the gradient was, and how far its step went, over all parameters together"),
)  # fmt: skip


def _panels(runs: Sequence[History]) -> list[Panel]:
    """The panels of the known metrics, and one for each other metric."""
    known = {key for panel in PANELS for key in panel.lines} | NO_METRICS
    others = dict.fromkeys(key for run in runs for row in run.rows for key in row if key not in known)
    return [*PANELS, *(Panel(key, key.replace("_", " ").capitalize(), {key: key}, key) for key in others)][:MOST]


def figures(run: History) -> Iterator[tuple[str, Figure]]:
    """The pictures of one run and their names; what it has no metrics for is left out."""
    for panel in _panels([run]):
        is_flat = panel.name == "learning_rate" and len(set(run.points("lr")[1])) == 1
        if any(run.points(key)[0] for key in panel.lines) and not is_flat:
            labels = panel.lines if run.unit("loss") else {key: key.replace("_", " ") for key in panel.lines}
            lines = [(label, run, key) for key, label in labels.items()]
            figure, (axes,) = pictures.figure(labels=list(labels.values()))
            _draw(axes, panel, lines)
            pictures.legend(figure)
            margin = 0.02 * run.steps
            axes.set_xlim(-margin, run.steps + margin)
            for step, numbers in _marks(run):
                pictures.mark(axes, step, numbers)
            yield panel.name, figure


def overlay(runs: Sequence[History]) -> Figure:
    """Several runs over each other, in one picture with a part for each metric."""
    panels = _panels(runs)
    parts = [(panel, key) for panel in panels for key in panel.lines if any(run.points(key)[0] for run in runs)]
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


def explained(run: History) -> list[tuple[int, int, str]]:
    """Number, step and explanation of each event."""
    return [(number, event["step"], explain(event)) for number, event in enumerate(run.events, 1)]


def _marks(run: History) -> list[tuple[int, str]]:
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


def _draw(axes: Axes, panel: Panel, lines: Sequence[tuple[str, History, str]]) -> None:
    """Draw the lines that have points. A line's style depends on its position in ``lines``, whether others are drawn or not."""
    values: list[float] = []
    units = set()
    for number, (label, run, key) in enumerate(lines):
        steps, shown = run.points(key)
        if steps:
            pictures.draw_line(axes, steps, shown, number, label)
            values += shown
            units.add(run.unit(key) or "as the loop told it")
    if panel.name == "accuracy":
        axes.set_ylim(-0.03, 1.03)
    else:
        pictures.scale(axes, values, from_zero=panel.name == "learning_rate")
    axes.set(xlabel=STEPS, ylabel=panel.axis or f"Loss ({' or '.join(sorted(units))})")
    axes.xaxis.get_major_locator().set_params(integer=True)
