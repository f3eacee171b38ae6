"""Data to train on: the built-in spiral, and files.

Everything here happens once, on the host, with NumPy. A training set that gets through has no surprises left: features
are finite float32 of shape (samples, features), targets are class indices or finite float32.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from gpuopt.errors import UsageError
from gpuopt.limits import expect_file, expect_room
from gpuopt.suggest import did_you_mean
from gpuopt.training.archive import Archive

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["Dataset", "Samples", "Task", "load", "spiral"]

MOST_COLUMNS = 30_000
"""Of a table: pandas takes 50 microseconds for each, however short it is."""
HEAD = 4 << 20
"""Characters at the beginning of a CSV file, which hold its first rows."""
LONGEST_LABEL = 256
"""Characters: one long text makes the array of all of them large."""
BYTES_A_CHARACTER = 4
"""Of a table of text, once it is in memory: a number has at least one digit and a comma, and takes 8 bytes."""
Task: TypeAlias = Literal["auto", "classification", "regression"]


@dataclass(frozen=True)
class Samples:
    """Features and targets of the same samples.

    Attributes
    ----------
    x : float32 array of shape (samples, features)
    y : int64 array of shape (samples,), indices of classes; or float32 array of shape (samples, outputs)
    """

    x: NDArray[np.float32]
    y: NDArray[Any]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Dataset:
    """What a network is trained on, and tested with.

    Attributes
    ----------
    name : str
    train : Samples
    test : Samples or None
    classes : tuple or None
        The labels as they stand in the data, by class index; None for regression.
    """

    name: str
    train: Samples
    test: Samples | None = None
    classes: tuple[int | str, ...] | None = None

    @property
    def features(self) -> int:
        """Numbers that a sample has, the width of the network's input."""
        return int(self.train.x.shape[1])

    @property
    def outputs(self) -> int:
        """Classes, or numbers to predict: the width of the network's output."""
        return int(self.train.y.shape[1]) if self.classes is None else len(self.classes)


def spiral(random: np.random.RandomState, samples: int = 100, classes: int = 3) -> Dataset:
    """Points on spiral arms, one arm a class: easy to draw, and no line separates them.

    The same points, for the same generator, as `spiral.create_data` of the package `nnfs` (Kinsley & Kukieła, "Neural
    Networks from Scratch in Python", 2020), rounding included: that book's figures can be compared.

    Parameters
    ----------
    random : RandomState
        `samples` normal numbers are drawn for each class.
    samples : int
        Points on an arm.
    classes : int
        Arms.

    Examples
    --------
    >>> data = spiral(np.random.RandomState(0))
    >>> data.train.x.shape, data.outputs
    ((300, 2), 3)
    """
    radius = np.linspace(0, 1, samples)
    arms = []
    for arm in range(classes):
        noise = random.randn(samples).astype(np.float32) * np.float32(0.2)
        angle = 2.5 * (np.linspace(4 * arm, 4 * (arm + 1), samples) + noise)
        arms.append(np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1))
    x = np.concatenate(arms).astype(np.float32)
    return Dataset("spiral", Samples(x, np.repeat(np.arange(classes), samples)), classes=tuple(range(classes)))


def load(path: str | Path, target: str | None = None, task: Task = "auto", *, standardize: bool = False) -> Dataset:
    """Read a data file.

    Parameters
    ----------
    path : str or Path
        An ``.npz`` file with the arrays ``x_train`` and ``y_train``, and ``x_test`` and ``y_test`` if there is a test
        set; or ``x`` and ``y``. Or a table, ``.csv`` or ``.parquet`` (needs the extra ``gpuopt[data]``).
    target : str, optional
        The column of a table that is to be predicted; all others are features.
    task : {"auto", "classification", "regression"}
        What the targets are. "auto": integers and strings are classes, other numbers are for regression.
    standardize : bool
        Shift and scale each feature to mean 0 and standard deviation 1 over the training set.

    Returns
    -------
    Dataset
        Samples of more than one dimension are flattened, and bytes (uint8, as in images) scaled to [0, 1].

    Raises
    ------
    UsageError
        What is wrong with the file, naming the array or column and the row (rows count from 0).
    """
    path = Path(path)
    if task not in get_args(Task):
        raise UsageError(f"--task {task}: expected one of {', '.join(get_args(Task))}")
    with _reading(path):
        expect_file(path)
        if path.suffix == ".npz":
            if target is not None:
                raise UsageError(f"--target {target}: is for tables; in {path} the targets are the array y or y_train")
            parts = _read_npz(path)
        elif path.suffix in {".csv", ".parquet"}:
            parts = [_read_table(path, target)]
        else:
            raise UsageError(f"{path}: expected a file .npz, .csv or .parquet")
        samples, classes = _samples(parts, task)
        if standardize:
            samples = _standardized(samples)
    train, test = (*samples, None)[:2]
    assert train is not None
    return Dataset(path.stem, train, test, classes)


