"""A disk whose power may fail: what was not synced, of files and of folders, is lost in part, in any order."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

Contents = dict[str, bytes]


class Disk:
    """Watches a folder, and tells what it may hold after a power failure.

    Each name of the folder may be what it was at any time since the folder was synced, each file have any content that it had
    since the file was synced, the end of it cut off or become zeros.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[int, int] = {}  # descriptors: a number of a file that is held is not given to another one
        self._contents: dict[int, list[bytes]] = {}
        self._names: dict[str, list[int | None]] = {}
        self.look()
        self._names = {name: known[-1:] for name, known in self._names.items()}  # what is there now lasts
        self._contents = {number: known[-1:] for number, known in self._contents.items()}

    def look(self) -> None:
        """Note how it is now."""
        there: dict[str, int] = {}
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # of another thread
                if entry.is_file(follow_symlinks=False):
                    there[entry.name] = number = entry.inode()
                    if number not in self._held:
                        self._held[number] = os.open(entry.path, os.O_RDONLY)
        for name in {*there, *self._names}:
            known = self._names.setdefault(name, [None])
            if known[-1] != there.get(name):
                known.append(there.get(name))
        for number, descriptor in self._held.items():
            content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            known_contents = self._contents.setdefault(number, [b""])
            if known_contents[-1] != content:
                known_contents.append(content)

    def synced(self, descriptor: int) -> None:
        """What this descriptor is of lasts."""
        self.look()
        number = os.fstat(descriptor).st_ino
        if number == self.folder.stat().st_ino:
            self._names = {name: known[-1:] for name, known in self._names.items() if known[-1] is not None}
        elif number in self._contents:
            del self._contents[number][:-1]

    def after_a_failure(self, random: Random) -> Contents:
        """What may be there."""
        found: Contents = {}
        for name, known in self._names.items():
            if (number := random.choice(known)) is not None:
                contents = self._contents[number]
                content, least = random.choice(contents), min(map(len, contents))
                lasting = next((k for k in range(least) if len({x[k] for x in contents}) > 1), least)
                if len(contents) > 1 and random.random() < 0.5:
                    cut = random.randint(min(lasting, len(content)), len(content))
                    content = content[:cut] + (bytes(len(content) - cut) if random.random() < 0.3 else b"")
                found[name] = content
        return found

    def after_a_kill(self) -> Contents:
        """What is there: nothing is lost that was written."""
        names = {name: known[-1] for name, known in self._names.items()}
        return {name: self._contents[number][-1] for name, number in names.items() if number is not None}

    def close(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)


@contextlib.contextmanager
def watched(folder: Path, each: Callable[[Disk], None]) -> Iterator[Disk]:
    """Watch a folder; `each` is called before and after every operation on its files."""
    disk, one_at_a_time = Disk(folder), threading.RLock()

    def watching(function: str) -> Callable[..., Any]:
        original = getattr(os, function)

        def watch(*arguments: Any, **options: Any) -> Any:
            with one_at_a_time:  # checkpoints are written in a thread
                disk.look()
                each(disk)
                done = original(*arguments, **options)
                disk.look()
                if function == "fsync":
                    disk.synced(*arguments)
                each(disk)
                return done

        return watch

    with pytest.MonkeyPatch.context() as patched:
        for function in ("replace", "link", "unlink", "fsync"):
            patched.setattr(os, function, watching(function))
        yield disk
    disk.close()
