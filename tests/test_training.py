"""Training: it learns, repeats itself, resumes to the bit, and refuses what it cannot use before it writes anything."""

import json
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import ROWS, Row
from numpy.typing import NDArray

import gpuopt
from gpuopt import schedules
from gpuopt.rules import RULES
from gpuopt.training import Callback, Config, ExplodedError, Training, UsageError, resume, train

RANDOM = np.random.RandomState(5)
CENTRES = 3 * RANDOM.randn(3, 6)
LABELS = RANDOM.randint(3, size=230)
BLOBS = {"x": (CENTRES[LABELS] + RANDOM.randn(230, 6)).astype("f4"), "y": LABELS}


@pytest.fixture(autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The array library that "auto" takes: NumPy, or as `BOTH` says."""
    name: str = getattr(request, "param", "numpy")
    try:
        gpuopt.backend(name)
    except gpuopt.BackendUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.setenv("GPUOPT_BACKEND", name)
    return name


BOTH = pytest.mark.parametrize("library", ["numpy", "cupy"], indirect=True)


@pytest.fixture
def blobs(tmp_path: Path) -> str:
    """Three classes, easy to tell apart; 200 samples to train, 30 to test."""
    file = tmp_path / "blobs.npz"
    x, y = BLOBS["x"], BLOBS["y"]
    np.savez(file, x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    return str(file)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return content


def arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Parameters and optimizer state in the checkpoint."""
    from safetensors.numpy import load_file

    loaded: dict[str, NDArray[Any]] = load_file(folder / "checkpoint.safetensors")
    return loaded


def assert_equal_runs(a: Path, b: Path) -> None:
    """Parameters, state, metrics and summary, to the bit; but for the time and the place."""
    x, y = arrays(a), arrays(b)
    assert x.keys() == y.keys()
    assert [name for name in x if x[name].tobytes() != y[name].tobytes()] == []
    assert [{**row, "seconds": 0} for row in rows(a)] == [{**row, "seconds": 0} for row in rows(b)]
    both = {"seconds": 0, "folder": ""}
    assert read(a, "summary") | both == read(b, "summary") | both


class At(Callback):
    """Does something after a certain step of this run."""

    def __init__(self, step: int, action: Callable[[Training], None]) -> None:
        self.step_, self.action = step, action

    def step(self, training: Training) -> None:
        if training.optimizer.steps == self.step_:
            self.action(training)


class KilledError(BaseException):
    """As if the process ended here."""


def kill(_: Training) -> None:
    raise KilledError


# What a run leaves


@BOTH
def test_a_run_folder(blobs: str, tmp_path: Path, library: str) -> None:
    out = tmp_path / "some" / "where"
    result = train(Config(data=blobs, hidden=(8,), epochs=4, batch_size=64), out=out)
    assert {file.name for file in out.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "checkpoint.safetensors",
        "best.safetensors",
        "model.json",
        "summary.json",
    }
    summary = read(out, "summary")
    assert summary == {name: getattr(result, name) for name in summary}
    assert (summary["backend"], summary["epochs"], summary["steps"]) == (library, 4, 16)
    assert summary["device"] == ("cpu" if library == "numpy" else "cuda:0")
    assert summary["reason"] == gpuopt.backend("auto").reason
    names = [
        "epoch",
        "step",
        "loss",
        "accuracy",
        "test_loss",
        "test_accuracy",
        "lr",
        "gradient_norm",
        "update_norm",
        "seconds",
    ]
    assert [list(row) for row in rows(out)] == [names] * 4
    assert [(row["epoch"], row["step"], row["lr"]) for row in rows(out)] == [(e, 4 * e, 0.001) for e in (1, 2, 3, 4)]
    assert read(out, "config")["config"]["data"] == blobs
    # What the summary says of the final parameters, computed once more.
    saved = arrays(out)
    hidden = np.maximum(BLOBS["x"] @ saved["params/layers.0.w"] + saved["params/layers.0.b"], 0)
    outputs = hidden @ saved["params/layers.1.w"] + saved["params/layers.1.b"]
    losses = np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(230), BLOBS["y"]]
    right = outputs.argmax(axis=1) == BLOBS["y"]
    assert result.train_loss == pytest.approx(losses[:200].mean(), rel=1e-5)
    assert result.test_loss == pytest.approx(losses[200:].mean(), rel=1e-5)
    assert (result.train_accuracy, result.test_accuracy) == (right[:200].mean(), right[200:].mean())


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_norms_of_the_last_step(blobs: str, tmp_path: Path, clip_norm: float | None) -> None:
    config = Config(data=blobs, hidden=(8,), optimizer="SGD", lr=0.5, batch_size=64, clip_norm=clip_norm, epochs=2)
    seen: list[NDArray[Any]] = []

    class Recorder(Callback):
        def step(self, training: Training) -> None:
            layers = training.optimizer.params["layers"]
            seen.append(np.concatenate([x.ravel().astype("f8") for layer in layers for x in layer.values()]))

    train(config, out=tmp_path / "run", callbacks=[Recorder()])
    for row in rows(tmp_path / "run"):
        update = np.linalg.norm(seen[row["step"] - 1] - seen[row["step"] - 2])
        assert row["update_norm"] == pytest.approx(update, rel=1e-5)
        if clip_norm is None:
            assert row["gradient_norm"] == pytest.approx(update / 0.5, rel=1e-4)
        else:
            assert update == pytest.approx(0.5 * clip_norm, rel=1e-3)
            assert row["gradient_norm"] > 10 * clip_norm  # before clipping


