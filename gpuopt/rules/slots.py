"""Slots: where the state of a rule begins, and whether it is an array or a number."""

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
    """An array like the parameter, with one number everywhere."""

    start: float = 0.0


@dataclass(frozen=True)
class Like:
    """A copy of the parameter (``like("p")``), or its shape filled with a hyperparameter's first value (``like("lr")``)."""

    source: str


@dataclass(frozen=True)
class Leaf:
    """One float64 number a leaf."""

    start: float = 0.0


@dataclass(frozen=True)
class Shared:
    """One float64 number for all leaves of the rule's group; `update` makes it of group totals only."""

    start: float = 0.0


@dataclass(frozen=True)
class Real:
    """A real number for each element, also where the parameter is complex; it may start at ``like("initial")``."""

    start: float | Like = 0.0


@dataclass(frozen=True, eq=False)
class Given:
    """Arrays of real numbers of the caller: one like the leaf, or a tree like the parameters."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


@dataclass(frozen=True)
class Matrix:
    """Which two axes of a leaf number the rows and the columns of a matrix; all others number matrices.

    Attributes
    ----------
    least
        Elements that each of the two axes must have; a leaf that has fewer, or no two axes, is no matrix.
    longest
        Whether they are the two longest axes, the longest one that of the columns; otherwise the last two.

    Examples
    --------
    >>> Matrix().axes((4, 2, 3)), Matrix(longest=True).axes((4, 2, 3)), Matrix(least=3).axes((4, 2)), Matrix().axes((4,))
    ((1, 2), (2, 0), None, None)

    """

    least: int = 1
    longest: bool = False

    def axes(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Return the axes of the rows and of the columns; None of a leaf that is no matrix."""
        if len(shape) < 2:
            return None
        axes = range(len(shape))
        first, second = (sorted(axes, key=lambda axis: shape[axis]) if self.longest else axes)[-2:]
        return (first, second) if min(shape[first], shape[second]) >= self.least else None


@dataclass(frozen=True)
class Rows:
    """A real number for each row of a matrix: an array like the leaf, with length 1 along the columns' axis.

    Of a leaf that is no matrix, one number.
    """

    start: float = 0.0
    matrix: Matrix = Matrix()

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the slot of a leaf."""
        axes = self.matrix.axes(leaf)
        return _with_one(leaf, axes[1]) if axes else (1,) * len(leaf)


@dataclass(frozen=True)
class Columns:
    """A real number for each column of a matrix: an array like the leaf, with length 1 along the rows' axis.

    Of a leaf that is no matrix, one for each element.
    """

    start: float = 0.0
    matrix: Matrix = Matrix()

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the slot of a leaf."""
        axes = self.matrix.axes(leaf)
        return _with_one(leaf, axes[0]) if axes else leaf


def _with_one(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


Slot: TypeAlias = Filled | Like | Leaf | Shared | Real | Given | Rows | Columns
Slots: TypeAlias = tuple[str, ...] | Mapping[str, float | Slot]
"""What a rule may say: names of arrays that start at 0, or for each name where it starts."""

Part: TypeAlias = Literal["real", "complex", "both"]
"""What a slot holds of a complex leaf: a real number for each element, a complex one, or one for each component."""

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
    """Whether a slot is one number and not an array."""
    return isinstance(slot, Leaf | Shared)


def is_real(slot: Slot) -> bool:
    """Whether a slot holds real numbers, also of a complex leaf."""
    return isinstance(slot, Real | Given | Rows | Columns)


def shape_of(slot: Slot, leaf: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a slot that is an array, of a leaf of this shape."""
    return slot.shape(leaf) if isinstance(slot, Rows | Columns) else leaf
