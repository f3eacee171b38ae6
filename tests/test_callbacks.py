"""docs/callbacks.md: its code runs as it stands there, with stand-ins for libraries that are not among the tests'."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gpuopt.training import Callback, Config, Training, UsageError, resume, train

DOCUMENT = Path(__file__).parent.parent / "docs" / "callbacks.md"


class Recorder(ModuleType):
    """Writes down every call of its functions, and of those of an object that it made."""

    def __init__(self, name: str, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
        super().__init__(name)
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> Recorder:
            self._calls.append((name, (*arguments, *named.values())))
            return self

        return call


def test_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensorboard: list[tuple[str, tuple[Any, ...]]] = []
    mlflow: list[tuple[str, tuple[Any, ...]]] = []
    monkeypatch.setitem(sys.modules, "tensorboardX", Recorder("tensorboardX", tensorboard))
    monkeypatch.setitem(sys.modules, "mlflow", Recorder("mlflow", mlflow))
    names: dict[str, Any] = {"__name__": DOCUMENT.name}
    text = DOCUMENT.read_text()
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile("\n" * text[: block.start(1)].count("\n") + block[1], DOCUMENT, "exec"), names)  # noqa: S102

    assert tensorboard[0] == ("SummaryWriter", (str(Path("runs/tensorboard").absolute()),))
    scalars = [arguments for name, arguments in tensorboard if name == "add_scalar"]
    assert [step for name, _, step in scalars if name == "loss"] == list(range(1, 51))
    norms = {"gradient_norm", "update_norm"}
    assert {name for name, _, _ in scalars} == {"loss", "accuracy", "lr", "seconds", *norms}
    assert tensorboard[-1] == ("close", ())
    assert [mlflow[0], mlflow[-1]] == [("start_run", ("mlflow",)), ("end_run", ("FINISHED",))]
    assert sum(name == "log_metrics" for name, _ in mlflow) == 50

    # Both write down events; the spiral's had none.
    training: Any = type("Stub", (), {"optimizer": type("Stub", (), {"steps": 3}), "folder": Path("x"), "error": None})
    for name in ("TensorBoard", "MLflow"):
        writer: Callback = names[name]()
        writer.writer = Recorder("tensorboardX", tensorboard)  # type: ignore[attr-defined]
        writer.event(training, {"event": "tune", "step": 3})
    assert (tensorboard[-1][0], mlflow[-1][0]) == ("add_text", "set_tag")


def test_plateau_halves_the_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = re.search(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert block is not None
    names: dict[str, Any] = {}
    exec(block[1].partition("\n\ntrain(")[0], names)  # noqa: S102
    config = names["Config"](epochs=30, optimizer="SGD", lr=0, report_every=1)  # the loss stays as it is
    names["train"](config, out="run", callbacks=[names["Plateau"](patience=7)])
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    assert sum('"tune"' in line for line in lines) == 4


def test_every_method_is_documented() -> None:
    methods = {name for name in vars(Callback) if not name.startswith("_")}
    assert set(re.findall(r"^\| `(\w+)\(", DOCUMENT.read_text(), re.MULTILINE)) == methods


class Counting(Callback):
    """Counts epochs in the checkpoints, and draws."""

    def __init__(self, stop: int) -> None:
        self.stop = stop
        self.started: list[Any] = []

    def start(self, training: Training) -> None:
        self.started.append(training.remembered.get("epochs"))
        with pytest.raises(UsageError, match=r"before run\.steps, where it is restored"):
            training.remember("array", np.zeros(2))

    def epoch(self, training: Training) -> None:
        training.remember("epochs", training.remembered.get("epochs", 0) + 1)
        training.image("weights", training.network.outputs(training.optimizer.params, training.data.train.x))
        if training.epoch == self.stop:
            training.stop("enough")


def test_a_training_remembers_and_shows_as_a_run_does(tmp_path: Path) -> None:
    first, then = Counting(7), Counting(9)
    config = Config(epochs=20, checkpoint_every=4, device="cpu")
    train(config, out=tmp_path / "run", callbacks=[first], report=False)
    resume(tmp_path / "run", callbacks=[then], report=False)
    assert (first.started, then.started) == ([None], [7])
    assert (tmp_path / "run" / "image-weights.png").exists()
    last = Counting(20)
    resume(tmp_path / "run", callbacks=[last], report=False)
    assert last.started == [9]
