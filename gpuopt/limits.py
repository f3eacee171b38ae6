"""Limits of files and of memory, so that no file blocks a run or takes all memory."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from gpuopt.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["available", "expect_file", "expect_memory", "expect_room"]

SUSPICIOUS = 256 << 20
"""Bytes. Smaller contents are read without a check of their compression."""
DENSEST = 500
"""Largest plausible ratio of content to file: a higher one is a file made to fill the memory."""
CGROUPS = Path("/sys/fs/cgroup")
LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Files of a control group with its limit and what it uses: of version 2, of version 1."""


def available() -> float:
    """Return the bytes of memory that this process may still take; infinity if the system does not tell."""
    return max(0.0, min([math.inf, *_bounds()]))


def _bounds() -> Iterator[float]:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        yield 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with contextlib.suppress(AttributeError, OSError, ValueError):
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for folder in _groups():
        yield from _of_group(folder)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = [int(word) for word in Path("/proc/self/statm").read_text().split()]
        for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
            limit, _ = resource.getrlimit(kind)
            if limit != resource.RLIM_INFINITY:
                yield limit - used * resource.getpagesize()


def _groups() -> Iterator[Path]:
    """The folders of this process's control group and those around it; a container sees its own as the root."""
    yield from (CGROUPS, CGROUPS / "memory")  # of version 2, of version 1
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            parts = Path(path).parts[1:]
            if not controllers or "memory" in controllers.split(","):
                root = CGROUPS / "memory" if controllers else CGROUPS
                yield from (root.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1))


def _of_group(folder: Path) -> Iterator[float]:
    for names in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" if it has no limit
            limit, used = (int((folder / name).read_text()) for name in names)
            yield limit - used + _cached(folder)


def _cached(folder: Path) -> int:
    """Return the bytes of the page cache, which the system frees on demand."""
    with contextlib.suppress(OSError, ValueError):
        words = (folder / "memory.stat").read_text().split()
        sizes = dict(zip(words[::2], words[1::2], strict=False))
        sizes |= {name.removeprefix("total_"): size for name, size in sizes.items() if name.startswith("total_")}
        return sum(int(sizes.get(name, 0)) for name in ("inactive_file", "active_file", "slab_reclaimable"))
    return 0


def expect_room(what: str, size: int, packed: int) -> None:
    """Refuse a content of `size` bytes that stands in `packed` bytes, if it does not fit or cannot be meant seriously.

    Raises
    ------
    UsageError
    """
    if size > SUSPICIOUS and size > DENSEST * packed:
        raise UsageError(f"{what}: {packed:,} bytes that unpack to {size:,}: no real data do, expected less")
    expect_memory(what, size)


def expect_memory(what: str, size: float, cure: str = "") -> None:
    """Refuse what takes `size` bytes, if they are not free.

    Raises
    ------
    UsageError
        With both numbers and the cure.
    """
    room = available()
    if size > room:
        few = f"{what}: {size / 2**30:,.1f} GiB, for which {room / 2**30:,.1f} GiB of free memory are too few"
        raise UsageError(few + (f"; {cure}" if cure else ""))


def expect_file(path: Path) -> int:
    """Return the size of a regular file; OSError if it is none: a pipe would block, a device never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return found.st_size
