"""What stands in a file or was given as arrays: raw features and targets, as they are."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import describe
from gpuopt.errors import UsageError
from gpuopt.limits import expect_file
from gpuopt.suggest import did_you_mean, printable
from gpuopt.training.data.archive import Archive
from gpuopt.training.data.arrow import framed
from gpuopt.training.data.preparation import listed
from gpuopt.training.data.tables import TABLES, needing, read_table
from gpuopt.training.data.texts import no_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import pandas as pd
    from numpy.typing import NDArray

    from gpuopt.training.data.preparation import Raw

__all__ = ["EXPECTED", "Part", "as_part", "labelled", "mapped", "reading", "table_part", "training_parts", "unlabelled"]

EXPECTED = (
    "expected a file .npz, .csv, .parquet, or .npy with --labels; text with tabs or semicolons may be called .csv, too"
)


@dataclass(frozen=True)
class Part:
    """Raw features and targets of the same samples, and what to call them in messages.

    Attributes
    ----------
    x : array of shape (samples, ...) or DataFrame
    y : array of shape (samples, ...), or a Series or DataFrame
    """

    x_name: str
    x: Raw
    y_name: str
    y: Any
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong into a UsageError that names the file."""
    try:
        yield
    except UsageError as error:
        message = str(error)
        raise UsageError(message if str(path) in message else f"{path}: {message}") from None
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())  # pyarrow's are lines
        raise UsageError(f"{path}: {printable(reason, 200)}") from None
    except UnicodeDecodeError as error:
        cure = "--encoding NAME says what it is" if path.suffix.lower() == ".csv" else "expected text as str"
        raise UsageError(f"{path}: {no_text(error)}; {cure}") from None
    except MemoryError:
        raise UsageError(f"{path}: there is not enough memory to read it") from None
    except Exception as error:  # there is no end to what damaged files make zipfile, NumPy, pandas and pyarrow raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{path}: not a readable {path.suffix} file ({printable(reason, 200)})") from error


def training_parts(
    path: Path, *, target: str | None, labels: str | None, encoding: str | None, ignored: Collection[str] = ()
) -> list[Part]:
    """The training set in a file, and the test set if there is one."""
    suffix = path.suffix.lower()
    if suffix not in {".npz", ".npy", *TABLES}:
        raise UsageError(f"{path}: {EXPECTED}")
    for option, value, wanted in (
        ("target", target, TABLES),
        ("labels", labels, {".npy"}),
        ("encoding", encoding, {".csv"}),
    ):
        if value is not None and suffix not in wanted:
            where = "; in it the targets are the array y or y_train" if option == "target" else ""
            kinds = "tables" if option == "target" else f"{next(iter(wanted))} files"
            raise UsageError(f"--{option} {value}: is for {kinds}, {path} is none{where}")
    if suffix == ".npz":
        return _archived(path)
    if suffix in TABLES:
        return [table_part(*read_table(path, encoding=encoding, target=target, ignored=ignored), target)]
    if labels is None:
        raise UsageError(f"{path}: has features alone; --labels FILE.npy has their targets")
    x, y = mapped(path), Path(labels)
    with reading(y):
        return [Part(path.name, x, y.name, np.asarray(mapped(y)))]


def unlabelled(path: Path, *, encoding: str | None, text: Collection[str]) -> Part:
    """Raw features to predict for, without targets; the table as a whole."""
    suffix = path.suffix.lower()
    if suffix in TABLES:
        frame, notes = read_table(path, encoding=encoding, text=text)
        return Part("the table", frame, "", None, notes)
    if suffix == ".npy":
        return Part(path.name, mapped(path), "", None)
    if suffix != ".npz":
        raise UsageError(f"{path}: expected a file .npz, .csv, .parquet or .npy")
    with path.open("rb") as file:
        arrays = Archive(file)
        for name in ("x", "x_test", "x_train"):
            if name in arrays.names:
                notes = () if name == "x" else (f"The features are the array {name}",)
                return Part(name, arrays[name], "", None, notes)
        raise UsageError(f"has no array x, x_test or x_train; it has {listed(arrays.names) or 'nothing'}")


def labelled(path: Path, *, labels: str | None) -> Part:
    """Arrays to evaluate with, of a file that is no table: the test set if there is one."""
    parts = training_parts(path, target=None, labels=labels, encoding=None)
    notes = (f"Evaluated on {parts[-1].x_name}",) if len(parts) > 1 else ()
    return dataclasses.replace(parts[-1], notes=notes)


def mapped(path: Path) -> NDArray[Any]:
    """The array of an ``.npy`` file, which stays on the disk until its rows are asked for."""
    if path.suffix.lower() != ".npy":
        raise UsageError(f"{path}: expected a file .npy")
    expect_file(path)
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.memmap):
        raise UsageError(f"{path}: expected an array")
    return array


