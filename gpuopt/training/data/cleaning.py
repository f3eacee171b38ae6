"""Columns and rows that are left out of raw data, and what is said of those that look odd."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.errors import UsageError
from gpuopt.suggest import printable
from gpuopt.training.data.preparation import listed
from gpuopt.training.data.targets import LARGEST_FLOAT, called

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from gpuopt.training.data.sources import Part

STAND_INS = [-99, -999, -9999, -99999, -999999, 999, 9999, 99999, 999999, -(2**15), -(2**31), -(2**63)]
"""What stands for a missing value in many files; 99 is too often a number."""
FILL = 1e20
"""What is that large or larger does, too, as in netCDF and CMIP."""
INDEX_NAMES = {"id", "index", "row", "nr", "no", "number"}


def without(part: Part, names: tuple[str, ...]) -> Any:
    """The features of a table without these columns."""
    if not hasattr(part.x, "columns"):
        raise UsageError(f"--ignore {names[0]}: is for tables, {part.x_name} has no columns")
    frame: Any = part.x
    unknown = [name for name in names if name not in frame.columns]
    if unknown:
        what = "is what is to be predicted" if unknown[0] in called(part.y) else "no such column"
        raise UsageError(f"--ignore {printable(unknown[0])}: {what}; there are {listed(frame.columns)}")
    return frame.drop(columns=list(names))


def without_index(parts: list[Part]) -> tuple[list[Part], list[str]]:
    """Leave out a column that has no name and counts the rows, or is empty; say which others count them."""
    frame: Any = parts[0].x
    notes: list[str] = []
    if isinstance(frame, np.ndarray):
        return parts, notes
    for number, name in enumerate(list(frame.columns)):
        unnamed = not name or name.startswith("Unnamed: ")
        if not unnamed and name.lower() not in INDEX_NAMES | {f"{one}_id" for one in INDEX_NAMES}:
            continue
        if unnamed and frame.shape[1] > 1 and _is_empty(frame[name]):  # each line ends with a separator
            parts = [dataclasses.replace(part, x=without(part, (name,))) for part in parts]
            notes.append("The column without a name is empty and left out")
            continue
        counts = _counts(frame[name])
        if not counts and not (unnamed and number == 0 and _tells_apart(frame[name])):
            continue
        if unnamed and frame.shape[1] > 1:
            parts = [dataclasses.replace(part, x=without(part, (name,))) for part in parts]
            what = "counts the rows" if counts else "has another whole number in each row"
            notes.append(f"The column without a name {what}: an index, left out; with a name it is a feature")
        elif not unnamed:
            called = printable(name)
            notes.append(f"Column {called} counts the rows and is a feature; --ignore {called} leaves it out")
    frame = parts[0].x
    if empty := [name for name in frame.columns[frame.iloc[0].isna()] if _is_empty(frame[name])]:
        raise UsageError(f"column {printable(repr(empty[0]))}: is missing in each row; --ignore leaves a column out")
    return parts, notes


def _is_empty(values: pd.Series[Any]) -> bool:
    """Whether a column has rows, and something in none of them."""
    return bool(len(values) and values.iloc[:1].isna().all() and values.isna().all())


def _counts(values: pd.Series[Any]) -> bool:
    """Whether a column counts its rows, from 0 or 1 on."""
    if getattr(values.dtype, "kind", "") not in "iu" or len(values) < 2:
        return False
    numbers = values.to_numpy()
    return bool(numbers[0] in {0, 1} and (np.diff(numbers) == 1).all())


def _tells_apart(values: pd.Series[Any]) -> bool:
    """Whether a column looks like the index of rows that were drawn or shuffled: whole numbers, no two alike."""
    return bool(
        getattr(values.dtype, "kind", "") in "iu" and len(values) > 1 and values.min() >= 0 and values.is_unique
    )


def lengthy(values: NDArray[Any] | pd.DataFrame, name: str) -> list[str]:
    """A note if there are whole numbers of more digits than float64 has."""
    if is_mapped(values):
        return []
    lost = "whole numbers beyond 2**53, whose last digits are lost"
    if isinstance(values, np.ndarray):
        return [f"{name} has {lost}"] if _is_wide(values.dtype) and _is_lengthy(values) else []
    wide = values.loc[:, [_is_wide(dtype) for dtype in values.dtypes]]
    found = wide.columns[_is_lengthy(wide)] if wide.size else []
    return [f"Column {listed(found)} has {lost} as features; --ignore leaves identifiers out"] if len(found) else []


def _is_wide(dtype: Any) -> bool:
    return getattr(dtype, "kind", "") in "iu" and dtype.itemsize == 8


def _is_lengthy(values: Any) -> Any:
    return (values.max() > LARGEST_FLOAT) | (values.min() < -LARGEST_FLOAT)


def stand_ins(matrix: NDArray[Any], names: Sequence[str]) -> list[str]:
    """A note if a column has numbers such as -999 far from all of its others, as many programs write what is missing."""
    if is_mapped(matrix) or matrix.dtype.kind not in "iuf":
        return []
    columns, told = matrix.reshape(len(matrix), -1), dict[float, list[str]]()
    for end in (np.fmin.reduce(columns, axis=0), np.fmax.reduce(columns, axis=0)):
        for at in np.flatnonzero(np.isin(end, STAND_INS) | (np.abs(end) >= FILL)).tolist():
            column = columns[:, at].astype(np.float64)
            others = column[(column != end[at]) & ~np.isnan(column)]
            if len(others) and np.abs(others - end[at]).min() > np.ptp(others):
                told.setdefault(float(end[at]), []).append(names[at])
    cure = "where it means that nothing is known, leave the field empty"
    return [
        f"Column {listed(names)} has {value:.10g}, far from all other numbers; {cure}" for value, names in told.items()
    ]


def complete(part: Part, notes: list[str]) -> Part:
    """Leave out the rows that miss something, and note how many."""
    missing = _missing(part.x) | _missing(part.y)
    if not missing.any():
        return part
    if missing.all():
        raise UsageError(f"--missing drop: each row of {part.x_name} misses something, expected some that do not")
    notes.append(f"{int(missing.sum()):,} of {len(missing):,} rows miss something and are left out (--missing drop)")
    x, y = (
        values[~missing] if isinstance(values, np.ndarray) else values[~missing].reset_index(drop=True).infer_objects()
        for values in (part.x, part.y)
    )
    return dataclasses.replace(part, x=x, y=y)


def _missing(values: Any) -> NDArray[np.bool_]:
    """Which rows miss something."""
    if not isinstance(values, np.ndarray):
        gone = values.isna().to_numpy()
    else:
        gone = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
    return gone.reshape(len(gone), -1).any(axis=1)  # type: ignore[no-any-return]


def is_mapped(x: Any) -> bool:
    """Whether an array stays in its file."""
    return isinstance(x, np.memmap)
