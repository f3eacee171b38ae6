"""Slots: the state of a rule. Each has a start value and a shape: an array, or one number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeGuard

__all__ = [
    "Columns",
    "Filled",
    "Given",
    "Leaf",
    "Like",
    "Matrix",
    "Part",
    "Real",
    "Rows",
    "Shared",
    "Slot",
    "Slots",
    "columns",
    "given",
    "leaf",
    "like",
    "real",
    "rows",
    "shared",
]


@dataclass(frozen=True)
class Filled:
    """An array like the parameter, filled with one number."""

    start: float = 0.0


@dataclass(frozen=True)
class Like:
    """A copy of the parameter (``like("p")``), or an array like it filled with a hyperparameter's first value (``like("lr")``)."""

    source: str


@dataclass(frozen=True)
class Leaf:
    """One float64 number for each leaf; it may start at ``like("lr")``."""

    start: float | Like = 0.0


@dataclass(frozen=True)
class Shared:
    """One float64 number for all leaves of the group; ``update`` may compute it from totals of the group only.

    It may start at ``like("lr")``.
    """

    start: float | Like = 0.0


@dataclass(frozen=True)
class Real:
    """A real number for each element, also for complex parameters; it may start at ``like("initial")``."""

    start: float | Like = 0.0


@dataclass(frozen=True, eq=False)
class Given:
    """Real arrays from the caller: one like the leaf, or a tree like the parameters."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


@dataclass(frozen=True)
class Matrix:
    """The two axes of a leaf that are rows and columns; the leaf is a stack of matrices along its other axes.

    Attributes
    ----------
    least
        Least length of both axes; a leaf with shorter ones, or with fewer than two axes, is no matrix.
    longest
        If True, the two longest axes, with the longest as columns; if False, the last two axes.

    Examples
    --------
    >>> Matrix().axes((4, 2, 3)), Matrix(longest=True).axes((4, 2, 3)), Matrix(least=3).axes((4, 2)), Matrix().axes((4,))
    ((1, 2), (2, 0), None, None)

    """

    least: int = 1
    longest: bool = False

    def axes(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Return the axes of rows and columns; None for a leaf that is no matrix."""
        if len(shape) < 2:
            return None
        axes = range(len(shape))
        first, second = (sorted(axes, key=lambda axis: shape[axis]) if self.longest else axes)[-2:]
        return (first, second) if min(shape[first], shape[second]) >= self.least else None


@dataclass(frozen=True)
class Rows:
    """A real number for each row of a matrix: an array like the leaf, with length 1 along the columns' axis.

    For a leaf that is no matrix, one number.
    """

    start: float = 0.0
    matrix: Matrix = Matrix()

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the slot for a leaf of this shape."""
        axes = self.matrix.axes(leaf)
        return _with_one(leaf, axes[1]) if axes else (1,) * len(leaf)


@dataclass(frozen=True)
class Columns:
    """A real number for each column of a matrix: an array like the leaf, with length 1 along the rows' axis.

    For a leaf that is no matrix, one for each element.
    """

    start: float = 0.0
    matrix: Matrix = Matrix()

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the slot for a leaf of this shape."""
        axes = self.matrix.axes(leaf)
        return _with_one(leaf, axes[0]) if axes else leaf


def _with_one(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


Slot: TypeAlias = Filled | Like | Leaf | Shared | Real | Given | Rows | Columns
Slots: TypeAlias = tuple[str, ...] | Mapping[str, float | Slot]
"""Type of ``Formula.slots``: names of arrays that start at 0, or a mapping of names to starts."""

Part: TypeAlias = Literal["real", "complex", "both"]
"""Kind of numbers in a slot of a complex leaf: real, complex, or both components as separate real numbers."""

like, leaf, shared, real, given, rows, columns = Like, Leaf, Shared, Real, Given, Rows, Columns


def starts(slots: Slots) -> dict[str, Slot]:
    """Return the start of each slot.

    Examples
    --------
    >>> starts(("m",)), starts({"v": 1, "z": like("p")})
    ({'m': Filled(start=0.0)}, {'v': Filled(start=1.0), 'z': Like(source='p')})

    """
    if not isinstance(slots, Mapping):
        return dict.fromkeys(slots, Filled())
    return {name: slot if isinstance(slot, Slot) else Filled(float(slot)) for name, slot in slots.items()}


def is_number(slot: Slot | None) -> TypeGuard[Leaf | Shared]:
    """Whether a slot is one number, not an array."""
    return isinstance(slot, Leaf | Shared)


def is_real(slot: Slot) -> bool:
    """Whether a slot is real for complex leaves, too."""
    return isinstance(slot, Real | Given | Rows | Columns)


def shape_of(slot: Slot, leaf: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an array slot for a leaf of this shape."""
    return slot.shape(leaf) if isinstance(slot, Rows | Columns) else leaf
