"""The table of leaves that the fused engines walk over.

A segment is a leaf: its length, the program that updates it, and the addresses of its arrays. Segments are cut into chunks
of equal size; a chunk is one CUDA block, or one item of work on the CPU. Everything here is plain integers on the host.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpuopt.engines.dtypes import DTYPES, DType
from gpuopt.engines.program.folds import Fold
from gpuopt.engines.program.passes import Batch, Reduction, passes, update
from gpuopt.engines.program.program import Node, Program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

CHUNK = 4096
"""Elements in a chunk."""

VALUE_BYTES = 3592
"""Room for what changes from step to step: it travels among a kernel's parameters, of which CUDA allows 4,096 bytes."""

LENGTH, DTYPE, VARIANT, COEFFICIENTS, SCALARS, GROUP, OWNER, REST, PARAMETER, SLOTS = range(10)
"""Columns of the table; the addresses of the slots fill the rest, those that are arrays first."""

KEY = 0
"""Where the 64-bit key for random rounding stands in the values of a step."""


class TooManyRulesError(ValueError):
    """The rules of one step have more coefficients than there is room for."""


@dataclass(frozen=True)
class Variant:
    """One body of a kernel: a program at a dtype of parameters."""

    program: Program
    dtype: str
    precision: str = ""
    """Of a parameter of 16 bits: how it and its slots are stored; see `gpuopt.engines.storage`."""
    gradient: str = ""
    """The dtype of gradients, if that is not the parameter's."""

    def stored(self, name: str) -> DType:
        """How the numbers of an array are stored."""
        if name == "g":
            return DTYPES[self.gradient or self.dtype]
        is_slot = name in self.program.hidden or (name in self.program.slots and self.precision != "param")
        return DTYPES[DTYPES[self.dtype].arithmetic if is_slot else self.dtype]

    @property
    def arrays(self) -> float:
        """Arrays as large as the parameter that a step reads and writes, all its passes together."""
        program, last = self.program, update(self.program)
        elements = [i for own in passes(program) for i in own.elements] + list(last.elements)
        read = sum(program.nodes[i].op == "load" for i in elements)
        written = sum(store.when is None for store in last.stores)
        return (read + written) / DTYPES[self.dtype].parts


def squares(dtype: DType) -> tuple[Variant, Batch]:
    """What adds up the squares of gradients of a dtype: a variant that reads them, and a batch of three columns."""
    parts = tuple(range(dtype.parts))
    loads = tuple(Node("load", ("g", k) if dtype.parts == 2 else ("g",)) for k in parts)
    program = Program((), loads, (), (), (), pairs=frozenset({"g"} if dtype.parts == 2 else ()))
    return Variant(program, dtype.name), Batch(parts, (Reduction(0, "norm", "leaf", parts, 0),))


class Segment(NamedTuple):
    """A leaf as the table sees it.

    Attributes
    ----------
    length, group
        Number of elements; index of the rule.
    program
        The program that updates the leaf, made of loops alone.
    dtype, gradient
        Of the parameter and of its gradients.
    pointers
        Addresses of the parameter, of the program's slots that are arrays, and of those that are numbers; of spread ones, two
        numbers each: element ``i`` of the leaf has ``i // span * inner + i % inner`` of such an array; of one that folds, a
        `Fold`; the bits of the constants.
    precision
        See `Variant`.
    rest
        What its precision needs: the address of the lower bits, or the number of the leaf.
    owner
        The row of the leaf in the table that updates it, whose factor of the gradient it has.

    """

    length: int
    group: int
    program: Program
    dtype: str
    gradient: str
    pointers: tuple[int, ...]
    precision: str = ""
    rest: int = 0
    owner: int = 0