def test_without_a_test_set(tmp_path: Path) -> None:
    result = train(Config(epochs=2), out=tmp_path / "run")
    assert (result.test_loss, result.test_accuracy) == (None, None)
    assert read(tmp_path / "run", "summary")["test_accuracy"] is None
    assert all("test_loss" not in row for row in rows(tmp_path / "run"))


@pytest.mark.parametrize(
    ("epochs", "every", "reported"),
    [(3, None, [1, 2, 3]), (250, None, [1, *range(3, 250, 3), 250]), (10, 4, [1, 4, 8, 10]), (5, 9, [1, 5])],
)
def test_rows_of_the_metrics(tmp_path: Path, epochs: int, every: int | None, reported: list[int]) -> None:
    config = Config(epochs=epochs, hidden=(2,)) if every is None else Config(epochs=epochs, report_every=every)
    train(config, out=tmp_path / "run")
    assert [row["epoch"] for row in rows(tmp_path / "run")] == reported


def test_metrics_of_full_batches_are_those_before_the_step(tmp_path: Path) -> None:
    train(Config(epochs=3), out=tmp_path / "a")
    train(Config(epochs=2), out=tmp_path / "b")
    assert rows(tmp_path / "a")[2]["loss"] == read(tmp_path / "b", "summary")["train_loss"]


