"""What a run folder tells of its run: finished, killed, or still going on."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from gpuopt.errors import UsageError
from gpuopt.limits import expect_file, expect_room
from gpuopt.runs.record.folder import RunFolder

if TYPE_CHECKING:
    from pathlib import Path

    from gpuopt.runs.loop import Row

    Points: TypeAlias = tuple[list[float], list[float]]

__all__ = ["History"]

JSON_IN_MEMORY = 8
"""Bytes that a byte of it takes."""


@dataclass(frozen=True)
class History:
    """A run, as far as it has come.

    Attributes
    ----------
    name : str
        Of its folder; what a picture calls it.
    folder : RunFolder
    content : dict
        Of ``config.json``.
    rows, events : list of dict
        Of ``metrics.jsonl``.
    summary : dict or None
        How it ended, if it did.
    """

    name: str
    folder: RunFolder
    content: dict[str, Any]
    rows: list[Row]
    events: list[Row]
    summary: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: str | Path) -> History:
        """Read a run folder.

        Raises
        ------
        UsageError
            If it is none, or damaged.
        """
        folder = RunFolder(path)
        if not folder.config.exists():
            raise UsageError(f"{path}: is no run folder: it has no config.json")
        content = folder.read_config()
        lines = _content(folder.metrics).splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            del lines[-1]  # it is being written, or was when the run was killed
        rows: list[Row] = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(_row(line))
            except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
                raise UsageError(f"{folder.metrics}: line {number} is not readable") from None
        events = [row for row in rows if "event" in row]
        try:
            summary = dict(json.loads(_content(folder.summary))) if folder.summary.exists() else None
        except (RecursionError, TypeError, ValueError):
            raise UsageError(f"{folder.summary}: is not readable") from None
        return cls(folder.path.resolve().name, folder, content, [r for r in rows if "event" not in r], events, summary)

    def called(self, name: str) -> History:
        """The same under another name."""
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
        """As many as it took, or is going to take."""
        taken = [int(self.rows[-1]["step"]), *(int(event["step"]) for event in self.events)]
        planned = self.content.get("steps")
        if self.summary is None and type(planned) is int and planned < 2**53:
            taken.append(planned)
        return max(taken)

    def unit(self, key: str) -> str | None:
        """What a metric is counted in, as the run told it."""
        units = self.content.get("units")
        unit = units.get(key) if isinstance(units, dict) else None
        return unit if isinstance(unit, str) else None


def _row(line: bytes) -> Row:
    """A row of metrics or an event; what cannot be drawn is one of many errors."""
    row: Row = json.loads(line)
    if "event" in row:
        counts, least = [row["step"]], 0
        fits = type(row["event"]) is str
    else:
        counts, least = [row["step"], row.get("epoch", 1)], 1
        fits = all(x is None or math.isfinite(x) for x in row.values())
    if not fits or not all(type(n) is int and least <= n < 2**53 for n in counts):
        raise ValueError(row)
    return row


def _content(path: Path) -> bytes:
    """A file's content; of one that is missing nothing."""
    try:
        expect_room(str(path), JSON_IN_MEMORY * (size := expect_file(path)), size)
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