@dataclass(frozen=True)
class _Part:
    """Features and targets as read, and what to call them in messages."""

    x_name: str
    x: NDArray[Any]
    y_name: str
    y: NDArray[Any]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong into a UsageError that names the file."""
    try:
        yield
    except UsageError as error:
        message = str(error)
        raise UsageError(message if str(path) in message else f"{path}: {message}") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # there is no end to what damaged files make zipfile, NumPy, pandas and pyarrow raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{path}: not a readable {path.suffix} file ({reason:.200})") from error


def _read_npz(path: Path) -> list[_Part]:
    with path.open("rb") as file:
        arrays = Archive(file)
        keys = arrays.names
        pairs = [(f"x{end}", f"y{end}") for end in (["_train", "_test"] if "x_train" in keys else [""])]
        if pairs[-1][0] not in keys and pairs[-1][1] not in keys and len(pairs) > 1:
            del pairs[-1]  # no test set
        for key in (key for pair in pairs for key in pair):
            if key not in keys:
                expected = "x_train and y_train (and x_test and y_test), or x and y"
                raise UsageError(f"has no array {key!r}: expected {expected}; it has {_listed(keys) or 'nothing'}")
        return [_Part(x, arrays[x], y, arrays[y]) for x, y in pairs]


def _table(path: Path, target: str | None) -> pd.DataFrame:
    try:
        import pandas as pd

        if path.suffix == ".csv":
            size = path.stat().st_size
            expect_room("the table", BYTES_A_CHARACTER * size, size)
            _expect_rows(path, target)
            table = pd.read_csv(path, low_memory=False)
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            about, size = pq.read_metadata(path), path.stat().st_size
            names = about.schema.names
            _expect_columns(about.num_columns, names, target)
            for field in about.schema.to_arrow_schema():
                if pa.types.is_nested(field.type):
                    raise UsageError(f"column {field.name!r}: holds {field.type}, expected numbers or text")
            unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
            expect_room("the table", max(unpacked, 8 * about.num_rows * about.num_columns), size)
            with pq.ParquetFile(path, metadata=about, read_dictionary=names) as file:  # repeated texts once
                table = file.read().to_pandas()
    except ImportError as error:
        library = error.name or "pandas"
        cure = 'run `pip install "gpuopt[data]"`'
        raise UsageError(f"reading {path.suffix} files needs {library}, which is not installed; {cure}") from None
    return table


def _read_table(path: Path, target: str | None) -> _Part:
    table = _table(path, target)
    import pandas as pd  # it is installed by now

    columns = [str(column) for column in table.columns]
    table.columns = columns
    if target not in columns:
        given = "say with --target which column to predict" if target is None else f"has no column {target!r}"
        raise UsageError(f"{given}{did_you_mean(target or '', columns)}; its columns are {_listed(columns)}")
    if table.empty:
        raise UsageError(f"a table of shape {table.shape}: expected at least one sample and one feature")
    labels, features = table[target], table.drop(columns=target)
    for column, dtype in features.dtypes.items():
        if not pd.api.types.is_numeric_dtype(dtype):
            raise UsageError(f"column {column!r}: holds {dtype}, a feature must be numbers")
    are_bytes = (features.dtypes == np.uint8).all()  # as in images; else there may be booleans and pandas' own integers
    x = features.to_numpy() if are_bytes else features.to_numpy(np.float64, na_value=np.nan)
    for names, missing in ((features.columns, np.isnan(x)), ([target], labels.isna().to_numpy()[:, None])):
        if missing.any():
            row, column = np.argwhere(missing)[0]
            raise UsageError(f"column {names[column]!r}: row {row} is missing or NaN")
    if pd.api.types.is_numeric_dtype(labels):
        y = labels.to_numpy()
    else:
        different = labels.astype("category").cat  # each text once, however long and frequent
        texts = different.categories.astype(str)
        if (longest := max(map(len, texts), default=0)) > LONGEST_LABEL:
            raise UsageError(f"column {target!r}: a text of {longest:,} characters, expected at most {LONGEST_LABEL}")
        y = texts.to_numpy(dtype=str)[different.codes]
    return _Part("the features", x, f"column {target!r}", y)


def _expect_rows(path: Path, target: str | None) -> None:
    """Look at the first rows of a CSV file: pandas shifts the columns if they are longer than the header."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        text = file.read(HEAD)
    lines = csv.reader(io.StringIO(text.lstrip(" \t\r\n"), newline=""))
    rows = list(itertools.islice((line for line in lines if len(line) > 1 or "".join(line).strip(" \t")), 3))
    _expect_columns(max(map(len, rows), default=0), rows[0] if rows else [], target)
    if not rows or (len(rows) < 3 and len(text) == HEAD):  # the last one may be cut
        raise UsageError(f"expected a header and the first rows in its first {HEAD:,} characters")
    for number, row in enumerate(rows[1:]):
        if len(row) > len(rows[0]):
            raise UsageError(f"row {number} has {len(row):,} fields, the header {len(rows[0]):,}: expected as many")


