"""What a run folder tells of its run: finished, killed, or still going on."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from gpuopt.errors import UsageError
from gpuopt.limits import expect_file, expect_room
from gpuopt.runs.loop import is_number
from gpuopt.runs.record.folder import RunFolder
from gpuopt.runs.record.metrics import MORE, whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gpuopt.runs.loop import Row

    Points: TypeAlias = tuple[list[float], list[float]]

__all__ = ["History"]

JSON_IN_MEMORY = 8
"""Bytes that a byte of it takes."""


@dataclass(frozen=True)
class History:
    """A run, as far as it has come: its files read."""

    name: str
    """Of its folder; what a picture calls it."""
    folder: RunFolder
    content: dict[str, Any]
    """Of ``config.json``."""
    rows: list[Row]
    events: list[Row]
    summary: dict[str, Any] | None = None
    """How it ended, if it did."""

    @classmethod
    def read(cls, path: str | Path) -> History:
        """Read a run folder; UsageError if it is none, or damaged."""
        folder = RunFolder(path)
        if not folder.config.exists():
            raise UsageError(f"{path}: is no run folder: it has no config.json")
        content = folder.read_config()
        written = _content(folder.metrics)
        rows, size = whole(written)
        counts = ["step", "epoch"] if "config" in content else ["step"]  # in a loop of one's own an epoch is any number
        good = next((number for number, row in enumerate(rows) if not _can_be_drawn(row, counts)), len(rows))
        # A line without an end is being written, or was when the run was killed.
        rest = written[size:].replace(MORE.encode(), b"")
        if good < len(rows) or b"\n" in rest:
            raise UsageError(f"{folder.metrics}: line {good + 1} is not readable")
        events = [row for row in rows if "event" in row]
        try:
            summary = dict(json.loads(_content(folder.summary))) if folder.summary.exists() else None
        except (RecursionError, TypeError, ValueError):
            raise UsageError(f"{folder.summary}: is not readable") from None
        return cls(folder.path.resolve().name, folder, content, [r for r in rows if "event" not in r], events, summary)

    def called(self, name: str) -> History:
        """This history under another name."""
        return dataclasses.replace(self, name=name)

    def points(self, key: str) -> Points:
        """Steps and values of a metric, where it is known; with a NaN in between where the run went back."""
        steps: list[float] = []
        values: list[float] = []
        for row in self.rows:
            if row.get(key) is not None:
                if steps and row["step"] <= steps[-1]:
                    steps.append(row["step"])
                    values.append(math.nan)
                steps.append(row["step"])
                values.append(row[key])
        return steps, values

    @property
    def steps(self) -> int:
        """The number of the last step that is recorded; of a run that goes on, that of the last one it is to have."""
        known = [0, *(int(row["step"]) for row in [*self.rows[-1:], *self.events])]
        planned = self.content.get("steps")
        if self.summary is None and type(planned) is int and planned < 2**53:
            known.append(planned)
        return max(known)

    def unit(self, key: str) -> str | None:
        """What a metric is counted in, as the run told it."""
        units = self.content.get("units")
        unit = units.get(key) if isinstance(units, dict) else None
        return unit if isinstance(unit, str) else None


def _can_be_drawn(row: Row, counts: Sequence[str]) -> bool:
    """Whether it is an event at a step, or a row of numbers, of which some count from 1."""
    if "event" in row:
        return type(row["event"]) is str and _is_count(row.get("step"), 0)
    are_numbers = all(x is None or (is_number(x) and math.isfinite(x)) for x in row.values())
    return are_numbers and "step" in row and all(_is_count(row[name], 1) for name in counts if name in row)


def _is_count(n: object, least: int) -> bool:
    return type(n) is int and least <= n < 2**53


def _content(path: Path) -> bytes:
    """A file's content; of one that is missing nothing."""
    try:
        expect_room(str(path), JSON_IN_MEMORY * (size := expect_file(path)), size)
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
