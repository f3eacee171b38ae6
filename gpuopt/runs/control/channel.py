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
import shlex
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from gpuopt.errors import UsageError
from gpuopt.files import replacing
from gpuopt.limits import expect_file
from gpuopt.runs.secondary import beside

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gpuopt.runs.record.folder import RunFolder

    Message: TypeAlias = dict[str, Any]

__all__ = ["LOOPBACK", "Client", "Server"]

LOOPBACK = "127.0.0.1"
GREETED = {"gpuopt": "training"}
LONGEST, LONGEST_GREETING = 1 << 16, 1 << 10  # bytes
GREETING = 5.0
"""Seconds that either side has to say who it is."""
STRANGERS, GUESTS = 16, 64
"""Connections at once, of those who have not said it yet and of those who have."""
GLANCE = 0.1
"""Seconds to wait for a descriptor."""


class Server:
    """Waits for requests, and has `answer` answer each in a thread of its connection; writes ``control.json``."""

    def __init__(self, file: Path, answer: Callable[[Message], Message]) -> None:
        self._file, self._answer = file, answer
        self._secret = os.urandom(16).hex()
        self._is_closed = False
        self._strangers: set[socket.socket] = set()
        self._guests: set[socket.socket] = set()
        self._socket = socket.create_server((LOOPBACK, 0))
        try:
            content = {"port": self._socket.getsockname()[1], "secret": self._secret, "pid": os.getpid()}
            with replacing(file, durable=False, mode=0o600) as opened:
                opened.write(f"{json.dumps(content)}\n".encode())
            if beside(self._accept, "gpuopt control") is None:
                raise OSError(errno.EAGAIN, "no thread can be started", str(file))  # noqa: TRY301
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)
        for waited_for in (self._socket, *self._strangers):
            with contextlib.suppress(OSError):
                waited_for.shutdown(socket.SHUT_RDWR)  # wakes its thread
        self._socket.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                time.sleep(GLANCE)  # no descriptor is left: perhaps there is one later
                continue
            is_room = len(self._strangers) < STRANGERS and len(self._guests) < GUESTS
            self._strangers.add(connection)
            if not is_room or beside(partial(self._serve, connection), "gpuopt control") is None:
                self._strangers.discard(connection)
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        """Answer somebody who knows the secret; who does not say it soon is hung up on."""
        try:
            with (
                contextlib.suppress(OSError, RecursionError, ValueError),
                connection,
                connection.makefile("rb") as requests,
            ):
                until, said = time.monotonic() + GREETING, b""
                while not said.endswith(b"\n") and len(said) <= LONGEST_GREETING:
                    connection.settimeout(max(until - time.monotonic(), 1e-3))
                    said += (got := connection.recv(LONGEST_GREETING))
                    if not got:
                        return
                if hmac.compare_digest(said.strip(), self._secret.encode()):
                    connection.settimeout(None)
                    self._guests.add(connection)
                    self._strangers.discard(connection)
                    _say(connection, GREETED)
                    while line := requests.readline(LONGEST):
                        _say(connection, self._answer(json.loads(line)))
        finally:
            self._strangers.discard(connection)
            self._guests.discard(connection)


class Client(contextlib.ExitStack):
    """A connection to the training that runs in a folder, and the number of its `process`; UsageError if there is none."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        try:
            expect_file(folder.control)
            content = json.loads(folder.control.read_bytes())
            self.process, address = int(content["pid"]), (LOOPBACK, int(content["port"]))
            self._connection = self.enter_context(socket.create_connection(address, timeout=GREETING))
            self._answers = self.enter_context(self._connection.makefile("rb"))
            self._connection.sendall(f"{content['secret']}\n".encode())
            # After a training was killed, another program may have its port.
            is_welcome = json.loads(self._answers.readline(LONGEST)) == GREETED
        except (OSError, OverflowError, RecursionError, ValueError, KeyError, TypeError):
            is_welcome = False
        if not is_welcome:
            self.close()
            raise _nobody(folder)
        self._connection.settimeout(None)  # a step may take its time

    def ask(self, request: Message) -> Message:
        """Return the training's answer, after its current step; ConnectionError if it ended before."""
        _say(self._connection, request)
        line = self._answers.readline()
        if not line:
            raise ConnectionError("the training ended before it could answer")
        answer: Message = json.loads(line)
        return answer


def _say(connection: socket.socket, message: Message) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _nobody(folder: RunFolder) -> UsageError:
    if not folder.config.exists():
        return UsageError(f"{folder.path}: is no run folder: it has no config.json")
    with contextlib.suppress(UsageError):
        if "config" not in folder.read_config():
            return UsageError(f"{folder.path}: no run goes on in this folder; its program, run again, goes on with it")
    cure = f"gpuopt train --resume {shlex.quote(str(folder.path))}"
    return UsageError(f"{folder.path}: no training is running in this folder; {cure}")
