"""``gpuopt train``."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gpuopt.cli import options
from gpuopt.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuopt.training import Result, Team

__all__ = ["train"]

RESUMABLE = {"data", "labels", "epochs", "device", "on_gpu_error", "on_explosion", "lr", "clip_norm", "clip_value"}
"""Options that a resumed run may have anew."""


def train(
    data: options.Data = None,
    target: options.Target = None,
    task: options.Task = None,
    standardize: options.Standardize = False,
    one_hot: options.OneHot = False,
    missing: options.Missing = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="A column to leave out. May be repeated.")
    ] = None,
    labels: options.Labels = None,
    encoding: options.Encoding = None,
    unscaled_target: Annotated[
        bool,
        typer.Option("--unscaled-target", help="Train a regression on the target as it is; by default it is scaled."),
    ] = False,
    validation: options.Validation = None,
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="End when the loss of the test set or validation part has not become lower for N epochs; the best state "
            "is the model.",
        ),
    ] = None,
    class_weights: Annotated[
        str | None, typer.Option(metavar="balanced", help="Let each class count alike, however many samples it has.")
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="relu, leaky_relu, elu, tanh, sigmoid or silu. Default: relu."),
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Leave out this share of the hidden units in each step.")
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Shrink parameters by this times the learning rate in each step."),
    ] = None,
    hidden: options.Hidden = None,
    optimizer: Annotated[str | None, typer.Option(metavar="NAME", help=f"{options.NAMES}. Default: Adam.")] = None,
    lr: Annotated[float | None, typer.Option(metavar="RATE", help="Learning rate. Default: the optimizer's.")] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:ARG=VALUE,...]",
            help=f"How the learning rate goes on, as in cosine or step:factor=0.5,every=1000: {options.SCHEDULED}; plateau is told "
            "the loss of each reported epoch, of the test set if there is one. Default: it stays; for the "
            "spiral inverse_time:decay=5e-7 from 0.05, if none of --optimizer, --lr and --schedule is given.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any hyperparameter, as in beta1=0.95. May be repeated."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Passes over the data. Default: 10000; with --data 10, or as many as it takes for 2000 steps.",
        ),
    ] = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    init: options.Init = None,
    matmul: options.Matmul = None,
    device: options.Device = None,
    on_gpu_error: Annotated[
        str | None,
        typer.Option(
            metavar="stop|cpu",
            help="When the GPU fails on the way, out of memory for instance: save and stop, or go on on the CPU. "
            "Default: stop.",
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="The run folder, a new one. Default: runs/NAME-DATE-TIME.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Go on with the run in this folder, as if it had not been interrupted. Of the other options only "
            "--data and --labels (moved), --epochs (to extend it), --device, --on-gpu-error, --on-explosion, --lr, --clip-norm, "
            "--clip-value, --no-report, --live, --live-host, --processes and --quiet go with it.",
        ),
    ] = None,
    report_every: options.ReportEvery = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(metavar="N|Ts", help="Steps, or seconds as in 30s, between two checkpoints. Default: 30s."),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(metavar="N", help="Last checkpoints that stay, beside the best one. Default: 2.")
    ] = None,
    on_explosion: Annotated[
        str | None,
        typer.Option(
            metavar="stop|skip|rollback",
            help="When parameters or loss explode: go back to the last good state and stop, or go on from there with "
            "half the learning rate; skip leaves out steps whose gradients are not finite. Default: stop.",
        ),
    ] = None,
    clip_norm: Annotated[
        float | None, typer.Option(metavar="X", help="Scale all gradients down to this norm together.")
    ] = None,
    clip_value: Annotated[
        float | None, typer.Option(metavar="X", help="Cut every element of the gradients to this size.")
    ] = None,
    average: Annotated[
        float | None,
        typer.Option(metavar="DECAY", help="Average the parameters, as with 0.999, and evaluate with the average."),
    ] = None,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Draw no report.html at the end. The same: GPUOPT_REPORT=0.")
    ] = False,
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Serve a page with curves and controls while it trains, and print its address. Needs gpuopt[live].",
        ),
    ] = False,
    live_host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Address on which --live listens. Default: 127.0.0.1, this machine alone."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(metavar="N", help="Train on N processes of this machine, over MPI. Needs gpuopt[mpi] and an MPI."),
    ] = None,
    parts: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Cut each batch into N parts, whoever computes them; the result depends on N alone. Default: one a process.",
        ),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Train a multilayer perceptron.

    Targets that are text or few different whole numbers are classes (softmax and cross-entropy), other numbers are predicted
    (mean squared error of the scaled target). Images of bytes are flattened and scaled to [0, 1]. One line says what was taken
    for what, and which option says otherwise. `gpuopt predict`, `evaluate` and `export` take the run folder.

    Ctrl-C lets the current step end, saves, and says how to resume. `gpuopt tune` changes a training while it runs.
    """
    given = {name: value for name, value in locals().items() if value is not None and value is not False}
    for name in ("quiet", "live", "live_host", "processes"):
        given.pop(name, None)
    report = None if given.pop("no_report", None) is None else False
    with _team(processes) as team:
        if team is not None and not team.leads:
            team.serve()
            return
        from gpuopt import training
        from gpuopt.runs.secondary import warned
        from gpuopt.training.progress import progress

        # What a launcher passes on is no terminal, even if it looks like one.
        callbacks = [] if quiet else [progress(plain=team is not None)]
        if live or live_host is not None:
            from gpuopt.runs.control.live import Page

            callbacks.append(Page(live_host))
        if given.pop("resume", None) is not None:
            for name in set(given) - RESUMABLE:
                raise UsageError(f"{_flag(name)}: is as it was in a run that is resumed, expected none")
            result = training.resume(str(resume), **given, callbacks=callbacks, report=report, team=team)
        else:
            given.pop("out", None)
            result = training.train(options.config(given), out=out, callbacks=callbacks, report=report, team=team)
        if not quiet:
            with warned("the result is not printed (%s)"):
                _tell(result, "Test set" if validation is None else "Validation part")


