"""`gpuopt.Run`: a loop of one's own that is killed, stopped, steered and gone back with. ``--soak`` kills it a hundred times."""

import contextlib
import copy
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import pytest
from own_loop import solve
from running import gpuopt as command
from running import rows

import gpuopt
from gpuopt import checkpoint, tensorfile, training
from gpuopt.errors import ExplodedError, UsageError
from gpuopt.runs.loop import Callback
from gpuopt.runs.record import images
from gpuopt.runs.record.history import History
from gpuopt.runs.report import page

PROGRAM = Path(__file__).parent / "own_loop.py"
STEPS = 600
posix = pytest.mark.skipif(os.name != "posix", reason="processes as POSIX has them")


def started(folder: Path, steps: int = STEPS, pause: float = 0.0) -> "subprocess.Popen[str]":
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "GPUOPT_BACKEND": "numpy"}
    arguments = [sys.executable, str(PROGRAM), str(folder), str(steps), str(pause)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def ended(folder: Path) -> dict[str, Any]:
    """All that is the same in a run that was not interrupted."""
    found: dict[str, Any] = {"rows": [{**row, "seconds": 0} for row in rows(folder)]}
    for name in ("checkpoint", "best"):
        arrays, about = checkpoint.verified(folder / f"{name}.safetensors")
        found |= {f"{name}/{path}": x.tobytes() for path, x in arrays.items()}
        if name == "checkpoint":
            position = about["extra"]["position"]
            found |= {key: position[key] for key in ("drawn", "generators", "values")}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    solve(str(folder), STEPS)
    return folder


def optimizer(rule: gpuopt.Rule | None = None) -> gpuopt.Optimizer:
    return gpuopt.Optimizer(np.ones(3), rule or gpuopt.SGD(lr=0.1))


def simple(folder: Path, n: int = 10, **options: Any) -> gpuopt.Run:
    run = gpuopt.Run(folder, optimizer(), **options)
    for _ in run.steps(n):
        w = run.optimizer.params
        run.step(2 * w, loss=float((w**2).sum()))
    return run


@pytest.mark.slow
@posix
def test_killed_at_any_moment_it_ends_like_others(whole: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    begin = time.perf_counter()
    started(tmp_path / "timed").communicate()
    longest = time.perf_counter() - begin
    random, kills, runs = Random(0), 0, 0
    wanted = 100 if request.config.getoption("--soak") else 4
    while kills < wanted:
        folder = tmp_path / str(runs)
        runs += 1
        while True:
            run = started(folder)
            if kills % 2:  # soon after a checkpoint
                while not (folder / "checkpoint.safetensors").exists() and run.poll() is None:
                    time.sleep(0.001)
                time.sleep(random.uniform(0, 0.4))
            elif kills < wanted:
                time.sleep(random.uniform(0, longest))
            else:
                run.wait()
            over = run.poll() is not None
            run.kill()
            _, errors = run.communicate()
            if over:
                assert run.returncode == 0, errors
                break
            kills += 1
            for file in folder.glob("*.safetensors"):
                checkpoint.verified(file)
        assert ended(folder) == ended(whole)
        assert not list(folder.glob("*.tmp"))


@posix
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_as_if_it_were_done(whole: Path, tmp_path: Path, signum: int) -> None:
    run = started(tmp_path / "run", pause=1e-3)
    while not (tmp_path / "run" / "checkpoint.safetensors").exists():
        time.sleep(0.01)
    run.send_signal(signum)
    _, errors = run.communicate()
    assert (run.returncode, errors) == (0, "")
    assert not (tmp_path / "run" / "control.json").exists()
    again = started(tmp_path / "run")
    assert again.communicate() == ("", "")
    assert ended(tmp_path / "run") == ended(whole)


@posix
def test_steered_from_another_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = started(folder, 10**7)
    while not (folder / "control.json").exists():
        time.sleep(0.01)
    assert command("tune", folder, "lr=0.25", "beta1=0.5")[0] == 0
    assert command("tune", folder, "--pause")[0] == 0
    code, output = command("tune", folder)
    assert (code, "lr=0.25" in output, "paused" in output, "loss" in output) == (0, True, True, True)
    assert "one step" in command("tune", folder, "--step")[1]
    assert command("tune", folder, "--save") == (0, f"saved after step {rows(folder, 'save')[0]['step']}\n")
    assert "rolled back" in command("tune", folder, "--rollback", "change")[1]
    assert command("tune", folder, "lr=-1")[0] == 2
    assert command("plot", folder)[0] == 0
    assert {"loss.png", "largest.png", "image-x.png"} <= {file.name for file in folder.iterdir()}
    assert command("tune", folder, "--stop")[0] == 0
    told = "the learning rate is 0 from about step 600 to the end, step 10000000, by its schedule\n"
    assert (run.communicate(), run.returncode) == (("", told), 0)
    assert [row["name"] for row in rows(folder, "tune")] == ["lr", "beta1"]
    assert len({row["step"] for row in rows(folder, "tune")}) == 1


def test_where_it_goes_back_everything_does(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered, drawn and taken of the batches is that of the state gone back to."""

    class Back(Callback):
        def __init__(self) -> None:
            self.is_done = False

        def step(self, run: Any) -> None:
            if run.optimizer.steps == 200 and not self.is_done:
                self.is_done = True
                run._callbacks[-1]._roll_back(run, "last")

    opened = gpuopt.Run
    monkeypatch.setattr(gpuopt, "Run", lambda *given, **more: opened(*given, callbacks=[Back()], **more))
    run = solve(str(tmp_path / "run"), STEPS, every=150)
    assert run.finished
    assert len(rows(tmp_path / "run", "rollback")) == 1
    found, expected = ended(tmp_path / "run"), ended(whole)
    for result in (found, expected):
        result.pop("rows")
    assert found == expected


def test_the_process_goes_on_after_it(tmp_path: Path) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    run = simple(tmp_path / "run")
    assert (run.finished, run.optimizer.steps) == (True, 10)
    again = gpuopt.Run(tmp_path / "run", optimizer())
    assert again.optimizer.steps == 10
    assert list(again.steps(10)) == []
    again.close()
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    with pytest.raises(UsageError, match="another process went on"):
        next(run.steps(20))
    assert not (tmp_path / "run" / "control.json").exists()


def test_two_loops_of_one_run(tmp_path: Path) -> None:
    run = simple(tmp_path / "run", 10)
    for _ in run.steps(20):
        run.step(2 * run.optimizer.params, loss=1.0)
    assert (run.finished, run.optimizer.steps) == (True, 20)
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 21))


@pytest.mark.parametrize("with_", [True, False])
def test_a_break_saves_and_an_exception_does_not(tmp_path: Path, with_: bool) -> None:
    run = gpuopt.Run(tmp_path / "run", optimizer(), checkpoint_every=4)
    if with_:
        run.__enter__()
    for step in run.steps(100):
        run.step(2 * run.optimizer.params, loss=1.0)
        if step == 5:
            break
    if with_:
        run.__exit__(None, None, None)
    assert (run.finished, run.stopped) == (False, "left by the loop")

    def fail() -> None:
        with gpuopt.Run(tmp_path / "run", optimizer(), checkpoint_every=4) as again:
            assert again.optimizer.steps == 6
            for step in again.steps(100):
                again.step(2 * again.optimizer.params, loss=1.0)
                if step == 10:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    last = gpuopt.Run(tmp_path / "run", optimizer())
    assert last.optimizer.steps == 8
    last.close()


@pytest.mark.parametrize(("error", "drawn"), [(ZeroDivisionError, True), (KeyboardInterrupt, False)])
def test_a_body_that_fails_leaves_a_report_but_who_leaves_at_once_does_not_wait_for_one(
    tmp_path: Path, error: type[BaseException], drawn: bool
) -> None:
    pytest.importorskip("matplotlib")

    def fail() -> None:
        with gpuopt.Run(tmp_path / "run", optimizer(), report=True) as run:
            for step in run.steps(100):
                run.step(2 * run.optimizer.params, loss=1.0)
                if step == 10:
                    raise error

    with pytest.raises(error):
        fail()
    assert (tmp_path / "run" / "report.html").exists() is drawn


def test_a_step_that_was_not_taken_is_drawn_again(tmp_path: Path) -> None:
    def drawn(folder: Path, stop: int | None) -> list[float]:
        run = gpuopt.Run(folder, optimizer())
        numbers, batches = [], run.batches(10, 3)
        for step in run.steps(6):
            numbers.append(float(run.random.random() + next(batches).sum()))
            if step == stop:
                numbers.pop()
                break
            run.step(run.optimizer.params, loss=0.1)
        return numbers

    expected = drawn(tmp_path / "whole", None)
    assert drawn(tmp_path / "run", 3) + drawn(tmp_path / "run", None) == expected


def test_patience_and_the_best_state(tmp_path: Path) -> None:
    losses = [5.0, 4.0, 3.0, 2.0, *[2.5] * 96]
    run = gpuopt.Run(tmp_path / "run", optimizer(), patience=10)
    for step in run.steps(100):
        run.step(run.optimizer.params, loss=losses[step], noise=31.0)
    assert (run.finished, run.stopped, run.optimizer.steps) == (False, "no lower loss in 10 steps", 14)
    opt = optimizer()
    gpuopt.load(tmp_path / "run" / "best.safetensors", opt)
    assert opt.steps == 4
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["lowest_loss"] == 2.0
    told = page.draw(tmp_path / "run").read_text()
    assert all(words in told for words in ("Lowest loss", "Noise", "Stopped, because"))


def test_patience_without_a_loss_says_what_is_missing(tmp_path: Path) -> None:
    run = gpuopt.Run(tmp_path / "run", optimizer(), patience=2, report=False)
    for _ in run.steps(9):
        run.step(run.optimizer.params)
    assert (run.stopped, run.optimizer.steps) == ("no loss, which patience looks at, in 2 steps", 2)


def test_a_finished_run_that_is_run_again_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert not caplog.messages
        opt = optimizer()
        run = gpuopt.Run(tmp_path / "run", opt, report=False)
        for _ in run.steps(3):
            run.step(opt.params)
    assert opt.steps == 3
    (told,) = caplog.messages
    assert told.endswith("run: all of the 3 steps are taken already; more steps go on, another folder begins anew")


def test_a_loss_that_ends_as_a_nan_is_told(tmp_path: Path) -> None:
    opt = gpuopt.Optimizer(np.ones(3), gpuopt.SGD(lr=0.1))
    run = gpuopt.Run(tmp_path, opt, report=False)
    for step in run.steps(200):
        run.step(2 * opt.params, loss=1.0 if step < 150 else math.nan)
    assert run.finished
    (event,) = rows(tmp_path, "explosion")
    assert event["reason"] == "the loss is nan after step 200, and the parameters are finite: they stay"


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([math.inf], "the loss is inf after step"),
        ([math.inf, *[1.0] * 99, 1e9], r"the loss is 1e\+09 after step .* \(it was 1 after step 100\)"),
        ([1.0, -math.inf], r"the loss is -inf after step .* \(it was 1 after step 1\)"),
    ],
)
def test_an_endless_loss_is_no_measure(tmp_path: Path, losses: list[float], reason: str) -> None:
    opt = gpuopt.Optimizer(np.ones(3), gpuopt.SGD(lr=1e-3))
    run = gpuopt.Run(tmp_path, opt, report=False)

    def loop() -> None:
        for step in run.steps(500):
            run.step(opt.params, loss=losses[min(step, len(losses) - 1)])

    with pytest.raises(ExplodedError, match=reason):
        loop()


def test_what_explodes_goes_back(tmp_path: Path) -> None:
    opt = gpuopt.Optimizer(np.ones(3), gpuopt.SGD(lr=3.0))
    run = gpuopt.Run(tmp_path / "run", opt, on_explosion="rollback")
    for _ in run.steps(5000):
        run.step(2 * opt.params, loss=(opt.params**2).sum())
    assert run.finished
    assert float(np.abs(opt.params).max()) < 1
    assert rows(tmp_path / "run", "explosion")
    opt = gpuopt.Optimizer(np.ones(3), gpuopt.SGD(lr=3.0))
    run = gpuopt.Run(tmp_path / "stop", opt)

    def go() -> None:
        for _ in run.steps(5000):
            run.step(2 * opt.params, loss=(opt.params**2).sum())

    with pytest.raises(ExplodedError, match=r"exploded: .* the state after step \d+ is saved"):
        go()
    assert np.isfinite(opt.params).all()


def test_losses_may_be_negative(tmp_path: Path) -> None:
    run = gpuopt.Run(tmp_path / "run", optimizer())
    for step in run.steps(300):
        run.step(0 * run.optimizer.params, loss=-100.0 - step if step % 2 else -10.0)
    assert run.finished


def outside(folder: Path) -> None:
    gpuopt.Run(folder, optimizer()).step(np.ones(3))


def twice(folder: Path) -> None:
    run = gpuopt.Run(folder, optimizer())
    for _ in run.steps(3):
        run.step(np.ones(3))
        run.step(np.ones(3))


def never(folder: Path) -> None:
    for _ in gpuopt.Run(folder, optimizer()).steps(3):
        pass


def twice_as_much(folder: Path) -> None:
    run = gpuopt.Run(folder, optimizer())
    for _ in run.steps(3):
        run.optimizer.step(np.ones(3))
        run.step(np.ones(3))


def array(folder: Path) -> None:
    run = gpuopt.Run(folder, optimizer())
    for _ in run.steps(3):
        run.step(np.ones(3), loss=np.ones(3))


def named(name: str, value: Any = 1.0) -> Callable[[Path], None]:
    def opened(folder: Path) -> None:
        run = gpuopt.Run(folder, optimizer())
        for _ in run.steps(3):
            run.step(np.ones(3), **{name: value})

    return opened


def late_array(folder: Path) -> None:
    """At a step of which no row is written."""
    run = gpuopt.Run(folder, optimizer())
    for step in run.steps(10_000):
        run.step(np.ones(3), loss=1.0 if step != 17 else np.ones(3))


def remember(value: Any) -> Callable[[Path], None]:
    return lambda folder: gpuopt.Run(folder, optimizer()).remember("x", value)


def late(folder: Path) -> None:
    run = gpuopt.Run(folder, optimizer())
    for _ in run.steps(3):
        run.remember("x", np.ones(3))


def other(rule: gpuopt.Rule, leaf: Any) -> Callable[[Path], None]:
    def opened(folder: Path) -> None:
        simple(folder)
        gpuopt.Run(folder, gpuopt.Optimizer(leaf, rule))

    return opened


def in_use(folder: Path) -> None:
    run = gpuopt.Run(folder, optimizer())
    gpuopt.Run(folder, optimizer())
    del run


def other_shape(folder: Path) -> None:
    run = gpuopt.Run(folder, optimizer())
    run.remember("x", np.ones(3))
    for _ in run.steps(1):
        run.step(np.ones(3))
    gpuopt.Run(folder, optimizer()).remember("x", np.ones(4))


def forgotten(folder: Path) -> None:
    run = gpuopt.Run(folder, optimizer())
    run.remember("x", np.ones(3))
    for _ in run.steps(1):
        run.step(np.ones(3))
    next(gpuopt.Run(folder, optimizer()).steps(2))


def something_else(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").touch()
    gpuopt.Run(folder, optimizer())


def of_train(folder: Path) -> None:
    from gpuopt.training import Config, train

    train(Config(epochs=2), out=folder)
    gpuopt.Run(folder, optimizer())


ONE_NAME = "run.remember: x: .*another one has that name already"


def remembered_twice(*values: object) -> Callable[[Path], None]:
    def opened(folder: Path) -> None:
        run = gpuopt.Run(folder, optimizer())
        for value in values:
            run.remember("x", value)

    return opened


def put(key: object, value: object) -> Callable[[Path], None]:
    def opened(folder: Path) -> None:
        run = gpuopt.Run(folder, optimizer())
        known = run.remember("x", {})
        for _ in run.steps(3):
            known[key] = value
            run.step(np.ones(3))

    return opened


def made(**options: Any) -> Callable[[Path], None]:
    return lambda folder: gpuopt.Run(folder, optimizer(), **options).close()


def image(name: str, array: Any) -> Callable[[Path], None]:
    return lambda folder: gpuopt.Run(folder, optimizer()).image(name, array)


REFUSED: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "a step outside": (outside, RuntimeError, "run.step: called outside of a loop, expected once in each step"),
    "two steps": (twice, RuntimeError, "a second time in one step"),
    "no step": (never, RuntimeError, r"step 0 ended without run.step\(...\)"),
    "an array for a metric": (array, TypeError, r"run.step: loss: an array of shape \(3,\), expected a number"),
    "an array at a later step": (late_array, TypeError, r"run.step: loss: an array of shape \(3,\), expected a number"),
    "by hand, too": (twice_as_much, RuntimeError, r"the optimizer took 1 in this step already, as by opt\.step"),
    "an endless integer": (named("loss", 10**400), TypeError, "run.step: loss: an integer beyond float64"),
    "a text for a metric": (named("loss", "low"), TypeError, "run.step: loss: str, expected a number"),
    "a complex metric": (named("loss", np.complex128(1)), TypeError, "run.step: loss: "),
    "a metric called step": (named("step"), TypeError, "run.step: step: rows of metrics have it already"),
    "a metric called event": (named("event"), TypeError, "run.step: event: rows of metrics have it already"),
    "a metric without a name": (named(""), TypeError, "run.step: '': expected a name"),
    "two arrays of one name": (remembered_twice(np.zeros(2), np.zeros(2)), UsageError, ONE_NAME),
    "two generators of one name": (
        remembered_twice(np.random.default_rng(0), np.random.default_rng(1)),
        UsageError,
        ONE_NAME,
    ),
    "a number and an array of one name": (remembered_twice(1, np.zeros(2)), UsageError, ONE_NAME),
    **{
        f"{what}, put into a dict in the loop": (put(key, value), TypeError, f"run.remember: x: dict: .*{message}")
        for what, key, value, message in (
            ("a number of NumPy", "a", np.float32(1), "Object of type float32 is not JSON"),
            ("a number as key", 1, 1, "keys of a dict must be text"),
        )
    },
    "numbers as keys": (remember({"a": [{1: 2}]}), TypeError, "run.remember: x: dict: .*keys of a dict must be text"),
    "a masked array": (
        remember(np.ma.array([1.0, 2.0], mask=[False, True])),
        TypeError,
        "run.remember: x: a masked array",
    ),
    "NumPy's own number": (remember(np.int64(3)), TypeError, r"float\(\.\.\.\) or int\(\.\.\.\) makes a number of it"),
    "no name": (lambda _: gpuopt.Run("", optimizer()), UsageError, "folder: '', expected a name"),
    "None for a name": (
        lambda _: gpuopt.Run(cast("Any", None), optimizer()),
        TypeError,
        "folder: None, expected a name",
    ),
    "a function": (remember(print), TypeError, "run.remember: x: .*expected an array, a generator"),
    "objects": (remember(np.array([None])), TypeError, "run.remember: x: "),
    "read-only": (remember(np.broadcast_to(1.0, 3)), TypeError, "read-only"),
    "an array in the loop": (late, UsageError, "run.remember: x: .*expected before run.steps"),
    "another rate": (
        other(gpuopt.SGD(lr=0.2), np.ones(3)),
        UsageError,
        r"(?s)another optimizer.*rule: there SGD\(lr=0.1, \.\.\.\), here SGD\(lr=0.2, \.\.\.\)",
    ),
    "another rule": (other(gpuopt.Adam(), np.ones(3)), UsageError, r"(?s)another optimizer.*there SGD.*here Adam"),
    "another shape": (
        other(gpuopt.SGD(lr=0.1), np.ones(4)),
        UsageError,
        r"(?s)leaf .*float64 \(3,\), here float64 \(4,\)",
    ),
    "other leaves": (other(gpuopt.SGD(lr=0.1), {"a": np.ones(3)}), UsageError, "(?s)leaf a: only here"),
    "in use": (in_use, UsageError, "another process is training in this folder"),
    "remembered otherwise": (other_shape, UsageError, r"run.remember: x: .*the checkpoint has float64 of shape \(3,\)"),
    "forgotten": (forgotten, UsageError, "remembers x, expected run.remember"),
    "a folder of something else": (something_else, UsageError, "is no run folder"),
    "a folder of gpuopt train": (of_train, UsageError, "a run of gpuopt train"),
    "checkpoint_every": (made(checkpoint_every=0), UsageError, "checkpoint_every: 0: expected steps or seconds"),
    "keep": (made(keep=0), UsageError, "keep: 0, expected a positive integer"),
    "patience": (made(patience=1.5), UsageError, "patience: 1.5, expected a positive integer"),
    "on_explosion": (made(on_explosion="pray"), UsageError, "on_explosion: 'pray', expected stop"),
    "skip": (
        made(on_explosion="skip"),
        UsageError,
        "on_explosion: 'skip', expected an Optimizer with nonfinite='skip'",
    ),
    "live": (made(live=3), UsageError, "live: 3, expected True, False or a text HOST:PORT"),
    "seed": (made(seed=-1), UsageError, "seed: -1, expected an integer from 0 on"),
    "no callbacks": (made(callbacks=3), TypeError, "callbacks: int, expected a list of callbacks"),
    "a class for a callback": (
        made(callbacks=[training.Callback]),
        TypeError,
        "callbacks: the class Callback, expected an inst",
    ),
    "a date for a metric": (
        named("loss", np.datetime64("2020")),
        TypeError,
        r"loss: a datetime64\[Y\], expected a number",
    ),
    "an image's name": (image("../x", np.ones(3)), ValueError, "run.image: '../x': expected a name"),
    "an image of text": (image("x", np.array(["a"])), TypeError, "run.image: x: .*expected numbers"),
    "a copy": (
        lambda folder: copy.deepcopy(gpuopt.Run(folder, optimizer())),
        TypeError,
        r"copy\.deepcopy\(run\.optimizer\)",
    ),
    "a pickle": (
        lambda folder: pickle.dumps(gpuopt.Run(folder, optimizer())),
        TypeError,
        "cannot be copied or pickled",
    ),
    "no number for a metric": (
        named("loss", np.ma.masked),
        TypeError,
        "run.step: loss: a masked number, which is none",
    ),
    "a masked array for a metric": (named("loss", np.ma.array(1.0, mask=True)), TypeError, "loss: a masked number"),
    "no reason": (
        lambda folder: gpuopt.Run(folder, optimizer()).stop(cast("Any", None)),
        TypeError,
        r"run.stop\(None\): expected the",
    ),
    "complex colours": (image("x", np.ones((2, 2, 3), complex)), TypeError, r"expected .* \(height, width, 3 or 4\)"),
    "an image of three axes": (
        image("x", np.ones((2, 2, 2))),
        TypeError,
        r"x: numpy array of shape \(2, 2, 2\), expected numbers",
    ),
}


@pytest.mark.parametrize("use", [training.load_model, training.resume])
def test_a_loop_has_no_network(tmp_path: Path, use: Callable[[Path], object]) -> None:
    run = gpuopt.Run(tmp_path / "run", optimizer())
    for _ in run.steps(3):
        run.step(run.optimizer.params)
    with pytest.raises(UsageError, match="the run of a program's own loop, without a network"):
        use(tmp_path / "run")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("do", ["sys.exit()", "1 / 0", "run.step(x)", "break"])
def test_a_forked_process_leaves_the_run_to_its_parent(tmp_path: Path, do: str) -> None:
    program = f"""if True:
        import os, sys, numpy as np, gpuopt
        x = np.ones(3)
        with gpuopt.Run("run", gpuopt.Optimizer(x, gpuopt.SGD(lr=0.1)), report=False) as run:
            for step in run.steps(4):
                if step == 2:
                    child = os.fork()
                    if not child:
                        {do}
                    os.waitpid(child, 0)
                    there = sorted(path for path in os.listdir("run"))
                run.step(x, loss=1.0)
        print("control.json" in there, "summary.json" in there, run.finished)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.endswith("True False True\n"), done.stderr


def remembered_again(folder: Path, value: Any) -> Any:
    """What a run that is gone on with gives for a value, which the first one remembered as this or what was made of it."""
    for steps, given in ((1, value), (2, np.zeros_like(value) if isinstance(value, np.ndarray) else None)):
        run = gpuopt.Run(folder, optimizer())
        found = run.remember("x", given)
        for _ in run.steps(steps):
            run.step(np.ones(3))
    return found


@pytest.mark.parametrize("dtype", [">f8", ">i2", ">c8", "<f8"])
def test_arrays_of_either_byte_order_are_remembered(tmp_path: Path, dtype: str) -> None:
    values = np.array([1, 258, -3]).astype(dtype)
    found = remembered_again(tmp_path / "run", values)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(("value", "expected"), [((1, 2), [1, 2]), ({"a": [(1, ())]}, {"a": [[1, []]]}), ([1], [1])])
def test_tuples_are_lists_from_the_beginning(tmp_path: Path, value: Any, expected: Any) -> None:
    with contextlib.closing(gpuopt.Run(tmp_path / "first", optimizer())) as run:
        assert run.remember("x", value) == expected
    assert remembered_again(tmp_path / "run", value) == expected


def test_a_bfloat16_is_a_number(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    run = gpuopt.Run(tmp_path / "run", optimizer())
    for _ in run.steps(2):
        run.step(np.ones(3), loss=ml_dtypes.bfloat16(1.5), other=np.array(2.5, ml_dtypes.bfloat16))
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert (last["loss"], last["other"]) == (1.5, 2.5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be(tmp_path: Path, name: str) -> None:
    do, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        do(tmp_path / "run")


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState, lambda: np.random.Generator(np.random.MT19937(1)),
                                  lambda: np.random.Generator(np.random.Philox(1)), lambda: np.random.Generator(np.random.SFC64(1))])  # fmt: skip
def test_generators_go_on(tmp_path: Path, make: Callable[[], Any]) -> None:
    first, own = simple(tmp_path / "run"), make()
    first.close()
    run = gpuopt.Run(tmp_path / "run", optimizer())
    run.remember("own", own)
    for _ in run.steps(12):
        own.standard_normal(3)
        run.step(run.optimizer.params)
    other = make()
    gpuopt.Run(tmp_path / "run", optimizer()).remember("own", other)
    assert other.standard_normal() == own.standard_normal()


def test_a_picture_of_it(tmp_path: Path) -> None:
    from matplotlib import image as reader

    run = gpuopt.Run(tmp_path / "run", optimizer())
    field = np.exp(1j * np.linspace(-3, 3, 20)).reshape(4, 5) * np.arange(1, 21).reshape(4, 5)
    for _ in run.steps(2):
        run.step(run.optimizer.params, loss=1.0)
        run.image("field", field)
        run.image("line", np.arange(7))
        run.image("colours", np.eye(3)[np.newaxis])
        run.image("holes", np.ma.array([[0, 1, 2]], mask=[[True, False, False]]))
    names = {file.name for file in (tmp_path / "run").glob("image-*.png")}
    assert names == {
        "image-field-amplitude.png",
        "image-field-phase.png",
        "image-line.png",
        "image-colours.png",
        "image-holes.png",
    }
    amplitude = reader.imread(tmp_path / "run" / "image-field-amplitude.png")
    assert (amplitude.min(), amplitude.max(), amplitude.shape) == (0, 1, (4 * 51, 5 * 51))
    phase = reader.imread(tmp_path / "run" / "image-field-phase.png")
    assert phase.shape == (4 * 51, 5 * 51, 3)
    assert reader.imread(tmp_path / "run" / "image-line.png").shape == (36, 7 * 36)
    colours = reader.imread(tmp_path / "run" / "image-colours.png")
    np.testing.assert_array_equal(colours[0, ::85], np.eye(3)[:, :3])
    assert reader.imread(tmp_path / "run" / "image-holes.png")[0, ::85].tolist() == [0, 0, 1]
    assert page.draw(tmp_path / "run").read_text().count("data:image/png") == 6  # and its loss
    assert History.read(tmp_path / "run").steps == 2


def test_a_checkpoint_comes_after_the_pictures_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever goes on after a kill finds them, though they were shown too soon after others to be drawn at once."""
    monkeypatch.setattr(images, "INTERVAL", math.inf)
    run = gpuopt.Run(tmp_path / "run", optimizer(), checkpoint_every=4, report=False)
    for step in run.steps(5):
        run.step(run.optimizer.params)
        if step < 4:
            run.image("x", np.arange(4) == step)
        else:
            run._checkpoints.settle()
            drawn = (tmp_path / "run" / "image-x.png").read_bytes()
            assert drawn == images.png(images._grey(np.arange(4) == 3))


def test_the_home_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = simple(Path("~/run"))
    assert run.folder == tmp_path / "run"
    gpuopt.save("~/file", run.optimizer, {"seed": 7})
    assert gpuopt.load("~/file", optimizer()) == {"seed": 7}
    assert History.read("~/run").steps == 10
    assert {file.name for file in tmp_path.iterdir()} == {"run", "file"}


@pytest.mark.parametrize(
    "array", [np.full((3, 3), np.nan), np.array([[1e308, -1e308]]), np.ones((2000, 3)), np.zeros(1)]
)
def test_pictures_of_odd_numbers(array: Any) -> None:
    assert images.png(images._grey(array)).startswith(b"\x89PNG")


def test_colours() -> None:
    x = np.array([[[0, 300, -1, 7], [255, 1, 2, 3]]])
    np.testing.assert_array_equal(images._coloured(x)[0, ::128], [[0, 255, 0, 7], [255, 1, 2, 3]])
    odd = np.array([[[0.5, np.nan, np.inf], [-1.0, 2.0, 1.0]]])
    np.testing.assert_array_equal(images._coloured(odd)[0, ::128], [[127, 0, 0], [0, 255, 255]])
    assert images.png(images._coloured(x))[25] == 6


def test_the_lock_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made of a library there; here it is only seen to be used."""
    pytest.importorskip("filelock")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    run = gpuopt.Run(tmp_path / "run", optimizer())
    with pytest.raises(UsageError, match="another process is training in this folder"):
        gpuopt.Run(tmp_path / "run", optimizer())
    run.close()
    simple(tmp_path / "run")


def test_cuda_is_not_waited_for(tmp_path: Path, cupy_space: Any) -> None:
    """Steps cost no synchronization. A row costs one: of its numbers' arrival, when the next step is on its way."""
    cudasim = pytest.importorskip("cudasim", reason="counts what the emulator of CUDA does")
    with cupy_space.use():
        w = cupy_space.xp.ones(1000)
        opt = gpuopt.Optimizer(w, gpuopt.Adam())
        run = gpuopt.Run(tmp_path / "run", opt, checkpoint_every=10**6)
        waited: dict[int, int] = {}
        for step in run.steps(10**6):
            if step in {960, 990}:  # everything was compiled and allocated; the row is that of step 1,000
                counting = cudasim.count()
                counted = counting.__enter__()
            run.step(2 * w, loss=(w**2).sum())
            if step in {980, 1010}:
                counting.__exit__(None, None, None)
                assert counted.summary["blocking_memcpy"] == 0
                waited[step] = counted.summary["syncs"]
            if step == 1010:
                break
        run.close()
    assert waited == {980: 0, 1010: 1}
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 1000]


def test_metrics_of_any_kind_of_number(tmp_path: Path) -> None:
    """Numbers of Python and NumPy, and an epoch, which `gpuopt plot` reads again."""
    run = gpuopt.Run(tmp_path / "run", optimizer())
    steps: Any = np.int64(4)
    for step in run.steps(steps):
        run.step(run.optimizer.params, loss=np.float32(2 - step / 4), epoch=step / 2, hits=np.int64(3), rising=True)
    assert (
        rows(tmp_path / "run")[1].items() >= {"step": 2, "loss": 1.75, "epoch": 0.5, "hits": 3.0, "rising": 1.0}.items()
    )
    assert History.read(tmp_path / "run").points("epoch") == ([1, 2, 3, 4], [0, 0.5, 1, 1.5])


@pytest.mark.peers
def test_tensors_that_have_gradients_of_their_own(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    w = torch.ones(3, requires_grad=True)
    with gpuopt.Run(tmp_path / "run", gpuopt.Optimizer(w, gpuopt.SGD(lr=0.1))) as run:
        for _ in run.steps(20):
            w.grad = None
            loss = (w**2).sum()
            loss.backward()
            run.step(loss=loss)
            run.image("squares", w**2)
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 21))
    assert rows(tmp_path / "run")[0]["loss"] == 3.0


def test_a_row_for_each_update_of_several_gradients(tmp_path: Path) -> None:
    def go(n: int, end: int | None = None) -> list[int]:
        opt = gpuopt.Optimizer(np.ones(3), gpuopt.Adam(0.1), every=2)
        taken = []
        for step in (run := gpuopt.Run(tmp_path / "run", opt)).steps(n):
            run.step(2 * opt.params, loss=float((opt.params**2).sum()))
            taken.append(step)
            if len(taken) == end:
                break
        return taken

    assert go(4, 3) + go(4) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize("other", [{"seed": 1}, {"samples": 12}, {"size": 4}], ids=str)
def test_batches_of_another_order_are_refused(tmp_path: Path, other: dict[str, int]) -> None:
    def go(end: int, seed: int = 0, samples: int = 10, size: int = 3) -> None:
        run = gpuopt.Run(tmp_path / "run", optimizer(), seed=seed)
        batches = run.batches(samples, size)
        for _ in run.steps(end):
            next(batches)
            run.step(run.optimizer.params)

    go(5)
    with pytest.raises(
        UsageError, match=r"run.batches: seed \d, \d+ samples, size \d; the checkpoint has seed 0, 10 samples, size 3"
    ):
        go(9, **other)
    go(9)


@pytest.mark.parametrize(
    ("steps", "told"), [(20, []), (21, []), (40, ["the learning rate is 0 from about step 20 to the end, step 40"])]
)
def test_steps_beyond_a_schedule_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: int, told: list[str]
) -> None:
    def go(steps: int) -> None:
        run = gpuopt.Run(tmp_path / "run", optimizer(gpuopt.SGD(lr=gpuopt.schedules.cosine(0.1, 20))))
        for _ in run.steps(steps):
            run.step(run.optimizer.params)

    go(10)
    go(steps)
    assert [record.getMessage().partition(",  by")[0].partition(", by")[0] for record in caplog.records] == told


