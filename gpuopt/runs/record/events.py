"""Rows of metrics and events of a run, in words."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NO_METRICS", "describe", "explain", "is_number"]

NO_METRICS = {"step", "epoch", "epochs", "steps", "seconds", "lr", "gradient_norm", "update_norm"}
"""What stands in a row beside the metrics."""
BY_HAND = {"pause": "paused", "resume": "resumed", "save": "saved", "step": "one step, now", "stop": "stopped"}


def describe(row: Mapping[str, Any]) -> str:
    """The metrics of a row."""
    names = [name for name, value in row.items() if name not in NO_METRICS and is_number(value)]
    if "test_accuracy" in names:
        names = [name for name in names if name != "test_loss"]
    parts = [f"{name.replace('_', ' ')} {_short(row[name])}" for name in names]
    return "  ".join([*parts, *([f"lr {row['lr']:.4g}"] if is_number(row.get("lr")) else [])])


def is_number(value: object) -> bool:
    """Whether it is one, not a flag."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def explain(event: Mapping[str, Any]) -> str:
    """An event, in words; one of another's making, which has the name of one of ours perhaps, by its name."""
    told = str(event["event"])
    with contextlib.suppress(ArithmeticError, KeyError, TypeError, ValueError):
        match event:
            case {"event": "explosion", "action": "rollback"}:
                then = f"back to step {event['back_to_step']}, learning rate {event['lr']:.4g}"
                told = f"exploded: {event['reason']}; {then} (rollback {event['rollbacks']})"
            case {"event": "explosion"}:
                told = f"exploded: {event['reason']}"
            case {"event": "skip", "step": step, "skipped": skipped}:
                told = f"steps left out until step {step}, for gradients that were not finite: {skipped}"
            case {"event": "tune"}:
                old, new = (x if isinstance(x, bool) else f"{x:.10g}" for x in (event["old"], event["new"]))
                schedule = event.get("schedule")
                then = f", and on by the schedule {schedule['schedule']}" if schedule else ""
                told = f"{event['name']}: {old} -> {new} after step {event['step']}{then}"
            case {"event": "rollback", "step": step, "back_to_step": back}:
                told = f"rolled back from step {step} to step {back}, learning rate {event['lr']:.4g}"
            case {"event": what, "step": step} if what in BY_HAND:
                loss = f", loss {_short(event['loss'])}" if event.get("loss") is not None else ""
                told = f"{BY_HAND[what]} after step {step}{loss}"
    return told