def test_default_folders_have_the_datas_name(blobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [train(Config(data=blobs, epochs=1)).folder for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(Path(folder).parent == tmp_path / "runs" and "blobs-" in folder for folder in folders)


def test_an_explosion_leaves_valid_json(tmp_path: Path) -> None:
    config = Config(optimizer="SGD", lr=1e30, epochs=5)
    with pytest.raises(ExplodedError):
        train(config, out=tmp_path / "run")
    assert read(tmp_path / "run", "summary")["stopped"].startswith("the training exploded")
    assert rows(tmp_path / "run")[-1]["event"] == "explosion"


# It learns, and repeats itself


@BOTH
@pytest.mark.parametrize("batch_size", [32, 200, 1000, "full"])
@pytest.mark.parametrize("row", [row for row in ROWS if row.defaults], ids=lambda row: row.rule.__name__)
def test_classes_are_learned(blobs: str, tmp_path: Path, row: Row, batch_size: Any) -> None:
    chosen: dict[str, Any] = {"optimizer": row.rule.__name__, "hyperparameters": row.learns}
    config = Config(data=blobs, hidden=(16, 8), batch_size=batch_size, epochs=30, **chosen)
    result = train(config, out=tmp_path / "run")
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.9


@BOTH
def test_numbers_are_learned(tmp_path: Path) -> None:
    x = np.random.RandomState(0).rand(300, 2)
    file = tmp_path / "numbers.npz"
    np.savez(file, x=x, y=np.stack([np.sin(3 * x[:, 0]), x.prod(axis=1)], axis=1))
    result = train(Config(data=str(file), lr=0.01, epochs=60, batch_size=30), out=tmp_path / "run")
    assert result.train_loss < 0.001
    assert (result.train_accuracy, rows(tmp_path / "run")[0]["accuracy"]) == (None, None)


def test_no_hidden_layer(blobs: str, tmp_path: Path) -> None:
    assert (train(Config(data=blobs, hidden=(), lr=0.05), out=tmp_path / "run").train_accuracy or 0) > 0.9


@BOTH
def test_a_seed_gives_one_run(blobs: str, tmp_path: Path) -> None:
    config = Config(data=blobs, epochs=3, batch_size=64)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(replace(config, seed=seed), out=tmp_path / name)
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    assert rows(tmp_path / "a")[-1]["loss"] != rows(tmp_path / "c")[-1]["loss"]


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own(blobs: str, tmp_path: Path) -> None:
    seen: list[NDArray[Any]] = []

    class Recorder(Callback):
        def start(self, training: Training) -> None:
            gradients = training.network.gradients

            def recording(params: Any, x: Any, y: Any) -> Any:
                seen.append(x)
                return gradients(params, x, y)

            object.__setattr__(training.network, "gradients", recording)

    train(Config(data=blobs, epochs=2, batch_size=64), out=tmp_path / "run", callbacks=[Recorder()])
    assert [len(x) for x in seen] == [64, 64, 64, 8] * 2
    epochs = [np.concatenate(seen[:4]), np.concatenate(seen[4:])]
    expected = BLOBS["x"][:200]
    for number, x in enumerate(epochs):
        np.testing.assert_array_equal(x, expected[np.random.RandomState([0, number]).permutation(200)])
    assert not np.array_equal(epochs[0], epochs[1])


# The book's network, its optimizers and their arithmetic: products rounded from float64, everything else in float32


def book(settings: dict[str, Any], epochs: int) -> list[NDArray[Any]]:
    """Parameters after so many epochs, computed the way that "Neural Networks from Scratch" does."""
    random, f4 = np.random.RandomState(0), np.float32

    def dot(a: Any, b: Any) -> Any:
        return (a.astype("f8") @ b.astype("f8")).astype("f4")

    x, y = np.zeros((300, 2), "f4"), np.repeat(np.arange(3), 100)
    for arm in range(3):
        r, noise = np.linspace(0, 1, 100), random.randn(100).astype("f4") * f4(0.2)
        t = np.linspace(4 * arm, 4 * arm + 4, 100) + noise
        x[100 * arm : 100 * arm + 100] = np.c_[r * np.sin(2.5 * t), r * np.cos(2.5 * t)]
    w1, w2 = (f4(0.01) * random.randn(*shape).astype("f4") for shape in ((2, 64), (64, 3)))
    params = [w1, np.zeros(64, "f4"), w2, np.zeros(3, "f4")]
    first, second = ([np.zeros_like(p) for p in params] for _ in range(2))
    for epoch in range(epochs):
        z = dot(x, params[0]) + params[1]
        a = np.maximum(0, z)
        out = dot(a, params[2]) + params[3]
        d = np.exp(out - out.max(axis=1, keepdims=True))
        d /= d.sum(axis=1, keepdims=True)
        d[np.arange(300), y] -= 1
        d /= 300
        back = dot(d, params[2].T)
        back[z <= 0] = 0
        lr = settings["lr"] / (1 + settings["decay"] * epoch)
        for p, g, m, v in zip(
            params, [dot(x.T, back), back.sum(axis=0), dot(a.T, d), d.sum(axis=0)], first, second, strict=True
        ):
            if settings["rule"] == "SGD":
                m[...] = settings.get("momentum", 0) * m - lr * g
                p[...] += m
            elif settings["rule"] == "AdaGrad":
                v[...] += g**2
                p[...] -= lr * g / (np.sqrt(v) + 1e-7)
            elif settings["rule"] == "RMSProp":
                v[...] = settings["rho"] * v + (1 - settings["rho"]) * g**2
                p[...] -= lr * g / (np.sqrt(v) + 1e-7)
            else:
                m[...] = 0.9 * m + 0.1 * g
                v[...] = 0.999 * v + 0.001 * g**2
                p[...] -= lr * (m / (1 - 0.9 ** (epoch + 1))) / (np.sqrt(v / (1 - 0.999 ** (epoch + 1))) + 1e-7)
    return params


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "SGD", "lr": 1.0, "decay": 0.0},
        {"rule": "SGD", "lr": 1.0, "decay": 1e-3},
        {"rule": "SGD", "lr": 1.0, "decay": 1e-3, "momentum": 0.9},
        {"rule": "AdaGrad", "lr": 1.0, "decay": 1e-4},
        {"rule": "RMSProp", "lr": 0.02, "decay": 1e-5, "rho": 0.999},
        {"rule": "Adam", "lr": 0.02, "decay": 1e-5},
        {"rule": "Adam", "lr": 0.05, "decay": 5e-7},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_the_spiral_runs_are_the_books(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = Config(
        optimizer=settings["rule"],
        lr=settings["lr"],
        schedule=f"inverse_time:decay={settings['decay']}",
        hyperparameters={name: settings[name] for name in ("momentum", "rho") if name in settings},
        epochs=10,
    )
    assert config.matmul == "float64"
    train(config, out=tmp_path / "run")
    saved = arrays(tmp_path / "run")
    names = [f"params/layers.{layer}.{name}" for layer in (0, 1) for name in "wb"]
    for name, expected in zip(names, book(settings, 10), strict=True):
        np.testing.assert_allclose(saved[name], expected, rtol=1e-3, atol=1e-4, err_msg=name)


# Callbacks


def test_callbacks_are_called_in_turn(blobs: str, tmp_path: Path) -> None:
    calls: list[tuple[str, int, bool]] = []

    class Recorder(Callback):
        def start(self, training: Training) -> None:
            calls.append(("start", training.optimizer.steps, training.row is None))

        def step(self, training: Training) -> None:
            calls.append(("step", training.optimizer.steps, training.row is None))

        def epoch(self, training: Training) -> None:
            calls.append(("epoch", training.epoch, training.row is None))

        def end(self, training: Training) -> None:
            calls.append(("end", training.optimizer.steps, training.row is None))

    config = Config(data=blobs, epochs=3, batch_size=100, report_every=3)
    train(config, out=tmp_path / "run", callbacks=[Recorder()])
    assert calls == [
        ("start", 0, True),
        *[("step", 1, True), ("epoch", 1, False), ("step", 2, False)],
        *[("step", 3, False), ("epoch", 2, True), ("step", 4, True)],
        *[("step", 5, True), ("epoch", 3, False), ("step", 6, False)],
        ("end", 6, False),
    ]


def test_a_callback_can_stop(blobs: str, tmp_path: Path) -> None:
    stop = At(7, lambda training: training.stop("good enough"))
    result = train(Config(data=blobs, epochs=9, batch_size=64), out=tmp_path / "run", callbacks=[stop])
    assert (result.steps, result.epochs, result.stopped) == (7, 1, "good enough")


def test_other_threads_can_train(tmp_path: Path) -> None:
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda n=n: results.append(train(Config(epochs=20), out=tmp_path / str(n))))
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.train_loss for result in results}) == 1
    assert len(results) == 2


