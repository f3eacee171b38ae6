"""Run folders that version 0.1.0 wrote, of runs that were killed: they go on, are drawn and steered, and become models.

``tests/data/0.1.0`` has them, with the end that version 0.1.0 itself came to in ``expected.json``.
"""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import gpuopt as command
from running import rows

from gpuopt import checkpoint
from gpuopt.runs.record.folder import RunFolder
from gpuopt.runs.record.history import History
from gpuopt.training import Callback, Training, UsageError, load_model, report, resume

FOLDERS = Path(__file__).parent / "data" / "0.1.0"
DATA: dict[str, Path | None] = {"spiral": None, "numbers": FOLDERS / "numbers.csv"}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUOPT_BACKEND", "numpy")


@pytest.fixture(params=DATA)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDERS / kind, tmp_path / kind))


def test_it_goes_on_to_the_same_end(kind: str, folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    result = resume(folder, data=DATA[kind])
    assert result.steps == expected["steps"]
    arrays, _ = checkpoint.verified(folder / "checkpoint.safetensors")
    for name, values in expected["parameters"].items():
        np.testing.assert_allclose(arrays[name], values, rtol=1e-3, atol=1e-5, err_msg=name)  # another BLAS, perhaps
    assert result.train_loss == pytest.approx(expected["train_loss"], rel=1e-3)
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = sorted((row["step"], row.get("event", "")) for row in told)
    assert found == sorted((step, value if isinstance(value, str) else "") for step, value in expected["rows"])
    assert len(rows(folder, "tune")) == 1


def test_it_is_drawn(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(folder)
    before = History.read(folder)
    assert before.summary is None
    assert [event["event"] for event in before.events] == ["tune"]
    assert report.draw(folder).read_text().count("data:image/png") >= 3
    resume(folder, data=DATA[kind])
    assert command("plot", folder)[0] == 0
    assert command("plot", folder, FOLDERS / "spiral", "--out", "both.html") == (0, "both.html\n")


def test_it_is_steered(kind: str, folder: Path) -> None:
    told: list[Any] = []

    class Ask(Callback):
        """Asks from another thread, as another process would, and waits at the step for the answer."""

        def step(self, training: Training) -> None:
            if not told:
                told.append(None)
                self.thread = threading.Thread(target=lambda: told.append(command("tune", folder, "lr=0.25")))
                self.thread.start()

        def reported(self, training: Training, row: Any) -> None:
            if len(told) == 1:
                self.thread.join(0.2)

    resume(folder, data=DATA[kind], epochs=400, callbacks=[Ask()])
    code, output = told[1]
    assert (code, "-> 0.25 after step" in output) == (0, True)


def test_it_becomes_a_model(kind: str, folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"has no model.json: the run is of version 0\.1\.0; gpuopt train --resume .* writes"
    ):
        load_model(folder)
    resume(folder, data=DATA[kind])
    model = load_model(folder)
    if kind == "numbers":
        x = np.loadtxt(FOLDERS / "numbers.csv", delimiter=",", skiprows=1)
        assert model.evaluate(x[:, :2], x[:, 2])["r2"] > 0.5
    else:
        assert model.classes is not None
        assert len(model.classes) == 3


def test_a_file_that_was_moved_must_be_the_same(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDERS / "numbers", tmp_path / "run"))
    with pytest.raises(UsageError, match=r"/data/numbers\.csv: No such file or directory"):
        resume(folder)
    (tmp_path / "other.csv").write_text("a,b,y\n1,2,3.5\n2,3,4.5\n3,4,5.5\n")
    with pytest.raises(UsageError, match=r"is not the data that the run .* was started with"):
        resume(folder, data=tmp_path / "other.csv")
    assert RunFolder(folder).metrics.read_bytes() == RunFolder(FOLDERS / "numbers").metrics.read_bytes()
