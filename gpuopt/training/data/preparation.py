"""How raw features become what a network sees: learned on the training part, kept with the model."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from gpuopt import suggest
from gpuopt.errors import UsageError
from gpuopt.suggest import printable
from gpuopt.training.data.texts import obstacle

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    Raw: TypeAlias = "NDArray[Any] | pd.DataFrame"

__all__ = ["BYTE", "Column", "Features", "Missing", "Rows", "blocks", "listed"]

Missing: TypeAlias = Literal["mean", "drop"]
TOO_SMALL = "holds different numbers whose squares are 0 in float64, expected larger ones, as in other units"
TOO_LARGE = "holds numbers whose squares are beyond float64, expected smaller ones, as in other units"
BLOCK = 1 << 22
"""Numbers that are prepared at once."""
BYTE = 1 / float(np.float32(1 / 255))
"""What a byte of an image is divided by. The quotient, rounded to float32, is the product with float32(1/255)."""
LARGE_INTEGER = r"[+-]?\d{20,}"
"""A whole number that no integer of 64 bits can be."""
NUMBERS = "biuf"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    name : str
    categories : tuple of str or None
        The texts that stand in it, each of which becomes an input of its own that is 1 or 0; None if it holds numbers.
    """

    name: str
    categories: tuple[str, ...] | None = None

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Column:
        """What `dataclasses.asdict` gave; TypeError or KeyError if it did not."""
        categories = plain["categories"]
        return cls(str(plain["name"]), None if categories is None else tuple(map(str, categories)))

    @property
    def inputs(self) -> list[str]:
        """The names of the network's inputs that it becomes."""
        return [self.name] if self.categories is None else [f"{self.name}={text}" for text in self.categories]


