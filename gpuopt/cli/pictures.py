"""What is drawn and compared: ``gpuopt plot``, ``compare`` and ``landscape``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpuopt.cli import options
from gpuopt.cli.application import aligned
from gpuopt.errors import UsageError

if TYPE_CHECKING:
    from gpuopt.rules import Rule

__all__ = ["compare", "landscape", "plot"]


def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, finished or not.")],
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Of several runs: a .html or a .png file. Default: runs.html here."),
    ] = None,
) -> None:
    """Draw one run, into its folder: report.html and pictures. Draw several runs over each other, into one file."""
    from gpuopt.runs.record.history import History
    from gpuopt.training import report

    if len(runs) == 1 and out is None:
        drawn = report.draw(runs[0])
    else:
        drawn = Path(out or "runs.html")
        several = [History.read(path) for path in runs]
        distinct = len({run.name for run in several}) == len(several)
        named = several if distinct else [run.called(path) for run, path in zip(several, runs, strict=True)]
        report.draw_over_each_other(named, drawn)
    typer.echo(str(drawn))


def compare(
    optimizers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OPTIMIZER...]",
            help="As NAME or NAME:ARG=VALUE,... like SGD:lr=0.1,momentum=0.9. Without arguments it gets ones that suit "
            "most data. With transforms before and after it, a chain: ClipNorm:limit=1+Adam:lr=0.01+EMA:decay=0.99. "
            f"NAME: {options.NAMES}. Default: SGD, AdaGrad, RMSProp and Adam.",
        ),
    ] = None,
    data: options.Data = None,
    target: options.Target = None,
    task: options.Task = None,
    standardize: options.Standardize = False,
    one_hot: options.OneHot = False,
    missing: options.Missing = None,
    validation: options.Validation = None,
    hidden: options.Hidden = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Passes over the data, of each. Default: 2000; with --data 10.")
    ] = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    init: options.Init = None,
    matmul: options.Matmul = None,
    device: options.Device = None,
    report_every: options.ReportEvery = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="LOSS", help="Count the steps to this training loss. Default: half of that before the first step."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="A new folder. Default: runs/compare-NAME-DATE-TIME.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Train the same network from the same start with several optimizers, and compare them.

    They see the same samples in the same order, one optimizer after the other, so that the times can be compared. The
    folder gets a report.html, and a run folder for each of them.
    """
    given = {name: value for name, value in locals().items() if value is not None and value is not False}
    for name in ("optimizers", "threshold", "out", "quiet"):
        given.pop(name, None)
    from gpuopt import markup
    from gpuopt.training.compare import EPOCHS
    from gpuopt.training.compare import compare as compared

    if data is None:
        given.setdefault("epochs", EPOCHS)
    found = compared(optimizers or (), options.config(given), threshold=threshold, out=out, quiet=quiet)
    if not quiet:
        head, rows = found.table()
        typer.echo("\n" + aligned([head, *[[markup.shown(value) for value in row] for row in rows]]))
        typer.echo(f"\nReport: {found.folder / 'report.html'}")


def landscape(
    name: Annotated[str, typer.Argument(metavar="[NAME|all]", help="What to draw.")] = "ravine",
    optimizers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OPTIMIZER...]",
            help=f"Others than the built-in ones, as for compare: NAME:ARG=VALUE,... or chains; NAME: {options.NAMES}.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", min=1, help="Default: what shows it best.")] = None,
    start: Annotated[str | None, typer.Option(metavar="X,Y", help="Default: what shows it best.")] = None,
    out: Annotated[str, typer.Option(metavar="DIR", help="The folder for the files.")] = "landscapes",
) -> None:
    """Draw the paths of optimizers over a function of two variables: a picture, an animation, and a page with both.

    \b
    Lessons:
      too-small   steps that are too small stagnate
      too-large   steps that are too large bounce
      momentum    momentum rolls out of the local minimum
      explodes    steps that are much too large explode
    All optimizers on:
      ravine, rosenbrock, beale, himmelblau, wells
    """
    from gpuopt import landscape as land

    if name not in {"all", *land.PRESETS}:
        raise UsageError(f"{name}: expected one of all, {', '.join(land.PRESETS)}")
    presets = {}
    for each in land.PRESETS if name == "all" else [name]:
        preset = land.PRESETS[each]
        rules = {text: _rule(text, steps or preset.steps) for text in optimizers or ()}
        point = None if start is None else _point(start, *preset.drawn)
        presets[each] = land.changed(preset, rules, steps, point)
    for each, preset in presets.items():
        try:
            drawn = land.draw(each, preset, Path(out))
        except OSError as error:
            raise UsageError(f"--out {out}: {error.strerror}") from None
        typer.echo("\n".join(map(str, drawn)))


def _rule(text: str, steps: int) -> Rule:
    """The rule of ``NAME:ARG=VALUE,...``, for so many steps."""
    from gpuopt.training import Config
    from gpuopt.training.compare import with_optimizer

    return with_optimizer(Config(epochs=steps, batch_size="full"), text, lambda: 1).rule(steps)


def _point(text: str, lower: tuple[float, float], upper: tuple[float, float]) -> tuple[float, float]:
    """The point of ``X,Y``, in the window between these corners."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise UsageError(f"--start {text}: expected two numbers, as in -1.5,2") from None
    if not (lower[0] <= x <= upper[0] and lower[1] <= y <= upper[1]):
        window = f"x from {lower[0]} to {upper[0]} and y from {lower[1]} to {upper[1]}"
        raise UsageError(f"--start {text}: is not in the picture; expected {window}")
    return x, y
