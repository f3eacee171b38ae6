"""A run in a notebook: how it ended, its optimizer and leaves, its curves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuopt import notebook
from gpuopt.errors import UsageError
from gpuopt.runs.record.folder import RunFolder
from gpuopt.training.config import Config

if TYPE_CHECKING:
    from gpuopt.training.run import Result

__all__ = ["to_html"]


def to_html(result: Result) -> str:
    """The run, as far as its folder is still there."""
    folder = RunFolder(result.folder)
    summary = {name: value for name, value in dataclasses.asdict(result).items() if value is not None}
    parts = [notebook.heading(f"Run {Path(result.folder).name}"), notebook.table(("", ""), summary.items())]
    return "".join([*parts, *_optimizer(folder), *_curves(folder)])


def _optimizer(folder: RunFolder) -> list[str]:
    """Groups with their hyperparameters, as the run began, and leaves."""
    import safetensors

    try:
        rule: Any = Config.from_json(folder.read_config().get("config")).optimizer
        with safetensors.safe_open(folder.checkpoint, framework="numpy") as file:
            rules = json.loads(file.metadata()["gpuopt"])["rules"]
            names = [name for name in file.keys() if name.startswith("params/")]  # noqa: SIM118  (it is no dict)
            shapes = {name: file.get_slice(name) for name in names}
            leaves = [
                (name.removeprefix("params/"), x.get_shape(), x.get_dtype()) for name, x in sorted(shapes.items())
            ]
    except (UsageError, OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return []
    groups = []
    for pattern, own in rules.items():
        for name in rule.hyperparameters():
            tuned = own["tuned"].get(name)
            groups.append((pattern, own["name"], name, getattr(rule, name), "" if tuned is None else tuned))
    return [
        notebook.table(("group", "rule", "hyperparameter", "at first", "changed to"), groups),
        notebook.table(("leaf", "shape", "dtype"), leaves),
    ]


def _curves(folder: RunFolder) -> list[str]:
    try:
        rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    except (OSError, ValueError):
        return []
    marks = [row["step"] for row in rows if row.get("event") in {"tune", "rollback", "explosion"}]
    reported = [row for row in rows if "event" not in row]
    classifies = any(row["accuracy"] is not None for row in reported)
    loss = "loss (nats per sample)" if classifies else "loss (mean squared error)"
    drawn = []
    for title, keys in (
        (loss, {"training": "loss", "test": "test_loss"}),
        ("accuracy (fraction of samples)", {"training": "accuracy", "test": "test_accuracy"}),
        ("learning rate (per step)", {"lr": "lr"}),
    ):
        lines = {name: [(row["step"], row[key]) for row in reported if key in row] for name, key in keys.items()}
        drawn.append(notebook.curves(title, {name: line for name, line in lines.items() if line}, marks=marks))
    return drawn
