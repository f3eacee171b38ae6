"""The command line: what it prints, what it leaves, and how it fails."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import gpuopt
from gpuopt.cli import app

COMMAND = [sys.executable, "-m", "gpuopt.cli"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs on NumPy in a folder of its own, with small data in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUOPT_BACKEND", "numpy")
    monkeypatch.setenv("PYTHONPATH", str(Path(gpuopt.__file__).parents[1]))
    x = np.random.RandomState(0).rand(40, 3)
    np.savez("data.npz", x_train=x, y_train=x.argmax(axis=1), x_test=x[:10], y_test=x[:10].argmax(axis=1))
    np.savez("numbers.npz", x=x, y=x.sum(axis=1))
    np.savez("floats.npz", x=x, y=x.argmax(axis=1) * 1.0)


def gpuopt_(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="gpuopt")


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


# Ctrl-C before anything is begun

AT_AN_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == {where!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
BEFORE_ANY_STEP = """
import os, signal
from gpuopt.runs.record.folder import RunFolder
RunFolder.locked = lambda self: os.kill(os.getpid(), signal.SIGINT)
"""
AT_THE_END = """
import atexit, os, signal
atexit.register(os.kill, os.getpid(), signal.SIGINT)
"""
AT_THESE = ("gpuopt.cli", "numpy", "numpy._core._multiarray_umath", "typer", "optree._C", "gpuopt.training")
MOMENTS = {name: (AT_AN_IMPORT.format(where=name), 130) for name in AT_THESE}
MOMENTS |= {"before any step": (BEFORE_ANY_STEP, 130), "at the end": (AT_THE_END, -signal.SIGINT)}


@pytest.mark.parametrize(("code", "status"), MOMENTS.values(), ids=MOMENTS)
def test_ctrl_c_is_no_traceback(code: str, status: int) -> None:
    enter = "import sys; from gpuopt.__main__ import main; sys.argv[1:] = ['train', '--epochs', '1', '--no-report', '--quiet']; main()"
    run = subprocess.run([sys.executable, "-c", f"{code}\n{enter}"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (status, "")


# Help


def test_help_is_a_manuals_first_page() -> None:
    result = gpuopt_("--help")
    assert result.exit_code == 0
    for words in ("Gradient-descent optimizers for NumPy and CuPy arrays", "Examples:", "gpuopt train --data", "info"):
        assert words in result.stdout
    assert gpuopt_().output == result.stdout


@pytest.mark.parametrize(
    ("words", "meant"),
    [("-h", "--help"), ("help", "--help"), ("help train", "train --help"), ("train -h", "train --help")],
)
def test_ways_to_ask_for_help(words: str, meant: str) -> None:
    given, expected = gpuopt_(*words.split()), gpuopt_(*meant.split())
    assert (given.exit_code, given.output) == (0, expected.output)


def test_help_of_train_names_every_option() -> None:
    text = gpuopt_("train", "--help").stdout
    assert "AdamW" in text
    assert "Muon" not in text  # which updates no vectors
    named = {"data", "target", "hidden", "optimizer", "lr", "set", "schedule", "epochs", "batch-size", "seed", "device"}
    for option in named | {"out", "resume", "quiet"}:
        assert f"--{option} " in text or f"--{option}\n" in text


def test_version() -> None:
    assert gpuopt_("--version").stdout == f"gpuopt {gpuopt.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["train"]])
def test_help_imports_no_library_that_computes_elsewhere(arguments: list[str]) -> None:
    code = (
        "import sys; from gpuopt.cli import main\n"
        f"sys.argv = ['gpuopt', *{arguments}, '--help']\n"
        "try: main()\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"cupy", "rich", "pandas", "safetensors", "gpuopt.training"} & set(run.stderr.split())


def test_info() -> None:
    out = gpuopt_("info").stdout
    assert re.search(rf"^NumPy +{re.escape(np.__version__)}$", out, re.MULTILINE)
    assert re.search(r"^backend +numpy$", out, re.MULTILINE)
    assert re.search(r"^because +GPUOPT_BACKEND='numpy'$", out, re.MULTILINE)


# Training


def test_train_in_plain_lines() -> None:
    result = gpuopt_("train", "--epochs", "200", "--hidden", "8", "--out", "run")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "Device:  cpu (GPUOPT_BACKEND='numpy')"
    assert [line for line in lines if line.startswith("epoch")][-1].startswith("epoch 200/200  loss ")
    assert len(lines) == 4 + 10 + 2  # device, data, what the spikes are, network
    assert lines[-1].endswith(f"run folder: {Path('run').absolute()}")
    assert lines[-2].startswith("Training set: loss ")


def test_few_epochs_are_all_shown() -> None:
    lines = gpuopt_("train", "--data", "data.npz", "--epochs", "3").stdout.splitlines()
    shown = [line for line in lines if line.startswith("epoch")]
    assert [line[:11] for line in shown] == ["epoch 1/3  ", "epoch 2/3  ", "epoch 3/3  "]
    assert "test accuracy" in shown[0]
    assert lines[-2].startswith("Test set: loss ")


def test_a_terminal_sees_one_live_line() -> None:
    main, terminal = pty.openpty()
    run = subprocess.Popen(
        [*COMMAND, "train", "--epochs", "2000", "--out", "run"], stdout=terminal, env={**os.environ, "TERM": "xterm"}
    )
    os.close(terminal)
    seen = b""
    while True:
        try:
            seen += os.read(main, 4096)
        except OSError:  # the other end is closed
            break
    os.close(main)
    assert run.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    assert text.startswith("Device:  cpu")
    assert re.search(r"epoch 2000/2000 .*loss 0\.\d+  accuracy 0\.\d+  lr 0\.\d+ .*steps/s", text)


@pytest.mark.parametrize("flag", ["--quiet", "-q"])
def test_quiet(flag: str) -> None:
    result = gpuopt_("train", "--epochs", "5", flag, "--out", "run")
    assert (result.exit_code, result.output) == (0, "")
    assert Path("run/summary.json").exists()


def test_all_options_arrive(tmp_path: Path) -> None:
    arguments = (
        "--data data.npz --hidden 7,5 --optimizer sgd --lr 0.5 --schedule step:factor=0.5,every=9 --set momentum=0.8 "
        "--set nesterov=true --epochs 3 --batch-size 16 --seed 4 --device cpu --out run --task classification "
        "--standardize --init small --matmul float64 --report-every 2 --checkpoint-every 5s --keep 3 "
        "--on-gpu-error cpu --on-explosion rollback --clip-norm 5 --average 0.9 --quiet"
    )
    others = {"dampening": 0.0, "dampen_first": False, "lr_in_velocity": True}
    assert gpuopt_("train", *arguments.split()).exit_code == 0
    config = json.loads(Path("run/config.json").read_text())["config"]
    schedule = {"schedule": "step", "arguments": {"initial": 0.5, "factor": 0.5, "every": 9}}
    assert config == {
        "data": str(tmp_path / "data.npz"),
        "target": None,
        "task": "classification",
        "standardize": True,
        "one_hot": False,
        "missing": None,
        "validation": None,
        "ignore": [],
        "labels": None,
        "encoding": None,
        "scale_target": True,
        "patience": None,
        "class_weights": None,
        "activation": "relu",
        "dropout": 0.0,
        "weight_decay": None,
        "hidden": [7, 5],
        "init": "small",
        "matmul": "float64",
        "optimizer": {
            "rule": "chain",
            "members": [
                {"rule": "SGD", "lr": schedule, "momentum": 0.8, "nesterov": True, **others},
                {"rule": "EMA", "decay": 0.9},
            ],
        },
        "lr": None,
        "schedule": None,
        "hyperparameters": {},
        "epochs": 3,
        "batch_size": 16,
        "seed": 4,
        "device": "cpu",
        "on_gpu_error": "cpu",
        "report_every": 2,
        "checkpoint_every": "5s",
        "keep": 3,
        "on_explosion": "rollback",
        "clip_norm": 5.0,
        "clip_value": None,
        "average": None,
        "parts": None,
    }


@pytest.mark.parametrize(
    ("lowest", "final", "test", "is_told"),
    [
        (0.11, 0.79, None, True),
        (0.11, 0.2, None, False),
        (1e-4, 1e-3, None, False),
        (0.11, 0.1, 0.3, True),
        (None, 1, None, False),
    ],
)
def test_a_loss_that_was_lower_before_is_told(
    lowest: float | None, final: float, test: float | None, is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from gpuopt.cli.training import _tell
    from gpuopt.training import Result

    ended = (3000, 3000, final, 0.8, test, None, 8.0, None)
    _tell(Result("run", "numpy", "cpu", "", *ended, lowest_loss=lowest, lowest_epoch=2940), "Test set")
    told = "The loss was 0.1100 after epoch 2940; the model is that of the last one. --schedule cosine, or --validation"
    assert (told in capsys.readouterr().out) is is_told


def test_a_regression_has_no_accuracy() -> None:
    lines = gpuopt_("train", "--data", "numbers.npz", "--epochs", "2", "--batch-size", "full").stdout.splitlines()
    assert "accuracy" not in "".join(lines)
    assert json.loads(next(Path("runs").glob("numbers-*/summary.json")).read_text())["train_accuracy"] is None


# What is refused: one line that names what was given, exit code 2, nothing on the disk

REFUSED = [
    ("train --epoch 3", "No such option: --epoch"),
    ("trian", "No such command 'trian'"),
    ("train --epochs x", "Invalid value for '--epochs'"),
    ("train --lr fast", "Invalid value for '--lr'"),
    ("train --epochs 0", "gpuopt: --epochs 0: expected a positive integer"),
    ("train --batch-size -1", "gpuopt: --batch-size -1: expected full or a positive integer"),
    ("train --batch-size some", "gpuopt: --batch-size some: expected full or a positive integer"),
    ("train --hidden 64,x", "gpuopt: --hidden 64,x: expected positive integers, as in 256,128"),
    ("train --hidden 64,-1", "gpuopt: --hidden 64,-1: expected positive integers, as in 256,128"),
    ("train --optimizer adma", "gpuopt: --optimizer adma: unknown (did you mean AdaMax?)"),
    ("train --schedule cosinus", "gpuopt: --schedule cosinus: unknown schedule 'cosinus' (did you mean 'cosine'?)"),
    ("train --set beta=0.9", "gpuopt: --set beta=0.9: unknown hyperparameter (did you mean beta1?)"),
    ("train --set beta1", "gpuopt: --set beta1: expected NAME=VALUE, as in beta1=0.95"),
    ("train --set beta1=0.9 --set beta1=0.8", "gpuopt: --set beta1=0.8: beta1 is given twice"),
    ("train --set beta1=0,9", "gpuopt: --set beta1=0,9: 0,9 has a decimal comma; expected beta1=0.9"),
    (
        "compare Adam SGD:lr=0,1",
        "gpuopt: SGD:lr=0,1: 0,1 has a decimal comma; expected a point, 0.1",
    ),
    ("train --lr 0,1", "(0,1 has a decimal comma; expected 0.1)"),
    ("predict data.npz data.npz", "gpuopt: data.npz: is a file, expected a run folder"),
    ("train --set beta1=x", "gpuopt: --set beta1=x: unknown schedule 'x'"),
    ("train --set beta1=2", "gpuopt: --set beta1=2.0: Adam: beta1: got 2.0, expected a number in [0, 1)"),
    ("train --optimizer sgd --set nesterov=1", "gpuopt: --set nesterov=1.0: SGD: nesterov: got 1.0"),
    ("train --lr -1", "gpuopt: --lr -1.0: Adam: lr: got -1.0"),
    ("train --seed -1", "gpuopt: --seed -1: expected an integer from 0"),
    ("train --device gpu", "gpuopt: --device gpu: backend 'gpu': expected"),
    ("train --device cuda:99", "gpuopt: backend 'cuda:99': "),
    ("train --data nowhere.npz", "nowhere.npz: No such file or directory"),
    ("train --data floats.npz", "floats.npz: y: dtype float64, but only whole numbers"),
    ("train --data data.npz --target y", "gpuopt: --target y: is for tables"),
    ("train --out data.npz", "gpuopt: --out data.npz: exists already"),
    ("train --resume nowhere", "gpuopt: --resume nowhere: No such file or directory"),
    ("train --resume . --hidden 3", "gpuopt: --hidden: is as it was in a run that is resumed, expected none"),
    ("train --resume . --set a=3", "gpuopt: --set: is as it was in a run that is resumed, expected none"),
    ("train --resume .", "gpuopt: --resume .: is no run folder: it has no config.json"),
]


@pytest.mark.parametrize(("command", "message"), REFUSED, ids=[command for command, _ in REFUSED])
def test_refused(command: str, message: str) -> None:
    before = files()
    result = gpuopt_(*command.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    if result.stderr.startswith("gpuopt:"):
        assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    assert files() == before


def test_memory_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuopt.training.model import Perceptron

    def fail(*given: Any) -> None:
        raise MemoryError("Unable to allocate 95.4 MiB")

    monkeypatch.setattr(Perceptron, "gradients", fail)
    result = gpuopt_("train", "--quiet")
    assert (result.exit_code, result.stderr) == (1, "gpuopt: there is not enough memory: Unable to allocate 95.4 MiB\n")


def test_a_current_folder_that_was_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = gpuopt_("train", "--epochs", "1", "--quiet")
    assert result.exit_code == 1
    assert result.stderr.endswith("the current folder was removed; change to one that exists\n")
    assert result.stderr.count("\n") == 1


def test_a_disk_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "run/checkpoint.safetensors")

    monkeypatch.setattr("gpuopt.checkpoint.save_state", full)
    result = gpuopt_("train", "--epochs", "5", "--quiet", "--out", "run")
    assert result.exit_code == 1
    assert result.stderr == (
        "gpuopt: run/checkpoint.safetensors: No space left on device; the last checkpoint is the one after 0 steps. "
        f"To go on: gpuopt train --resume {Path('run').absolute()}\n"
    )


# Interrupting and resuming


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*COMMAND, "train", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rows(folder: str) -> list[dict[str, Any]]:
    file = Path(folder, "metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


LONG = ["--data", "data.npz", "--epochs", "600", "--batch-size", "7"]


@pytest.fixture
def whole() -> str:
    """A run that nobody interrupted."""
    assert gpuopt_("train", *LONG, "--quiet", "--out", "whole").exit_code == 0
    return "whole"


def assert_equal_runs(a: str, b: str) -> None:
    from safetensors.numpy import load_file

    x, y = (load_file(Path(folder, "checkpoint.safetensors")) for folder in (a, b))
    assert {name: array.tobytes() for name, array in x.items()} == {name: array.tobytes() for name, array in y.items()}
    assert [{**row, "seconds": 0} for row in rows(a)] == [{**row, "seconds": 0} for row in rows(b)]


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(whole: str, signum: signal.Signals) -> None:
    run = start(*LONG, "--quiet", "--out", "run", "--checkpoint-every", "1000s")
    wait_for(lambda: len(rows("run")) > 1)
    run.send_signal(signum)
    out, err = run.communicate()
    assert (run.returncode, out) == (128 + signum, "")
    assert re.fullmatch(
        rf"gpuopt: stopped by {signum.name} after \d+ steps, in epoch \d+ of 600; saved. "
        f"To go on: gpuopt train --resume {Path('run').absolute()}\\n",
        err,
    )
    assert Path("run/checkpoint.safetensors").exists()
    assert not Path("run/summary.json").exists()
    result = gpuopt_("train", "--resume", "run")
    assert "Resumed after" in result.stdout
    assert_equal_runs(whole, "run")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_killed_run_goes_on_to_the_same_bits(whole: str) -> None:
    run = start(*LONG, "--quiet", "--out", "run", "--checkpoint-every", "0.05s")
    for number in range(1, 4):
        wait_for(lambda: len(rows("run")) > 20 * number and Path("run/checkpoint.safetensors").exists())  # noqa: B023
        run.kill()
        run.communicate()
        run = start("--resume", "run", "--quiet")
    assert run.wait() == 0
    run.communicate()
    assert_equal_runs(whole, "run")
