"""Stages: a program is cut where it needs whole arrays, for sums along axes or `xp.whole`.

A stage is a set of loops that do not depend on each other: over the elements of the leaf, or over arrays of rows or columns, which are
worked out by the same kernels. A stage before the last one writes hidden arrays alone, and never a slot or the parameter: a
later stage that needs an element again computes it again. `gpuopt.engines.program.cutting` makes them.
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
        The operations on each element.
    shape
        Shape of the array that the loop runs over, with as many axes as the leaf.
    arrays
        For each slot of the program, the name of the array that it stands for: a slot of the rule or a hidden array.
    constants
        The program's constants.
    axis
        The axis along which the loop adds up; -1 if it adds nothing up.

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
        The loop over the leaf's elements that stores those elements which operations on whole arrays read.
    others
        Loops that need no numbers: sums along an axis, and loops over rows and columns.

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
        The stages before the last one.
    last
        The loop over the leaf's elements that updates.
    keeping
        Loops after the last stage, which write slots of other shapes than the leaf's.
    shapes
        Shapes of the hidden arrays, by name.
    buffers
        For each hidden array like the leaf, the number of its buffer: a buffer is used again once its array is no longer needed.

    """

    before: tuple[Stage, ...]
    last: Loop
    keeping: tuple[Loop, ...] = ()
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    buffers: Mapping[str, int] = field(default_factory=dict)

    @property
    def programs(self) -> tuple[Program, ...]:
        """The programs of all loops, in order."""
        before = [loop for stage in self.before for loop in (stage.over_leaf, *stage.others) if loop]
        return tuple(dict.fromkeys(loop.program for loop in (*before, self.last, *self.keeping)))


def leaving(element: int) -> str:
    """Return the name of the hidden array that holds an element for operations on whole arrays; no slot has a name with a space."""
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
