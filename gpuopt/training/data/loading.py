"""From raw data to a data set: split, learned on the training part, prepared; what was taken for what is said."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from gpuopt.errors import UsageError
from gpuopt.limits import available, expect_file, expect_memory
from gpuopt.suggest import printable
from gpuopt.training.data.cleaning import complete, is_mapped, lengthy, stand_ins, without, without_index
from gpuopt.training.data.dataset import Dataset, Samples, Task
from gpuopt.training.data.preparation import Column, Features, Missing, Rows, blocks, listed
from gpuopt.training.data.sources import Part, as_part, reading, training_parts
from gpuopt.training.data.targets import Target, called, decided, learned_target, targets, values
from gpuopt.training.data.texts import look_alikes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Reading", "from_arrays", "load"]

SPREAD = 10.0
"""Features that differ more than that in size, or are that much larger than 1, learn slowly as they are."""
SPLITTING = 0x5EED
"""Makes the generator of the split another one than those of the batches."""
LARGEST_SHARE = 0.5
"""Of the free memory that prepared features may take; those of a mapped file stay there beyond it."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data are read, as `Config` has it; the options of ``gpuopt train`` are called the same.

    Attributes
    ----------
    target : str, optional
        The column of a table that is to be predicted; all others are features.
    task : {"auto", "classification", "regression"}
        What the targets are. "auto": text and few different whole numbers are classes, other numbers are predicted.
    standardize : bool
        Shift and scale each input to mean 0 and standard deviation 1 over the training part.
    one_hot : bool
        Make categories of columns of text.
    missing : {"mean", "drop"}, optional
        What becomes of missing values: the mean of the training part, or the row is left out. Default: they are refused.
    validation : float, optional
        The share of the samples that is set apart, of each class alike.
    ignore : tuple of str
        Columns that are left out.
    labels : str, optional
        The ``.npy`` file with the targets of an ``.npy`` file of features.
    encoding : str, optional
        Of a ``.csv`` file.
    scale_target : bool
        Whether numbers to predict are brought to mean 0 and standard deviation 1 for the network.
    seed : int
        Of the split.
    """

    target: str | None = None
    task: Task = "auto"
    standardize: bool = False
    one_hot: bool = False
    missing: Missing | None = None
    validation: float | None = None
    ignore: tuple[str, ...] = ()
    labels: str | None = None
    encoding: str | None = None
    scale_target: bool = True
    seed: int = 0


def load(path: str | Path, target: str | None = None, task: Task = "auto", **options: Any) -> Dataset:
    """Read a data file.

    Parameters
    ----------
    path : str or Path
        An ``.npz`` file with the arrays ``x_train`` and ``y_train``, and ``x_test`` and ``y_test`` if there is a test
        set; or ``x`` and ``y``. A table, ``.csv`` or ``.parquet`` (needs the extra ``gpuopt[data]``). Or an ``.npy`` file,
        with `labels`: it is mapped, and may be larger than the memory.
    target, task, **options
        The attributes of `Reading`: the column to predict, what the targets are, and so on.

    Returns
    -------
    Dataset
        Samples of more than one dimension are flattened, and bytes (uint8, as in images) scaled to [0, 1].

    Raises
    ------
    UsageError
        What is wrong with the file, naming the array or column and the row (rows count from 0).

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/points.npz", x=np.eye(4), y=np.array(["a", "b", "a", "b"]))
    ...     data = load(f"{folder}/points.npz")
    >>> data.name, data.features, data.classes
    ('points', 4, ('a', 'b'))
    """
    path = Path(path)
    how = Reading(target=target, task=task, **options)
    if task not in {*get_args(Task), "dtype"}:
        raise UsageError(f"--task {task}: expected one of {', '.join(get_args(Task))}")
    with reading(path):
        expect_file(path)
        parts = training_parts(path, target=target, labels=how.labels, encoding=how.encoding, ignored=how.ignore)
        return dataset(path.stem, parts, how)


def from_arrays(data: Sequence[Any], name: str = "arrays", **options: Any) -> Dataset:
    """Make a data set of arrays or data frames.

    Parameters
    ----------
    data : sequence
        ``(x, y)`` or ``(x, y, x_test, y_test)``; features are arrays of shape (samples, ...) or data frames, targets
        arrays or columns.
    name : str
    **options
        Attributes of `Reading`.

    Raises
    ------
    UsageError
        As `load`.
    """
    if not isinstance(data, tuple | list) or len(data) not in {2, 4}:
        raise UsageError("data: expected (x, y) or (x, y, x_test, y_test)")
    how = Reading(**options)
    for option in ("target", "labels", "encoding"):
        if getattr(how, option) is not None:
            raise UsageError(f"--{option} {getattr(how, option)}: is for files, expected none with data=(x, y)")
    ends = ("",) if len(data) == 2 else ("_train", "_test")
    parts = [as_part(x, y, end) for x, y, end in zip(data[::2], data[1::2], ends, strict=True)]
    return dataset(name, parts, how)


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is found and told
def dataset(name: str, parts: list[Part], how: Reading) -> Dataset:
    """Prepare raw data: the training set, and the test set if there is one."""
    notes = list(parts[0].notes)
    if how.ignore:
        parts = [dataclasses.replace(part, x=without(part, how.ignore)) for part in parts]
    for part in parts:
        _expect_samples(part)
    if len(parts) > 1:
        _expect_alike(*parts)
    parts, more = without_index(parts)
    notes += more + lengthy(parts[0].x, parts[0].x_name)
    if how.missing == "drop":
        parts = [complete(part, notes) for part in parts]
    names = called(parts[0].y)
    parts = [dataclasses.replace(part, y=values(part)) for part in parts]
    classifies, why = decided(parts[0], how.task)
    notes += why if classifies else [*why, *lengthy(parts[0].y, parts[0].y_name)]
    found, classes = targets(parts, classifies=classifies)
    if classes is not None and len(classes) == 1:
        only = f"all samples are of one class, {printable(classes[0])}: there is nothing to tell apart"
        notes.append(f"{parts[0].y_name}: {only}")
    if classes is None and len(found[0]) > 1 and not np.ptp(found[0], axis=0).all():
        notes.append(f"{parts[0].y_name}: all samples have the same number: there is nothing to predict")
    prepared = _features(parts[0], how)
    raw = [(part.x_name, Rows(_matrix(part, prepared)), y) for part, y in zip(parts, found, strict=True)]
    notes += stand_ins(raw[0][1].x, prepared.inputs)
    notes += [] if classes is not None else stand_ins(found[0], names or ("y",) * found[0].shape[1])
    if how.validation is not None:
        if len(parts) > 1:
            raise UsageError(f"--validation {how.validation}: there is a test set already, expected none")
        ((label, x, y),) = raw
        index = _split(y, classifies, how)
        raw = [(label, dataclasses.replace(x, index=chosen), y[chosen]) for chosen in index]
        notes.append(f"Validation: {len(index[1]):,} of {len(x):,} samples, set apart by seed {how.seed}")
    prepared = prepared.learned(raw[0][1], standardize=how.standardize)
    learned = learned_target(raw[0][2], parts[0].y_name, names, classes, scale=how.scale_target)
    samples = [Samples(_inputs(x, prepared, label), learned.scaled(y) if classes is None else y) for label, x, y in raw]
    notes += _said(prepared, learned, how, raw[0][1])
    return Dataset(name, samples[0], samples[1] if len(samples) > 1 else None, prepared, learned, tuple(notes))


def _matrix(part: Part, prepared: Features) -> NDArray[Any]:
    """Raw features as numbers, of shape (samples, ...); those of a mapped array, looked at once, stay in its file."""
    matrix = prepared.matrix(part.x[:1] if is_mapped(part.x) else part.x, part.x_name)
    return part.x if is_mapped(part.x) else matrix


def _expect_samples(part: Part) -> None:
    if part.x.ndim < 2:
        raise UsageError(f"{part.x_name}: shape {part.x.shape}, expected (samples, features) or more dimensions")
    if part.y.ndim < 1 or len(part.x) != len(part.y):
        rows = len(part.y) if part.y.ndim else "a single value"
        raise UsageError(f"{part.x_name} has {len(part.x)} rows and {part.y_name} has {rows}: expected as many")
    if not len(part.x) or not math.prod(part.x.shape[1:]):
        raise UsageError(f"{part.x_name}: shape {part.x.shape}, expected at least one sample and one feature")


def _expect_alike(train: Part, test: Part) -> None:
    """Refuse a test set that would be taken for something else than the training set."""
    if isinstance(train.x, np.ndarray) is not isinstance(test.x, np.ndarray):
        raise UsageError(f"{train.x_name} and {test.x_name}: expected arrays or data frames, both alike")
    if isinstance(train.x, np.ndarray):
        widths = [math.prod(part.x.shape[1:]) for part in (train, test)]
        if widths[0] != widths[1]:
            raise UsageError(f"{test.x_name}: {widths[1]} features a sample, expected {widths[0]} as in {train.x_name}")
        if (train.x.dtype == np.uint8) != (test.x.dtype == np.uint8):
            kinds = f"{train.x_name} has dtype {train.x.dtype} and {test.x_name} {test.x.dtype}"
            raise UsageError(f"{kinds}: bytes are scaled to [0, 1], other numbers are not; expected both alike")
    known, found = (_kind_of(part.y) for part in (train, test))
    if known != found:
        raise UsageError(f"{train.y_name} holds {known} and {test.y_name} {found}: expected both alike")


def _kind_of(y: Any) -> str:
    kinds = {"b": "true and false", "i": "whole numbers", "u": "whole numbers", "f": "floats", "S": "bytes"}
    return kinds.get(getattr(getattr(y, "dtype", None), "kind", "O"), "text")


def _features(part: Part, how: Reading) -> Features:
    """What is known of the features before anything is learned of their numbers."""
    if isinstance(part.x, np.ndarray):
        if part.x.dtype.kind not in "biuf":
            raise UsageError(f"{part.x_name}: dtype {part.x.dtype}, expected integers or floats")
        width = math.prod(part.x.shape[1:])
        shape = part.x.shape[1:] if part.x.ndim > 2 else ()
        return Features(width, missing=how.missing, is_bytes=part.x.dtype == np.uint8, shape=shape)
    import pandas as pd

    columns = []
    for name in part.x.columns:
        values = part.x[name]
        if how.one_hot and not pd.api.types.is_numeric_dtype(values.dtype):
            texts = values.dropna().astype("category").cat.remove_unused_categories().cat.categories
            columns.append(Column(name, tuple(sorted(map(str, texts)))))
        else:
            columns.append(Column(name))
    width = sum(len(column.inputs) for column in columns)
    expect_memory(f"{width:,} inputs of {len(part.x):,} rows", 8 * width * len(part.x), "--ignore leaves columns out")
    is_bytes = bool((part.x.dtypes == np.uint8).all())
    return Features(width, tuple(columns), missing=how.missing, is_bytes=is_bytes)


def _split(y: NDArray[Any], classifies: bool, how: Reading) -> list[NDArray[np.int64]]:
    """Training and validation part: their rows, in order; of each class the same share."""
    assert how.validation is not None
    if not 0 < how.validation < 1:
        raise UsageError(f"--validation {how.validation}: expected a share of the samples, between 0 and 1")
    count = len(y)
    wanted = round(how.validation * count)
    random = np.random.RandomState([how.seed, SPLITTING])
    order = random.permutation(count)
    if classifies:
        sizes = np.bincount(y)
        shares = how.validation * sizes
        drawn = np.minimum(np.floor(shares).astype(int), sizes - 1)
        rest = np.argsort(-(shares - drawn), kind="stable")  # the largest remainders get the samples that are left
        for label in rest:
            if drawn.sum() < wanted and drawn[label] < sizes[label] - 1:
                drawn[label] += 1
        chosen = np.concatenate([order[y[order] == label][: drawn[label]] for label in range(len(sizes))])
    else:
        chosen = order[:wanted]
    left = count - len(chosen)
    if len(chosen) < 2 or left < 2:
        why = " (the only sample of a class is one to train)" if classifies else ""
        parts = f"{len(chosen)} of {count} samples to validate and {left} to train"
        raise UsageError(f"--validation {how.validation}: {parts}, expected at least two of each{why}")
    kept = np.ones(count, bool)
    kept[chosen] = False
    return [np.flatnonzero(kept), np.sort(chosen)]


def _inputs(x: Rows, prepared: Features, name: str) -> NDArray[Any] | Rows:
    """The network's inputs: in memory, or of a mapped array on the way from its file, where they would take too much."""
    size = 4 * len(x) * prepared.width
    if is_mapped(x.x) and size > LARGEST_SHARE * available():
        for begin, block in blocks(x):
            prepared(block, name, begin)  # what is not finite is refused now
        return dataclasses.replace(x, prepared=prepared, name=name)
    expect_memory(name, size, "in an .npy file, with --labels, they may stay on the disk")
    return prepared(x, name)


