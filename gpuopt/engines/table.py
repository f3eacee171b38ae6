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
from gpuopt.engines.passes import passes, update
from gpuopt.engines.trace import Program, trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from gpuopt.rules.base import Rule

CHUNK = 4096
"""Elements in a chunk."""

VALUE_BYTES = 3592
"""Room for what changes from step to step: it travels among a kernel's parameters, of which CUDA allows 4,096 bytes."""

LENGTH, DTYPE, VARIANT, COEFFICIENTS, SCALARS, GROUP, REST, PARAMETER, SLOTS = range(9)
"""Columns of the table; the addresses of the slots fill the rest, those that are arrays first."""

KEY = 0
"""Where in the values of a step the 64 bits are that leaves are rounded at random by."""


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
        is_slot = name in self.program.slots and self.precision != "param"
        return DTYPES[DTYPES[self.dtype].arithmetic if is_slot else self.dtype]

    @property
    def arrays(self) -> float:
        """Arrays as large as the parameter that a step reads and writes, all its passes together."""
        program, last = self.program, update(self.program)
        elements = [i for own in passes(program) for i in own.elements] + list(last.elements)
        read = sum(program.nodes[i].op == "load" for i in elements)
        written = sum(store.when is None for store in last.stores)
        return (read + written) / DTYPES[self.dtype].parts


class Segment(NamedTuple):
    """A leaf as the table sees it.

    Attributes
    ----------
    length, group
        Its elements; the index of its rule.
    dtype, gradient
        Of the parameter and of its gradients.
    pointers
        Addresses of parameter and slots.
    precision
        As of a `Variant`.
    rest
        What its precision needs: the address of the lower bits, or the number of the leaf.

    """

    length: int
    group: int
    dtype: str
    gradient: str
    pointers: tuple[int, ...]
    precision: str = ""
    rest: int = 0


