"""The run folder: what a run was, how it went, and where it stands.

================================  ================================================================================
``config.json``                   everything needed to repeat the run, with a checksum
``metrics.jsonl``                 a row for each reported epoch and each event; locked by the process that trains
``checkpoint.safetensors``        the last one: parameters, optimizer state, position in the data, and the like
``checkpoint-STEPS.safetensors``  the ones before, as many as ``--keep`` says
``best.safetensors``              the state with the lowest test loss (training loss if there is no test set)
``summary.json``                  how it ended; only there when it did
``report.html``, ``*.png``        what a person sees of it, drawn at the end
``control.json``                  where the training listens for commands; only there while it runs
================================  ================================================================================
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import os
import re
import shlex
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuopt.arrays import describe
from gpuopt.errors import UsageError
from gpuopt.files import make_folder, replacing
from gpuopt.limits import expect_file
from gpuopt.runs.record.metrics import finite
from gpuopt.suggest import listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gpuopt.optimizer import Optimizer

__all__ = ["RunFolder", "checksum_of", "read_json", "write_json", "write_signed"]

FORMAT = 1
LARGEST_CONFIG = 1 << 20  # bytes
LOCK = "run.lock"
KEPT = re.compile(r"checkpoint-(0|[1-9][0-9]*)\.safetensors")


class RunFolder:
    """The files of a run, by name."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        given: object = path
        if not isinstance(given, str | os.PathLike):
            raise TypeError(f"folder: {describe(given)}, expected a name, a text or a Path")
        self.path = Path(os.path.expanduser(path))  # noqa: PTH111  (Path's own fails for users that are not there)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.best = self.path / "best.safetensors"
        self.summary = self.path / "summary.json"
        self.control = self.path / "control.json"

    @classmethod
    def opened(cls, path: str | Path) -> RunFolder:
        """The folder of a loop of one's own: made, if it is new; with a run in it, if it is not. UsageError if it cannot be."""
        if path == "":
            raise UsageError("folder: '', expected a name; '.' is the current folder")
        folder = cls(path).absolute()
        if not folder._make(path) and not folder.config.exists():
            raise UsageError(
                f"{path}: is no run folder: it has other files, and no {folder.config.name}; choose another one"
            )
        return folder

    @classmethod
    def create(cls, out: str | Path | None, name: str) -> RunFolder:
        """Make the folder `out`; by default one in ``runs``, called by the data's name and the time.

        An empty one is taken as it is, so is one whose run was killed before it began; UsageError for any other that is there.
        """
        if out is None:
            now = dt.datetime.now().strftime("%Y%m%d-%H%M%S")
            names = (f"{name}-{now}{end}" for end in itertools.chain([""], (f"-{n}" for n in itertools.count(2))))
            out = next(path for path in (Path("runs", name) for name in names) if not path.exists())
        folder = cls(out).absolute()  # whoever goes elsewhere finds it
        if (folder.path.exists() and not folder.path.is_dir()) or not folder._make(f"--out {out}"):
            cure = "choose another one"
            if folder.config.exists():
                cure += f", or continue the run in it with gpuopt train --resume {shlex.quote(str(out))}"
            raise UsageError(f"--out {out}: exists already; {cure}")
        return folder

    def absolute(self) -> RunFolder:
        """The same for whoever goes elsewhere."""
        return RunFolder(self.path.absolute())

    def _make(self, given: object) -> bool:
        """Make it, to stay. Return whether nothing stands in it but what a run leaves that is killed before it begins."""
        try:
            make_folder(self.path)
            idle = {LOCK, *([] if self.metrics.exists() and self.metrics.stat().st_size else [self.metrics.name])}
            return all(file.suffix == ".tmp" or file.name in idle for file in self.path.iterdir())
        except OSError as error:
            raise UsageError(f"{given}: cannot be made: {error.strerror}") from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that trains in this folder, and remove what one that was killed left half-written.

        Raises
        ------
        UsageError
            If another one does; if something half-written cannot be removed; or if what it would write to is no file of this
            folder's: through a link somebody else's file would be replaced.
        """
        for path in (self.metrics, self.checkpoint, self.best, self.summary):
            if path.is_symlink() or (path.exists() and not path.is_file()):
                what = "a symbolic link" if path.is_symlink() else "not a regular file"
                raise UsageError(f"{path}: {what}, expected a file of the run's own")
        try:
            file = self.metrics.open("ab")
        except OSError as error:
            raise UsageError(f"{self.metrics}: cannot be written: {error.strerror}") from None
        with file, _alone(self.path, file.fileno()) as is_ours:
            if not is_ours:
                raise UsageError(
                    f"{self.path}: another process is training in this folder, or another run of this process"
                )
            for temporary in self.path.glob("*.tmp"):
                try:
                    temporary.unlink(missing_ok=True)
                except OSError as error:  # a folder, for instance, which a file that is written could not replace
                    raise UsageError(f"{temporary}: cannot be removed: {error.strerror}") from None
            yield

    def write_config(self, content: Mapping[str, Any]) -> None:
        """Write ``config.json``."""
        write_signed(self.config, content)

    def read_config(self) -> dict[str, Any]:
        """Return the content of ``config.json``; UsageError if there is none, it is damaged or of another version."""
        try:
            return read_json(self.config, LARGEST_CONFIG, "the configuration of a run")
        except OSError as error:
            if isinstance(error, NotADirectoryError):
                raise UsageError(f"--resume {self.path}: is a file, expected a run folder") from None
            is_missing = isinstance(error, FileNotFoundError)
            if is_missing and self.path.is_dir():
                raise UsageError(f"--resume {self.path}: is no run folder: it has no {self.config.name}") from None
            raise UsageError(f"--resume {self.path if is_missing else self.config}: {error.strerror}") from None

    def kept(self) -> dict[int, Path]:
        """The checkpoints before the last one by their steps, the fewest first; nothing of a folder that cannot be listed."""
        names: list[str] = []
        with contextlib.suppress(OSError):  # no descriptor left, for instance
            names = [file.name for file in self.path.iterdir()]
        found = {int(match[1]): self.path / match[0] for match in map(KEPT.fullmatch, names) if match}
        return dict(sorted(found.items()))

    def mark(self) -> object:
        """What the last checkpoint is told by from another one."""
        with contextlib.suppress(FileNotFoundError):
            found = self.checkpoint.stat()
            return found.st_ino, found.st_size, found.st_mtime_ns
        return None

    def load(self, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Read the checkpoint into an optimizer, and return what else stands in it, and arrays; None if there is none yet.

        Raises
        ------
        UsageError
            If it is damaged, of another version or of another network; it names the earlier ones, if there are some.
        """
        from gpuopt import checkpoint

        others = listed(file.name for file in reversed(self.kept().values()))
        hint = f"; there are earlier ones, to be renamed to {self.checkpoint.name}: {others}" if others else ""
        try:
            return checkpoint.load_state(self.checkpoint, optimizer)
        except FileNotFoundError:
            if not hint:
                return None
            raise UsageError(f"{self.checkpoint}: is missing{hint}") from None
        except checkpoint.CheckpointError as error:
            raise UsageError(f"{error}{hint}") from None
        except OSError as error:
            raise UsageError(f"{self.checkpoint}: {error.strerror}{hint}") from None

    def keep(self, steps: int) -> None:
        """Give the last checkpoint a second name, of its steps, under which it stays when it is replaced."""
        name = self.path / f"checkpoint-{steps}.safetensors"
        temporary = name.with_name(f"{name.name}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(self.checkpoint, temporary)
        except OSError:  # a file system without links
            shutil.copy2(self.checkpoint, temporary)
        temporary.replace(name)
        temporary.unlink(missing_ok=True)  # POSIX leaves it if both are links to one file already

    def forget_all_but(self, kept: int, steps: int) -> None:
        """Remove all of `kept` but some, where the last checkpoint is the one after `steps`.

        Those beyond it go first: the training left them by a rollback. Then go those with the fewest steps. The clock does
        not matter, which may be set back.
        """
        files = sorted(self.kept().items(), key=lambda item: (item[0] <= steps, item[0]))
        for _, file in files[: max(0, len(files) - kept)]:
            file.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all, to stay."""
    with replacing(path) as file:
        file.write(f"{json.dumps(finite(content), indent=2)}\n".encode())


def write_signed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that `read_json` reads, with its format and a checksum."""
    signed = {"format": FORMAT, **content}
    write_json(path, {**signed, "crc32": checksum_of(signed)})


def read_json(path: Path, largest: int, what: str) -> dict[str, Any]:
    """The content of a JSON file; UsageError if it is not `what` it should be, damaged, or of another version."""
    size = expect_file(path)
    try:
        content = json.loads(path.read_bytes()) if size <= largest else None
    except (RecursionError, ValueError) as error:
        raise UsageError(f"{path}: not readable ({error!s:.80})") from None
    if not isinstance(content, dict) or "format" not in content:
        raise UsageError(f"{path}: is not {what}")
    if content["format"] is True or content["format"] != FORMAT:
        writer = f"written by gpuopt {content.get('gpuopt')!s:.20}; this version knows format {FORMAT}"
        raise UsageError(f"{path}: of format {content['format']!r:.20}, {writer}: a newer gpuopt is needed")
    if content.pop("crc32", None) != checksum_of(content):
        raise UsageError(f"{path}: damaged or edited: its checksum does not fit")
    return content


def checksum_of(content: Mapping[str, Any]) -> int:
    """Return the CRC-32 that a JSON file carries of all else that is in it."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


@contextlib.contextmanager
def _alone(folder: Path, descriptor: int) -> Iterator[bool]:
    """Whether nobody else has the lock, which is of an open file; of one of its own on Windows, where a lock keeps readers out."""
    try:
        import fcntl
    except ImportError:
        from filelock import FileLock, Timeout

        lock = FileLock(folder / LOCK)
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
        try:
            yield lock.is_locked
        finally:
            lock.release()
        return
    is_free = True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        is_free = False
    except OSError:  # a file system without locks
        pass
    yield is_free