def _said(prepared: Features, target: Target, how: Reading, train: NDArray[Any] | Rows) -> list[str]:
    """What was done to the features, of which the raw numbers are given, and a hint where that is likely to be too little."""
    notes = []
    if prepared.is_bytes and not how.standardize:
        notes.append("Features are bytes (uint8), scaled to [0, 1]; --standardize scales them by their deviation")
    texts = [column for column in prepared.columns or () if column.categories is not None]
    if texts:
        notes.append(f"Categories: {listed([f'{c.name} ({len(c.categories or ())})' for c in texts])} (--one-hot)")
    for column in texts:
        notes += look_alikes(f"column {printable(repr(column.name))}", "categories", column.categories or ())
        if 2 * (count := len(column.categories or ())) > len(train) > 2:
            shown = printable(column.name)
            notes.append(
                f"Column {shown} has {count:,} categories for {len(train):,} samples; --ignore {shown} leaves it out"
            )
    if target.is_scaled:
        about = f"mean {target.shift[0]:.6g}, deviation {target.scale[0]:.6g}"
        several = "" if target.outputs == 1 else " and so on"
        notes.append(f"The target is scaled for the network: {about}{several}; errors are told in its own units")
    if not how.standardize and not prepared.is_bytes:
        x = np.nan_to_num(np.abs(train[: min(len(train), 2000)].astype(np.float64)))
        largest = x.max(axis=0)
        x, largest = x[:, largest > 0], largest[largest > 0]
        sizes = largest * np.sqrt(((x / largest) ** 2).mean(axis=0))
        low, high = (sizes.min(), sizes.max()) if len(sizes) else (1, 1)
        if high > SPREAD or high * SPREAD * 10 < 1 or high > SPREAD * 10 * low:
            about = f"Features are of sizes {sizes.min():.3g} to {sizes.max():.3g}"
            notes.append(f"{about}: --standardize is likely to help")
    return notes