def _expect_columns(count: int, names: list[str], target: str | None) -> None:
    if target is not None and (several := names.count(target)) > 1:
        raise UsageError(f"has {several} columns {target!r}, expected one to predict")
    if count > MOST_COLUMNS:
        raise UsageError(f"a table of {count:,} columns, expected at most {MOST_COLUMNS:,}; numpy.savez packs more")


def _listed(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _samples(parts: list[_Part], task: Task) -> tuple[list[Samples], tuple[int | str, ...] | None]:
    """Checked samples of each part, and the classes that the first one has."""
    for part in parts:
        if part.x.ndim < 2:
            raise UsageError(f"{part.x_name}: shape {part.x.shape}, expected (samples, features) or more dimensions")
        if part.y.ndim < 1 or len(part.x) != len(part.y):
            rows = len(part.y) if part.y.ndim else "a single value"
            raise UsageError(f"{part.x_name} has {len(part.x)} rows and {part.y_name} has {rows}: expected as many")
        if not part.x.size:
            raise UsageError(f"{part.x_name}: shape {part.x.shape}, expected at least one sample and one feature")
    widths = [math.prod(part.x.shape[1:]) for part in parts]
    if len(set(widths)) > 1:
        raise UsageError(
            f"{parts[1].x_name}: {widths[1]} features a sample, expected {widths[0]} as in {parts[0].x_name}"
        )
    features = [_features(part) for part in parts]
    if _is_classification(parts[0], task):
        classes, indices = _classes(parts)
        return [Samples(x, y) for x, y in zip(features, indices, strict=True)], tuple(classes.tolist())
    targets = [_numbers(part.y_name, part.y).reshape(len(part.y), -1) for part in parts]
    if len({y.shape[1] for y in targets}) > 1:
        raise UsageError(f"{parts[1].y_name}: shape {parts[1].y.shape}, expected rows as in {parts[0].y_name}")
    return [Samples(x, y) for x, y in zip(features, targets, strict=True)], None


def _features(part: _Part) -> NDArray[np.float32]:
    x = _numbers(part.x_name, part.x).reshape(len(part.x), -1)
    return x * np.float32(1 / 255) if part.x.dtype == np.uint8 else x


def _numbers(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """`array` as finite float32."""
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{name}: dtype {array.dtype}, expected integers or floats")
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(numbers)
    if not finite.all():
        row = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise UsageError(f"{name}: row {row[0]} holds {array[row]}, expected finite numbers (in the range of float32)")
    return numbers


def _is_classification(part: _Part, task: Task) -> bool:
    kind = part.y.dtype.kind
    if kind in "biuSU":
        if task == "regression" and kind in "SU":
            raise UsageError(f"{part.y_name}: holds text, expected numbers for --task regression")
        return task != "regression"
    if kind == "f" and task != "regression":
        if task == "classification":
            raise UsageError(f"{part.y_name}: dtype {part.y.dtype}, class labels must be integers or text")
        if np.all(part.y == np.trunc(part.y)) and np.isfinite(part.y).all():
            raise UsageError(
                f"{part.y_name}: dtype {part.y.dtype}, but only whole numbers: class labels must be integers or text; "
                "if numbers are to be predicted, say --task regression"
            )
    return False


def _classes(parts: list[_Part]) -> tuple[NDArray[Any], list[NDArray[np.int64]]]:
    """The labels of the first part, sorted, and the index of each part's labels among them."""
    labels = []
    for part in parts:
        y = part.y.reshape(-1) if math.prod(part.y.shape[1:]) == 1 else part.y
        if y.ndim != 1:
            raise UsageError(f"{part.y_name}: shape {y.shape}, expected one label for each sample, (samples,)")
        labels.append(y)
    classes = np.unique(labels[0])
    if len(classes) > max(1000, len(labels[0]) // 2):
        several = f"{len(classes)} different labels in {len(labels[0])} samples"
        raise UsageError(f"{parts[0].y_name}: {several}; if numbers are to be predicted, say --task regression")
    indices = []
    for part, y in zip(parts, labels, strict=True):
        unknown = ~np.isin(y, classes)
        if unknown.any():
            row = int(unknown.argmax())
            raise UsageError(f"{part.y_name}: row {row} is {y[row].item()!r}, a label that {parts[0].y_name} lacks")
        indices.append(np.searchsorted(classes, y).astype(np.int64))
    return classes, indices


def _standardized(samples: list[Samples]) -> list[Samples]:
    mean = samples[0].x.mean(axis=0, dtype=np.float64)
    deviation = samples[0].x.std(axis=0, dtype=np.float64)
    deviation[deviation == 0] = 1  # a constant feature becomes 0
    return [Samples(((part.x - mean) / deviation).astype(np.float32), part.y) for part in samples]
