"""Events of a run, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["explain"]


def explain(event: Mapping[str, Any]) -> str:
    """An event, in words; one of another's making, which has the name of one of ours perhaps, by its name."""
    try:
        return _explained(event)
    except (ArithmeticError, KeyError, TypeError, ValueError):
        return str(event["event"])


def _explained(event: Mapping[str, Any]) -> str:
    match event:
        case {"event": "explosion", "action": "rollback"}:
            then = f"back to step {event['back_to_step']}, learning rate {event['lr']:.4g}"
            return f"exploded: {event['reason']}; {then} (rollback {event['rollbacks']})"
        case {"event": "explosion"}:
            return f"exploded: {event['reason']}"
        case {"event": "skip"}:
            return f"steps left out until step {event['step']}, for gradients that were not finite: {event['skipped']}"
    return _by_hand(event)


def _by_hand(event: Mapping[str, Any]) -> str:
    words = {"pause": "paused", "resume": "resumed", "save": "saved", "step": "one step, now", "stop": "stopped"}
    match event:
        case {"event": "tune"}:
            old, new = (x if isinstance(x, bool) else f"{x:.10g}" for x in (event["old"], event["new"]))
            schedule = event.get("schedule")
            then = f", and on by the schedule {schedule['schedule']}" if schedule else ""
            return f"{event['name']}: {old} -> {new} after step {event['step']}{then}"
        case {"event": "rollback"}:
            lr = f", learning rate {event['lr']:.4g}"
            return f"rolled back from step {event['step']} to step {event['back_to_step']}{lr}"
        case {"event": what} if what in words:
            loss = f", loss {event['loss']:.4f}" if event.get("loss") is not None else ""
            return f"{words[what]} after step {event['step']}{loss}"
    return str(event["event"])
