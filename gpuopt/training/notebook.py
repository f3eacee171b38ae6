"""A run in a notebook: how it ended, its optimizer and leaves, its curves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuopt import notebook
from gpuopt.errors import UsageError
from gpuopt.markup import heading, table
from gpuopt.runs.record.folder import RunFolder
from gpuopt.runs.record.history import History
from gpuopt.training.config import Config

if TYPE_CHECKING:
    from gpuopt.training.result import Result

__all__ = ["to_html"]


def to_html(result: Result) -> str:
    """The run, as far as its folder is still there."""
    folder = RunFolder(result.folder)
    summary = {name: value for name, value in dataclasses.asdict(result).items() if value not in (None, ())}
    parts = [heading(f"Run {Path(result.folder).name}"), table((), summary.items())]
    return "".join([*parts, *_optimizer(folder), *_curves(folder)])


def _optimizer(folder: RunFolder) -> list[str]:
    """Groups with their hyperparameters, as the run began, and leaves."""
    from gpuopt import tensorfile

    try:
        rule: Any = Config.from_json(folder.read_config().get("config")).optimizer
        arrays, about = tensorfile.outline(folder.checkpoint)
        rules = json.loads(about["gpuopt"])["rules"]
    except (OSError, ValueError, KeyError, TypeError):  # UsageError and CheckpointError are ValueErrors
        return []
    params = sorted((name.removeprefix("params/"), x) for name, x in arrays.items() if name.startswith("params/"))
    leaves = [(name, list(x.shape), x.dtype) for name, x in params]
    groups = []
    for pattern, own in rules.items():
        for name in rule.hyperparameters():
            tuned = own["tuned"].get(name)
            groups.append((pattern, own["name"], name, getattr(rule, name), "" if tuned is None else tuned))
    return [
        table(("group", "rule", "hyperparameter", "at first", "changed to"), groups, notebook.MOST_ROWS),
        table(("leaf", "shape", "dtype"), leaves, notebook.MOST_ROWS),
    ]


def _curves(folder: RunFolder) -> list[str]:
    try:
        run = History.read(folder.path)
    except UsageError:
        return []
    marks = [row["step"] for row in run.events if row["event"] in {"tune", "rollback", "explosion"}]
    unit = run.unit("loss")
    drawn = []
    for title, keys in (
        (f"loss ({unit})" if unit else "loss", {"training": "loss", "test": "test_loss"}),
        ("accuracy (fraction of samples)", {"training": "accuracy", "test": "test_accuracy"}),
        ("learning rate (per step)", {"lr": "lr"}),
    ):
        lines = {name: list(zip(*run.points(key), strict=True)) for name, key in keys.items()}
        drawn.append(notebook.curves(title, {name: line for name, line in lines.items() if line}, marks=marks))
    return drawn
