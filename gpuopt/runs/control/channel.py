"""How another process reaches a running training: a socket on the loopback interface, and a file that says where.

``control.json`` in the run folder has its port and a secret. Only who may read the file can connect; it is written for
its owner alone. Requests and answers are lines of JSON, as many as one likes over one connection, which ends with the
training.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from gpuopt.errors import UsageError
from gpuopt.limits import expect_file

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
        self._socket = socket.create_server((LOOPBACK, 0))
        try:
            content = {"port": self._socket.getsockname()[1], "secret": self._secret, "pid": os.getpid()}
            temporary = file.with_name(f"{file.name}.tmp")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w") as opened:  # noqa: PTH123  (Path.open cannot make it private)
                opened.write(json.dumps(content) + "\n")
            temporary.replace(file)
        except BaseException:
            self._socket.close()
            raise
        threading.Thread(target=self._accept, name="gpuopt control", daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for one
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], name="gpuopt control", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rwb") as file:
            connection.settimeout(GREETING)
            if not hmac.compare_digest(file.readline(LONGEST).strip(), self._secret.encode()):
                return
            connection.settimeout(None)
            _say(file, GREETED)
            while line := file.readline(LONGEST):
                _say(file, self._answer(json.loads(line)))


class Client:
    """A connection to the training that runs in a folder; a context manager that closes it.

    Raises
    ------
    UsageError
        If none does.
    """

    def __init__(self, folder: RunFolder) -> None:
        try:
            expect_file(folder.control)
            content = json.loads(folder.control.read_bytes())
            self._socket = socket.create_connection((LOOPBACK, int(content["port"])), timeout=GREETING)
        except (OSError, OverflowError, RecursionError, ValueError, KeyError, TypeError):
            raise _nobody(folder) from None
        self._file = self._socket.makefile("rwb")
        if not self._is_welcome(content):
            self.close()
            raise _nobody(folder)
        self._socket.settimeout(None)  # a step may take its time

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

    def _is_welcome(self, content: Message) -> bool:
        """Whether a training is there, not somebody else who took over the port of one that was killed."""
        try:
            self._file.write(f"{content['secret']}\n".encode())
            self._file.flush()
            return bool(json.loads(self._file.readline(LONGEST)) == GREETED)
        except (OSError, ValueError, KeyError):
            return False

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._socket.close()

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
    return UsageError(f"{folder.path}: no training is running in this folder; gpuopt train --resume {folder.path}")
