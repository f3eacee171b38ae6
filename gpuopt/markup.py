"""Self-contained pages of HTML: their parts and style, and the colours of lines in all pictures."""

from __future__ import annotations

import base64
import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["COLOURS", "heading", "image", "page", "shown", "table"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's (https://jfly.uni-koeln.de/color/), which everybody can tell apart."""
CSS = """\
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .9rem; opacity: .8; }
img { max-width: 100%; height: auto; background: white; border-radius: 6px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; }
pre { overflow-x: auto; font-size: .85rem; }
.scroll { overflow-x: auto; }
"""


def page(title: str, *parts: str) -> str:
    """Return a page with these parts, which are HTML. It loads nothing from elsewhere."""
    shown = html.escape(title)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{shown}</title>'
    body = "\n".join([f"<h1>{shown}</h1>", *parts])
    return f'<!doctype html>\n<html lang="en">\n<head>{head}\n<style>\n{CSS}</style></head>\n<body>\n{body}\n</body>\n</html>\n'


def heading(text: str) -> str:
    """A line above the rest."""
    return f"<p><strong>{html.escape(text)}</strong></p>"


def image(content: bytes, caption: str, kind: str = "png") -> str:
    """A picture, inside the page."""
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    words = html.escape(caption)
    return f'<figure><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]], most: int | None = None) -> str:
    """A table; without a head, of names and values. Numbers stand to the right where there is a head.

    Of one that is longer than `most` the beginning, and how much more there is.
    """
    rows = [list(row) for row in rows]
    numbers = [
        bool(head) and any(isinstance(value, int | float) for value in column) for column in zip(*rows, strict=True)
    ] or [False] * len(head)

    def line(tag: str, values: Sequence[object]) -> str:
        classes = (' class="number"' if right else "" for right in numbers)
        cells = zip(values, classes, strict=True)
        return "".join(f"<{tag}{of}>{html.escape(shown(value))}</{tag}>" for value, of in cells)

    lines = [line("th", head) for _ in head[:1]] + [line("td", row) for row in rows[:most]]
    if most is not None and len(rows) > most:
        lines.append(f'<td colspan="{len(numbers)}">and {len(rows) - most:,} more</td>')
    return '<div class="scroll"><table>' + "".join(f"<tr>{one}</tr>" for one in lines) + "</table></div>"


def shown(value: object) -> str:
    """Return a short text for a value in a table."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