class Table:
    """The table of segments, its chunks, and the coefficients of a step.

    Attributes
    ----------
    programs
        The traced program of each group's rule, by group and dtype.
    variants
        The bodies that the kernel needs.
    rows
        int64 of shape (segments, columns).
    gradients
        int64 of shape (segments,): addresses, which may change at every step; 0 leaves a segment alone. At the end of
        `values` if they fit in there.
    scales
        float64 of shape (segments,): factors of the gradients, for programs that have one.
    chunks
        int64 of shape (chunks, 2): segment, first element.
    first_chunks
        int64 of shape (segments + 1,): where the chunks of each segment begin.
    groups
        How many there are.
    numbers
        How many a segment has at most.
    values
        Of this step, as one buffer of bytes: a key for what is random; the coefficients, for each group and dtype in its own dtype; for each group the
        scalars of its numbers, in float64; and `gradients`.
    gradients_at
        Where in `values` the gradients begin; -1 if they are elsewhere.

    """

    def __init__(self, segments: Sequence[Segment], rules: Sequence[Rule]) -> None:
        lanes = dict.fromkeys((s.group, s.dtype) for s in segments)
        kinds = {lane: (lane[0], DTYPES[lane[1]].parts == 2) for lane in lanes}
        traced = {kind: trace(rules[kind[0]], is_complex=kind[1], twice=True) for kind in sorted(set(kinds.values()))}
        self.programs = programs = {lane: traced[kind] for lane, kind in kinds.items()}
        kinds_of = [(s.group, s.dtype, s.precision, s.gradient if s.gradient != s.dtype else "") for s in segments]
        # By kind: the hash of a variant is that of its program, too much for each of many segments.
        variant_of = {kind: Variant(programs[kind[:2]], *kind[1:]) for kind in dict.fromkeys(kinds_of)}
        self.variants = tuple(dict.fromkeys(variant_of.values()))
        number_of = {kind: self.variants.index(variant) for kind, variant in variant_of.items()}
        offsets, size = {}, KEY + 8
        for group, dtype in lanes:
            offsets[group, dtype] = size
            size += 8 * len(programs[group, dtype].coefficients)
        scalars_at = {}
        for kind, program in traced.items():
            scalars_at[kind] = size
            size += 8 * len(program.number_scalars)
        if size > VALUE_BYTES:
            raise ValueError(
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
            (group, program.evaluate, (DTYPES[dtype].ctype * count).from_buffer(self.values.data, offset))
            for (group, dtype), offset in offsets.items()
            if (count := len((program := programs[group, dtype]).coefficients))
        ]
        self._lanes += [
            (group, program.evaluate_for_numbers, (ctypes.c_double * count).from_buffer(self.values.data, offset))
            for (group, is_complex), offset in scalars_at.items()
            if (count := len((program := traced[group, is_complex]).number_scalars))
        ]

        _check_totals(traced)
        group_of = {group: i for i, group in enumerate(dict.fromkeys(group for group, _ in traced))}
        self.groups = len(group_of)
        self.numbers = max(len(program.numbers) for program in programs.values())
        self.rows = np.zeros((len(segments), columns(self.variants)), np.int64)
        shared = {
            kind: (
                DTYPES[kind[3] or kind[1]].number,
                number_of[kind],
                offsets[kind[:2]],
                scalars_at[kinds[kind[:2]]],
                group_of[kind[0]],
            )
            for kind in number_of
        }
        rows = [(s.length, *shared[kind], s.rest, *s.pointers) for s, kind in zip(segments, kinds_of, strict=True)]
        for width in set(map(len, rows)):
            alike = [i for i, row in enumerate(rows) if len(row) == width]
            self.rows[alike, :width] = [rows[i] for i in alike]

        self.scales = np.ones(len(segments))

        counts = -(-self.rows[:, LENGTH] // CHUNK)
        self.first_chunks = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        first = np.repeat(self.first_chunks[:-1], counts)
        self.chunks = np.empty((int(counts.sum()), 2), np.int64)
        self.chunks[:, 0] = np.repeat(np.arange(len(segments)), counts)
        self.chunks[:, 1] = (np.arange(len(self.chunks)) - first) * CHUNK

    def computes(self, rules: Sequence[Rule]) -> bool:
        """Whether the programs of these rules are those of the table."""
        return all(
            trace(rules[group], is_complex=DTYPES[dtype].parts == 2) == program
            for (group, dtype), program in self.programs.items()
        )

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


def columns(variants: Sequence[Variant]) -> int:
    """Columns of a table whose segments have these variants."""
    return SLOTS + max(len(v.program.slots) + len(v.program.number_slots) for v in variants)


def numbers(variants: Sequence[Variant]) -> int:
    """How many numbers the kernel keeps for each segment: as many as the variant with the most of them has."""
    return max(len(v.program.numbers) for v in variants)


def reduction_passes(variants: Sequence[Variant]) -> int:
    """How many passes come before the update."""
    return max(len(passes(v.program)) for v in variants)


def widths(k: int, variants: Sequence[Variant]) -> tuple[int, int]:
    """How many sums and how many largest elements pass ``k`` finds in each chunk; at least one sum, so that there is a column."""
    own = [found[k] for v in variants if len(found := passes(v.program)) > k]
    sums, largest = max(p.sums for p in own), max(p.largest for p in own)
    return sums if sums + largest else 1, largest


def _check_totals(programs: Mapping[tuple[int, bool], Program]) -> None:
    """Raise TypeError where totals over a group are not made alike of real and of complex leaves."""
    found: dict[int, Any] = {}
    for (group, _), program in programs.items():
        totals = [
            [(r.kind, r.column) for batch in own.batches for r in batch.reductions if r.over == "group"]
            for own in passes(program)
        ]
        if found.setdefault(group, totals) != totals:
            raise TypeError("a rule takes other totals over real leaves than over complex ones, expected the same")
