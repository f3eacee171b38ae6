"""The command ``gpuopt``."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from gpuopt.rules import OF_VECTORS, RULES
from gpuopt.schedules import SCHEDULES
from gpuopt.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpuopt.rules import Rule
    from gpuopt.training import Config, Result, Team

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

RESUMABLE = {"data", "labels", "epochs", "device", "on_gpu_error", "on_explosion", "lr", "clip_norm", "clip_value"}
"""Options that a resumed run may have anew."""
NAMES = f"{', '.join(OF_VECTORS[:-1])} or {OF_VECTORS[-1]}"
SCHEDULED = ", ".join(name for name in SCHEDULES if name not in {"join", "scaled"})


class Command(TyperCommand):
    """A command that knows what an unknown option is called here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; an error for an unknown option names the one that was probably meant."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            option = getattr(error, "option_name", None)  # of NoSuchOption, which typer does not export
            if option is not None and hasattr(error, "possibilities") and hasattr(error, "message"):
                options = [name for parameter in self.get_params(ctx) for name in parameter.opts]
                error.message += did_you_mean(option, options, shown=str) or _set_instead(option, options)
                error.possibilities = None
            raise


def main() -> None:
    """Run the command line."""
    _open_standard_streams()
    try:
        app(prog_name="gpuopt")
    except (OSError, UnicodeEncodeError) as error:  # of what is printed on, as of a full disk
        with contextlib.suppress(OSError):
            typer.echo(f"gpuopt: {getattr(error, 'strerror', None) or error}", err=True)
        sys.exit(1)
    finally:
        _flush()
        gc.freeze()  # what is left goes with the process: to look for cycles in it takes longer than all else at the end


def _open_standard_streams() -> None:
    """Have something behind the descriptors 0 to 2: one that is closed would become that of the next file, a run's for instance."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  (till the end)


def _flush() -> None:
    """Let go of what cannot be printed any more: the interpreter would try it again at its end, and fail by that."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _print_version(wanted: bool) -> None:
    if wanted:
        import gpuopt

        typer.echo(f"gpuopt {gpuopt.__version__}")
        raise typer.Exit


