"""What a file may be and may ask for, so that none blocks a run or takes all memory."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
from pathlib import Path

from gpuopt.errors import UsageError

__all__ = ["available", "expect_file", "expect_room"]

SUSPICIOUS = 256 << 20
"""Bytes. What is smaller is read in a moment, however it was packed."""
DENSEST = 500
"""Bytes of content in a byte of a file; real data do not pack so well, a file made to fill the memory does."""


def available() -> float:
    """Bytes of memory that this process may still take; infinity where the system does not say."""
    found = [math.inf]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # of a container; "max" if it has no limit
        folder = Path("/sys/fs/cgroup")
        limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
        found.append(limit - used)
    with contextlib.suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found))


def expect_room(what: str, size: int, packed: int) -> None:
    """Refuse a content of `size` bytes that stands in `packed` bytes, if it does not fit or cannot be meant seriously.

    Raises
    ------
    UsageError
    """
    if size > SUSPICIOUS and size > DENSEST * packed:
        raise UsageError(f"{what}: {packed:,} bytes that unpack to {size:,}: no real data do, expected less")
    room = available()
    if 3 * size > room:  # as it is read, as float32, and shuffled
        raise UsageError(
            f"{what}: {size / 2**30:,.1f} GiB, for which {room / 2**30:,.1f} GiB of free memory are too few"
        )


def expect_file(path: Path) -> int:
    """Return the size of a regular file; OSError if it is none: a pipe would block, a device never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return found.st_size
