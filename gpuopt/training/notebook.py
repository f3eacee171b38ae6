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
