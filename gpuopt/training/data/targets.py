"""What is to be predicted: classes or numbers, how that is told, and the way from a network's outputs back to them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt.errors import UsageError
from gpuopt.suggest import printable
from gpuopt.training.data.preparation import TOO_LARGE, TOO_SMALL
from gpuopt.training.data.texts import is_number, look_alikes, no_text, obstacle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gpuopt.training.data.sources import Part

__all__ = ["Target", "called", "class_indices", "decided", "learned_target", "numbers", "targets", "values", "whole"]

LONGEST_LABEL = 256
"""Characters: one long text makes the array of all of them large."""
SURELY_FEW, FEW, MANY = 10, 20, 1000
"""Different whole numbers that are classes: in any case; if each stands twice; if they count from 0 or 1 and stand OFTEN."""
OFTEN = 20
LARGEST_FLOAT = 2.0**53 - 1
"""A whole number up to this one is a float64 with all its digits, and no other one is the same float64."""


@dataclass(frozen=True)
class Target:
    """The way from targets to what the network is trained on, and from its outputs to predictions.

    Attributes
    ----------
    names : tuple of str
        What is predicted is called: a column, or y, or y0, y1 and so on.
    classes : tuple or None
        The labels (bool, int or str) by class index; None if numbers are predicted.
    shift, scale : float64 arrays of shape (outputs,)
        Of the numbers: the network's outputs are ``(y - shift) / scale``.
    """

    names: tuple[str, ...]
    classes: tuple[Any, ...] | None = None
    shift: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    scale: NDArray[np.float64] = field(default_factory=lambda: np.ones(1))

    @property
    def outputs(self) -> int:
        """Width of the network's output."""
        return len(self.names) if self.classes is None else len(self.classes)

    @property
    def is_scaled(self) -> bool:
        """Whether the network's outputs are in other units than the numbers."""
        return bool(self.shift.any() or np.any(self.scale != 1))

    @property
    def labels(self) -> NDArray[Any]:
        """The classes as an array: bool, int64 (uint64 where it must be) or str."""
        assert self.classes is not None
        is_large = type(self.classes[-1]) is int and self.classes[-1] > np.iinfo(np.int64).max  # they are sorted
        return np.array(self.classes, np.uint64 if is_large else None)

    def scaled(self, y: NDArray[np.float64]) -> NDArray[np.float32]:
        """What the network is trained on, of numbers of shape (samples, outputs)."""
        return ((y - self.shift) / self.scale).astype(np.float32)

    def numbers(self, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Predictions in the target's own units, float64 of shape (samples, outputs)."""
        return outputs.astype(np.float64) * self.scale + self.shift

    def to_json(self) -> dict[str, Any]:
        """In JSON's types."""
        classes, kind = (None, None) if self.classes is None else (list(self.classes), type(self.classes[0]).__name__)
        numbers = {"shift": self.shift.tolist(), "scale": self.scale.tolist()}
        return {"names": list(self.names), "classes": classes, "type": kind, **numbers}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Target:
        """What `to_json` gave; TypeError, ValueError or KeyError if it did not."""
        kinds: dict[str, type] = {"bool": bool, "int": int, "str": str}
        classes = None if plain["classes"] is None else tuple(plain["classes"])
        if classes is not None and (not classes or {type(c) for c in classes} != {kinds[plain["type"]]}):
            raise ValueError("target: classes of another type than it says")
        shift, scale = (np.asarray(plain[name], np.float64) for name in ("shift", "scale"))
        made = cls(tuple(map(str, plain["names"])), classes, shift, scale)
        if not made.names or (classes is None and {shift.shape, scale.shape} != {(len(made.names),)}):
            raise ValueError("target: names, shift and scale that do not fit")
        return made


def values(part: Part) -> NDArray[Any]:
    """Raw targets as an array: bool, integers, floats or text; UsageError if some are missing, or texts are too long."""
    y = part.y
    if isinstance(y, np.ndarray):
        return _decoded(y, part.y_name) if y.dtype.kind == "S" else y
    import pandas as pd

    missing = y.isna().to_numpy()
    if missing.any():
        row = int(np.argwhere(missing)[0][0])
        cure = "--missing drop leaves such rows out, those that read NA, None or null in a .csv file among them"
        raise UsageError(f"{part.y_name}: row {row} is missing or NaN, expected what is to be predicted; {cure}")
    if y.ndim == 1 and pd.api.types.infer_dtype(y) == "decimal":
        y = y.astype(np.float64)
    if y.ndim == 2 or pd.api.types.is_numeric_dtype(y.dtype) or pd.api.types.is_bool_dtype(y.dtype):
        found = y.to_numpy()
        if found.dtype.hasobject and y.ndim == 1:  # pandas' own numbers
            found = np.array(found.tolist())
        return found  # type: ignore[no-any-return]
    different = y.astype("category").cat  # each text once, however long and frequent
    if pd.api.types.is_numeric_dtype(different.categories.dtype):
        return np.asarray(y)
    odd = next((one for one in different.categories if not isinstance(one, str | int | float | np.number)), None)
    if odd is not None:  # dates, durations: a class for each of them is nobody's wish
        what = f"dtype {y.dtype} such as {printable(odd)}"
        cure = "; .str.decode('utf-8') of pandas makes text of bytes" if isinstance(odd, bytes) else ""
        cure = "; a number of days or seconds, say" if hasattr(odd, "resolution") or hasattr(odd, "year") else cure
        raise UsageError(f"{part.y_name}: {what}, expected numbers or text{cure}")
    number = next((one for one in different.categories if not isinstance(one, str)), None)
    text = next((one for one in different.categories if isinstance(one, str)), None)
    if number is not None and text is not None:
        pair = f"text such as {printable(repr(text))} and numbers such as {number}"
        raise UsageError(f"{part.y_name}: holds {pair}, expected one of both; y.astype(str) makes all of them text")
    texts = different.categories.astype(str)
    if (longest := max(map(len, texts), default=0)) > LONGEST_LABEL:
        raise UsageError(f"{part.y_name}: a text of {longest:,} characters, expected at most {LONGEST_LABEL}")
    return texts.to_numpy(dtype=str)[different.codes]  # type: ignore[no-any-return]


def _decoded(y: NDArray[Any], name: str) -> NDArray[Any]:
    try:
        return np.char.decode(y, "utf-8")
    except UnicodeDecodeError as error:
        cure = 'expected text as str, as numpy.char.decode(y, "cp1252") makes it, say'
        raise UsageError(f"{name}: {no_text(error)}; {cure}") from None


def decided(part: Part, task: str) -> tuple[bool, list[str]]:
    """Whether targets are classes, and what is to be said of it: as the task says, or because few whole numbers differ."""
    y = part.y
    kind, is_single = y.dtype.kind, math.prod(y.shape[1:]) == 1
    if kind in "SU":
        return _texts(part, y, task)
    if kind not in "biuf":
        raise UsageError(f"{part.y_name}: dtype {y.dtype}, expected integers, floats or text")
    if task == "auto" and _is_one_hot(y):
        cure = "np.argmax(y, axis=1) makes class numbers of it, --task regression predicts the columns as numbers"
        raise UsageError(f"{part.y_name}: shape {y.shape}, with a single 1 in each row, as classes are marked; {cure}")
    if kind == "b":
        return task != "regression", []
    if not is_single and kind == "f" and task == "classification":
        raise UsageError(f"{part.y_name}: shape {y.shape}, expected one label for each sample, (samples,)")
    if not is_single or task == "dtype":  # as version 0.1.0 took it
        return kind != "f" and task != "regression", []
    is_whole = kind != "f" or bool(np.isfinite(y).all() and (y == np.trunc(y)).all())
    if task == "classification" and not is_whole:
        raise UsageError(f"{part.y_name}: dtype {y.dtype}, class labels must be integers or text")
    if task != "auto" or not is_whole:
        return task == "classification", []
    about = f"{part.y_name}: {len(np.unique(y)):,} different whole numbers in {len(y):,} samples"
    if not _are_classes(y):
        return False, [f"{about} are taken for numbers to predict; --task classification takes them for classes"]
    if kind == "f":
        cure = "--task classification takes them for classes, --task regression for numbers to be predicted"
        raise UsageError(f"{part.y_name}: dtype {y.dtype}, but only whole numbers, few of them: {cure}")
    return True, [f"{about} are taken for classes; --task regression predicts them as numbers"]


def _is_one_hot(y: NDArray[Any]) -> bool:
    """Whether each row has a single 1, and else 0."""
    if y.ndim != 2 or y.shape[1] < 2:
        return False
    return bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all())


