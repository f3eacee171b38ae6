"""How another process reaches a running training: a socket on the loopback interface, and a file that says where.

``control.json`` in the run folder has its port and a secret. Only who may read the file can connect; it is written for
its owner alone. Requests and answers are lines of JSON, as many as one likes over one connection, which ends with the
training.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import os
import selectors
import shlex
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from gpuopt.errors import UsageError
from gpuopt.limits import expect_file
from gpuopt.runs.secondary import beside

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedRWPair
    from pathlib import Path

    from gpuopt.runs.record.folder import RunFolder

    Message: TypeAlias = dict[str, Any]

__all__ = ["Client", "Server"]

LOOPBACK = "127.0.0.1"
GREETED = {"gpuopt": "training"}
LONGEST = 1 << 16  # bytes of a request
GREETING = 5.0
"""Seconds that either side has to say who it is."""
STRANGERS, GUESTS = 16, 64
"""Connections at once, of those who have not said it yet and of those who have."""
GLANCE = 0.1
"""Seconds between two looks for clients that are too slow."""


class Server:
    """Waits for requests in threads of its own, and hands each to a function.

    Parameters
    ----------
    file
        The ``control.json`` to write.
    answer
        Called in a thread for each connection.
    """

    def __init__(self, file: Path, answer: Callable[[Message], Message]) -> None:
        self._file, self._answer = file, answer
        self._secret = os.urandom(16).hex()
        self._is_closed = False
        self._guests = 0
        self._socket = socket.create_server((LOOPBACK, 0))
        try:
            content = {"port": self._socket.getsockname()[1], "secret": self._secret, "pid": os.getpid()}
            temporary = file.with_name(f"{file.name}.tmp")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w") as opened:  # noqa: PTH123  (Path.open cannot make it private)
                opened.write(json.dumps(content) + "\n")
            temporary.replace(file)
            if beside(self._accept, "gpuopt control") is None:
                raise OSError(errno.EAGAIN, "no thread can be started", str(file))  # noqa: TRY301
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Accept no more connections."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for one
        self._socket.close()

    def _accept(self) -> None:
        """Accept connections, and hand on those whose first message has the secret; others cost neither a thread nor much time."""
        strangers: dict[socket.socket, Stranger] = {}
        with contextlib.suppress(OSError, ValueError), selectors.DefaultSelector() as ready:
            ready.register(self._socket, selectors.EVENT_READ)
            while not self._is_closed:
                found = {key.fileobj for key, _ in ready.select(GLANCE if strangers else None)}
                for one, stranger in list(strangers.items()):
                    known = self._heard(one, stranger) if one in found else None
                    if known is not None or stranger.until < time.monotonic():
                        ready.unregister(one)
                        del strangers[one]
                        if known:
                            self._welcome(one)
                        else:
                            one.close()
                if self._socket in found and (new := self._accepted(len(strangers))) is not None:
                    strangers[new] = Stranger(time.monotonic() + GREETING)
                    ready.register(new, selectors.EVENT_READ)
        for one in strangers:
            one.close()

    def _accepted(self, strangers: int) -> socket.socket | None:
        """The next connection, unless there are too many already."""
        try:
            connection, _ = self._socket.accept()
        except OSError:
            if self._is_closed:
                raise
            time.sleep(GLANCE)  # no descriptor is left: perhaps there is one later
            return None
        if strangers >= STRANGERS or self._guests >= GUESTS:
            connection.close()
            return None
        connection.setblocking(False)
        return connection

    def _heard(self, connection: socket.socket, stranger: Stranger) -> bool | None:
        """Whether somebody knows the secret; None as long as that is open."""
        try:
            stranger.said += (got := connection.recv(1024))
        except BlockingIOError:
            return None
        except OSError:
            return False
        if not got or len(stranger.said) > 1024:
            return False
        greeting, end, rest = stranger.said.partition(b"\n")
        return not rest and hmac.compare_digest(greeting.strip(), self._secret.encode()) if end else None

    def _welcome(self, connection: socket.socket) -> None:
        self._guests += 1
        with contextlib.suppress(OSError):
            connection.setblocking(True)
            if beside(partial(self._serve, connection), "gpuopt control") is not None:
                return
        self._guests -= 1
        connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with (
                contextlib.suppress(OSError, RecursionError, ValueError),
                connection,
                connection.makefile("rwb") as file,
            ):
                _say(file, GREETED)
                while line := file.readline(LONGEST):
                    _say(file, self._answer(json.loads(line)))
        finally:
            self._guests -= 1


@dataclass
class Stranger:
    """Somebody who has not said the secret yet."""

    until: float
    said: bytes = b""


class Client:
    """A connection to the training that runs in a folder; a context manager that closes it.

    Attributes
    ----------
    process : int
        The number of the one that trains.

    Raises
    ------
    UsageError
        If none does.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._opened = contextlib.ExitStack()
        try:
            expect_file(folder.control)
            content = json.loads(folder.control.read_bytes())
            self.process, port = int(content["pid"]), int(content["port"])
            connection = self._opened.enter_context(socket.create_connection((LOOPBACK, port), timeout=GREETING))
            self._file = self._opened.enter_context(connection.makefile("rwb"))
            self._file.write(f"{content['secret']}\n".encode())
            self._file.flush()
            # After a training was killed, another program may have its port.
            is_welcome = json.loads(self._file.readline(LONGEST)) == GREETED
        except (OSError, OverflowError, RecursionError, ValueError, KeyError, TypeError):
            is_welcome = False
        if not is_welcome:
            self.close()
            raise _nobody(folder)
        connection.settimeout(None)  # a step may take its time

    def ask(self, request: Message) -> Message:
        """Return the training's answer, after its current step.

        Raises
        ------
        ConnectionError
            If the training ended before.
        """
        _say(self._file, request)
        line = self._file.readline()
        if not line:
            raise ConnectionError("the training ended before it could answer")
        answer: Message = json.loads(line)
        return answer

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _say(file: BufferedRWPair, message: Message) -> None:
    file.write(json.dumps(message).encode() + b"\n")
    file.flush()


def _nobody(folder: RunFolder) -> UsageError:
    if not folder.config.exists():
        return UsageError(f"{folder.path}: is no run folder: it has no config.json")
    with contextlib.suppress(UsageError):
        if "config" not in folder.read_config():
            return UsageError(f"{folder.path}: no run goes on in this folder; its program, run again, goes on with it")
    cure = f"gpuopt train --resume {shlex.quote(str(folder.path))}"
    return UsageError(f"{folder.path}: no training is running in this folder; {cure}")