@dataclass(frozen=True)
class Features:
    """The way from raw features to the network's inputs: ``float32((x - shift) / scale)``, in float64.

    Attributes
    ----------
    width : int
        Inputs of the network.
    columns : tuple of Column or None
        Of a table, which are found by name; None for arrays of `width` numbers a sample.
    shift, scale : float64 arrays of shape () or (width,)
    fill : float64 array of shape (width,) or None
        What a missing number becomes. None: it is refused, or its row left out.
    missing : {"mean", "drop"} or None
    is_bytes : bool
        Whether it was learned on bytes (uint8).
    shape : tuple of int
        Of a sample, if that has more than one dimension, as images have.

    Examples
    --------
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]])
    >>> learned = Features(width=2).learned(x, standardize=True)
    >>> learned.shift, learned.scale
    (array([ 2., 20.]), array([ 1., 10.]))
    >>> learned(x, "x")
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    """

    width: int
    columns: tuple[Column, ...] | None = None
    shift: NDArray[np.float64] = field(default_factory=lambda: np.zeros(()))
    scale: NDArray[np.float64] = field(default_factory=lambda: np.ones(()))
    fill: NDArray[np.float64] | None = None
    missing: Missing | None = None
    is_bytes: bool = False
    shape: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What the features are called: a table's columns, or x0, x1 and so on."""
        if self.columns is None:
            return tuple(f"x{i}" for i in range(self.width))
        return tuple(column.name for column in self.columns)

    @property
    def texts(self) -> list[str]:
        """The columns that hold categories."""
        return [column.name for column in self.columns or () if column.categories is not None]

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the network's inputs are called: a category is one for each of its texts."""
        return self.names if self.columns is None else tuple(name for column in self.columns for name in column.inputs)

    def matrix(self, raw: Raw, name: str) -> NDArray[Any]:
        """Raw features as numbers, of shape (samples, width), with NaN where one is missing; messages call them `name`."""
        if self.columns is None:
            return self._flat(raw, name)
        columns = self._named(raw, name)
        if (columns.dtypes == np.uint8).all() and all(column.categories is None for column in self.columns):
            return columns.to_numpy()  # type: ignore[no-any-return]
        if not self.texts and all(isinstance(one, np.dtype) and one.kind in NUMBERS for one in columns.dtypes):
            return columns.to_numpy(np.float64)  # type: ignore[no-any-return]
        out = np.zeros((len(columns), self.width))
        at = 0
        for column in self.columns:
            values, end = columns[column.name], at + len(column.inputs)
            if column.categories is None:
                out[:, at] = _numeric(values, column.name)
            else:
                _mark(out[:, at:end], values, column.name, column.categories)
            at = end
        return out

    def _flat(self, raw: Raw, name: str) -> NDArray[Any]:
        if not isinstance(raw, np.ndarray):  # a table for a model of arrays: its columns in their order
            raw = np.column_stack([_numeric(raw[column], str(column)) for column in raw.columns])
        if raw.dtype.kind not in NUMBERS:
            raise UsageError(f"{name}: dtype {raw.dtype}, expected integers or floats")
        width = math.prod(raw.shape[1:])
        if raw.ndim < 2 or width != self.width:
            expected = f"(samples, {self.width}): as many features as trained on"
            raise UsageError(f"{name}: shape {raw.shape}, expected {expected}")
        if (raw.dtype == np.uint8) != self.is_bytes:
            wanted = "bytes (uint8)" if self.is_bytes else "numbers that are no bytes (uint8)"
            raise UsageError(f"{name}: dtype {raw.dtype}, expected {wanted}, as the training set has them")
        return raw.reshape(len(raw), -1)

    def _named(self, raw: Raw, name: str) -> pd.DataFrame:
        assert self.columns is not None
        if isinstance(raw, np.ndarray):
            import pandas as pd

            if raw.ndim != 2 or raw.shape[1] != len(self.columns):
                expected = f"(samples, {len(self.columns)}): a column for each of {listed(self.names)}"
                raise UsageError(f"{name}: shape {raw.shape}, expected {expected}")
            return pd.DataFrame(raw, columns=list(self.names))
        missing = [column for column in self.names if column not in raw.columns]
        if missing:
            has = f"it has {listed(raw.columns)}"
            raise UsageError(f"{name}: has no column {listed(missing)}, which the model needs; {has}")
        return raw[list(self.names)]

    def learned(self, x: NDArray[Any] | Rows, *, standardize: bool) -> Features:
        """The same, with what is learned of numbers as `matrix` makes them: means, deviations, and what fills a hole."""
        plain = dataclasses.replace(self, scale=np.asarray(BYTE if self.is_bytes else 1.0))
        if not standardize and self.missing != "mean":
            return plain
        count, total, low = np.zeros(self.width), np.zeros(self.width), np.full(self.width, np.nan)
        for _, block in blocks(x):
            wide = block.astype(np.float64)
            known = np.isfinite(wide)
            low = np.where(np.isnan(low) & known.any(axis=0), wide[known.argmax(axis=0), np.arange(self.width)], low)
            count += known.sum(axis=0)
            total += np.where(known, wide - np.nan_to_num(low), 0).sum(axis=0)
        if self.missing == "mean" and not count.all():
            what = self.inputs[int(count.argmin())]
            cure = "expected some for --missing mean; --ignore leaves a column out"
            raise UsageError(f"column {printable(repr(what))}: is missing in each row of the training part, {cure}")
        mean = np.nan_to_num(low) + total / np.maximum(count, 1)  # sums of differences: nothing is lost far from 0
        fill = mean if self.missing == "mean" else None
        if not standardize:
            return dataclasses.replace(plain, fill=fill)
        squares, differs = np.zeros(self.width), np.zeros(self.width, bool)
        for _, block in blocks(x):
            wide = block.astype(np.float64)
            apart = np.where(np.isfinite(wide), wide - mean, 0)
            differs |= apart.any(axis=0)
            squares += (apart**2).sum(axis=0)
        # Filled with the mean, a hole adds nothing to the deviation; those that are not filled are refused.
        deviation = np.sqrt(squares / max(len(x), 1))
        if not np.isfinite(deviation).all():
            what = self.inputs[int(np.isfinite(deviation).argmin())]
            raise UsageError(f"column {printable(repr(what))}: {TOO_LARGE}")
        lost = (deviation <= 1e-300) & differs
        if lost.any():
            raise UsageError(f"column {printable(repr(self.inputs[int(lost.argmax())]))}: {TOO_SMALL}")
        deviation[deviation <= 1e-300] = 1  # a constant feature becomes 0
        return dataclasses.replace(self, shift=mean, scale=deviation, fill=fill)

    def __call__(self, x: NDArray[Any] | Rows, name: str, first: int = 0) -> NDArray[np.float32]:
        """The network's inputs for numbers as `matrix` makes them, float32 of shape (samples, width).

        One that is not finite is refused, by its row (counted from `first`) and column.
        """
        made = np.empty((len(x), self.width), np.float32)
        plain = x.dtype != np.float64 and not self.shift.any() and np.all(self.scale == 1) and self.fill is None
        for begin, block in blocks(x):
            out = made[begin : begin + len(block)]
            with np.errstate(over="ignore", invalid="ignore"):
                if plain:
                    out[:] = block
                else:
                    wide = block.astype(np.float64)
                    if self.fill is not None:
                        wide = np.where(np.isnan(wide), self.fill, wide)
                    out[:] = (wide - self.shift) / self.scale
            finite = np.isfinite(out)
            if not finite.all():
                row, column = (int(i) for i in np.argwhere(~finite)[0])
                self._refuse(block[row, column], first + begin + row, column, name)
        return made

    def _refuse(self, value: Any, row: int, column: int, name: str) -> None:
        what = name if self.columns is None else f"column {self.inputs[column].partition('=')[0]!r}"
        if np.isnan(value):
            cure = "a training with --missing mean or --missing drop takes care of it"
            if self.missing == "drop":
                cure = "the model was trained with --missing drop, without such rows"
            raise UsageError(f"{what}: row {row} is missing or holds nan, expected finite numbers; {cure}")
        raise UsageError(f"{what}: row {row} holds {value}, expected finite numbers (in the range of float32)")

    def to_json(self) -> dict[str, Any]:
        """In JSON's types; floats keep all their digits."""
        return {
            "width": self.width,
            "columns": None if self.columns is None else [dataclasses.asdict(column) for column in self.columns],
            "shift": _short(self.shift),
            "scale": _short(self.scale),
            "fill": None if self.fill is None else self.fill.tolist(),
            "missing": self.missing,
            "is_bytes": self.is_bytes,
            "shape": list(self.shape),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Features:
        """What `to_json` gave; TypeError, ValueError or KeyError if it did not."""
        width = int(plain["width"])
        columns = None if plain["columns"] is None else tuple(map(Column.from_json, plain["columns"]))
        shift, scale = (np.asarray(plain[name], np.float64) for name in ("shift", "scale"))
        fill = None if plain["fill"] is None else np.asarray(plain["fill"], np.float64)
        shape = tuple(int(n) for n in plain["shape"])
        made = cls(width, columns, shift, scale, fill, plain["missing"], bool(plain["is_bytes"]), shape)
        fits = all(a is None or a.shape in {(), (width,)} for a in (shift, scale, fill))
        named = columns is None or len(made.inputs) == width
        if width < 1 or (shape and math.prod(shape) != width) or not (fits and named and np.all(scale)):
            raise ValueError("features: widths, shifts and scales that do not fit")
        return made


@dataclass(frozen=True, eq=False)
class Rows:
    """Samples of an array that stays where it is, in a file for instance: indexed, a matrix of them is made.

    Attributes
    ----------
    x : array of shape (samples, ...)
    index : array of int or None
        The samples; None: all of them.
    prepared, name : Features or None, str
        What makes the network's inputs of them, if these are wanted, and what messages call them.

    Examples
    --------
    >>> rows = Rows(np.arange(6).reshape(3, 2), prepared=Features(width=2))
    >>> rows.shape, rows[1:]
    ((3, 2), array([[2., 3.],
           [4., 5.]], dtype=float32))
    """

    x: NDArray[Any]
    index: NDArray[np.int64] | None = None
    prepared: Features | None = None
    name: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """Samples, and numbers of each."""
        return len(self), math.prod(self.x.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is made of them."""
        return self.x.dtype if self.prepared is None else np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.x if self.index is None else self.index)

    def __getitem__(self, chosen: slice | NDArray[np.int64]) -> NDArray[Any]:
        block = np.asarray(self.x[chosen if self.index is None else self.index[chosen]])
        block = block.reshape(len(block), -1)
        return block if self.prepared is None else self.prepared(block, self.name)


def blocks(x: NDArray[Any] | Rows) -> Iterator[tuple[int, NDArray[Any]]]:
    """Samples a block at a time, and where each block begins: in float64, a whole file need not be in memory."""
    rows = max(1, BLOCK // max(1, x.shape[1]))
    for begin in range(0, len(x), rows):
        yield begin, x[begin : begin + rows]


def listed(names: Sequence[Any], most: int = 12) -> str:
    """Names in a message, so many at most, each as `printable`.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    return suggest.listed(names, most, printable)


def _mark(out: NDArray[np.float64], values: pd.Series[Any], name: str, categories: tuple[str, ...]) -> None:
    """Set the input of each category to 1 where that stands; all of them to NaN where nothing does."""
    import pandas as pd

    texts = values.astype(object)
    missing = texts.isna().to_numpy()
    found = pd.Index(categories).get_indexer(texts.where(~missing, "").map(str))
    unseen = (found < 0) & ~missing
    if unseen.any():
        row = int(unseen.argmax())
        known = f"a category that the training part lacks; it has {listed(categories)}"
        raise UsageError(f"column {name!r}: row {row} is {printable(texts.iloc[row])}, {known}")
    rows = np.flatnonzero(~missing)
    out[rows, found[rows]] = 1
    out[missing] = np.nan


def _numeric(values: pd.Series[Any], name: str) -> NDArray[np.float64]:
    import pandas as pd

    kind = pd.api.types.infer_dtype(values)
    if kind == "boolean":  # with missing ones
        values = values.astype("boolean")
    elif kind == "decimal":
        values = values.astype(np.float64)
    if not pd.api.types.is_numeric_dtype(values.dtype):
        texts = values.dropna()
        odd = texts[pd.to_numeric(texts.astype(str), errors="coerce").isna()]
        shown = odd if len(odd) else texts
        large = texts[
            texts.astype(str).str.fullmatch(LARGE_INTEGER)
        ]  # numbers for some versions of pandas, texts for others
        is_large = kind == "integer" or (len(large) > 0 and not len(odd))
        shown = large if is_large and len(large) else shown
        first = shown.iloc[0] if len(shown) else ""
        is_text = isinstance(first, str) and not is_large
        such = f" such as {printable(repr(first) if is_text else first)}" if len(shown) else ""
        if is_large:
            such, kind = f" beyond 64 bits{such}", "whole numbers"
        else:
            kind = "text" if isinstance(first, str) else f"dtype {values.dtype}"
        where = f" (row {odd.index[0]})" if len(odd) else ""
        hint = obstacle(str(first)) if len(odd) else ""
        hint = hint or "trained with --one-hot it may hold categories"
        hint += "" if len(odd) or is_large else ", .astype(float) of a data frame makes numbers of it"
        cure = f"{hint}; --ignore leaves a column out"
        what = f"column {printable(repr(name))}: holds {kind}{such}, a feature must be numbers{where}"
        raise UsageError(f"{what}; {cure}")
    if pd.api.types.is_complex_dtype(values.dtype):
        raise UsageError(f"column {printable(repr(name))}: dtype {values.dtype}, a feature must be real numbers")
    return values.to_numpy(np.float64, na_value=np.nan)  # type: ignore[no-any-return]


def _short(values: NDArray[np.float64]) -> Any:
    """One number if all are the same."""
    return values.flat[0].item() if values.size and np.all(values == values.flat[0]) else values.tolist()