@app.callback()
def gpuopt(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Gradient-descent optimizers for NumPy and CuPy arrays, and a network to watch them train.

    Training runs on an NVIDIA GPU through CuPy where there is one that works, and on the CPU through NumPy where there
    is none; the first line says which, and why. Every run leaves a folder with its configuration, metrics, parameters
    and a summary, and can be resumed from there.

    \b
    Examples:
      gpuopt train
          Train a small network on three spiral arms.
      gpuopt train --data mnist.npz --hidden 256,128 --epochs 5
          Train on your own data, a few passes over it.
      gpuopt train --optimizer SGD --lr 1 --schedule inverse_time:decay=1e-3 --set momentum=0.9
          Choose the optimizer and how its learning rate falls.
      gpuopt tune runs/FOLDER lr=0.01
          Change a training while it runs.
      gpuopt info
          See which device would be taken, and what is missing for another.

    `gpuopt COMMAND --help` explains each command and its options.
    """


# Options that several commands share.
Data = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Data to train on: .npz with x_train and y_train (and x_test and y_test), or x and y; .csv or "
        ".parquet with --target; .npy with --labels, which may be larger than memory. With --resume, where the run's "
        "file is by now. Default: a built-in spiral of three arms.",
    ),
]
Target = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of a table to predict.")]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="TASK",
        help="classification, regression, or auto: text and few different whole numbers are classes, other numbers "
        "are predicted. What was taken for what is said.",
    ),
]
Standardize = Annotated[
    bool, typer.Option("--standardize", help="Bring each feature to mean 0 and standard deviation 1.")
]
OneHot = Annotated[bool, typer.Option("--one-hot", help="Make categories of columns of text: an input for each text.")]
Missing = Annotated[
    str | None,
    typer.Option(
        metavar="mean|drop",
        help="Missing values become the column's mean over the training part, or their rows are left out. Default: "
        "they are refused.",
    ),
]
Validation = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Set this share of the samples apart, as in 0.2; of each class alike."),
]
Hidden = Annotated[
    str | None, typer.Option(metavar="N,N,...", help="Units of the hidden layers. Default: 64; with --data 128.")
]
BatchSize = Annotated[
    str | None, typer.Option(metavar="N|full", help="Samples in a step. Default: full; with --data 128.")
]
Seed = Annotated[
    int | None, typer.Option(metavar="N", help="Of the weights and of the order of the samples. Default: 0.")
]
Init = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="How weights start: small (0.01) or he. Default: small; with --data he."),
]
Matmul = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="Precision in which matrices are multiplied, float32 or float64 (slower; a run then hardly depends on "
        "the machine). Default: float32; for the spiral float64 if any of --optimizer, --lr and --schedule is given.",
    ),
]
Device = Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N. Default: auto.")]
ReportEvery = Annotated[
    int | None,
    typer.Option(metavar="N", help="Epochs from one row of metrics to the next. Default: about 100 rows."),
]
Labels = Annotated[
    str | None, typer.Option(metavar="FILE", help="The .npy file with the targets, where the data are an x.npy.")
]
Encoding = Annotated[str | None, typer.Option(metavar="NAME", help="Of a .csv file, as in cp1252. Default: UTF-8.")]
Folder = Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")]
Going = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run that goes on.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


@app.command(cls=Command)
def train(
    data: Data = None,
    target: Target = None,
    task: Task = None,
    standardize: Standardize = False,
    one_hot: OneHot = False,
    missing: Missing = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="A column to leave out. May be repeated.")
    ] = None,
    labels: Labels = None,
    encoding: Encoding = None,
    unscaled_target: Annotated[
        bool,
        typer.Option("--unscaled-target", help="Train a regression on the target as it is; by default it is scaled."),
    ] = False,
    validation: Validation = None,
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
    hidden: Hidden = None,
    optimizer: Annotated[str | None, typer.Option(metavar="NAME", help=f"{NAMES}. Default: Adam.")] = None,
    lr: Annotated[float | None, typer.Option(metavar="RATE", help="Learning rate. Default: the optimizer's.")] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:ARG=VALUE,...]",
            help=f"How the learning rate goes on, as in cosine or step:factor=0.5,every=1000: {SCHEDULED}; plateau is told "
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
    batch_size: BatchSize = None,
    seed: Seed = None,
    init: Init = None,
    matmul: Matmul = None,
    device: Device = None,
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
            "--data and --labels (moved), --epochs (to extend it), --device, --on-gpu-error, --on-explosion, --lr, --clip-norm, --clip-value and --quiet "
            "go with it.",
        ),
    ] = None,
    report_every: ReportEvery = None,
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
    quiet: Quiet = False,
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
    with _told_plainly(), _team(processes) as team:
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
                raise training.UsageError(f"{_flag(name)}: is as it was in a run that is resumed, expected none")
            result = training.resume(str(resume), **given, callbacks=callbacks, report=report, team=team)
        else:
            given.pop("out", None)
            result = training.train(_config(given), out=out, callbacks=callbacks, report=report, team=team)
        if not quiet:
            with warned("the result is not printed (%s)"):
                _tell(result, "Test set" if validation is None else "Validation part")


@app.command(cls=Command)
def predict(
    run: Folder,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file .csv, .parquet, .npz (with x) or .npy.")],
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A file .csv, .npz or .parquet. Default: .csv to the standard output."),
    ] = None,
    proba: Annotated[bool, typer.Option("--proba", help="The probability of each class, too.")] = False,
    encoding: Encoding = None,
) -> None:
    """Predict with the model of a run, for each row of a file.

    Columns are found by name; what is missing is refused, what is more is said. Predictions are class names, or numbers in the
    target's own units, in a column called like the target.
    """
    with _told_plainly():
        from gpuopt.training import load_model
        from gpuopt.training.predicting import predict_file

        for note in predict_file(load_model(run), data, out, proba=proba, encoding=encoding):
            typer.echo(note, err=True)


@app.command(cls=Command)
def evaluate(
    run: Folder,
    data: Annotated[str, typer.Argument(metavar="DATA", help="As for predict, with the targets in it.")],
    labels: Labels = None,
    encoding: Encoding = None,
) -> None:
    """Say how good the model of a run is on a file that has the targets: accuracy, or RMSE and R2."""
    with _told_plainly():
        from gpuopt.training import load_model
        from gpuopt.training.predicting import evaluate_file, told

        model = load_model(run)
        found, notes = evaluate_file(model, data, labels=labels, encoding=encoding)
        for note in notes:
            typer.echo(note, err=True)
        typer.echo("\n".join(told(found, model.target.names)))


@app.command(cls=Command)
def export(
    run: Folder,
    kind: Annotated[str, typer.Option("--format", metavar="onnx|npz", help="onnx needs gpuopt[onnx].")] = "onnx",
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Default: model.onnx or model.npz in the run folder.")
    ] = None,
) -> None:
    """Write the model of a run for other programs.

    It takes raw features as one float64 matrix and gives what `gpuopt predict` gives: in ONNX the outputs are called label and
    probabilities, or like the target of a regression.
    """
    with _told_plainly():
        from pathlib import Path

        from gpuopt.training import load_model
        from gpuopt.training.export import export as exported

        typer.echo(str(exported(load_model(run), kind, out or Path(run) / f"model.{kind}")))


@app.command(cls=Command)
def plot(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, finished or not.")],
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Of several runs: a .html or a .png file. Default: runs.html here."),
    ] = None,
) -> None:
    """Draw one run, into its folder: report.html and pictures. Draw several runs over each other, into one file."""
    with _told_plainly():
        from pathlib import Path

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


@app.command(cls=Command)
def compare(
    optimizers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OPTIMIZER...]",
            help="As NAME or NAME:ARG=VALUE,... like SGD:lr=0.1,momentum=0.9. Without arguments it gets ones that suit "
            f"most data. NAME: {NAMES}. Default: SGD, AdaGrad, RMSProp and Adam.",
        ),
    ] = None,
    data: Data = None,
    target: Target = None,
    task: Task = None,
    standardize: Standardize = False,
    one_hot: OneHot = False,
    missing: Missing = None,
    validation: Validation = None,
    hidden: Hidden = None,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Passes over the data, of each. Default: 2000; with --data 10.")
    ] = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    init: Init = None,
    matmul: Matmul = None,
    device: Device = None,
    report_every: ReportEvery = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="LOSS", help="Count the steps to this training loss. Default: half of that before the first step."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="A new folder. Default: runs/compare-NAME-DATE-TIME.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train the same network from the same start with several optimizers, and compare them.

    They see the same samples in the same order, one optimizer after the other, so that the times can be compared. The
    folder gets a report.html, and a run folder for each of them.
    """
    given = {name: value for name, value in locals().items() if value is not None and value is not False}
    for name in ("optimizers", "threshold", "out", "quiet"):
        given.pop(name, None)
    with _told_plainly():
        from gpuopt import markup
        from gpuopt.training.compare import EPOCHS
        from gpuopt.training.compare import compare as compared

        if data is None:
            given.setdefault("epochs", EPOCHS)
        found = compared(optimizers or (), _config(given), threshold=threshold, out=out, quiet=quiet)
        if not quiet:
            head, rows = found.table()
            typer.echo("\n" + _aligned([head, *[[markup.shown(value) for value in row] for row in rows]]))
            typer.echo(f"\nReport: {found.folder / 'report.html'}")


@app.command(cls=Command)
def landscape(
    name: Annotated[str, typer.Argument(metavar="[NAME|all]", help="What to draw.")] = "ravine",
    optimizers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OPTIMIZER...]", help=f"Others than the built-in ones, as NAME:ARG=VALUE,...; NAME: {NAMES}."
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
    with _told_plainly():
        from pathlib import Path

        from gpuopt import landscape as land
        from gpuopt.training import UsageError

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


@app.command(cls=Command)
def tune(
    run: Going,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE]...",
            help="Hyperparameters from the next step on, as in lr=0.01, or lr=cosine or another schedule: "
            f"{SCHEDULED}. A bad value changes nothing.",
        ),
    ] = None,
    rollback: Annotated[
        str | None,
        typer.Option(
            metavar="last|change|best|STEPS",
            help="Go back to the last good state, to the one before the last change, to the best one, or to the checkpoint "
            "after so many steps; hyperparameters become what they were.",
        ),
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Write a checkpoint now.")] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Wait, until it is resumed.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on.")] = False,
    step: Annotated[bool, typer.Option("--step", help="Take one step, and wait.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the training, after saving it.")] = False,
) -> None:
    """Change a running training from another terminal.

    Prints what became of it; with nothing to change, where the training stands. Every change is an event in the run's
    metrics.jsonl, and survives a resume. A refused one leaves with exit code 2, and the training goes on.

    \b
    Examples:
      gpuopt tune runs/FOLDER lr=0.01
      gpuopt tune runs/FOLDER --rollback last lr=0.001
      gpuopt tune runs/FOLDER --pause
    """
    chosen = {"save": save, "pause": pause, "resume": resume, "step": step, "stop": stop}
    request: dict[str, Any] = {} if rollback is None else {"rollback": rollback}
    with _told_plainly():
        from gpuopt import training
        from gpuopt.runs.control.channel import Client
        from gpuopt.runs.record.events import describe, explain
        from gpuopt.runs.record.folder import RunFolder

        if settings:
            request["tune"] = _settings(settings, "")
        request |= {name: None for name, wanted in chosen.items() if wanted}
        with Client(RunFolder(run)) as client:
            answer = client.ask(request)
        for event in answer["events"]:
            typer.echo(explain(event))
        if "refused" in answer:
            raise training.UsageError(answer["refused"])
        if not request:
            now = answer["now"]
            epoch = f", epoch {now['epoch']}/{now['epochs']}" if "epochs" in now else ""
            typer.echo(f"step {now['step']:,} of {now['steps']:,}{epoch}  {describe(now)}")
            typer.echo("  ".join(f"{name}={value}" for name, value in now["hyperparameters"].items()))
            typer.echo(f"can go back to: {', '.join(now['back'])}" + ("; paused" if now["paused"] else ""))


