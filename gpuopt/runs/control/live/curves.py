"""What the charts of the page show: lines in the terms of ECharts, made of what the watcher knows."""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from gpuopt.markup import COLOURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gpuopt.runs.control.live.watcher import Row

__all__ = ["decades", "line", "marks", "parted", "spans_decades"]

INK, GREY = "#1a1a1a", "#6b6b6b"
# Lines differ in their dashes and marks, too.
MOMENT, EPOCH, TEST = COLOURS[0], INK, COLOURS[1]


def line(title: str, rows: Sequence[Row], key: str, colour: str, dash: Any = "solid", **more: Any) -> dict[str, Any]:
    """A line of what the rows have under a key; more of its looks by ECharts' names."""
    return {
        "name": title,
        "type": "line",
        "data": [[row["step"], row.get(key)] for row in rows],  # None is a gap in the curve
        "color": colour,
        "lineStyle": {"width": 2 if dash == "solid" else 1.5, "type": dash},
        "showSymbol": "symbol" in more and len(rows) <= 120,
        "symbol": "none",
        "symbolSize": 5,
        **more,
    }


def parted(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of the course that the training took, and those that it went back from, with a gap after each part."""
    kept: list[Row] = []
    left: list[Row] = []
    for row in rows:
        if kept and row["step"] < (last := kept[-1]["step"]):
            cut = bisect_left(kept, row["step"], key=operator.itemgetter("step"))
            left += [*kept[cut:], {"step": last}]
            del kept[cut:]
        kept.append(row)
    return kept, left


def decades(values: Iterable[float]) -> dict[str, float]:
    """The ends of a logarithmic axis: powers of ten around the values, none of them at an end."""
    known = [math.log10(value) for value in values if value > 0]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return {"min": 10.0 ** max(-307, math.ceil(low - 1.02)), "max": 10.0 ** min(308, math.floor(high + 1.02))}


def spans_decades(values: Sequence[float]) -> bool:
    """Whether they are better seen on a logarithmic axis."""
    return min(values, default=0.0) > 0 and max(values) / min(values) > 20


def marks(events: Sequence[Row]) -> dict[str, Any]:
    """A line for each event that changed the course."""
    names = {"tune": "change", "rollback": "rollback", "explosion": "explosion"}
    return {
        "symbol": "none",
        "silent": True,
        "lineStyle": {"color": GREY, "type": [2, 3], "width": 1},
        "label": {"color": INK, "fontSize": 11, "position": "insideEndTop"},
        "data": [
            {"xAxis": e["step"], "label": {"formatter": e.get("name", names[e["event"]])}}
            for e in events[-40:]
            if e["event"] in names
        ],
    }
