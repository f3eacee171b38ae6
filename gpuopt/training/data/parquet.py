"""How large a Parquet file is once it is unpacked, by the headers of its pages, from which a reader takes its memory.

The footer says it, too, but nobody is bound by that. Where the pages begin is read from the footer here and not by pyarrow, whose
``RowGroupMetaData.column`` ends the process where statistics are damaged. Thrift's compact protocol, as far as needed:
https://github.com/apache/parquet-format, https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from gpuopt.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Wanted: TypeAlias = Mapping[int, Any]
    """The fields of a struct by number: an integer's kind, what is wanted of a struct, or a list of that one for a list."""

__all__ = ["unpacked"]

LONGEST_HEADER = 1 << 20
DEEPEST = 20
FIXED = {1: 0, 2: 0, 3: 1, 7: 8}
"""Bytes of the types without a length: true, false, a byte, a double."""
I16, I32, I64, BINARY, LIST, SET, STRUCT = 4, 5, 6, 8, 9, 10, 12
SIZE, DATA, DICTIONARY = 7, 9, 11
"""Of a column chunk: its bytes, where its pages of data begin, and where its dictionary does."""
FOOTER: Wanted = {4: [{1: [{3: {SIZE: I64, DATA: I64, DICTIONARY: I64}}]}]}
"""The row groups' columns' metadata."""
UNPACKED, PACKED = 2, 3
PAGE: Wanted = {UNPACKED: I32, PACKED: I32}


def unpacked(file: IO[bytes]) -> int:
    """Bytes of all pages of a file, unpacked, as its pages themselves say; UsageError if they do not fit the footer."""
    file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    file.seek(-8 - length, os.SEEK_END)
    groups = Reader(file.read(length)).struct(FOOTER).get(4, [])
    columns = [column.get(3, {}) for group in groups for column in group.get(1, [])]
    return sum(size for column in columns for size in _pages(file, column))


def _pages(file: IO[bytes], column: Mapping[int, int]) -> Iterator[int]:
    at, dictionary, length = (column.get(number, 0) for number in (DATA, DICTIONARY, SIZE))
    if 0 < dictionary < at:
        at = dictionary
    if at <= 0 or length < 0:
        raise UsageError(f"damaged: a column of {length:,} bytes at byte {at:,}")
    end = at + length
    while at < end:
        file.seek(at)
        header = Reader(file.read(min(LONGEST_HEADER, end - at)))
        fields = header.struct(PAGE)
        size, packed = fields.get(UNPACKED, -1), fields.get(PACKED, -1)
        if size < 0 or packed < 0:
            raise UsageError(f"damaged: a page at byte {at:,} without its size")
        yield size
        at += header.at + packed


class Reader:
    """Reads a struct in Thrift's compact protocol, what is wanted of it; what else is in it is skipped."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def struct(self, wanted: Wanted, depth: int = 0) -> dict[int, Any]:
        """The wanted fields that are there, by their numbers."""
        fields: dict[int, Any] = {}
        number = 0
        while (first := self._byte()) != 0:
            number = number + (first >> 4) if first >> 4 else self._integer()
            value = self._value(first & 15, wanted.get(number), depth + 1)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, wanted: Any, depth: int) -> Any:
        """A value if it is of the wanted kind, else None."""
        if depth > DEEPEST:
            raise UsageError("damaged: its metadata are nested too deeply")
        if kind in FIXED:
            self._skip(FIXED[kind])
        elif kind in {I16, I32, I64}:
            value = self._integer()
            return value if kind == wanted else None
        elif kind == BINARY:
            self._skip(self._varint())
        elif kind in {LIST, SET}:
            return self._list(wanted[0] if kind == LIST and isinstance(wanted, list) else None, depth)
        elif kind == STRUCT:
            fields = self.struct(wanted if isinstance(wanted, dict) else {}, depth)
            return fields if isinstance(wanted, dict) else None
        else:
            raise UsageError(f"damaged: a field of kind {kind} in its metadata")
        return None

    def _list(self, wanted: Wanted | None, depth: int) -> list[dict[int, Any]] | None:
        first = self._byte()
        count = first >> 4 if first >> 4 < 15 else self._varint()
        inner = first & 15
        if count > len(self._content) or (wanted is not None and inner != STRUCT):
            raise UsageError(f"damaged: a list of {count:,} values of kind {inner} in its metadata")
        found = []
        for _ in range(count):
            if inner in {1, 2}:
                self._skip(1)
            elif (value := self._value(inner, wanted, depth + 1)) is not None:
                found.append(value)
        return None if wanted is None else found

    def _byte(self) -> int:
        self._skip(1)
        return self._content[self.at - 1]

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self._content):
            raise UsageError("damaged: its metadata are cut")

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise UsageError("damaged: a number in its metadata never ends")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
