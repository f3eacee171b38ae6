"""Texts that should be numbers, and bytes that should be text: what is in the way if they are not."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from gpuopt.suggest import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["is_number", "look_alikes", "no_text", "obstacle"]

OBSTACLES = {
    r"\W+|#.*|n[./]?[ad]\.?|nil|missing|unknown": "where a value is missing, leave the field empty",
    r"-?\d+ days?.*": "make a number of a date or time, of days or seconds, say",
    r"[-+]?\d+([.,'\u2019\s]\d+)+|[-+]?\d*,\d+": "write numbers with a decimal point and nothing between thousands, as 1234.5",
    r"(\d+[-/.]){2}\d+.*|\d+:\d.*": "make a number of a date or time, of days or seconds, say",
    r"[^\w\s]*\s?[-+]?[\d.,]+\s?\D{1,8}|[^\w\s]+\s?[-+]?[\d.,]+": "write the number alone, without a unit or sign beside it",
}
"""What to do about a text that looks so; dates come after numbers with points between thousands."""


def is_number(text: str) -> bool:
    """Whether a text reads as a float."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def obstacle(text: str) -> str:
    """What to do so that a text reads as a number; empty if it looks like none.

    >>> obstacle("1,234.5")
    'write numbers with a decimal point and nothing between thousands, as 1234.5'
    >>> obstacle("red")
    ''
    """
    plain = unicodedata.normalize("NFKC", text).replace("\u2212", "-").strip()
    if not text.isascii() and is_number(plain):
        return "write digits, signs and spaces of ASCII alone"
    found = (cure for pattern, cure in OBSTACLES.items() if re.fullmatch(pattern, plain, re.IGNORECASE))
    return next(found, "")


def look_alikes(name: str, what: str, texts: Iterable[str]) -> list[str]:
    """A note if two of different texts look alike: they are likely to mean the same."""
    alike: dict[str, str] = {}
    for text in texts:
        plain = unicodedata.normalize("NFKC", text)
        other = alike.setdefault(" ".join(plain.split()).casefold(), text)
        if other != text:
            pair = f"{printable(ascii(other))} and {printable(ascii(text))}"
            how = "spaces, capital letters or codes of a letter"
            return [f"{name}: {pair} are two {what}, which differ by {how} alone"]
    return []


def no_text(error: UnicodeDecodeError) -> str:
    """Which byte could not be decoded, and what it would be elsewhere."""
    bad = error.object[error.start : error.start + 1].hex()
    as_western = error.object[max(0, error.start - 9) : error.start + 9].decode("cp1252", "replace")
    return f"the byte {bad} is no text in {error.encoding}; in cp1252 it would read {printable(repr(as_western))}"
