"""``report.html``: a run, or several over each other, on one page that needs nothing else. Its pictures lie beside it."""

from __future__ import annotations

import contextlib
import html
import itertools
import json
import re
from typing import TYPE_CHECKING

from gpuopt import files, markup, pictures
from gpuopt.errors import UsageError
from gpuopt.limits import expect_file
from gpuopt.runs.record.history import History
from gpuopt.runs.report import plots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gpuopt.pictures import Figure

__all__ = ["draw", "draw_over_each_other", "rehearse"]

FILES = re.compile(r"[^\w.-]")
"""What a file's name had better not have."""
MOST, LARGEST = 64, 16 << 20
"""Pictures of a loop's own on the page, and bytes of one."""
SHOWN = {
    "device": "Device",
    "reason": "Because",
    "epochs": "Epochs",
    "steps": "Steps",
    "train_loss": "Loss, training set",
    "train_accuracy": "Accuracy, training set",
    "test_loss": "Loss, test set",
    "test_accuracy": "Accuracy, test set",
    "train_rmse": "RMSE, training set (the target's units)",
    "train_r2": "R2, training set",
    "test_rmse": "RMSE, test set (the target's units)",
    "test_r2": "R2, test set",
    "seconds": "Time (s)",
    "stopped": "Stopped, because",
}
PLACES = {"folder", "backend"}
"""What of a summary the page need not say."""


def draw(
    path: str | Path,
    about: Callable[[History], str] = lambda _: "",
    more: Callable[[History], Iterator[tuple[str, str, Figure]]] = lambda _: iter(()),
) -> Path:
    """Draw the report of a run folder into it, also of a run that still goes on or was killed; return the page's path.

    `about` says in a sentence what a run is, `more` gives further pictures: name, caption, figure. What cannot be drawn of them
    is a note. UsageError if it is no run folder, or damaged.
    """
    run = History.read(path)
    notes: list[str] = []
    captions = {panel.name: panel.caption for panel in plots.PANELS}

    def figures() -> Iterator[tuple[str, Figure]]:
        yield from plots.figures(run)
        try:
            for name, caption, figure in more(run):
                captions[name] = caption
                yield name, figure
        except (KeyError, OSError, ValueError) as error:  # UsageError and CheckpointError are ValueErrors
            notes.append(f"Without pictures of what the network predicts: {error}")

    drawn = pictures.pngs(figures())
    for name, content in drawn.items():
        files.write(run.folder.path / f"{FILES.sub('_', name)}.png", content)
    if not run.rows:
        notes.append("No metrics yet.")
    parts = [f"<p>{html.escape(text)}</p>" for text in [about(run), *notes] if text]
    parts += ["<h2>How it ended</h2>" if run.summary else "<h2>How far it came</h2>", markup.table([], _results(run))]
    captioned = [(content, captions.get(name, name)) for name, content in drawn.items()]
    gallery = "".join(markup.image(*shown) for shown in [*captioned, *_images(run)])
    parts.append(f'<h2>Step by step</h2><div class="pictures">{gallery}</div>')
    if run.events:
        parts += ["<h2>Events</h2>", markup.table(["number", "step", "what happened"], plots.explained(run))]
    settings = html.escape(json.dumps(run.content.get("config", run.content), indent=2))
    parts.append(f"<h2>Configuration</h2><details><summary>all of it</summary><pre>{settings}</pre></details>")
    page = run.folder.path / "report.html"
    files.write(page, markup.page(run.name, *parts))
    return page


def get_ready() -> None:
    """Load what draws."""
    import safetensors  # noqa: F401

    pictures.figure()


def rehearse(path: str | Path, until: Callable[[], bool], *more: Callable[[], Figure]) -> None:
    """Draw a run for nobody, or a part of it, and more: what is drawn next takes less time."""

    def drawn() -> Iterator[tuple[str, Figure]]:
        yield from plots.figures(History.read(path))
        yield from ((str(number), one()) for number, one in enumerate(more))

    pictures.pngs(itertools.takewhile(lambda _: not until(), drawn()))


def draw_over_each_other(runs: Sequence[History], out: Path, *parts: str, title: str | None = None) -> None:
    """Draw several runs into one page, or into one picture if that is what the file's name says.

    Before the pictures stands more HTML, by default a table of results; the title is by default the runs' names. UsageError if
    the name ends in something else than ``.html`` or ``.png``, or the file cannot be written.
    """
    if out.suffix not in {".html", ".png"}:
        raise UsageError(f"--out {out}: expected a file .html or .png")
    content = pictures.png(plots.overlay(runs))
    try:
        if out.suffix == ".png":
            files.write(out, content)
            return
        names = ", ".join(run.name for run in runs)
        events = [(run.name, step, text) for run in runs for _, step, text in plots.explained(run)]
        parts = parts or ("<h2>Results</h2>", _compared(runs))
        told = ["<h2>Events</h2>", markup.table(["run", "step", "what happened"], events)] if events else []
        caption = f"{names}. Vertical lines: events, in the style of their run, with its marker on them"
        picture = markup.image(content, caption if events else names)
        files.write(out, markup.page(title or names, *parts, "<h2>Step by step</h2>", picture, *told))
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from None


def _images(run: History) -> Iterator[tuple[bytes, str]]:
    """What the loop showed of what it made, as it was last."""
    for file in sorted(run.folder.path.glob("image-*.png"))[:MOST]:
        with contextlib.suppress(OSError):
            if expect_file(file) <= LARGEST:
                yield file.read_bytes(), file.stem.removeprefix("image-")


def _results(run: History) -> list[tuple[str, object]]:
    if run.summary is not None:
        known = dict.fromkeys([*SHOWN, *(name for name in run.summary if name not in PLACES)])
        return [(_called(name), run.summary[name]) for name in known if run.summary.get(name) is not None]
    last = run.rows[-1] if run.rows else {}
    now = [(_called(name), value) for name, value in last.items() if value is not None]
    return [("State", "still going on, stopped or killed"), *now]


def _called(name: str) -> str:
    """A result in words; metrics of a loop's own have any name."""
    return SHOWN.get(name) or name.replace("_", " ").capitalize()


def _compared(runs: Sequence[History]) -> str:
    """A row for each run, a column for each result that one has."""
    results = [dict(_results(run)) for run in runs]
    names = list(dict.fromkeys(name for own in results for name in own if name != SHOWN["reason"]))
    return markup.table(
        ["run", *names], [[run.name, *(own.get(n, "") for n in names)] for run, own in zip(runs, results, strict=True)]
    )
