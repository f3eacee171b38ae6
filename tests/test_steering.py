"""Steering: what reaches a running training, from another process and from Python, and what becomes of it."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Running, gpuopt, opened, rows
from safetensors.numpy import load_file

from gpuopt import schedules
from gpuopt.runs.control.channel import Client
from gpuopt.runs.record.events import describe, explain
from gpuopt.runs.record.folder import RunFolder
from gpuopt.training import Callback, Config, Training, UsageError, resume, train

SMALL = Config(hidden=(4,), epochs=60, report_every=1, device="cpu", optimizer="Adam", lr=0.05)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    yield from opened(tmp_path / "run")


def test_a_change_holds_from_the_next_step_on_and_is_an_event(running: Running) -> None:
    before = running.ask()["now"]
    answer = running.ask(tune={"lr": 0.25, "beta1": 0.5})
    running.finish()
    first, second = answer["events"]
    assert [first, second] == rows(running.folder, "tune")
    assert before["step"] < first["step"] == second["step"]
    built_in = schedules.inverse_time(0.05, decay=5e-7)
    expected = {"event": "tune", "by": "hand", "name": "lr", "old": built_in(first["step"]), "new": 0.25}
    assert first == expected | {"step": first["step"]}
    assert (second["name"], second["old"], second["new"]) == ("beta1", 0.9, 0.5)
    for row in rows(running.folder):
        assert row["lr"] == (0.25 if row["step"] > first["step"] else built_in(row["step"] - 1))


def test_a_row_has_the_rate_of_its_own_step(tmp_path: Path) -> None:
    class Tune(Callback):
        def step(self, training: Training) -> None:
            if training.optimizer.steps == 3:
                training.tune(lr=0.25)

    train(SMALL, out=tmp_path / "run", callbacks=[Tune()])
    assert [row["lr"] for row in rows(tmp_path / "run")][:5] == [0.05, 0.05, 0.05, 0.25, 0.25]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"tune": {"lr": -1}}, "Adam: lr: got -1.0, expected a number in [0, inf)"),
        ({"tune": {"lr": float("nan")}}, "lr: got nan"),
        ({"tune": {"lr": None}}, "lr: got None (NoneType), expected a number"),
        ({"tune": {"beta1": 1}}, "beta1: got 1.0, expected a number in [0.0, 1.0)".replace(".0", "")),
        ({"tune": {"beta2": 0.5, "rate": 1}}, "unknown hyperparameter 'rate'"),
        ({"tune": {"lr": "cosin"}}, "cosin"),
        ({"tune": 0.1}, "tune: 0.1, expected values by name"),
        ({"rollback": "77"}, "rollback 77: no such state, expected one of last"),
        ({"rollback": "../../x"}, "no such state"),
        ({"explode": None}, "explode: unknown, expected tune, rollback"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_and_the_training_goes_on(
    running: Running, request_: dict[str, Any], message: str
) -> None:
    hyperparameters = running.ask(pause=None)["now"]["hyperparameters"]
    answer = running.ask(**request_)
    assert message.replace("beta1: got 1,", "beta1: got 1.0,") in answer["refused"]
    assert answer["events"] == []
    assert answer["now"]["hyperparameters"] == hyperparameters
    step = running.ask(resume=None)["now"]["step"]
    while running.ask()["now"]["step"] == step:
        pass


def test_pause_one_step_save_and_resume(running: Running) -> None:
    paused = running.ask(pause=None)["now"]
    assert paused["paused"]
    later = running.ask()["now"]
    assert (later["step"], later["seconds"]) == (
        paused["step"],
        paused["seconds"],
    )  # a pause takes no time of the run's
    stepped = running.ask(step=None)
    assert (stepped["now"]["step"], stepped["now"]["paused"]) == (paused["step"] + 1, True)
    assert stepped["events"][-1] == {"event": "step", "step": paused["step"] + 1, "by": "hand"} | {
        "loss": pytest.approx(stepped["now"]["loss"])
    }
    assert running.ask(save=None)["events"] == [{"event": "save", "step": paused["step"] + 1, "by": "hand"}]
    assert str(paused["step"] + 1) in running.ask()["now"]["back"]
    assert not running.ask(resume=None)["now"]["paused"]
    while running.ask()["now"]["step"] == paused["step"] + 1:
        pass
    result = running.finish()
    assert (result.stopped, result.steps > paused["step"] + 1) == ("stopped by hand", True)
    assert [rows(running.folder, what)[0]["step"] for what in ("pause", "step", "save")] == [
        paused["step"] + k for k in (0, 1, 1)
    ]
    assert not RunFolder(running.folder).control.exists()


@pytest.mark.parametrize("to", ["last", "change", "best", "steps"])
def test_rollback(running: Running, to: str) -> None:
    while not rows(running.folder):
        running.ask()
    before = running.ask(pause=None, save=None)["now"]
    kept = load_file(running.folder / "checkpoint.safetensors")
    running.ask(tune={"lr": 0.4})
    if to != "last":  # which now has the change
        running.ask(step=None)
    running.ask(save=None)
    answer = running.ask(rollback=str(before["step"]) if to == "steps" else to)
    (event,) = answer["events"]
    now = answer["now"]
    if to == "best":
        assert now["step"] <= before["step"] + 1
    else:
        assert (now["step"], now["epoch"]) == (before["step"], before["epoch"])
        assert now["loss"] == pytest.approx(before["loss"], rel=1e-6)
    changed = now["hyperparameters"]["lr"] == 0.4
    assert changed or now["hyperparameters"]["lr"] == pytest.approx(0.05, rel=1e-2)
    # The best may be the step after the change; or that before it, looked at, if it ends a reported epoch, with the change.
    if to != "best" or now["step"] != before["step"]:
        assert changed == (to == "last" or now["step"] > before["step"])
    assert (event["event"], event["back_to_step"], event["by"]) == ("rollback", now["step"], "hand")
    if to != "best":
        running.ask(save=None)
        again = load_file(running.folder / "checkpoint.safetensors")
        assert all(np.array_equal(kept[name], again[name]) for name in kept)
    stepped = running.ask(step=None)["now"]  # it goes on from there
    assert stepped["step"] == now["step"] + 1
    running.ask(resume=None)


class AtStep(Callback):
    """Does something after a step."""

    def __init__(self, step: int, what: Any) -> None:
        self._step, self._what = step, what

    def step(self, training: Training) -> None:
        if training.optimizer.steps == self._step:
            self._what(training)


def crash(training: Training) -> None:
    raise RuntimeError("killed")


@pytest.mark.parametrize("value", [0.01, "cosine", schedules.exponential(0.1, decay=0.5, every=30)], ids=str)
@pytest.mark.parametrize("checkpoint_every", ["30s", 10, 30])
def test_a_change_survives_a_kill_and_a_resume(tmp_path: Path, value: Any, checkpoint_every: int | str) -> None:
    """The killed and resumed run is the one that was not killed, to the bit."""
    config = Config(**{**vars(SMALL), "checkpoint_every": checkpoint_every})
    changes = AtStep(20, lambda training: training.tune("hand", lr=value))
    train(config, out=tmp_path / "whole", callbacks=[changes])
    with pytest.raises(RuntimeError, match="killed"):
        train(config, out=tmp_path / "killed", callbacks=[changes, AtStep(35, crash)])
    resume(tmp_path / "killed")
    for event in (None, "tune"):
        expected, found = (
            [{k: v for k, v in row.items() if k != "seconds"} for row in rows(tmp_path / name, event)]
            for name in ("whole", "killed")
        )
        assert expected == found
    assert len(rows(tmp_path / "killed", "tune")) == 1
    whole, killed = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "killed"))
    assert all(np.array_equal(whole[name], killed[name]) for name in whole)


def test_what_is_chosen_for_a_resume_comes_before_what_was_changed_by_hand(tmp_path: Path) -> None:
    changes = AtStep(20, lambda training: training.tune("hand", lr=0.01, beta1=0.8))
    with pytest.raises(RuntimeError, match="killed"):
        train(SMALL, out=tmp_path / "run", callbacks=[changes, AtStep(35, crash)])
    resume(tmp_path / "run", lr=0.003)
    found = [(row["name"], row["new"], row["step"]) for row in rows(tmp_path / "run", "tune")]
    assert found == [("lr", 0.003, 0), ("beta1", 0.8, 20)]
    assert rows(tmp_path / "run")[-1]["lr"] == 0.003


def outcome(folder: Path) -> tuple[Any, ...]:
    """Metrics, events and checkpoint of a run, without times."""
    plain = [[{**row, "seconds": 0} for row in rows(folder, event)] for event in (None, "tune")]
    return (*plain, {name: x.tobytes() for name, x in load_file(folder / "checkpoint.safetensors").items()})


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_every", ["30s", 10, 30])
@pytest.mark.parametrize("again", [(25,), (5, 25), (38, 39), (32, 45, 33)], ids=str)
def test_a_change_survives_several_kills(tmp_path: Path, checkpoint_every: int | str, again: tuple[int, ...]) -> None:
    config = Config(**{**vars(SMALL), "checkpoint_every": checkpoint_every})
    changes = [AtStep(20, lambda t: t.tune("hand", lr=0.01)), AtStep(34, lambda t: t.tune("hand", beta1=0.8))]
    train(config, out=tmp_path / "whole", callbacks=changes)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, out=tmp_path / "killed", callbacks=[*changes, AtStep(37, crash)])
    for step in (*again, 0):
        if not (tmp_path / "killed" / "summary.json").exists():  # where it was resumed from may be later
            with contextlib.suppress(RuntimeError):
                resume(tmp_path / "killed", callbacks=[AtStep(step, crash)])
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("at", ["the first step", "a later step", "the beginning"])
def test_what_is_chosen_for_a_resume_survives_a_kill(tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("whole", "killed"):
        with pytest.raises(RuntimeError, match="killed"):
            train(SMALL, out=tmp_path / name, callbacks=[AtStep(35, crash)])
    resume(tmp_path / "whole", lr=0.003)
    step = {"the beginning": 0, "the first step": 1, "a later step": 44}[at]
    with monkeypatch.context() as patched:
        if step == 0:  # right after the configuration is written
            patched.setattr("gpuopt.training.loop.ModelFile.start", lambda *_: crash(None))  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="killed"):
            resume(tmp_path / "killed", lr=0.003, callbacks=[AtStep(step, crash)])
    resume(tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_a_callback_changes_and_is_told(tmp_path: Path) -> None:
    told: list[Any] = []

    class Own(AtStep):
        def event(self, training: Training, event: Any) -> None:
            told.append(dict(event))

    def change(training: Training) -> None:
        with pytest.raises(TypeError, match="expected a number or a schedule of"):
            training.tune(beta1=0.5, lr=lambda step: 0.1)
        with pytest.raises(ValueError, match="at step 7, by its schedule: got -"):
            training.tune(beta1=0.5, lr=schedules.polynomial(0.1, steps=2, final=-1.0))
        training.tune(lr=schedules.constant(0.02))
        assert training.optimizer.lr == 0.02

    train(SMALL, out=tmp_path / "run", callbacks=[Own(7, change)])
    assert told == rows(tmp_path / "run", "tune")
    assert [(row["step"], row["name"], row["new"], row["by"]) for row in told] == [(7, "lr", 0.02, "callback")]
    assert "schedule" in told[0]


def test_who_was_started_is_ended(tmp_path: Path) -> None:
    calls: list[str] = []

    class Told(Callback):
        def __init__(self, name: str, fails: str = "") -> None:
            self._name, self._fails = name, fails

        def start(self, training: Training) -> None:
            calls.append(f"start {self._name}")
            if self._fails == "start":
                raise RuntimeError("cannot start")

        def end(self, training: Training) -> None:
            calls.append(f"end {self._name} {type(training.error).__name__}")
            if self._fails == "end":
                raise RuntimeError("cannot end")

    with pytest.raises(RuntimeError, match="cannot start"):
        train(SMALL, out=tmp_path / "1", callbacks=[Told("a"), Told("b"), Told("c", "start"), Told("d")])
    started = ["start a", "start b", "start c"]
    assert calls == [*started, "end b RuntimeError", "end a RuntimeError"]
    calls.clear()
    with pytest.raises(RuntimeError, match="cannot end"):
        train(SMALL, out=tmp_path / "2", callbacks=[Told("a"), Told("b", "end")])
    assert calls == ["start a", "start b", "end b NoneType", "end a NoneType"]


def test_command(running: Running) -> None:
    folder = running.folder
    code, output = gpuopt("tune", folder, "lr=0.01", "beta1=0.5", "--save", "--pause")
    event = rows(folder, "tune")[0]
    assert (code, output.splitlines()[0]) == (0, f"lr: {event['old']:.10g} -> 0.01 after step {event['step']}")
    assert [line.split()[0] for line in output.splitlines()] == ["lr:", "beta1:", "saved", "paused"]
    code, output = gpuopt("tune", folder)
    assert code == 0
    assert f"step {event['step']:,}" in output
    assert "lr=0.01" in output
    assert "paused" in output
    assert gpuopt("tune", folder, "lr=0") == (0, f"lr: 0.01 -> 0 after step {event['step']}\n")
    assert gpuopt("tune", folder, "--rollback", "change", "--resume")[0] == 0
    code, output = gpuopt("tune", folder, "lr=-1")
    assert (code, output) == (2, "gpuopt: Adam: lr: got -1.0, expected a number in [0, inf)\n")
    assert gpuopt("tune", folder, "lr=1", "lr=2") == (2, "gpuopt: lr=2: lr is given twice\n")
    assert gpuopt("tune", folder, "lr=1,5") == (2, "gpuopt: lr=1,5: 1,5 has a decimal comma; expected lr=1.5\n")
    code, output = gpuopt("tune", folder, "lr=abc")
    expected = "gpuopt: lr=abc: expected a number or a schedule: unknown schedule 'abc'"
    assert (code, output.partition(";")[0]) == (2, expected)
    assert gpuopt("tune", folder, "lr") == (2, "gpuopt: lr: expected NAME=VALUE, as in beta1=0.95\n")
    assert gpuopt("tune", folder, "--step")[0] == 0
    code, output = gpuopt("tune", folder, "--stop")
    assert (code, output.split()[0]) == (0, "stopped")
    running._thread.join()
    code, output = gpuopt("tune", folder, "lr=0.1")
    assert (code, output) == (
        2,
        f"gpuopt: {folder}: no training is running in this folder; gpuopt train --resume {folder}\n",
    )


@pytest.mark.parametrize(
    "control",
    [None, "", "[]", '{"port": 1}', '{"port": 1, "secret": "x"}', '{"port": "x", "secret": "x"}'],
    ids=str,
)
def test_without_a_training_it_says_so(tmp_path: Path, control: str | None) -> None:
    with pytest.raises(UsageError, match="is no run folder"):
        Client(RunFolder(tmp_path))
    (tmp_path / "config.json").touch()
    if control is not None:
        (tmp_path / "control.json").write_text(control)
    with pytest.raises(UsageError, match="no training is running in this folder"):
        Client(RunFolder(tmp_path))


def test_only_who_may_read_the_file_steers(running: Running, tmp_path: Path) -> None:
    control = RunFolder(running.folder).control
    assert control.stat().st_mode & 0o777 == 0o600
    stranger = RunFolder(tmp_path)
    stranger.config.touch()
    stranger.control.write_text(json.dumps(json.loads(control.read_text()) | {"secret": "guessed"}))
    with pytest.raises(UsageError, match="no training is running"):
        Client(stranger)


def test_who_asks_too_late_is_told(tmp_path: Path) -> None:
    running = Running(tmp_path / "run")
    running.finish()
    with pytest.raises(ConnectionError):
        running.ask(pause=None)
    running.client.close()


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"event": "tune", "step": 3, "name": "lr", "old": 0.05, "new": 0.01}, "lr: 0.05 -> 0.01 after step 3"),
        (
            {"event": "rollback", "step": 9, "back_to_step": 5, "lr": 0.1},
            "rolled back from step 9 to step 5, learning rate 0.1",
        ),
        ({"event": "pause", "step": 3}, "paused after step 3"),
        ({"event": "step", "step": 4, "loss": 0.25}, "one step, now after step 4, loss 0.2500"),
        ({"event": "step", "step": 4, "loss": None}, "one step, now after step 4"),
        ({"event": "mine"}, "mine"),
        *[({"event": name}, name) for name in ("tune", "rollback", "explosion", "skip", "save", "stop")],
        ({"event": "tune", "step": "3", "name": "x", "old": "a", "new": "b"}, "tune"),
    ],
)
def test_events_in_words(event: dict[str, Any], words: str) -> None:
    assert explain(event) == words


def test_a_schedule_that_leaves_its_range_later_is_refused(running: Running) -> None:
    answer = running.ask(tune={"lr": f"polynomial:initial=0.5,final=-0.5,steps={10**8}"})
    assert "lr at step" in answer["refused"]
    assert "by its schedule: got -" in answer["refused"]
    assert answer["now"]["hyperparameters"]["lr"] == pytest.approx(0.05, rel=1e-2)


@pytest.mark.parametrize("request_", [[], "x", 5, None], ids=str)
def test_what_is_no_request_is_refused(running: Running, request_: Any) -> None:
    assert "expected an object of commands" in running.client.ask(request_)["refused"]
    assert running.ask()["now"]["epoch"] >= 0


def test_an_event_of_ones_own_is_in_the_report(tmp_path: Path) -> None:
    train(SMALL, out=tmp_path / "run", callbacks=[AtStep(7, lambda training: training.tell({"event": "mine"}))])
    assert rows(tmp_path / "run", "mine") == [{"event": "mine", "step": 7}]
    assert gpuopt("plot", tmp_path / "run")[0] == 0
    assert ">mine<" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("line", [b"[" * 60_000, b"\xff", b"9" * 60_000, b"{}x", b""])
def test_a_request_that_is_none_ends_the_connection_alone(running: Running, line: bytes) -> None:
    guest = Client(RunFolder(running.folder))
    guest._connection.sendall(line + b"\n")
    assert guest._answers.readline() == b""
    guest.close()
    assert running.ask()["now"]["step"] > 0


def test_metrics_of_a_loop_of_ones_own_in_words() -> None:
    assert describe({"step": 3, "test_accuracy": 0.5, "lr": 0.1}) == "test accuracy 0.5000  lr 0.1"
    assert describe({"test_accuracy": 0.5, "test_loss": 2.0, "loss": 1}) == "test accuracy 0.5000  loss 1.0000"
