"""Stages: a program is cut where it needs whole arrays, for sums along axes or `xp.whole`.

A stage is some loops that need nothing of each other: over the elements of the leaf, or over arrays of rows or columns, which are
worked out by the same kernels. A stage before the last one writes hidden arrays alone, and never a slot or the parameter: what it
works out that a later stage needs again, that stage works out again. `gpuopt.engines.program.cutting` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuopt.engines.program.program import Program

Shape = tuple[int, ...]


class Loop(NamedTuple):
    """A loop of a stage.

    Attributes
    ----------
    program
        What it does.
    shape
        Of what it goes over, with as many axes as the leaf.
    arrays
        Of each of the program's slots, the array that it stands for: a slot of the rule or a hidden array.
    constants
        The program's constants.
    axis
        Along which it adds up; -1 if it does not.

    """

    program: Program
    shape: Shape
    arrays: tuple[str, ...]
    constants: tuple[float, ...] = ()
    axis: int = -1


@dataclass(frozen=True)
class Stage:
    """A stage before the last one.

    Attributes
    ----------
    whole
        Extents that `xp.whole` works out before the loops.
    over_leaf
        The loop over the leaf's elements that stores some for what is of whole arrays.
    others
        Loops that need no numbers: such as add up along an axis, and those over rows and columns.

    """

    whole: tuple[int, ...]
    over_leaf: Loop | None
    others: tuple[Loop, ...]


@dataclass(frozen=True)
class Stages:
    """The stages of a leaf.

    Attributes
    ----------
    before
        Those before the last one.
    last
        The loop over the leaf's elements that updates.
    keeping
        Loops that write the slots of other shapes than the leaf's, after it.
    shapes
        Of the hidden arrays, by name.
    buffers
        Of the hidden arrays that are like the leaf, the buffer that each is in: one is used again when what was in it is not
        needed any more.

    """

    before: tuple[Stage, ...]
    last: Loop
    keeping: tuple[Loop, ...] = ()
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    buffers: Mapping[str, int] = field(default_factory=dict)

    @property
    def programs(self) -> tuple[Program, ...]:
        """Of all loops, in order."""
        before = [loop for stage in self.before for loop in (stage.over_leaf, *stage.others) if loop]
        return tuple(dict.fromkeys(loop.program for loop in (*before, self.last, *self.keeping)))


def leaving(element: int) -> str:
    """Name of the hidden array in which an element is stored for what is of whole arrays; no slot has a name with a space."""
    return f"element {element}"


def like_leaf(shape: Shape, leaf: Shape) -> Shape:
    """A shape with as many axes as the leaf's."""
    return (1,) * (len(leaf) - len(shape)) + shape


def once(shape: Shape, over: Shape, order: Sequence[int]) -> list[list[int]]:
    """Axes of what a loop goes over, in the order of memory, along which an array has one element for many; neighbours together."""
    axes = [axis for axis in order if over[axis] != 1]
    found: list[list[int]] = []
    for before, axis in zip([-1, *axes], axes, strict=False):
        if shape[axis] == 1:
            if found and found[-1][-1] == before:
                found[-1].append(axis)
            else:
                found.append([axis])
    return found
