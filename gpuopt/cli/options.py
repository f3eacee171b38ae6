"""Options that several commands share, and the config that they choose."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpuopt.errors import UsageError
from gpuopt.rules import OF_VECTORS
from gpuopt.schedules import SCHEDULES

if TYPE_CHECKING:
    from gpuopt.training import Config

NAMES = f"{', '.join(OF_VECTORS[:-1])} or {OF_VECTORS[-1]}"
SCHEDULED = ", ".join(name for name in SCHEDULES if name not in {"join", "scaled"})

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


def config(given: dict[str, Any]) -> Config:
    """The config that these options choose."""
    from gpuopt.training import Config
    from gpuopt.training.config_rule import settings

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
    chosen["hyperparameters"] = settings(chosen.pop("settings", []), "--set ")
    return Config(**chosen)
