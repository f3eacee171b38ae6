"""Columns and rows that are left out of raw data, and what is said of those that look odd."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.errors import UsageError
from gpuopt.suggest import printable
from gpuopt.training.data.preparation import listed
from gpuopt.training.data.targets import LARGEST_FLOAT

if TYPE_CHECKING:
    import pandas as pd

    from gpuopt.training.data.sources import Part

INDEX_NAMES = {"id", "index", "row", "nr", "no", "number"}


def without(part: Part, names: tuple[str, ...]) -> Any:
    """The features of a table without these columns."""
    if isinstance(part.x, np.ndarray):
        raise UsageError(f"--ignore {names[0]}: is for tables, {part.x_name} has no columns")
    unknown = [name for name in names if name not in part.x.columns]
    if unknown:
        raise UsageError(f"--ignore {printable(unknown[0])}: no such column; there are {listed(part.x.columns)}")
    return part.x.drop(columns=list(names))


def without_index(parts: list[Part]) -> tuple[list[Part], list[str]]:
    """Leave out a column that has no name and counts the rows; say which others do."""
    frame: Any = parts[0].x
    notes: list[str] = []
    if isinstance(frame, np.ndarray):
        return parts, notes
    for name in list(frame.columns):
        unnamed = not name or name.startswith("Unnamed: ")
        if not unnamed and name.lower() not in INDEX_NAMES | {f"{one}_id" for one in INDEX_NAMES}:
            continue
        if not _counts(frame[name]):
            continue
        if unnamed and frame.shape[1] > 1:
            parts = [dataclasses.replace(part, x=without(part, (name,))) for part in parts]
            notes.append("The column without a name counts the rows: an index, left out; with a name it is a feature")
        elif not unnamed:
            notes.append(
                f"Column {printable(name)} counts the rows and is a feature; --ignore {printable(name)} leaves it out"
            )
    return parts, notes


def _counts(values: pd.Series[Any]) -> bool:
    """Whether a column counts its rows, from 0 or 1 on."""
    if getattr(values.dtype, "kind", "") not in "iu" or len(values) < 2:
        return False
    numbers = values.to_numpy()
    return bool(numbers[0] in {0, 1} and (np.diff(numbers) == 1).all())


def lengthy(part: Part) -> list[str]:
    """A note if there are whole numbers of more digits than features have."""
    if is_mapped(part.x):
        return []
    columns = {part.x_name: part.x} if isinstance(part.x, np.ndarray) else dict(part.x.items())
    found = [name for name, x in columns.items() if _is_lengthy(x)]
    if not found:
        return []
    what = part.x_name if isinstance(part.x, np.ndarray) else f"Column {listed(found)}"
    cure = "" if isinstance(part.x, np.ndarray) else "; --ignore leaves identifiers out"
    return [f"{what} has whole numbers beyond 2**53, whose last digits are lost as features{cure}"]


def _is_lengthy(values: Any) -> bool:
    if getattr(values.dtype, "kind", "") not in "iu" or values.dtype.itemsize < 8:
        return False
    return bool(values.max() > LARGEST_FLOAT or values.min() < -LARGEST_FLOAT)


def complete(part: Part, notes: list[str]) -> Part:
    """Leave out the rows that miss something, and note how many."""
    missing: Any
    if isinstance(part.x, np.ndarray):
        flat = part.x.reshape(len(part.x), -1)
        missing = np.isnan(flat).any(axis=1) if flat.dtype.kind == "f" else np.zeros(len(flat), bool)
    else:
        missing = part.x.isna().any(axis=1).to_numpy()
    if isinstance(part.y, np.ndarray):
        if part.y.dtype.kind == "f":
            missing = missing | np.isnan(part.y.reshape(len(part.y), -1)).any(axis=1)
    else:
        gone = part.y.isna().to_numpy()
        missing = missing | (gone if gone.ndim == 1 else gone.any(axis=1))
    if not missing.any():
        return part
    if missing.all():
        raise UsageError(f"--missing drop: each row of {part.x_name} misses something, expected some that do not")
    notes.append(f"{int(missing.sum()):,} of {len(missing):,} rows miss something and are left out (--missing drop)")
    kept = ~missing
    frame = part.x[kept] if isinstance(part.x, np.ndarray) else part.x[kept].reset_index(drop=True)
    y = part.y[kept] if isinstance(part.y, np.ndarray) else part.y[kept].reset_index(drop=True)
    return dataclasses.replace(part, x=frame, y=y)


def is_mapped(x: Any) -> bool:
    """Whether an array stays in its file."""
    return isinstance(x, np.memmap)
