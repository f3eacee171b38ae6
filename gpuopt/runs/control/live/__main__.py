"""The process that serves the page of a training; what it needs to know comes by the standard input."""

from __future__ import annotations

import os

if hasattr(os, "nice"):
    os.nice(19)  # the training comes first, before what is imported here too

import asyncio
import json
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from nicegui import app as pages
from nicegui import ui

from gpuopt.runs.control.live.guard import Guard
from gpuopt.runs.control.live.view import show
from gpuopt.runs.control.live.watcher import Watcher
from gpuopt.runs.record.folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable

FAREWELL = 2.0
"""Seconds that browsers have, when the training has ended, to fetch the last points."""


def main() -> None:
    """Serve until the training ends, which is the parent of this process."""
    parent = os.getppid()
    about = json.load(sys.stdin)
    listening = socket.socket(fileno=about["fd"])
    serve(RunFolder(about["folder"]), listening, about, lambda: os.getppid() == parent)


def serve(folder: RunFolder, listening: socket.socket, about: dict[str, Any], is_alive: Callable[[], bool]) -> None:
    """Serve the page of a run until that ends."""
    token, port = about["token"], listening.getsockname()[1]
    names = ("127.0.0.1", "localhost", about["name"])
    guarded = partial(
        Guard,
        token=token,
        hosts={f"{name}:{port}" for name in names},
        addresses=not listening.getsockname()[0].startswith("127."),
    )
    watcher = Watcher(folder, is_alive)
    own = FastAPI(openapi_url=None)
    ui.run_with(
        own,
        root=lambda: show(watcher),
        title=f"{watcher.name} - gpuopt",
        mount_path=f"/{token}",
        show_welcome_message=False,
        tailwind=False,
        gzip_middleware_factory=None,  # to the same machine it costs more than it saves
        binding_refresh_interval=None,
    )
    config = uvicorn.Config(guarded(own), log_level="error", access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)

    async def follow() -> None:
        try:
            await watcher.run()
            await asyncio.sleep(FAREWELL)
        finally:
            server.should_exit = True

    tasks = set()
    pages.on_startup(lambda: tasks.add(asyncio.create_task(follow())))
    asyncio.run(server.serve(sockets=[listening]))


if __name__ == "__main__":
    main()