@contextlib.contextmanager
def _team(processes: int | None) -> Iterator[Team | None]:
    """The processes of this MPI job, if there are several; those that are asked for are started, and it ends with them."""
    from gpuopt.training.team import team_of_job

    team = team_of_job()
    if team is None and processes is not None:
        from gpuopt.training.launch import launched

        if processes < 1:
            raise UsageError(f"--processes {processes}: expected a positive integer")
        if processes > 1:
            raise typer.Exit(launched(processes, sys.argv[1:]))
    with team or contextlib.nullcontext():
        yield team


def _flag(name: str) -> str:
    """The option of a parameter."""
    return "--set" if name == "settings" else f"--{name.replace('_', '-')}"


def _tell(result: Result, tested: str) -> None:
    """The last lines: how it ended."""
    if result.stopped is not None:
        typer.echo(f"Stopped: {result.stopped}")
    for what, loss, accuracy, rmse, r2 in (
        ("Training set", result.train_loss, result.train_accuracy, result.train_rmse, result.train_r2),
        (tested, result.test_loss, result.test_accuracy, result.test_rmse, result.test_r2),
    ):
        if loss is not None:
            numbers = {"loss": loss, "accuracy": accuracy, "R2": r2}
            parts = [f"{name} {value:.4f}" for name, value in numbers.items() if value is not None]
            typer.echo(f"{what}: {', '.join(parts)}" + ("" if rmse is None else f", RMSE {rmse:.6g}"))
    if result.is_above_its_lowest:
        lower = f"The loss was {result.lowest_loss:.4f} after epoch {result.lowest_epoch}; the model is that of the last one"
        typer.echo(f"{lower}. --schedule cosine, or --validation with --patience, ends lower")
    typer.echo(f"{result.epochs} epochs in {result.seconds:.1f} s; run folder: {result.folder}")