@app.command(cls=Command)
def live(
    run: Going,
    live_host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="Address, or ADDRESS:PORT. Default: 127.0.0.1.")
    ] = None,
) -> None:
    """Serve the page of a run that goes on in another terminal, until it ends: curves, pictures and controls.

    Needs gpuopt[live].
    """
    with _told_plainly():
        from gpuopt.runs.control.live import serve

        serve(run, live_host)


@app.command(cls=Command)
def info() -> None:
    """Print what was found: versions, devices and their memory, and the backend that would be taken, and why."""
    from gpuopt import backends

    found = backends.report()
    packages = f" ({', '.join(found.cupy_packages)})" if found.cupy_packages else ""
    rows = [("gpuopt", found.gpuopt), ("Python", found.python), ("NumPy", found.numpy)]
    rows += [("CuPy", f"{found.cupy or 'not usable'}{packages}"), ("CUDA of CuPy", found.runtime or "-")]
    rows += [("CUDA of the driver", found.driver or "no NVIDIA driver")]
    rows += [("extra for it", f"gpuopt[{found.extra}]" if found.extra else "-")]
    for device in found.devices:
        memory = ""
        if device.free_bytes is not None and device.total_bytes is not None:
            memory = f", {device.free_bytes / 2**30:.1f} of {device.total_bytes / 2**30:.1f} GiB of memory free"
        about = f"{device.name}, compute capability {device.compute_capability}{memory}"
        rows.append((f"device cuda:{device.index}", about))
    rows += [("backend", found.backend or "none"), ("because", found.reason)]
    if found.training:
        rows.append(("for training", found.training))
    width = max(len(name) for name, _ in rows)
    typer.echo("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


@app.command(cls=Command)
def check(
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    seconds: Annotated[float, typer.Option(metavar="N", help="How long it may take, about.")] = 30.0,
) -> None:
    """Find out whether every device of this machine computes the same bits as the plain formulas, and how fast.

    Every rule runs with both dtypes, several shapes and hard values (subnormals, infinities, NaN) on the CPU and on each CUDA
    device. Exit status 0 only if all bits agree; else the smallest case that differs is shown. Without a GPU the CPU's engines
    are compared.
    """
    import dataclasses
    import json

    from rich.console import Console

    from gpuopt.check import check as findings

    found = []
    for finding in findings(seconds=seconds):
        found.append(finding)
        if not as_json:
            Console().print(finding.table()) if sys.stdout.isatty() else typer.echo(_aligned(finding.rows()))
    if as_json:
        typer.echo(
            json.dumps([dataclasses.asdict(finding) | {"agrees": finding.agrees} for finding in found], indent=1)
        )
    if not all(finding.agrees for finding in found):
        raise typer.Exit(1)


@contextlib.contextmanager
def _team(processes: int | None) -> Iterator[Team | None]:
    """The processes of this MPI job, if there are several; those that are asked for are started, and it ends with them."""
    from gpuopt import training
    from gpuopt.training.team import team_of_job

    team = team_of_job()
    if team is None and processes is not None:
        from gpuopt.training.launch import launched

        if processes < 1:
            raise training.UsageError(f"--processes {processes}: expected a positive integer")
        if processes > 1:
            raise typer.Exit(launched(processes, sys.argv[1:]))
    with team or contextlib.nullcontext():
        yield team


@contextlib.contextmanager
def _told_plainly() -> Iterator[None]:
    """Print what the user can do something about as one line on standard error, and leave with a fitting exit code."""
    from gpuopt.backends import BackendUnavailable
    from gpuopt.training import ExplodedError, GPUFailure, Interrupted, UsageError

    try:
        yield
    except Interrupted as error:
        code, message = 128 + error.signum, str(error)
    except (UsageError, BackendUnavailable) as error:
        code, message = 2, str(error)
    except BrokenPipeError:
        raise  # nobody reads on, as after `| head`: typer leaves quietly
    except (ExplodedError, GPUFailure, OSError) as error:
        code, message = 1, str(error)
    else:
        return
    with contextlib.suppress(OSError):  # the exit code tells it, too
        typer.echo(f"gpuopt: {message}", err=True)
    raise typer.Exit(code)


def _aligned(rows: list[list[str]]) -> str:
    """A table in columns: the first one and the last one to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ends = (0, len(widths) - 1)
    lines = [
        "  ".join(
            cell.ljust(w) if i in ends else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _rule(text: str, steps: int) -> Rule:
    """The rule of ``NAME:ARG=VALUE,...``, for so many steps."""
    from gpuopt.training import Config
    from gpuopt.training.compare import with_optimizer

    return with_optimizer(Config(epochs=steps, batch_size="full"), text, lambda: 1).rule(steps)


def _point(text: str, lower: tuple[float, float], upper: tuple[float, float]) -> tuple[float, float]:
    """The point of ``X,Y``, in the window between these corners."""
    from gpuopt.training import UsageError

    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise UsageError(f"--start {text}: expected two numbers, as in -1.5,2") from None
    if not (lower[0] <= x <= upper[0] and lower[1] <= y <= upper[1]):
        window = f"x from {lower[0]} to {upper[0]} and y from {lower[1]} to {upper[1]}"
        raise UsageError(f"--start {text}: is not in the picture; expected {window}")
    return x, y


def _set_instead(option: str, options: list[str]) -> str:
    """The hint that a hyperparameter is set by ``--set``."""
    names = dict.fromkeys(name for rule in RULES.values() for name in rule.hyperparameters())
    name = option.lstrip("-").replace("-", "_")
    return f" (did you mean --set {name}=VALUE?)" if name in names and "--set" in options else ""


def _flag(name: str) -> str:
    """The option of a parameter."""
    return "--set" if name == "settings" else f"--{name.replace('_', '-')}"


def _config(given: dict[str, Any]) -> Config:
    """The config that these options choose."""
    from gpuopt.training import Config, UsageError

    chosen = dict(given)
    try:
        if "hidden" in chosen:
            chosen["hidden"] = tuple(int(units) for units in given["hidden"].split(","))
    except ValueError:
        raise UsageError(f"--hidden {given['hidden']}: expected positive integers, as in 256,128") from None
    if chosen.pop("unscaled_target", None):
        chosen["scale_target"] = False
    if "ignore" in chosen:
        chosen["ignore"] = tuple(chosen["ignore"])
    with contextlib.suppress(KeyError, ValueError):
        chosen["batch_size"] = int(given["batch_size"])
    chosen["hyperparameters"] = _settings(chosen.pop("settings", []), "--set ")
    return Config(**chosen)


def _settings(texts: list[str], option: str) -> dict[str, float | str]:
    """What each ``NAME=VALUE`` chooses."""
    from gpuopt.training.config import settings

    return settings(texts, lambda text: f"{option}{text}", "NAME=VALUE, as in beta1=0.95")


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
    typer.echo(f"{result.epochs} epochs in {result.seconds:.1f} s; run folder: {result.folder}")


if __name__ == "__main__":
    main()
