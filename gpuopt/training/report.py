"""The report of a training: of a run, with its network, and what that predicts in the plane."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpuopt.errors import UsageError
from gpuopt.runs.report import page
from gpuopt.runs.report.page import draw_over_each_other, get_ready
from gpuopt.training.config import Config
from gpuopt.training.plane import plane, rehearsal

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
    data = "the built-in spiral" if config.data is None else Path(config.data).name
    hidden = "-".join(map(str, config.hidden)) or "no"
    return f"Trained on {data} with {hidden} hidden units by {config.rule()}."


def _more(run: History) -> Iterator[tuple[str, str, Figure]]:
    if "config" in run.content and (drawn := plane(run)) is not None:
        yield "boundary", "What the network predicts in the plane, and the training samples", drawn