# Resuming


@pytest.fixture
def config(blobs: str) -> Config:
    """Seven epochs of five steps; rows after 1, 2, 4, 6 and 7."""
    return Config(data=blobs, epochs=7, batch_size=45, report_every=2, schedule="cosine", hidden=(8,))


@pytest.mark.parametrize("step", [1, 4, 5, 6, 10, 13, 18, 34, 35])
@pytest.mark.parametrize("saving", ["when stopped", "every step", "never"])
def test_a_resumed_run_is_the_uninterrupted_one(config: Config, tmp_path: Path, step: int, saving: str) -> None:
    train(config, out=tmp_path / "whole")
    config = replace(config, checkpoint_every=1 if saving == "every step" else "1000s")
    if saving == "when stopped":
        train(config, out=tmp_path / "run", callbacks=[At(step, lambda training: training.stop("enough"))])
    else:
        with pytest.raises(KilledError):
            train(config, out=tmp_path / "run", callbacks=[At(step, kill)])
    if saving == "when stopped" and step == 35:
        with pytest.raises(UsageError, match="is finished, 7 epochs of 7"):
            resume(tmp_path / "run")
        return
    resume(tmp_path / "run")
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


@BOTH
def test_a_run_may_be_interrupted_often(config: Config, tmp_path: Path) -> None:
    train(config, out=tmp_path / "whole")
    train(config, out=tmp_path / "run", callbacks=[At(3, lambda training: training.stop("enough"))])
    for step in (8, 20, 21):
        resume(tmp_path / "run", callbacks=[At(step, lambda training: training.stop("enough"))])
    resume(tmp_path / "run")
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


