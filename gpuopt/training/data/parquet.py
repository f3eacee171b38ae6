"""How large a Parquet file is once it is unpacked, by the headers of its pages, from which a reader takes its memory.

The footer says it, too, but nobody is bound by that. Thrift's compact protocol, as far as a page's header needs it:
https://github.com/apache/parquet-format, https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from gpuopt.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["unpacked"]

LONGEST_HEADER = 1 << 20
DEEPEST = 20
FIXED = {1: 0, 2: 0, 3: 1, 7: 8}
"""Bytes of the types without a length: true, false, a byte, a double."""


def unpacked(file: IO[bytes], about: Any) -> int:
    """Bytes of all pages of a file, unpacked, as its pages themselves say.

    Parameters
    ----------
    file : binary file
    about : pyarrow.parquet.FileMetaData

    Raises
    ------
    UsageError
        If pages and footer do not fit together.
    """
    return sum(
        size
        for group in range(about.num_row_groups)
        for column in range(about.num_columns)
        for size in _pages(file, about.row_group(group).column(column))
    )


def _pages(file: IO[bytes], chunk: Any) -> Iterator[int]:
    begins = [chunk.data_page_offset, chunk.dictionary_page_offset if chunk.has_dictionary_page else None]
    at = min(begin for begin in begins if begin is not None and begin > 0)
    end = at + chunk.total_compressed_size
    while at < end:
        file.seek(at)
        header = Reader(file.read(min(LONGEST_HEADER, end - at)))
        fields = header.struct()
        size, packed = fields.get(2), fields.get(3)
        if not (isinstance(size, int) and isinstance(packed, int) and size >= 0 and packed >= 0):
            raise UsageError(f"damaged: a page at byte {at:,} without its size")
        yield size
        at += header.at + packed


class Reader:
    """Reads a struct in Thrift's compact protocol, its integers; what else is in it is skipped."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, int]:
        """The integer fields by their numbers."""
        if depth > DEEPEST:
            raise UsageError("damaged: a page's header is nested too deeply")
        fields: dict[int, int] = {}
        number = 0
        while (first := self._byte()) != 0:
            number = number + (first >> 4) if first >> 4 else self._integer()
            value = self._value(first & 15, depth)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int) -> int | None:
        if kind in FIXED:
            self._skip(FIXED[kind])
        elif kind in {4, 5, 6}:
            return self._integer()
        elif kind == 8:
            self._skip(self._varint())
        elif kind in {9, 10}:  # a list or a set
            first = self._byte()
            count = first >> 4 if first >> 4 < 15 else self._varint()
            inner = first & 15
            if count > len(self._content):
                raise UsageError("damaged: a page's header has a list that is longer than itself")
            for _ in range(count):
                if inner in {1, 2}:
                    self._skip(1)
                else:
                    self._value(inner, depth + 1)
        elif kind == 12:
            self.struct(depth + 1)
        else:
            raise UsageError(f"damaged: a page's header with a field of kind {kind}")
        return None

    def _byte(self) -> int:
        self._skip(1)
        return self._content[self.at - 1]

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self._content):
            raise UsageError("damaged: a page's header is cut")

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise UsageError("damaged: a number in a page's header never ends")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
