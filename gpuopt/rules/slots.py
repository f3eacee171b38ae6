"""Slots: where the state of a rule begins, and whether it is an array or a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeGuard

__all__ = [
    "Filled",
    "Given",
    "Leaf",
    "Like",
    "Part",
    "Real",
    "Shared",
    "Slot",
    "Slots",
    "given",
    "leaf",
    "like",
    "real",
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


Slot: TypeAlias = Filled | Like | Leaf | Shared | Real | Given
Slots: TypeAlias = tuple[str, ...] | Mapping[str, float | Slot]
"""What a rule may say: names of arrays that start at 0, or for each name where it starts."""

Part: TypeAlias = Literal["real", "complex", "both"]
"""What a slot holds of a complex leaf: a real number for each element, a complex one, or one for each component."""

like, leaf, shared, real, given = Like, Leaf, Shared, Real, Given


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


def is_number(slot: Slot) -> TypeGuard[Leaf | Shared]:
    """Whether a slot is one number and not an array."""
    return isinstance(slot, Leaf | Shared)
