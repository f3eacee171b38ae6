"""What the page knows of its training: rows and events as the metrics get them, and more points in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, TypeAlias

from gpuopt.training import UsageError
from gpuopt.training.channel import Client

if TYPE_CHECKING:
    from gpuopt.training.channel import Message
    from gpuopt.training.folder import RunFolder

    Row: TypeAlias = dict[str, Any]

__all__ = ["Follower"]

INTERVAL = 0.25
"""Seconds from one question to the next: what a long epoch has of points."""
MOST = 2000
"""Points in memory of each kind; when there are more, every second one is forgotten."""
WAITING = 60.0
"""Seconds that the training has to begin."""


class Follower:
    """Asks the training how it stands, and reads what it writes, until it ends.

    Attributes
    ----------
    name : str
    rows, points, events : list of dict
        Of the metrics; what the training answered in between, with the same keys; events.
    now : dict or None
        The last answer.
    ended : bool
    version : int
        Counts what changed.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.name = folder.path.name
        self.folder = folder
        self.rows: list[Row] = []
        self.points: list[Row] = []
        self.events: list[Row] = []
        self.now: Row | None = None
        self.ended = False
        self.version = 0
        self._read = 0
        self._client: Client | None = None
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Follow."""
        with contextlib.ExitStack() as connections, contextlib.suppress(OSError, ValueError):  # until it has ended
            asking = connections.enter_context(await self._connected())
            self._client = connections.enter_context(await self._connected())
            while True:
                self._note(await asyncio.to_thread(asking.ask, {}))
                await asyncio.sleep(INTERVAL)
        self._read_metrics()
        self.ended = True
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

    async def _connected(self) -> Client:
        """A connection, as soon as the training has begun; UsageError if it does not."""
        for _ in range(round(WAITING / INTERVAL)):
            with contextlib.suppress(UsageError):
                return await asyncio.to_thread(Client, self.folder)
            await asyncio.sleep(INTERVAL)
        return await asyncio.to_thread(Client, self.folder)

    def _note(self, answer: Message) -> None:
        now = answer["now"]
        if self.now is None or now["step"] != self.now["step"]:
            self._add(self.points, now)
        self.now = now
        self._read_metrics()
        self.version += 1

    def _read_metrics(self) -> None:
        """Take what is new in the file."""
        try:
            with self.folder.metrics.open("rb") as file:
                if file.seek(0, 2) < self._read:  # cut, as a device that fails does it
                    self.rows.clear()
                    self.events.clear()
                    self._read = 0
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")[0]
        except OSError:
            return
        if whole:
            self._read += len(whole) + 1
            for line in whole.splitlines():
                row = json.loads(line)
                self._add(self.events if "event" in row else self.rows, row)

    @staticmethod
    def _add(rows: list[Row], row: Row) -> None:
        rows.append(row)
        if len(rows) > MOST:
            del rows[1:-1:2]
