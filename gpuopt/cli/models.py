"""What is done with a trained network: ``gpuopt predict``, ``evaluate`` and ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpuopt.cli.options import Encoding, Folder, Labels

__all__ = ["evaluate", "export", "predict"]


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
    from gpuopt.training import load_model
    from gpuopt.training.predicting import predict_file

    for note in predict_file(load_model(run), data, out, proba=proba, encoding=encoding):
        typer.echo(note, err=True)


def evaluate(
    run: Folder,
    data: Annotated[str, typer.Argument(metavar="DATA", help="As for predict, with the targets in it.")],
    labels: Labels = None,
    encoding: Encoding = None,
) -> None:
    """Say how good the model of a run is on a file that has the targets: accuracy, or RMSE and R2."""
    from gpuopt.training import load_model
    from gpuopt.training.predicting import evaluate_file, told

    model = load_model(run)
    found, notes = evaluate_file(model, data, labels=labels, encoding=encoding)
    for note in notes:
        typer.echo(note, err=True)
    typer.echo("\n".join(told(found, model.target.names)))


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
    from gpuopt.training import load_model
    from gpuopt.training.export import export as exported

    typer.echo(str(exported(load_model(run), kind, out or Path(run) / f"model.{kind}")))
