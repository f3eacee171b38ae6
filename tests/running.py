"""A training that runs beside a test, until it is stopped."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from gpuopt.cli import app
from gpuopt.runs.control.channel import Client
from gpuopt.runs.record.folder import RunFolder
from gpuopt.training import Config, Result, UsageError, train


def rows(folder: str | Path, event: str | None = None) -> list[dict[str, Any]]:
    """The rows of the metrics; the events of a name, or what is no event."""
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row.get("event") == event]


class Running:
    """A training that runs in a thread until it is stopped."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.result: Result | None = None
        chosen: dict[str, Any] = {"hidden": (4,), "epochs": 10**8, "report_every": 10, "device": "cpu"} | options
        config = Config(**chosen)

        def run() -> None:
            self.result = train(config, out=folder)

        self._thread = threading.Thread(target=run)
        self._thread.start()
        while True:
            try:
                self.client = Client(RunFolder(folder))
            except UsageError:
                assert self._thread.is_alive()
                time.sleep(0.01)
            else:
                return

    def ask(self, **request: Any) -> dict[str, Any]:
        return self.client.ask(request)

    def finish(self) -> Result:
        self.ask(stop=None)
        self._thread.join()
        assert self.result is not None
        return self.result


def opened(folder: Path) -> Iterator[Running]:
    """For a fixture: it is stopped in the end."""
    training = Running(folder)
    yield training
    if training.result is None:
        training.finish()
    training.client.close()


def gpuopt(*arguments: object) -> tuple[int, str]:
    """Exit code and output of the command."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output
