"""How an optimizer is shown: a line of text for `repr`; tables and small curves as HTML for notebooks."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from gpuopt.markup import COLOURS, heading, table
from gpuopt.schedules import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gpuopt.rules.base import Rule
    from gpuopt.rules.hyper import Hyperparameter

    Point: TypeAlias = tuple[float, float | None]

__all__ = ["MOST_ROWS", "Leaf", "curves", "optimizer", "summary"]

NAMESPACE = "http://www.w3.org/2000/svg"
WIDTH, HEIGHT = 300, 150
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 22, 30
STYLES = (COLOURS[0], "none"), (COLOURS[1], "5 3")
"""Colour and dashes of each line: they differ without colours, too."""
MOST_ROWS = 40


class Leaf(NamedTuple):
    """The properties of a parameter that are shown."""

    path: str
    shape: Sequence[int]
    dtype: str
    place: str
    pattern: str


def summary(steps: int, leaves: Sequence[Leaf]) -> str:
    """Return the numbers of leaves and parameters, their dtypes and device, and the number of steps, in words."""
    dtypes, places = (" and ".join(dict.fromkeys(of)) for of in zip(*[(x.dtype, x.place) for x in leaves], strict=True))
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    held = f"{_counted(len(leaves), 'leaf', 'leaves')}, {_counted(count, 'parameter')} of {dtypes} on {places}"
    return f"{held}, {_counted(steps, 'step')}"


def _counted(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def optimizer(steps: int, rules: Mapping[str, Rule | None], leaves: Sequence[Leaf]) -> str:
    """An optimizer: groups with their hyperparameters, leaves, and small curves of the schedules.

    Parameters
    ----------
    steps
        Taken so far.
    rules
        By pattern; None where leaves are frozen.
    leaves

    """
    groups: list[tuple[object, ...]] = []
    drawn = []
    last = max(2 * steps, 1000)
    for pattern, rule in rules.items():
        if rule is None:
            groups.append((pattern, "frozen", "", "", ""))
            continue
        for name in rule.hyperparameters():
            value = getattr(rule, name)
            hyperparameter = rule.hyperparameter(name)
            groups.append((pattern, rule.name, name, _at(hyperparameter, steps), value if callable(value) else ""))
            if isinstance(value, Schedule):
                points = [(step, _at(hyperparameter, step)) for step in range(0, last + 1, last // 100)]
                line = [(step, number if isinstance(number, float) else None) for step, number in points]
                drawn.append(curves(f"{pattern}: {name}", {name: line}, marks=[steps]))
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    parts = [
        heading(f"Optimizer: {steps:,} steps taken, {len(leaves):,} leaves, {count:,} parameters"),
        table(("group", "rule", "hyperparameter", "next step", "schedule"), groups, MOST_ROWS),
        table(
            ("leaf", "shape", "dtype", "group"),
            ((x.path, tuple(x.shape), x.dtype, x.pattern) for x in leaves),
            MOST_ROWS,
        ),
    ]
    return "".join([*parts, *drawn])


def _at(hyperparameter: Hyperparameter, step: int) -> object:
    """The value at a step, or the message of a schedule that fails there."""
    try:
        return hyperparameter.at(step)
    except (TypeError, ValueError) as error:
        return str(error)


def curves(title: str, lines: dict[str, Sequence[Point]], x: str = "step (number)", marks: Iterable[float] = ()) -> str:
    """Draw up to two lines over each other as a small SVG; logarithmic if they span decades; "" if there is nothing.

    Parameters
    ----------
    title
        The vertical axis, with its unit.
    lines
        Points by name. None, NaN and infinity leave a gap.
    x
        The horizontal axis, with its unit.
    marks
        Where something happened: a thin line each.
    """
    finite = [(s, v) for line in lines.values() for s, v in line if v is not None and math.isfinite(v)]
    if not finite:
        return ""
    first, last = min(s for s, _ in finite), max(s for s, _ in finite)
    low, high = min(v for _, v in finite), max(v for _, v in finite)
    logarithmic = low > 0 and high / low > 20

    def scaled(value: float) -> float:
        return math.log10(value) if logarithmic else value

    def across(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((step - first) / (last - first) if last > first else 0.5)

    def up(value: float) -> float:
        # Halves, whose difference is within the floats.
        share = (scaled(value) / 2 - scaled(low) / 2) / (scaled(high) / 2 - scaled(low) / 2) if high > low else 0.5
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def text(at_x: float, at_y: float, words: str, anchor: str = "start") -> str:
        return f'<text x="{at_x:.0f}" y="{at_y:.0f}" text-anchor="{anchor}">{html.escape(words)}</text>'

    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    style = 'role="img" font-family="sans-serif" font-size="10" fill="currentColor"'
    parts = [
        f'<svg xmlns="{NAMESPACE}" width="{WIDTH}" height="{HEIGHT}" aria-label="{html.escape(title)}" {style}>',
        f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="currentColor"/>',
        text(4, 12, title + (", logarithmic" if logarithmic else "")),
        text(LEFT - 4, TOP + 8, f"{high:.3g}", "end"),
        text(LEFT - 4, bottom, f"{low:.3g}", "end") if high > low else "",
        text(LEFT, bottom + 12, f"{first:,.0f}"),
        text(right, bottom + 12, f"{last:,.0f}", "end"),
        text((LEFT + right) / 2, HEIGHT - 4, x, "middle"),
    ]
    parts += [
        f'<path d="M{across(mark):.1f} {TOP}V{bottom}" stroke="currentColor" stroke-dasharray="1 3"/>'
        for mark in marks
        if first <= mark <= last
    ]
    for k, ((name, points), (colour, dashes)) in enumerate(zip(lines.items(), STYLES, strict=False)):
        path, pen = "", "M"
        before = -math.inf
        for step, value in points:
            if value is None or not math.isfinite(value) or step < before:  # back, or nothing: a gap
                pen = "M"
            before = step
            if value is not None and math.isfinite(value):
                path += f"{pen}{across(step):.1f} {up(value):.1f}"
                pen = "L"
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dashes}"/>')
        if len(lines) > 1:
            parts.append(
                f'<g fill="{colour}">{text(right, TOP + 8 + 12 * k, ("- - " if k else "— ") + name, "end")}</g>'
            )
    return "".join(parts) + "</svg>"
