"""What the page knows of its training: rows and events as the metrics get them, and more points in between."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, TypeAlias

from gpuopt.errors import UsageError
from gpuopt.runs.control.channel import Client
from gpuopt.runs.record.events import NO_METRICS, is_number
from gpuopt.runs.record.metrics import whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuopt.runs.control.channel import Message
    from gpuopt.runs.record.folder import RunFolder

    Row: TypeAlias = dict[str, Any]

__all__ = ["Watcher"]

INTERVAL = 0.25
"""Seconds from one question to the next: what a long epoch has of points."""
MOST = 2000
"""Points in memory of each kind; when there are more, every second one is forgotten."""
WAITING = 60.0
"""Seconds that the training has to begin, or to go on on another device."""


class Watcher:
    """Asks the training how it stands, and reads what it writes, until it ends."""

    def __init__(self, folder: RunFolder, is_alive: Callable[[], bool]) -> None:
        self.name = folder.path.name
        self.folder = folder
        # Of the metrics, and what the training answered in between. Where it went back, both have a row of step, lr and seconds.
        self.rows: list[Row] = []
        self.points: list[Row] = []
        self.events: list[Row] = []
        self.now: Row | None = None  # the last answer
        self.ended = self.killed = False  # nobody trains; since the process was killed
        self.version = 0  # counts what changed
        self._is_alive = is_alive  # whether the process that trains is there
        self._read = 0
        self._client: Client | None = None
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Follow, on another device, too."""
        while (asking := await self._connected()) is not None:
            with asking, contextlib.suppress(OSError, ValueError), Client(self.folder) as self._client:
                self.ended = False
                while True:  # until it has ended
                    self._note(await asyncio.to_thread(asking.ask, {}))
                    await asyncio.sleep(INTERVAL)
            self._end()
        self._end()

    def _end(self) -> None:
        """Note that nobody trains; who is gone and was not killed has removed the file."""
        self._read_metrics()
        self.ended, self.killed = True, not self._is_alive() and self.folder.control.exists()
        self.version += 1

    async def ask(self, request: Message) -> str | None:
        """Let the training do something; return why not, if it cannot."""
        if self._client is None or self.ended:
            return "no training is running"
        async with self._lock:
            try:
                answer = await asyncio.to_thread(self._client.ask, request)
            except (OSError, ValueError):
                return "the training has ended"
        self._note(answer)
        refused: str | None = answer.get("refused")
        return refused

    async def _connected(self) -> Client | None:
        """A connection, as soon as the training has begun; None if it does not."""
        end = time.monotonic() + WAITING
        while self._is_alive() and time.monotonic() < end:
            with contextlib.suppress(UsageError):
                return await asyncio.to_thread(Client, self.folder)
            await asyncio.sleep(INTERVAL)
        return None

    def _note(self, answer: Message) -> None:
        now = answer["now"]
        self._read_metrics()  # it may have gone back before
        if self.now is None or (now["step"], now.get("lr")) != (self.now["step"], self.now.get("lr")):
            self._add(self.points, {name: value for name, value in now.items() if value is None or is_number(value)})
        self.version += now != self.now
        self.now = now

    def _read_metrics(self) -> None:
        """Read what is new in the file."""
        try:
            with self.folder.metrics.open("rb") as file:
                if file.seek(0, 2) < self._read:  # cut, as a device that fails does it
                    self.rows.clear()
                    self.events.clear()
                    self._read = 0
                file.seek(self._read)
                rows, size = whole(file.read())
        except OSError:
            return
        if rows:
            self.version += 1
            self._read += size
            for row in rows:
                self._add(self.events if "event" in row else self.rows, row)
                if "event" in row and isinstance(row.get("back_to_step"), int):
                    last = [known[-1]["seconds"] for known in (self.rows, self.points) if known]
                    back = {"step": row["back_to_step"], "lr": row.get("lr"), "seconds": max(last, default=0.0)}
                    self._add(self.rows, back)
                    self._add(self.points, back)

    def metrics(self) -> list[str]:
        """What there are curves of: the loss first, the learning rate last; a test set's belong to the others'."""
        last = [*self.rows[-1:], *self.points[-1:]]
        found = dict.fromkeys(name for row in last for name in row if name not in NO_METRICS and is_number(row[name]))
        names = [name for name in found if not (name.startswith("test_") and name.removeprefix("test_") in found)]
        has_lr = any(is_number(row.get("lr")) for row in last)
        return sorted(names, key=lambda name: name != "loss") + ["lr"] * has_lr

    def images(self) -> dict[str, tuple[int, Callable[[], bytes]]]:
        """What the loop shows, by name: a number that changes with it, and its file's content."""
        found = {}
        for file in sorted(self.folder.path.glob("image-*.png")):
            with contextlib.suppress(OSError):
                found[file.stem.removeprefix("image-")] = file.stat().st_mtime_ns, file.read_bytes
        return found

    @staticmethod
    def _add(rows: list[Row], row: Row) -> None:
        rows.append(row)
        if len(rows) > MOST:
            del rows[1:-1:2]
