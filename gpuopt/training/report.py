"""The report of a training: of a run, with its network, and what that predicts in the plane."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpuopt.errors import UsageError
from gpuopt.runs.report import page
from gpuopt.runs.report.page import draw_over_each_other, get_ready
from gpuopt.training.applied import load_model
from gpuopt.training.config import ARRAYS, SPIKES, Config
from gpuopt.training.config_rule import BUILT_IN_RULE
from gpuopt.training.outcome import outcomes, plane, rehearsal
from gpuopt.training.preparing import dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpuopt.pictures import Figure
    from gpuopt.runs.record.history import History

__all__ = ["draw", "draw_over_each_other", "get_ready", "rehearse"]


def draw(path: str | Path) -> Path:
    """Draw the report of a run folder into it, as `gpuopt.runs.report.page.draw` does, of an own loop's, too.

    Raises
    ------
    UsageError
        If it is no run folder, or damaged.
    OSError
        If the folder cannot be written.
    """
    return page.draw(path, _about, _more)


def rehearse(path: str | Path, until: Callable[[], bool]) -> None:
    """Draw for nobody."""
    page.rehearse(path, until, rehearsal)


def _about(run: History) -> str:
    if "config" not in run.content:
        return ""
    try:
        config = Config.from_json(run.content["config"])
    except UsageError as error:
        raise UsageError(f"{run.folder.config}: {error}") from None
    data = {None: "the built-in spiral", ARRAYS: "arrays"}.get(config.data) or Path(str(config.data)).name
    hidden = "-".join(map(str, config.hidden)) or "no"
    about = f"Trained on {data} with {hidden} hidden units by {config.rule()}."
    return f"{about} {SPIKES}." if config.optimizer == BUILT_IN_RULE else about


def _more(run: History) -> Iterator[tuple[str, str, Figure]]:
    if "config" not in run.content or not run.folder.checkpoint.exists():
        return
    config = Config.from_json(run.content["config"])
    if config.data == ARRAYS:
        raise UsageError("it was trained on arrays, which the run folder does not keep")
    data = dataset(config)
    if (drawn := plane(run, data)) is not None:
        yield "boundary", "What the network predicts in the plane, and the training samples", drawn
    if (run.folder.path / "model.json").exists():  # version 0.1.0 wrote none
        yield from outcomes(load_model(run.folder.path), data, is_validation=config.validation is not None)