class Table:
    """The table of segments, its chunks, and the coefficients of a step.

    Parameters
    ----------
    segments
        The rows.
    updating
        The table that updates the leaves, if this is one of a stage before.
    more
        Variants of other tables, with which this one is to share its kernel.

    Attributes
    ----------
    variants
        The bodies that the kernel needs.
    rows
        int64 of shape (segments, columns).
    gradients
        int64 of shape (segments,): addresses, which may change at every step; 0 leaves a segment alone. At the end of
        `values` if they fit in there.
    scales
        float64 of shape (leaves,): factors of the gradients, for programs that have one; those of ``updating``.
    chunks
        int64 of shape (chunks, 2): segment, first element.
    first_chunks
        int64 of shape (segments + 1,): where the chunks of each segment begin.
    groups
        Number of groups.
    numbers
        The most numbers that a segment has.
    values
        Of this step, as one buffer of bytes: a key for what is random; the coefficients, for each group and dtype in its own dtype; for each group the
        scalars of its numbers, in float64; and `gradients`.
    gradients_at
        Where in `values` the gradients begin; -1 if they are elsewhere.

    """

    def __init__(
        self, segments: Sequence[Segment], updating: Table | None = None, more: Sequence[Variant] = ()
    ) -> None:
        # By identity: the hash of a program takes long, and many segments share one.
        same: dict[Program, Program] = {}
        programs = {
            id(s.program): same.setdefault(s.program, s.program) for s in {id(s.program): s for s in segments}.values()
        }
        lanes = {(s.group, s.dtype, id(programs[id(s.program)])): programs[id(s.program)] for s in segments}
        lane_of = [(s.group, s.dtype, id(programs[id(s.program)])) for s in segments]
        of_numbers = {(group, key): program for (group, _, key), program in lanes.items()}
        kinds_of = [
            (lane, s.precision, s.gradient if s.gradient != s.dtype else "")
            for lane, s in zip(lane_of, segments, strict=True)
        ]
        variant_of = {
            kind: Variant(lanes[lane], lane[1], *kind[1:]) for kind in dict.fromkeys(kinds_of) for lane in kind[:1]
        }
        self.variants = tuple(dict.fromkeys((*more, *variant_of.values())))
        number_of = {kind: self.variants.index(variant) for kind, variant in variant_of.items()}
        offsets, size = {}, KEY + 8
        for lane, program in lanes.items():
            offsets[lane] = size
            size += 8 * len(program.coefficients)
        scalars_at = {}
        for owner, program in of_numbers.items():
            scalars_at[owner] = size
            size += 8 * len(program.number_scalars)
        if size > VALUE_BYTES:
            raise TooManyRulesError(
                f"the rules of one step have {size // 8 - 1} coefficients, expected at most {VALUE_BYTES // 8 - 1}; "
                "make fewer groups, or update by engine='array'"
            )
        self.values = np.zeros(VALUE_BYTES, np.uint8)
        self.gradients_at = size if size + 8 * len(segments) <= VALUE_BYTES else -1
        self.gradients = (
            np.zeros(len(segments), np.int64)
            if self.gradients_at < 0
            else self.values[size:][: 8 * len(segments)].view(np.int64)
        )
        self._key = ctypes.c_uint64.from_buffer(self.values.data, KEY)
        self._lanes: list[tuple[int, Callable[[Mapping[str, float]], list[float]], Any]] = [
            # Assignments to arrays of ctypes round like NumPy's, take a tenth of the time, and let infinities be.
            (lane[0], lanes[lane].evaluate, (DTYPES[lane[1]].ctype * count).from_buffer(self.values.data, offset))
            for lane, offset in offsets.items()
            if (count := len(lanes[lane].coefficients))
        ]
        self._lanes += [
            (owner[0], program.evaluate_for_numbers, (ctypes.c_double * count).from_buffer(self.values.data, offset))
            for owner, offset in scalars_at.items()
            if (count := len((program := of_numbers[owner]).number_scalars))
        ]

        _check_totals(of_numbers)
        group_of = {group: i for i, group in enumerate(sorted({s.group for s in segments}))}
        self.groups = len(group_of)
        self.numbers = numbers(self.variants)
        self.rows = np.zeros((len(segments), columns(self.variants)), np.int64)
        shared = {
            kind: (
                DTYPES[gradient or dtype].number,
                number_of[kind],
                offsets[group, dtype, key],
                scalars_at[group, key],
                group_of[group],
            )
            for kind in number_of
            for (group, dtype, key), _, gradient in [kind]
        }
        rows = [
            (s.length, *shared[kind], s.owner, s.rest, *s.pointers) for s, kind in zip(segments, kinds_of, strict=True)
        ]
        for width in set(map(len, rows)):
            alike = [i for i, row in enumerate(rows) if len(row) == width]
            self.rows[alike, :width] = [rows[i] for i in alike]

        if updating is None:
            self.rows[:, OWNER] = np.arange(len(segments))
        self.scales: NDArray[np.float64] = np.ones(len(segments)) if updating is None else updating.scales

        counts = -(-self.rows[:, LENGTH] // CHUNK)
        self.first_chunks = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        first = np.repeat(self.first_chunks[:-1], counts)
        self.chunks = np.empty((int(counts.sum()), 2), np.int64)
        self.chunks[:, 0] = np.repeat(np.arange(len(segments)), counts)
        self.chunks[:, 1] = (np.arange(len(self.chunks)) - first) * CHUNK

    @property
    def gradient_bytes(self) -> int:
        """Bytes of all gradients."""
        return int(self._sizes.sum())

    @property
    def traffic(self) -> int:
        """Bytes that a step reads and writes."""
        arrays = np.array([v.arrays for v in self.variants])[self.rows[:, VARIANT]]
        return int(self._sizes @ arrays)

    @property
    def _sizes(self) -> NDArray[np.int64]:
        itemsizes = np.array([dtype.itemsize for dtype in DTYPES.values()])
        return np.asarray(self.rows[:, LENGTH] * itemsizes[self.rows[:, DTYPE]])

    def set_coefficients(self, scalars: Sequence[Mapping[str, float]], key: int = 0) -> None:
        """Evaluate the coefficients of a step, from what `Rule.at` gave for each group; each is rounded once, here."""
        self._key.value = key
        for group, evaluate, lane in self._lanes:
            lane[:] = evaluate(scalars[group])


def variants_of(segments: Iterable[Segment]) -> tuple[Variant, ...]:
    """The variants that segments need."""
    kinds = {(id(s.program), s.dtype, s.precision, s.gradient): s for s in segments}
    return tuple(
        dict.fromkeys(
            Variant(s.program, s.dtype, s.precision, s.gradient if s.gradient != s.dtype else "")
            for s in kinds.values()
        )
    )


def columns(variants: Sequence[Variant]) -> int:
    """Columns of a table whose segments have these variants."""
    return max(constants_at(v.program) + v.program.constants for v in variants)


def constants_at(program: Program) -> int:
    """Return the first column of the constants."""
    return fold_at(program) + len(Fold._fields) * program.folds


def fold_at(program: Program) -> int:
    """Return the first column of a `Fold`."""
    return spread_at(program, len(program.spread))


def spread_at(program: Program, which: int | str) -> int:
    """The column of the span of a spread array: that of one number and all that it is followed by; the next one has how many follow."""
    if isinstance(which, str):
        which = [name for name in program.slots if name in program.spread].index(which)
    return SLOTS + len(program.slots) + len(program.number_slots) + 2 * which


def numbers(variants: Sequence[Variant]) -> int:
    """Return how many numbers the kernel keeps for each segment: the most that any variant has."""
    return max(len(v.program.numbers) for v in variants)


def reduction_passes(variants: Sequence[Variant]) -> int:
    """How many passes come before the update."""
    return max(len(passes(v.program)) for v in variants)


def widths(k: int, variants: Sequence[Variant]) -> tuple[int, int]:
    """Return how many sums and how many maxima pass ``k`` finds in each chunk; at least one sum, so that there is a column."""
    own = [found[k] for v in variants if len(found := passes(v.program)) > k]
    sums, largest = max(p.sums for p in own), max(p.largest for p in own)
    return sums if sums + largest else 1, largest


def totals(program: Program) -> list[Any]:
    """The totals over a group in each reduction pass, up to the last pass that has any; alike for all leaves of a group."""
    found = [
        [(r.kind, r.column) for r in (*own.reductions, *own.given) if r.over == "group"] for own in passes(program)
    ]
    while found and not found[-1]:
        found.pop()
    return found


def _check_totals(programs: Mapping[tuple[int, int], Program]) -> None:
    """Raise TypeError where totals over a group are not made alike of all its leaves, as of real and of complex ones."""
    found: dict[int, Any] = {}
    for (group, _), program in programs.items():
        if found.setdefault(group, own := totals(program)) != own:
            raise TypeError(
                "a rule makes other totals over some leaves than over others, or makes them later in its update; "
                "engine='auto' runs it on the arrays"
            )
