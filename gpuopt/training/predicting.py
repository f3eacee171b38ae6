"""A model applied to a file: predictions into another one, and how good they are."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from gpuopt.errors import UsageError
from gpuopt.limits import expect_file, expect_memory
from gpuopt.suggest import printable
from gpuopt.training.data.preparation import listed
from gpuopt.training.data.sources import as_part, labelled, reading, unlabelled
from gpuopt.training.data.tables import TABLES, needing
from gpuopt.training.export import expect_other, replacing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gpuopt.training.applied import Model

__all__ = ["evaluate_file", "predict_file"]

WRITTEN = (".csv", ".npz", ".parquet")


def predict_file(
    model: Model,
    data: str | Path,
    out: str | Path | None = None,
    *,
    proba: bool = False,
    encoding: str | None = None,
) -> list[str]:
    """Predict for a table or arrays, into `out` or as ``.csv`` to the standard output; return what is to be said of it.

    A column is called like the target; with `proba` there is one more for each class, ``TARGET=CLASS``. Where file and model do
    not fit nothing is written.
    """
    path = Path(data)
    target = None if out is None else Path(out)
    if target is not None and target.suffix.lower() not in WRITTEN:
        raise UsageError(f"--out {target}: expected a file {', '.join(WRITTEN[:-1])} or {WRITTEN[-1]}")
    if target is not None:
        expect_other(target, [path], "that is predicted for")
        expect_other(target, model.sources, "that the run was trained on")
    with reading(path):
        expect_file(path)
        part = unlabelled(path, encoding=encoding, text=model.prepared.texts)
        said = [*part.notes, *_unused(model, part.x)]
        expect_memory("the predictions", 12 * len(part.x) * model.target.outputs)
        columns = _columns(model, part, proba=proba)
    _write(columns, target)
    return said


def evaluate_file(
    model: Model, data: str | Path, *, labels: str | None = None, encoding: str | None = None
) -> tuple[dict[str, float], list[str]]:
    """How good the predictions are for what stands in a file, which has the targets, too; and what is to be said."""
    path = Path(data)
    with reading(path):
        expect_file(path)
        if path.suffix.lower() not in TABLES:
            part = labelled(path, labels=labels)
            return model.evaluate(part, part.y) | {"samples": len(part.x)}, list(part.notes)
        texts = model.prepared.texts
        if model.target.classes is not None and model.target.labels.dtype.kind == "U":
            texts += model.target.names
        part = unlabelled(path, encoding=encoding, text=texts)
        table: Any = part.x
        names = list(model.target.names)
        if missing := [name for name in names if name not in table.columns]:
            raise UsageError(f"has no column {listed(missing)} to compare with; it has {listed(list(table.columns))}")
        y = table[names[0]] if len(names) == 1 else table[names]
        known = as_part(table.drop(columns=names), y)
        found = model.evaluate(dataclasses.replace(known, x_name=part.x_name), y)
        return found | {"samples": len(known.x)}, [*part.notes, *_unused(model, known.x)]


def _unused(model: Model, x: Any) -> list[str]:
    if isinstance(x, np.ndarray):
        return []
    if model.prepared.columns is None:
        return [f"The model was trained on arrays: the columns are taken in their order, {listed(list(x.columns))}"]
    more = [name for name in x.columns if name not in (*model.features, *model.target.names)]
    return [f"Not used: column {listed(more)}"] if more else []


def _columns(model: Model, x: Any, *, proba: bool) -> dict[str, NDArray[Any]]:
    names = model.target.names
    if not proba:
        found = model.predict(x)
        return {names[0]: found} if found.ndim == 1 else dict(zip(names, found.T, strict=True))
    likely = model.predict_proba(x)
    labels = model.target.labels
    columns = {names[0]: labels[likely.argmax(axis=1)]}
    return columns | {f"{names[0]}={label}": likely[:, k] for k, label in enumerate(labels.tolist())}


def _write(columns: Mapping[str, NDArray[Any]], path: Path | None) -> None:
    if path is not None:
        with replacing(path) as file:
            if path.suffix.lower() == ".npz":
                np.savez(file, **dict(columns))  # type: ignore[arg-type]
            elif path.suffix.lower() == ".parquet":
                _parquet(columns, file)
            else:
                with open(file.fileno(), "w", encoding="utf-8", newline="", closefd=False) as text:
                    _csv(columns, text)
        return
    try:
        _csv(columns, sys.stdout)
    except BrokenPipeError:
        raise
    except UnicodeEncodeError as error:
        letters, cure = printable(error.object[error.start : error.end]), "--out FILE.csv writes UTF-8"
        raise UsageError(f"the standard output: cannot print {letters!a} in {error.encoding}; {cure}") from None
    except OSError as error:
        raise UsageError(f"the standard output: {error.strerror or error}") from None


def _csv(columns: Mapping[str, NDArray[Any]], file: IO[str]) -> None:
    import csv

    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


def _parquet(columns: Mapping[str, NDArray[Any]], file: IO[bytes]) -> None:
    with needing("data", "--out: writing .parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    pq.write_table(pa.table({name: pa.array(column) for name, column in columns.items()}), file)


def told(found: Mapping[str, float], names: tuple[str, ...]) -> list[str]:
    """What an evaluation found, in words."""
    lines = [f"{found['samples']:,} samples"]
    if "accuracy" in found:
        return [*lines, f"accuracy {found['accuracy']:.4f}", f"loss     {found['loss']:.4f} (cross-entropy, nats)"]
    units = f"in units of {printable(names[0])}" if len(names) == 1 else "over all outputs"
    lines += [f"RMSE     {found['rmse']:.6g} ({units})", f"MAE      {found['mae']:.6g}"]
    return [*lines, f"R2       {found['r2']:.4f}"]