def test_a_generator_that_a_checkpoint_has_no_state_of(tmp_path: Path) -> None:
    """What was refused may be asked for again, with what fits."""
    run = gpuopt.Run(tmp_path / "run", optimizer())
    run.remember("own", np.random.default_rng(1))
    run.remember("x", np.full(3, 7.0))
    for _ in run.steps(2):
        run.step(run.optimizer.params)
    again = gpuopt.Run(tmp_path / "run", optimizer())
    for name, wrong in (
        ("own", np.random.RandomState(1)),
        ("own", np.random.Generator(np.random.SFC64(1))),
        ("x", np.zeros(4)),
    ):
        with pytest.raises(UsageError, match=f"run.remember: {name}: .*; the checkpoint has "):
            again.remember(name, wrong)
    assert again.remember("x", np.zeros(3)).tolist() == [7, 7, 7]
    generator = again.remember("own", np.random.default_rng(2))
    assert generator.random() == np.random.default_rng(1).random()
    again.close()


def test_going_back_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of the steps that were asked for, though its file is about to get another name."""
    save = checkpoint.save_state

    def slowly(*given: Any) -> None:
        save(*given)
        time.sleep(0.2)  # the file is the new one, which nobody knows yet

    monkeypatch.setattr(checkpoint, "save_state", slowly)

    class Back(Callback):
        def step(self, run: Any) -> None:
            if run.optimizer.steps == 9 and not rows(run.folder, "rollback"):
                time.sleep(0.1)
                run._callbacks[-1]._roll_back(run, "4")

    simple(tmp_path / "run", 12, checkpoint_every=4, callbacks=[Back()])
    (event,) = rows(tmp_path / "run", "rollback")
    assert (event["to"], event["back_to_step"]) == ("4", 4)


@pytest.mark.parametrize(
    "transform",
    [gpuopt.Scale(np.linspace(0.1, 1.0, 4)), gpuopt.Box(np.zeros(4), np.ones(4)), gpuopt.Box(0.0, np.ones(4))],
    ids=["factor", "bounds", "bound"],
)
def test_hyperparameters_that_are_arrays_are_no_metrics_and_are_resumed(
    tmp_path: Path, transform: gpuopt.Transform
) -> None:
    def ran(folder: Path, *ends: int) -> np.ndarray:
        for steps in ends:
            x = np.full(4, 0.5)
            opt = gpuopt.Optimizer(x, gpuopt.chain(gpuopt.Adam(lr=0.1), transform))
            with gpuopt.Run(folder, opt, report=False) as run:
                for _ in run.steps(steps):
                    run.step(x - 2, loss=np.square(x - 2).mean())
                    run.tune(lr=0.05)
        return x

    whole = ran(tmp_path / "whole", 8)
    assert (ran(tmp_path / "resumed", 3, 8) == whole).all()
    assert rows(tmp_path / "whole")[-1]["lr"] == 0.05


@pytest.mark.parametrize("change", [{"Box.low": 0.3}, {"Box.high": np.ones(4)}], ids=["from", "to"])
def test_an_array_is_no_hyperparameter_that_a_run_tunes(tmp_path: Path, change: dict[str, Any]) -> None:
    x = np.full(4, 0.5)
    opt = gpuopt.Optimizer(x, gpuopt.chain(gpuopt.SGD(lr=0.1), gpuopt.Box(np.zeros(4), 1.0)))
    with gpuopt.Run(tmp_path / "run", opt, report=False) as run:
        for _ in run.steps(1):
            before = repr(opt.rule)
            with pytest.raises(TypeError, match=f"tune: {next(iter(change))}: an array"):
                run.tune(**change)
            run.step(x, loss=1.0)
            assert repr(opt.rule) == before


@pytest.mark.parametrize("every", ["0s", 100])
def test_a_checkpoint_does_not_depend_on_its_moment(tmp_path: Path, every: int | str) -> None:
    """Neither on checkpoints before it, with gradients that wait, nor has it more than `Optimizer.state_dict`."""
    w = np.ones(3)
    opt = gpuopt.Optimizer(w, gpuopt.SGD(lr=0.1), every=2)
    with gpuopt.Run(tmp_path / "run", opt, checkpoint_every=every, report=False) as run:
        for number, _ in enumerate(run.steps(2)):
            run.step(2 * w, loss=10.0 - number)
    content = json.loads(tensorfile.read(tmp_path / "run" / "checkpoint.safetensors")[1]["gpuopt"])
    assert content["extra"]["explosions"]["first"] == 9
    assert "skipped" not in content
