"""Loops that go on in the process that began them, and not in one that is forked from it."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["count", "left_to_parent"]

LOOPS: weakref.WeakSet[Generator[int]] = weakref.WeakSet()
"""Those that somebody has."""
count = 0
"""Forks between the process that imported this and this one. To ask the system for a process's number takes a microsecond."""


def left_to_parent(loop: Generator[int]) -> weakref.ref[Generator[int]]:
    """Have a process that is forked never end the loop: it would write into the folder, and hang up. Return a reference to it."""
    LOOPS.add(loop)
    return weakref.ref(loop)


def _leave() -> None:
    global count  # noqa: PLW0603
    count += 1
    for loop in LOOPS:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(loop))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)