def _texts(part: Part, y: NDArray[Any], task: str) -> tuple[bool, list[str]]:
    """Text is classes, unless the task says otherwise or it is rather numbers, of which some cannot be read."""
    if task not in {"auto", "regression"}:
        return True, look_alikes(part.y_name, "classes", np.unique(y).tolist())
    different, first = np.unique(y, return_index=True)
    odd = [one for one in different if not is_number(one)]
    row = int(first[different == odd[0]][0]) if odd else 0
    such = f"row {row} is {printable(repr(str(y.flat[row])), 40)}"
    hint = obstacle(str(y.flat[row])) if odd else "y.astype(float) makes numbers of text"
    such += f" ({hint})" if hint else ""
    cure = "--task classification takes all of them for classes"
    if task == "regression":
        raise UsageError(f"{part.y_name}: holds text, expected numbers for --task regression; {such}")
    if len(different) > FEW and 0 < 2 * len(odd) < len(different):
        about = f"{len(different) - len(odd):,} of {len(different):,} different values are numbers, but {such}"
        raise UsageError(f"{part.y_name}: {about}: expected numbers alone, or text; {cure}")
    if len(different) > max(SURELY_FEW, len(y) // 2):
        about = f"{len(different):,} different texts in {len(y):,} samples, where {such}"
        raise UsageError(f"{part.y_name}: {about}, expected numbers or few classes; {cure}")
    return True, look_alikes(part.y_name, "classes", different.tolist())


def _are_classes(y: NDArray[Any]) -> bool:
    different, counts = np.unique(y, return_counts=True)
    if len(different) <= SURELY_FEW:
        return True
    counting = different[0] in {0, 1} and different[-1] - different[0] == len(different) - 1
    if len(different) <= FEW:
        return bool(counting or 2 * len(different) <= len(y))
    return bool(counting and len(different) <= MANY and counts.mean() >= OFTEN)


def targets(parts: list[Part], *, classifies: bool) -> tuple[list[NDArray[Any]], tuple[Any, ...] | None]:
    """The targets of each part, class indices or float64 numbers; and the classes of the first one."""
    if classifies:
        classes, indices = _classes(parts)
        return [*indices], tuple(classes.tolist())
    found = [numbers(part.y_name, part.y) for part in parts]
    if len({y.shape[1] for y in found}) > 1:
        raise UsageError(f"{parts[1].y_name}: shape {parts[1].y.shape}, expected rows as in {parts[0].y_name}")
    return [*found], None


def learned_target(
    y: NDArray[Any], name: str, names: tuple[str, ...], classes: tuple[Any, ...] | None, *, scale: bool
) -> Target:
    """What is known of the target, learned on the training part `y` of it; without names it is y, or y0, y1 and so on."""
    if classes is not None:
        return Target(names or ("y",), classes)
    shift, deviation = np.zeros(y.shape[1]), np.ones(y.shape[1])
    if scale:
        shift, deviation = y.mean(axis=0), y.std(axis=0)
        if not np.isfinite(deviation).all():
            raise UsageError(f"{name}: {TOO_LARGE}")
        if (np.ptp(y, axis=0)[deviation <= 1e-300] > 0).any():
            raise UsageError(f"{name}: {TOO_SMALL}")
        deviation[deviation <= 1e-300] = 1
    numbered = ("y",) if y.shape[1] == 1 else tuple(f"y{i}" for i in range(y.shape[1]))
    return Target(names or numbered, None, shift, deviation)


def called(y: Any) -> tuple[str, ...]:
    """The names of the columns that raw targets are, if they are columns with names."""
    if isinstance(y, np.ndarray) or (y.ndim == 1 and y.name is None):
        return ()
    return tuple(map(str, [y.name] if y.ndim == 1 else y.columns))


def numbers(name: str, y: NDArray[Any]) -> NDArray[np.float64]:
    """Targets as numbers of shape (samples, outputs); UsageError for one that is none, or not finite."""
    if y.dtype.kind not in "biuf":
        raise UsageError(f"{name}: dtype {y.dtype}, expected integers or floats")
    wide = y.reshape(len(y), -1).astype(np.float64)
    with np.errstate(over="ignore"):
        finite = np.isfinite(wide)
    if not finite.all():
        row, column = (int(i) for i in np.argwhere(~finite)[0])
        raise UsageError(f"{name}: row {row} holds {wide[row, column]}, expected finite numbers")
    return wide


def _classes(parts: list[Part]) -> tuple[NDArray[Any], list[NDArray[np.int64]]]:
    """Return the distinct labels of the first part, sorted, and for each part the indices of its labels among them."""
    labels = []
    for part in parts:
        y = part.y.reshape(-1) if math.prod(part.y.shape[1:]) == 1 else part.y
        if y.ndim != 1:
            raise UsageError(f"{part.y_name}: shape {y.shape}, expected one label for each sample, (samples,)")
        labels.append(whole(part.y_name, y))
    classes = np.unique(labels[0])
    if len(classes) > max(MANY, len(labels[0]) // 2):
        several = f"{len(classes):,} different labels in {len(labels[0]):,} samples"
        raise UsageError(f"{parts[0].y_name}: {several}; if numbers are to be predicted, say --task regression")
    return classes, [
        class_indices(part.y_name, y, classes, parts[0].y_name) for part, y in zip(parts, labels, strict=True)
    ]


def whole(name: str, y: NDArray[Any]) -> NDArray[Any]:
    """Labels, of which floats become integers; UsageError where digits of some are lost already."""
    if y.dtype.kind != "f":
        return y
    large = ~(np.abs(y) <= LARGEST_FLOAT)
    if large.any():
        row = int(large.argmax())
        cure = "expected integers without missing ones, or text"
        raise UsageError(f"{name}: row {row} is {y[row]:.17g}, a label as a {y.dtype}, which has lost digits; {cure}")
    return y.astype(np.int64)


def class_indices(name: str, y: NDArray[Any], classes: NDArray[Any], known: str) -> NDArray[np.int64]:
    """The index of each label among the classes; UsageError for one that is none."""
    found, outside = y, np.zeros(len(y), bool)
    if {y.dtype.kind, classes.dtype.kind} == {"i", "u"}:  # which NumPy compares as float64
        bounds = np.iinfo(classes.dtype)
        outside = (y < bounds.min) | (y > bounds.max)
        found = y.astype(classes.dtype)
    unknown = outside | ~np.isin(found, classes)
    if unknown.any():
        row = int(unknown.argmax())
        raise UsageError(f"{name}: row {row} is {printable(repr(y[row].item()))}, a label that {known} lacks")
    return np.searchsorted(classes, found).astype(np.int64)
