"""The page of a running training: curves and controls, served by a process of its own. Needs the extra ``live``."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import socket
import subprocess
from typing import TYPE_CHECKING

from gpuopt.errors import UsageError
from gpuopt.runs.control.channel import LOOPBACK, Client
from gpuopt.runs.loop import Callback
from gpuopt.runs.record.folder import RunFolder
from gpuopt.runs.secondary import beside, environment, interpreter, warn, warned

if TYPE_CHECKING:
    from pathlib import Path

    from gpuopt.runs.loop import Loop

__all__ = ["Page", "serve"]


class Page(Callback):
    """Starts the page with the training, which never waits for it and ends it; one that cannot be started is a warning.

    It listens at `host`, see `Place`, and `url` is where it is. UsageError if the extra is not installed, it cannot listen there,
    or there is no interpreter to start, as in a frozen application.
    """

    def __init__(self, host: str | None = None) -> None:
        _expect_nicegui()
        python = interpreter()
        if python is None:
            raise UsageError(
                "--live: this application is its own Python interpreter, expected one to start the page with"
            )
        self._python = python
        self._place = Place(host)
        self.url = self._place.url
        self._is_started = False

    def start(self, run: Loop) -> None:
        if self._is_started:  # it goes on on another device
            return
        self._is_started = True
        assert run.folder is not None
        listening = self._place.socket
        about = {"folder": str(run.folder), "fd": listening.fileno(), **self._place.about}
        with listening, warned("no live page: %s"):
            # A session of its own: Ctrl-C is for the training. The token is nobody's who lists the processes.
            process = subprocess.Popen(
                [self._python, "-P", "-m", "gpuopt.runs.control.live"],  # no files of the folder that it is started in
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
                start_new_session=True,
                env=environment(),
            )
            assert process.stdin is not None
            with process.stdin:
                process.stdin.write(json.dumps(about).encode())
            beside(process.wait, "gpuopt live")
            print(f"Live:    {self.url}", flush=True)  # noqa: T201


class Place:
    """Where a page listens: HOST or HOST:PORT; by default a free port of the loopback interface.

    From elsewhere, everybody who is told the page's address may steer the training, and it goes over the network in the clear.
    """

    def __init__(self, host: str | None) -> None:
        name, _, port = (host or LOOPBACK).partition(":")
        name = name or LOOPBACK
        try:
            if ":" in port:
                raise ValueError("expected HOST or HOST:PORT, a name or an IPv4 address")  # noqa: TRY301
            if not (port or "0").isdecimal() or int(port or 0) >= 65536:
                raise ValueError(f"port {port}, expected one from 1 to 65535")  # noqa: TRY301
            self.socket = socket.create_server((name, int(port or 0)))
        except (OSError, ValueError) as error:
            raise UsageError(f"--live-host {host}: cannot listen there: {error}") from None
        if not self.socket.getsockname()[0].startswith("127."):
            warn(
                "--live-host %s: whoever is told the page's address may steer the run, and it goes over the network in the clear",
                name,
            )
        name = socket.gethostname() if name == "0.0.0.0" else name
        token = secrets.token_urlsafe(16)
        self.about = {"token": token, "name": name}  # what the page's process must know
        self.url = f"http://{name}:{self.socket.getsockname()[1]}/{token}/"


def serve(folder: str | Path, host: str | None = None) -> None:
    """Serve the page of a run that goes on in another process, until that ends; UsageError if none does, or it cannot be served."""
    _expect_nicegui()
    files = RunFolder(folder)
    with Client(files) as client:
        process = client.process
    place = Place(host)
    print(f"Live:    {place.url}", flush=True)  # noqa: T201
    from gpuopt.runs.control.live.__main__ import serve as serve_there

    serve_there(files, place.socket, place.about, lambda: _is_alive(process))


def _is_alive(process: int) -> bool:
    """Whether there is a process of this number; elsewhere than on POSIX only the connection tells."""
    try:
        if os.name == "posix":
            os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _expect_nicegui() -> None:
    if importlib.util.find_spec("nicegui") is None:
        raise UsageError('--live: NiceGUI is not installed; the extra brings it: pip install "gpuopt[live]"')
