"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import secrets
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["make_folder", "replacing", "sync_folder", "write"]

LOG = logging.getLogger("gpuopt")


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], *, durable: bool = True, follow: bool = False, mode: int = 0o666
) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of another one once all of it is written; until then, and on an error, that one stays.

    Parameters
    ----------
    path
        Of the file to make or replace; an OSError names it.
    durable
        Whether it is on the disk then, and not only in the system's memory.
    follow
        Whether a link stays, and what it leads to is replaced.
    mode
        Permissions, of which the user's umask takes some away.
    """
    target = Path(os.path.realpath(path) if follow else path)
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "not a regular file, expected one to replace", str(path))  # not /dev/null, say
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb", opener=functools.partial(os.open, mode=mode)) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(target)
        if durable:
            sync_folder(target.parent)
    except OSError as error:
        error.filename = str(path)  # a full disk is told without a name, a missing folder with the temporary one
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes | str) -> None:
    """Write a picture or a page, which can be drawn again: the disk is not waited for."""
    with replacing(path, durable=False) as file:
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def make_folder(folder: Path) -> None:
    """Make a folder and what is missing of the folders around it, to stay; nothing if it is there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename last. Windows cannot, and does not need to; where a file system cannot, the file is there all the same."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        _warn_of_folder(str(folder), error.strerror)


@functools.cache
def _warn_of_folder(folder: str, why: str | None) -> None:
    LOG.warning(
        "%s: the folder cannot be synchronized (%s): a new file may be gone if the power fails soon after", folder, why
    )
