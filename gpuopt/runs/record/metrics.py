"""What a loop measures: numbers of the host or a device, and their file ``metrics.jsonl``, with events among them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import zlib
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from gpuopt.arrays import describe, detached, fetch, is_cupy, is_numpy
from gpuopt.errors import UsageError
from gpuopt.runs.loop import Callback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from gpuopt.runs.loop import Loop, Row

__all__ = ["Metrics", "arriving", "finite", "scalar", "whole"]

MORE = " \n"
"""The end of a line that counts only with the next one: of rows that were written together."""
NUMBERS = int, float, np.floating, np.integer, np.bool_
MOST_LOST = 1 << 24  # bytes that are looked at of what is cut off


class Metrics(Callback):
    """Adds rows to the file."""

    def __init__(self, path: Path) -> None:
        self.written = self.checksum = 0  # bytes of the file so far, and their CRC-32
        self.lost: list[Row] = []  # rows after them that `restore` found; `start` cuts them off
        self.lost_checksum = 0
        self.last: Row = {}  # the last row before them that is no event
        self._path = path
        self._file: IO[bytes] | None = None
        self._unwritten: list[Mapping[str, Any]] = []
        self._is_held = False

    def restore(self, written: int, checksum: int) -> None:
        """Go on after the first bytes of the file, as a checkpoint has noted them; UsageError if they are fewer or others."""
        try:
            with self._path.open("rb") as file:
                found, left, end = 0, written, b""
                while left and (block := file.read(min(left, 1 << 20))):
                    found, left = zlib.crc32(block, found), left - len(block)
                    end = (end + block)[-(1 << 20) :]
                if left:
                    raise UsageError(f"{self._path}: {written - left} bytes, expected {written} or more")
                if found != checksum:
                    raise UsageError(f"{self._path}: damaged: the first {written} bytes have another checksum")
                lost = file.read(MOST_LOST)
        except OSError as error:
            raise UsageError(f"{self._path}: {error.strerror}") from None
        self.written, self.checksum = written, checksum
        self.last = _last(end)
        self.lost, self.lost_checksum = whole(lost)[0], zlib.crc32(lost)

    def start(self, run: Loop) -> None:  # noqa: ARG002
        self._file = self._path.open("ab", buffering=0)
        self._file.truncate(self.written)

    def reported(self, run: Loop, row: Row) -> None:  # noqa: ARG002
        self._add(row)

    def event(self, run: Loop, event: Mapping[str, Any]) -> None:  # noqa: ARG002
        self._add(event)

    def end(self, run: Loop) -> None:  # noqa: ARG002
        assert self._file is not None
        self._file.close()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is added inside is written in one go, and counts as a whole or not at all."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            self.flush()

    def flush(self) -> None:
        """Write what is held back."""
        if not self._unwritten:
            return
        assert self._file is not None
        rows, self._unwritten = self._unwritten, []
        lines = b"".join([*(_line(row, MORE) for row in rows[:-1]), _line(rows[-1])])
        with self._named():
            written = self._file.write(lines)
            if written < len(lines):  # a disk that becomes full tells only the next writer
                self._file.write(lines[written:])
        self.written += len(lines)
        self.checksum = zlib.crc32(lines, self.checksum)

    def sync(self) -> None:
        """Make the rows last, before a checkpoint vouches for them."""
        with self._named(), self._path.open("rb") as file:
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Have an OSError say which file it is about."""
        try:
            yield
        except OSError as error:
            error.filename = str(self._path)
            raise

    def _add(self, row: Mapping[str, Any]) -> None:
        self._unwritten.append(row)
        if not self._is_held:
            self.flush()


def scalar(name: str, value: Any) -> Any:
    """A metric as a float, or as an array of one number that is on its way."""
    if isinstance(value, NUMBERS) or type(value).__name__ == "bfloat16":
        try:
            return float(value)
        except OverflowError:
            raise TypeError(f"run.step: {name}: an integer beyond float64, expected a smaller number") from None
    if type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise TypeError(f"run.step: {name}: a masked number, which is none, expected a number")
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    is_real = getattr(dtype, "kind", "f") in "biuf" or str(dtype) == "bfloat16"
    if shape == () and is_real and (is_numpy(value) or is_cupy(value) or hasattr(value, "__dlpack__")):
        return detached(value)
    what = describe(value) if shape is None else f"an array of shape {tuple(shape)}" if shape else f"a {dtype}"
    raise TypeError(f"run.step: {name}: {what}, expected a number or an array without axes, as its mean is")


def arriving(values: Mapping[str, Any]) -> Callable[[], dict[str, float]]:
    """Metrics as floats; those of a device begin to be copied now."""
    own = {name: value for name, value in values.items() if type(value) is not float}
    if not own:
        return lambda: dict(values)
    arrive = fetch(list(own.values()))
    return lambda: {**values, **{name: float(x) for name, x in zip(own, arrive(), strict=True)}}


def _last(content: bytes) -> Row:
    """The last row that is no event, of the end of a file."""
    for line in reversed(content.splitlines()):
        with contextlib.suppress(RecursionError, ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "event" not in row:
                return row
    return {}


def _line(row: Mapping[str, Any], end: str = "\n") -> bytes:
    return (json.dumps(finite(row)) + end).encode()


def finite(content: Mapping[str, Any]) -> dict[str, Any]:
    """What exploded as None: JSON has no NaN and no infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in content.items()}


def whole(content: bytes) -> tuple[list[Row], int]:
    """The rows up to the first one that is not whole, being written or damaged, and how many bytes these rows have."""
    rows: list[Row] = []
    group: list[Row] = []
    size = read = 0
    for line in content.splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except (RecursionError, ValueError):
            row = None
        if not isinstance(row, dict):
            break
        group.append(row)
        read += len(line)
        if not line.endswith(MORE.encode()):
            rows += group
            group, size = [], read
    return rows, size