def test_a_killed_full_batch_run_resumes(tmp_path: Path) -> None:
    config = Config(epochs=30, checkpoint_every="0s", report_every=4)
    train(config, out=tmp_path / "whole")
    for step in (9, 12):
        with pytest.raises(KilledError):
            train(config, out=tmp_path / str(step), callbacks=[At(step, kill)])
        resume(tmp_path / str(step))
        assert_equal_runs(tmp_path / "whole", tmp_path / str(step))


def test_a_finished_run_is_extended_along_its_own_schedule_which_is_stretched(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config, out=tmp_path / "run")
    result = resume(tmp_path / "run", epochs=9)
    assert "lr: its schedule was made for 7 epochs and is stretched to 9" in caplog.text
    assert (result.epochs, result.steps) == (9, 45)
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [1, 2, 4, 6, 7, 8, 9]
    assert rows(tmp_path / "run")[-1]["lr"] == pytest.approx(schedules.cosine(0.001, steps=45)(44))
    assert read(tmp_path / "run", "config")["config"]["epochs"] == 9


def test_the_place_of_the_data_may_be_relative(
    blobs: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(config, data=Path(blobs).name)
    train(config, out=tmp_path / "run", callbacks=[At(8, lambda training: training.stop("enough"))])
    monkeypatch.chdir("/")
    assert resume(tmp_path / "run").epochs == 7


def damage(folder: Path) -> None:
    content = bytearray((folder / "checkpoint.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "checkpoint.safetensors").write_bytes(content)


def forget(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text("")


def change_data(folder: Path) -> None:
    x, y = BLOBS["x"] + 1, BLOBS["y"]
    np.savez(folder.parent / "blobs.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])


def edit_metrics(folder: Path) -> None:
    file = folder / "metrics.jsonl"
    file.write_text(file.read_text().replace("0", "1"))


def edit_config(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))


def signed(change: Callable[[dict[str, Any]], None], **more: Any) -> Callable[[Path], None]:
    """A change of the config with the checksum that belongs to it."""

    def harm(folder: Path) -> None:
        content = read(folder, "config") | more
        del content["crc32"]
        change(content["config"])
        content["crc32"] = zlib.crc32(json.dumps(content, sort_keys=True).encode())
        (folder / "config.json").write_text(json.dumps(content))

    return harm


def loop(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(folder / name)

    return harm


def pipe(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return harm


def foreign_checkpoint(folder: Path) -> None:
    opt = gpuopt.Optimizer(
        {
            "layers": [
                {"w": np.ones((6, 8), "f4"), "b": np.ones(8, "f4")},
                {"w": np.ones((8, 3), "f4"), "b": np.ones(3, "f4")},
            ]
        },
        gpuopt.Adam(),
    )
    gpuopt.save(folder / "checkpoint.safetensors", opt, {"epoch": 3})


def lost_checkpoint(folder: Path) -> None:
    (folder / "checkpoint.safetensors").rename(folder / "checkpoint-8.safetensors")


NOT_RESUMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "is no run folder: it has no config.json"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json: not readable"),
    "no object": (lambda folder: (folder / "config.json").write_text("[]"), "config.json: is not the configuration"),
    "empty object": (lambda folder: (folder / "config.json").write_text("{}"), "config.json: is not the configuration"),
    "deep": (lambda folder: (folder / "config.json").write_text("[" * 10**5), "config.json: not readable"),
    "huge": (lambda folder: os.truncate(folder / "config.json", 1 << 40), "config.json: is not the configuration"),
    "unknown key": (signed(lambda config: config.update(momentum=1)), "config.json: .*'momentum'"),
    "unknown rule": (signed(lambda c: c["optimizer"].update(rule="Lyon")), "config.json: optimizer Lyon: unknown"),
    "other version": (
        signed(lambda _: None, format=2),
        "config.json: of format 2, written by gpuopt .*; this version knows format",
    ),
    "edited": (edit_config, "config.json: damaged or edited"),
    "no memory": (
        signed(lambda config: config.update(hidden=[10**12])),
        "--hidden 1000000000000: more parameters than the 83 in checkpoint.safetensors",
    ),
    "config in a loop": (loop("config.json"), "Too many levels of symbolic links"),
    "config is a pipe": (pipe("config.json"), "not a regular file"),
    "metrics in a loop": (loop("metrics.jsonl"), "metrics.jsonl: a symbolic link"),
    "metrics are a pipe": (pipe("metrics.jsonl"), "metrics.jsonl: not a regular file"),
    "metrics edited": (edit_metrics, "metrics.jsonl: damaged"),
    "checkpoint in a loop": (loop("checkpoint.safetensors"), "checkpoint.safetensors: a symbolic link"),
    "checkpoint is a pipe": (pipe("checkpoint.safetensors"), "checkpoint.safetensors: not a regular file"),
    "checkpoint lost": (lost_checkpoint, "checkpoint.safetensors: is missing; there are .* checkpoint-8.safetensors"),
    "foreign checkpoint": (foreign_checkpoint, "checkpoint.safetensors: is no checkpoint of a run"),
    "data changed": (change_data, "blobs.npz: is not the data that"),
    "data gone": (lambda folder: (folder.parent / "blobs.npz").unlink(), "blobs.npz: No such file"),
    "damaged checkpoint": (damage, "checkpoint.safetensors: "),
    "metrics lost": (forget, "metrics.jsonl: 0 bytes, expected"),
    "other network": (signed(lambda config: config.update(hidden=[9])), "checkpoint.safetensors: (?s:.*)layers"),
}


def beginning(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(9999)


@pytest.mark.parametrize(("harm", "message"), NOT_RESUMED.values(), ids=NOT_RESUMED)
def test_what_cannot_be_resumed_stays_as_it_is(
    config: Config, tmp_path: Path, harm: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "run"
    train(config, out=folder, callbacks=[At(8, lambda training: training.stop("enough"))])
    harm(folder)

    def content() -> dict[str, Any]:
        return {file.name: beginning(file) for file in folder.iterdir() if file.is_file()}

    before = content()
    with pytest.raises(UsageError, match=message):
        resume(folder)
    assert content() == before


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--resume .*nowhere: No such file"):
        resume(tmp_path / "nowhere")


# What is refused


@pytest.mark.parametrize(
    ("make", "cure"),
    [
        (lambda path: (path / "a").mkdir(parents=True), "one$"),
        (Path.touch, "one$"),
        (
            lambda path: train(Config(epochs=1), out=path),
            "one, or continue the run in it with gpuopt train --resume .*run$",
        ),
    ],
)
def test_an_existing_folder_is_refused(tmp_path: Path, make: Callable[[Path], object], cure: str) -> None:
    make(tmp_path / "run")
    with pytest.raises(UsageError, match=rf"--out .*run: exists already; choose another {cure}"):
        train(Config(epochs=1), out=tmp_path / "run")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out .*: cannot be made: Not a directory"):
        train(Config(epochs=1), out=tmp_path / "file" / "run")


KNOWN = ", ".join(name for name in RULES if name != "Muon")  # which is for matrices
BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 0}, "--epochs 0: expected a positive integer"),
    ({"epochs": -1}, "--epochs -1: expected a positive integer"),
    ({"epochs": int("9" * 400)}, f"--epochs {'9' * 400}: expected a positive integer below 2**53"),
    ({"epochs": 1.5}, "--epochs 1.5: expected a positive integer"),
    ({"batch_size": -1}, "--batch-size -1: expected full or a positive integer"),
    ({"batch_size": 0}, "--batch-size 0: expected full or a positive integer"),
    ({"batch_size": "all"}, "--batch-size all: expected full or a positive integer"),
    ({"hidden": (64, 0)}, "--hidden 64,0: expected positive integers, as in 256,128"),
    ({"seed": -1}, "--seed -1: expected an integer from 0 to 4294967295"),
    ({"seed": 2**32}, "--seed 4294967296: expected an integer from 0"),
    ({"report_every": 0}, "--report-every 0: expected a positive integer"),
    ({"checkpoint_every": -1}, "--checkpoint-every -1: expected steps or seconds, as in 500 or 30s"),
    ({"checkpoint_every": 0}, "--checkpoint-every 0: expected steps or seconds"),
    ({"checkpoint_every": "nans"}, "--checkpoint-every nans: expected steps or seconds"),
    ({"checkpoint_every": "5m"}, "--checkpoint-every 5m: expected steps or seconds"),
    ({"checkpoint_every": "9" * 5000}, f"--checkpoint-every {'9' * 5000}: expected steps or seconds"),
    ({"checkpoint_every": "9" * 5000 + "s"}, f"--checkpoint-every {'9' * 5000}s: expected steps or seconds"),
    ({"keep": 0}, "--keep 0: expected a positive integer"),
    ({"on_explosion": "ignore"}, "--on-explosion ignore: expected stop or skip or rollback"),
    ({"clip_norm": 0.0}, "--clip-norm 0.0: expected a positive number"),
    ({"clip_norm": True}, "--clip-norm True: expected a positive number"),
    ({"clip_norm": 10**400}, f"--clip-norm {10**400}: expected a positive number"),
    ({"clip_value": float("inf")}, "--clip-value inf: expected a positive number"),
    ({"clip_norm": 1.0, "clip_value": 1.0}, "--clip-norm 1.0: expected this or --clip-value, not both"),
    ({"task": "clustering"}, "--task clustering: expected auto or classification or regression"),
    ({"init": "zero"}, "--init zero: expected he or small"),
    ({"matmul": "float16"}, "--matmul float16: expected float32 or float64"),
    ({"target": "y"}, "--target y: expected --data FILE with it"),
    ({"optimizer": "Adm"}, f"--optimizer Adm: unknown (did you mean Adam?); known: {KNOWN}"),
    ({"optimizer": ""}, f"--optimizer : unknown; known: {KNOWN}"),
    ({"optimizer": "xyz"}, f"--optimizer xyz: unknown; known: {KNOWN}"),
    (
        {"optimizer": "Muon"},
        (
            "--optimizer Muon: the biases of this network are vectors: Muon is for matrices; give others a rule by their "
            "path, such as {'*.b': Adam(), '*': Muon()}"
        ),
    ),
    ({"lr": -1.0}, "--lr -1.0: Adam: lr: got -1.0, expected a number in [0, inf)"),
    ({"lr": float("nan")}, "--lr nan: Adam: lr: got nan"),
    ({"schedule": "cosin"}, "--schedule cosin: unknown schedule 'cosin' (did you mean 'cosine'?)"),
    ({"schedule": "step:factr=1"}, "--schedule step:factr=1: step: unknown argument 'factr' (did you mean 'factor'?)"),
    ({"schedule": "a b"}, "--schedule a b: cannot read the schedule 'a b'"),
    ({"hyperparameters": {"beta3": 0.9}}, "--set beta3=0.9: unknown hyperparameter (did you mean beta2?); Adam has"),
    ({"hyperparameters": {"beta1": 1.0}}, "--set beta1=1.0: Adam: beta1: got 1.0, expected a number in [0, 1)"),
    ({"optimizer": "SGD", "hyperparameters": {"nesterov": 0.5}}, "--set nesterov=0.5: SGD: nesterov: got 0.5"),
    ({"lr": 1.0, "hyperparameters": {"lr": 1.0}}, "--set lr=1.0: expected this, or --lr and --schedule, not both"),
    ({"hidden": 64}, "--hidden 64: expected positive integers, as in 256,128"),
    ({"hidden": "64"}, "--hidden 64: expected positive integers, as in 256,128"),
    ({"optimizer": 3}, "--optimizer 3: expected a name or a rule such as Adam()"),
    (
        {"optimizer": gpuopt.Adam},
        "--optimizer <class 'gpuopt.rules.adam.Adam'>: expected a name or a rule such as Adam()",
    ),
    ({"schedule": 3}, "--schedule 3: expected the text of one, as in cosine"),
    ({"hyperparameters": None}, "--hyperparameters None: expected values by name"),
    ({"device": 3}, "--device 3: expected auto, cpu, cuda or cuda:N"),
]


@pytest.mark.parametrize(("options", "message"), BAD_CONFIGS, ids=[message for _, message in BAD_CONFIGS])
def test_bad_configs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Config(**options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "--device gpu: .*expected"),
        ({"standardize": True}, "--standardize True: expected --data FILE with it"),
        ({"hidden": (10**12,)}, "--hidden 1000000000000: .* parameters take about .* GiB to train"),
        ({"data": "nowhere.npz"}, "nowhere.npz: No such file or directory"),
        ({"schedule": "constant:value=-1"}, "--schedule constant:value=-1: Adam: lr at step 0, by its .* got -1.0"),
        ({"schedule": "piecewise:boundaries=[3],values=[-0.1]"}, "--schedule .*: Adam: lr at step 3, by its schedule"),
        (
            {"schedule": "piecewise:boundaries=[4001,4002],values=[-0.1,1]"},
            "--schedule .*: Adam: lr at step 4001, by its",
        ),
        (
            {"schedule": "exponential:decay=2"},
            "--schedule .*: Adam: lr at step 10.., by its .*: exponential: beyond the",
        ),
        (
            {"hyperparameters": {"eps": "exponential(decay=9)"}},
            "--set eps=.*: Adam: eps at step .*: exponential: beyond",
        ),
        (
            {"hyperparameters": {"beta1": "linear_warmup(1.0,warmup=4)"}},
            "--set beta1=.*: Adam: beta1 at step 4, by its schedule",
        ),
    ],
)
def test_nothing_is_written_for_what_shows_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        train(Config(**options))
    assert list(tmp_path.iterdir()) == []


def test_a_function_cannot_be_written_down(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Adam: lr: expected a schedule of gpuopt.schedules"):
        train(Config(optimizer=gpuopt.Adam(lr=lambda _: 0.1), epochs=1), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Configs


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({}, gpuopt.Adam(lr=schedules.inverse_time(0.05, decay=5e-7))),
        ({"hyperparameters": {"beta1": 0.95}}, gpuopt.Adam(lr=schedules.inverse_time(0.05, decay=5e-7), beta1=0.95)),
        ({"lr": 0.02}, gpuopt.Adam(lr=0.02)),
        ({"schedule": "cosine"}, gpuopt.Adam(lr=schedules.cosine(0.001, steps=50))),
        ({"data": "x.npz"}, gpuopt.Adam()),
        ({"optimizer": "rmsPROP"}, gpuopt.RMSProp()),
        ({"optimizer": "sgd", "hyperparameters": {"nesterov": True, "momentum": 0.5}}, gpuopt.SGD(0.01, 0.5, True)),
        (
            {"optimizer": "sgd", "lr": 1, "hyperparameters": {"momentum": "polynomial:final=0.5"}},
            gpuopt.SGD(lr=1, momentum=schedules.polynomial(0.0, steps=50, final=0.5)),
        ),
        ({"optimizer": gpuopt.SGD(lr=3)}, gpuopt.SGD(lr=3)),
    ],
)
def test_the_rule_that_is_chosen_and_its_way_through_json(options: dict[str, Any], rule: gpuopt.Rule) -> None:
    config = Config(**options, epochs=5, batch_size=10).resolved(samples=95)
    assert config.rule() == rule
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("batch_size", "samples", "batches"), [("full", 95, 1), (10, 95, 10), (95, 95, 1), (200, 95, 1)]
)
def test_batches(batch_size: Any, samples: int, batches: int) -> None:
    assert Config(batch_size=batch_size).batches(samples) == batches