def _archived(path: Path) -> list[Part]:
    with path.open("rb") as file:
        arrays = Archive(file)
        keys = arrays.names
        pairs = [(f"x{end}", f"y{end}") for end in (["_train", "_test"] if "x_train" in keys else [""])]
        if pairs[-1][0] not in keys and pairs[-1][1] not in keys and len(pairs) > 1:
            del pairs[-1]  # no test set
        for key in (key for pair in pairs for key in pair):
            if key not in keys:
                expected = "x_train and y_train (and x_test and y_test), or x and y"
                raise UsageError(f"has no array {key!r}: expected {expected}; it has {listed(keys) or 'nothing'}")
        return [Part(x, arrays[x], y, arrays[y]) for x, y in pairs]


def table_part(frame: pd.DataFrame, notes: tuple[str, ...], target: str | None) -> Part:
    """The target and all other columns of a table."""
    columns = list(frame.columns)
    if target not in columns:
        given = "say with --target which column to predict" if target is None else f"has no column {target!r}"
        near = did_you_mean(target or "", columns)
        alone = "; columns are separated by commas, semicolons, tabs or bars" if len(columns) == 1 else ""
        raise UsageError(f"{given}{printable(near)}; its columns are {listed(columns)}{alone}")
    if frame.empty:
        raise UsageError(f"a table of shape {frame.shape}: expected at least one sample and one feature")
    return Part("the features", frame.drop(columns=target), f"column {printable(repr(target))}", frame[target], notes)


def as_part(x: Any, y: Any, ends: str = "") -> Part:
    """What was given from Python: arrays, data frames, anything that NumPy makes an array of; what was read is one already."""
    if isinstance(x, Part):
        return x
    by_place = hasattr(x, "iloc") and hasattr(y, "iloc") and not x.index.equals(y.index)
    notes = (f"x{ends} and y{ends} have other indices: rows go together by their place",) if by_place else ()
    return Part(f"x{ends}", _given(x, f"x{ends}"), _called(y, f"y{ends}"), _given(y, f"y{ends}"), notes)


def _given(value: Any, name: str) -> Any:
    if hasattr(value, "to_pandas") and not hasattr(value, "dims"):  # of polars or Arrow; xarray's are arrays
        with needing("data", f"data: {name}: a {type(value).__name__}"):
            value = framed(value)
    if hasattr(value, "iloc"):  # of pandas
        value = value.infer_objects()  # Python's own numbers become numbers
        if not hasattr(value, "columns"):
            return value
        if name.startswith("y") and value.shape[1] == 1:
            return value.iloc[:, 0]
        named = value.copy(deep=False)
        named.columns = [str(column) for column in value.columns]
        if not named.columns.is_unique:
            raise UsageError(f"data: {name}: columns with the same name, expected each name once")
        return named.reset_index(drop=True)
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        cure = "filled with NaN they are missing values, as for --missing mean"
        raise UsageError(f"data: {name}: a masked array, whose masked values would count, expected a plain one; {cure}")
    if hasattr(value, "toarray"):
        cure = "x.toarray() makes one, OneHotEncoder(sparse_output=False) of scikit-learn none"
        raise UsageError(f"data: {name}: {type(value).__name__}, a sparse matrix, expected a plain array; {cure}")
    try:
        array = np.asarray(value)
    except (RuntimeError, TypeError, ValueError) as error:  # rows of different lengths, a tensor that cannot be read
        raise UsageError(f"data: {name}: {type(value).__name__}, expected an array ({printable(error, 200)})") from None
    _expect_one_kind(value, array, name)
    if array.dtype.hasobject and all(isinstance(one, str) for one in array.flat):
        array = array.astype(str)
    elif array.dtype.kind == "O" and all(isinstance(one, int | float | np.number) for one in array.flat):
        array = np.array(array.tolist()).reshape(array.shape)
    if array.dtype.names is not None:
        fields = f"an array with the fields {listed(array.dtype.names)}"
        raise UsageError(f"data: {name}: {fields}, expected a plain one; pandas.DataFrame({name}) makes a table of it")
    if array.dtype.hasobject:
        odd = [one for one in array.flat if not isinstance(one, str | float) and not _is_word(one)]
        which = f"with {printable(repr(odd[0]))} in it" if odd else "with text and numbers in it"
        what = f"dtype object, {which}" if array.ndim else describe(value)
        cure = f"; {name}.collect() makes a frame of it" if hasattr(value, "collect") else ""
        cure = f"; pandas.DataFrame({name}) makes a table of it" if isinstance(value, Mapping) else cure
        raise UsageError(f"data: {name}: {what}, expected numbers or text{cure}")
    return array


def _is_word(number: object) -> bool:
    """Whether it is an integer that 64 bits hold."""
    return isinstance(number, int | np.integer) and -(2**63) <= int(number) < 2**64


def _expect_one_kind(value: Any, array: NDArray[Any], name: str) -> None:
    """Refuse numbers beside text, of which NumPy makes text."""
    if array.dtype.kind in "US" and not hasattr(value, "dtype"):
        odd = next((one for one in np.asarray(value, object).flat if not isinstance(one, str | bytes)), None)
        if odd is not None:
            raise UsageError(f"data: {name}: text and {printable(repr(odd))}, expected one kind; str(...) makes text")


def _called(y: Any, otherwise: str) -> str:
    name = getattr(y, "name", None)
    return otherwise if name is None else f"column {printable(repr(str(name)))}"
