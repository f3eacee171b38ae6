"""What a person sees of runs: the report of each one, several over each other, and several optimizers compared."""

import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from test_cli import gpuopt_

import gpuopt
from gpuopt import pictures
from gpuopt.runs.record.history import History
from gpuopt.runs.report import plots
from gpuopt.runs.report.process import Prompter
from gpuopt.training import Callback, Config, ExplodedError, Training, UsageError, report, train
from gpuopt.training.compare import compare
from gpuopt.training.outcome import plane

PICTURES = ["accuracy", "boundary", "confusion", "learning_rate", "loss", "norms"]
SHORT = Config(epochs=40, hidden=(8,))
EXPLODING = Config(epochs=300, hidden=(8,), optimizer="SGD", lr=1e20, on_explosion="rollback")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUOPT_BACKEND", "numpy")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a report."""
    folder = tmp_path_factory.mktemp("pictures") / "spiral"
    train(replace(SHORT, device="cpu"), out=folder)
    return folder


@pytest.fixture
def run(ran: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(ran, tmp_path / "run"))


def pngs(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.png"))


def assert_needs_nothing(page: Path) -> str:
    """The page fetches nothing: no script, all addresses inside."""
    text = page.read_text()
    assert all(address.startswith("data:image/") for address in re.findall(r"(?:src|href)=\W?([^\"'>]*)", text))
    assert not re.search(r"<(script|link|iframe)|https?:|@import|url\(", text)
    assert not list(page.parent.glob("*.tmp"))
    return text


def told(page: Path) -> str:
    """What it says, without tags."""
    return re.sub(r"<[^>]*>", " ", assert_needs_nothing(page))


# The report of a run


def test_every_run_gets_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUOPT_REPORT")
    result = train(SHORT, out="run")
    assert pngs(Path("run")) == PICTURES
    text = told(Path("run/report.html"))
    for words in ("How it ended", "Accuracy, training set", f"{result.train_loss:.4g}", '"epochs": 40'):
        assert words in text.replace("&quot;", '"')
    for name in PICTURES:
        with Image.open(f"run/{name}.png") as picture:
            assert len(picture.getcolors(1 << 20) or []) > 20
    assert Path("run/report.html").read_text().count("data:image/png") == len(PICTURES)


@pytest.mark.parametrize("option", ["--no-report", None])
def test_no_report(option: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if option:
        monkeypatch.delenv("GPUOPT_REPORT")
    assert gpuopt_("train", "--epochs", "2", "-q", "--out", "run", *filter(None, [option])).exit_code == 0
    assert not Path("run/report.html").exists()


def test_an_explosion_is_in_the_report() -> None:
    with pytest.raises(ExplodedError):
        train(EXPLODING, out="run", report=True)
    text = told(Path("run/report.html"))
    assert "exploded: " in text
    assert "(rollback 10)" in text
    assert "Stopped, because" in text


def test_a_report_that_fails_is_a_warning(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Obstacle(Callback):
        def end(self, training: Training) -> None:
            Path("a/report.html").mkdir()

    assert train(SHORT, out="a", callbacks=[Obstacle()], report=True).epochs == 40
    monkeypatch.setattr("gpuopt.runs.report.process.PATIENCE", 0)
    assert train(SHORT, out="b", report=True).epochs == 40
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert train(SHORT, out="c", report=True).epochs == 40
    first, second, third = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert first.startswith("no report: OSError: [Errno 22] not a regular file, expected one to replace: ")
    assert first.endswith(f". To draw it: gpuopt plot {Path('a').absolute()}")
    assert second == f"no report: not done after 0 s. To draw it: gpuopt plot {Path('b').absolute()}"
    assert third.startswith("no report: [Errno 2] No such file or directory: ")


@pytest.mark.skipif(os.name != "posix", reason="a script of the shell")
def test_an_artist_that_dies_early_is_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path("python")
    script.write_text("#!/bin/sh\nexec 0<&-\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script.absolute()))

    class Wait(Callback):
        def start(self, training: Training) -> None:
            time.sleep(1)  # until it is no more

    assert train(SHORT, out="run", callbacks=[Wait()], report=True).epochs == 40
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    drawn = f"To draw it: gpuopt plot {Path('run').absolute()}"
    assert record.getMessage() == f"no report: the process that draws ended with 3. {drawn}"


def test_who_leaves_at_once_gets_none() -> None:
    class Leaving(Callback):
        def epoch(self, training: Training) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SHORT, out="run", callbacks=[Leaving()], report=True)
    assert not Path("run/report.html").exists()


def test_the_artist_ends_with_the_training(run: Path) -> None:
    """When the training is killed its end of the pipe closes."""
    command = [
        sys.executable,
        "-c",
        "from gpuopt.runs.report.process import main; main()",
        str(run),
        "gpuopt.training.report",
    ]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, env=env, check=False, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert pngs(run) == []


@pytest.mark.parametrize(
    ("seconds", "epoch"),
    [(0.01, 1), (4.0, 80), (1000.0, 90)],
    ids=["at once", "when the next row would be too late", "at the last row but one"],
)
def test_the_artist_is_prompted_late(seconds: float, epoch: int) -> None:
    """With what it needs left of a training that takes so many seconds."""
    training = SimpleNamespace(total=100)
    words = {}
    with Path("words").open("w") as stdin:
        prompter = Prompter(cast("Any", SimpleNamespace(stdin=stdin)))
        for k in (1, *range(10, 101, 10)):
            prompter.reported(cast("Any", training), {"step": k, "seconds": seconds * k / 100})
            words[k] = Path("words").read_text()
    assert words == {k: "rehearse\n" * (k >= epoch) for k in words}


def test_a_rehearsal_ends_when_it_is_enough(run: Path) -> None:
    enough = iter([False, True])
    report.rehearse(run, until=lambda: next(enough))
    assert list(enough) == []
    assert pngs(run) == []


# Drawn again, from the folder alone


def test_a_run_that_goes_on_or_was_killed(run: Path) -> None:
    (run / "summary.json").unlink()
    rows = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(rows[:-20])
    result = gpuopt_("plot", str(run))
    assert (result.exit_code, result.stdout) == (0, f"{run / 'report.html'}\n")
    text = told(run / "report.html")
    assert "still going on, stopped or killed" in text
    assert len(History.read(run).rows) == rows.count(b"\n") - 1
    assert pngs(run) == PICTURES


def test_a_run_that_has_hardly_begun(run: Path) -> None:
    for name in ("summary.json", "checkpoint.safetensors", "metrics.jsonl"):
        (run / name).unlink()
    report.draw(run)
    assert "No metrics yet." in told(run / "report.html")
    assert pngs(run) == []


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_other_data(kind: str) -> None:
    """Numbers over the plane, classes in space; a test set; and then the data are gone."""
    random = np.random.RandomState(0)
    x = random.rand(60, 2 if kind == "numbers" else 3)
    y = x.sum(axis=1) if kind == "numbers" else x.argmax(axis=1)
    np.savez("data.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    train(Config(data="data.npz", hidden=(8,), epochs=5), out="run")
    report.draw("run")
    there = (
        ["boundary", "loss", "norms", "predicted", "residuals", "rmse"]
        if kind == "numbers"
        else ["accuracy", "confusion", "loss", "norms"]
    )
    assert pngs(Path("run")) == there
    assert "Loss, test set" in told(Path("run/report.html"))
    Path("data.npz").unlink()
    report.draw("run")
    assert "Without pictures of what the network predicts: data.npz: No such file" in told(
        Path("run/report.html")
    ).replace(f"{Path.cwd()}/", "")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "run: is no run folder: it has no config.json"),
        ("config.json", "{}", "run/config.json: is not the configuration of a run"),
        ("metrics.jsonl", '{"epoch": 1\n', "run/metrics.jsonl: line 1 is not readable"),
        ("summary.json", "{", "run/summary.json: is not readable"),
    ],
)
def test_damaged_folders(run: Path, name: str, content: str | None, message: str) -> None:
    (run / name).unlink() if content is None else (run / name).write_text(content)
    result = gpuopt_("plot", "run")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"gpuopt: {message}\n")
    assert pngs(run) == []


# Several over each other


def test_several_runs(run: Path) -> None:
    shutil.copytree(run, "other/run")
    with pytest.raises(ExplodedError):
        train(EXPLODING, out="exploded")
    assert gpuopt_("plot", "run", "exploded", "--out", "both.html").stdout == "both.html\n"
    text = told(Path("both.html"))
    assert "run, exploded" in text
    assert "(rollback 10)" in text
    assert gpuopt_("plot", "run", "other/run").stdout == "runs.html\n"
    assert "run, other/run" in told(Path("runs.html"))
    assert gpuopt_("plot", "run", "--out", "one.png").exit_code == 0
    with Image.open("one.png") as picture:
        assert picture.width == 1536
    for out, message in [
        ("both.pdf", "gpuopt: --out both.pdf: expected a file .html or .png\n"),
        ("nowhere/both.png", "gpuopt: --out nowhere/both.png: No such file or directory\n"),
    ]:
        refused = gpuopt_("plot", "run", "exploded", "--out", out)
        assert (refused.exit_code, refused.stderr) == (2, message)


def test_lines_differ_without_their_colours() -> None:
    styles = [pictures.style(number) for number in range(3 * len(pictures.STYLES))]
    assert len({(str(style.dash), style.marker) for style in styles}) == len(styles)
    assert len({style.color for style in styles}) == len(pictures.STYLES)


@pytest.mark.parametrize(
    ("values", "from_zero", "limits", "kind"),
    [
        ([1, 2, 5], False, (0.5, 5.5), "linear"),
        ([0.3, 0.4], True, (-0.015, 0.45), "linear"),
        ([0.02, 3.0], False, (0.01, 5), "log"),
        ([1.9e-3, 1.9e17], False, (2e-4, 2e18), "log"),
        ([0.02, 3.0, 0.0], False, (-0.5, 3.5), "linear"),
        ([9.999999999999999e22, 1e25, math.nan, math.inf], False, (5e22, 2e25), "log"),
        ([7, 7], False, (3, 11), "linear"),
        ([0, 0], False, (-1.2, 1.2), "linear"),
        ([-2, -2], False, (-3.2, -0.8), "linear"),
        ([5e-324, 5e-324], True, (-1.2, 1.2), "linear"),
        ([1.7e308, 1.7e308], False, (4e299, 1.6e300), "linear"),
        ([1, 1.7e308], False, (1e-5, 2e305), "log"),
    ],
    ids=str,
)
def test_axes(values: list[float], from_zero: bool, limits: tuple[float, float], kind: str) -> None:
    _, (axes,) = pictures.figure()
    pictures.scale(axes, values, from_zero=from_zero)
    assert axes.get_ylim() == pytest.approx(limits)
    assert axes.get_yscale() == kind


def test_a_figure_that_is_used_again_draws_the_same() -> None:
    """As one alone, whatever was drawn before, and more of them than stills are kept."""

    def made(top: float) -> Any:
        figure, (axes,) = pictures.figure(4, 3, labels=["line"])
        pictures.draw_line(axes, [0, 1], [1, top], 0, "line")
        pictures.scale(axes, [1, top])
        pictures.legend(figure)
        return figure

    tops = [2, 500, 2, 3, 500.0, *range(4, 14), 2, 1e9, 500]
    alone = [pictures.png(made(top)) for top in tops]
    again = pictures.pngs((str(k), made(top)) for k, top in enumerate(tops))
    assert list(again.values()) == alone
    assert len(set(alone)) == len(set(tops))


def test_a_figure_with_a_colour_bar_is_not_used_again() -> None:
    def made() -> Any:
        figure, (axes,) = pictures.figure(4, 3)
        figure.colorbar(axes.scatter([0, 1], [0, 1], c=[0, 1]), ax=axes)
        return figure

    first, second = pictures.pngs((name, made()) for name in "ab").values()
    assert first == second


# Optimizers compared


def entries(folder: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(Path(folder, "comparison.json").read_text())["entries"]
    return content


def test_compare_on_the_command_line() -> None:
    result = gpuopt_("compare", "--epochs", "60", "--hidden", "8", "--report-every", "1", "--out", "all")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["SGD", "AdaGrad", "RMSProp", "Adam"]
    assert re.split("  +", lines[5])[:5] == ["optimizer", "final loss", "accuracy", "steps to loss 0.549", "time (s)"]
    assert [line.split()[0] for line in lines[6:10]] == ["SGD", "AdaGrad", "RMSProp", "Adam"]
    assert lines[-1] == f"Report: {Path('all/report.html').absolute()}"
    parameters = 2 * 8 + 8 + 8 * 3 + 3
    assert [entry["state_bytes"] for entry in entries("all")] == [4 * parameters * n for n in (1, 1, 1, 2)]
    starts = [History.read(f"all/{entry['optimizer']}").rows[0] for entry in entries("all")]
    assert len({(row["loss"], row["gradient_norm"]) for row in starts}) == 1
    for entry in entries("all"):
        reached = [
            row["step"] for row in History.read(f"all/{entry['optimizer']}").rows if row["loss"] <= math.log(3) / 2
        ]
        assert entry["steps_to_threshold"] == (min(reached) if reached else None)
    assert "SGD(lr=0.5, momentum=0.9" in told(Path("all/report.html"))
    assert pngs(Path("all")) == ["comparison"]


def test_compare_with_one_that_explodes(capsys: pytest.CaptureFixture[str]) -> None:
    optimizers = ["SGD:lr=1e20", "SGD:lr=0.5,nesterov=true,momentum=0.9", "adam"]
    found = compare(optimizers, SHORT, out="some", threshold=0.5, quiet=False)
    assert [re.split("  +", line)[0] for line in capsys.readouterr().out.splitlines()] == optimizers
    assert found.entries[0].outcome.startswith("the training exploded")
    assert [entry.outcome for entry in found.entries[1:]] == ["finished", "finished"]
    assert found.entries[1].rule == "SGD(lr=0.5, momentum=0.9, nesterov=True)"
    assert found.threshold == 0.5
    assert found.table()[1][0][3] == "-"
    assert Path("some/SGD_lr=0.5_nesterov=true_momentum=0.9/config.json").exists()


def test_compare_chains() -> None:
    """On the command line as NAME+NAME, in Python as rules; without arguments, the rule of a chain has what it has alone."""
    text = "ClipNorm:limit=1e+3+Adam+EMA:decay=0.9"
    result = gpuopt_("compare", "Adam", text, "--epochs", "3", "--hidden", "8", "--out", "text")
    assert result.exit_code == 0
    rules = {
        "alone": gpuopt.Adam(lr=0.05),
        "chain": gpuopt.chain(gpuopt.ClipNorm(1e3), gpuopt.Adam(lr=0.05), gpuopt.EMA(0.9)),
        "like": gpuopt.like.torch.Adam(lr=0.05),
    }
    config = Config(epochs=3, hidden=(8,), device="cpu")
    found = compare(rules, config, out="rules")
    written = json.loads(Path("text/comparison.json").read_text())["entries"]
    assert [entry["loss"] for entry in written] == [entry.loss for entry in found.entries[:2]]
    assert [(entry.optimizer, entry.rule) for entry in found.entries] == [
        (name, str(own)) for name, own in rules.items()
    ]


def test_landscape_of_chains() -> None:
    result = gpuopt_("landscape", "ravine", "SGD:lr=0.05+Accelerate", "--steps", "5", "--out", "some")
    assert (result.exit_code, Path("some/ravine.png").exists()) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Adma"], "gpuopt: Adma: unknown (did you mean AdaMax?)"),
        (["Adam:lr=-1"], "gpuopt: Adam:lr=-1: Adam: lr: got -1.0"),
        (["Adam:lr=up"], "gpuopt: Adam:lr=up: unknown schedule 'up'"),
        (["SGD", "Adam:lr=polynomial:final=-1"], "gpuopt: Adam:lr=polynomial:final=-1: Adam: lr at step"),
        (["Adam:beta=1"], "gpuopt: Adam:beta=1: unknown hyperparameter"),
        (["Adam:lr=1,lr=2"], "gpuopt: Adam:lr=1,lr=2: lr is given twice"),
        (["--threshold", "nan"], "--threshold nan: expected a positive number"),
        (["--threshold", "0"], "--threshold 0.0: expected a positive number"),
        (["Adam:lr"], "Adam:lr: expected NAME or NAME:ARG=VALUE,... as in SGD:lr=0.1,momentum=0.9"),
        (["Adam", "Adam"], "Adam Adam: expected each one once"),
        (["ClipNrm+Adam"], "ClipNrm+Adam: unknown (did you mean ClipNorm?)"),
        (["ClipNorm:max=1e+3+Adam"], "ClipNorm: unknown hyperparameter 'max'"),
        (["SGD+Adam"], "SGD+Adam: chain: SGD, Adam among 2 members, expected one rule"),
        (["--data", "nowhere.npz"], "nowhere.npz: No such file or directory"),
        (["--epochs", "0"], "--epochs 0: expected a positive integer"),
        (["--out", "there"], "--out there: exists already; choose another one"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_compare_refuses(arguments: list[str], message: str) -> None:
    Path("there").mkdir()
    Path("there/file").touch()
    out = [] if "--out" in arguments else ["--out", "new"]
    result = gpuopt_("compare", *arguments, *out)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "--resume" not in result.stderr
    assert not Path("new").exists()


def test_a_terminal_sees_a_line_for_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    compare(["SGD", "SGD:lr=1e20", "Adam"], SHORT, out="both", quiet=False)
    shown = capsys.readouterr().out
    assert re.search(r"SGD .*loss 1\.\d+ .*\nSGD:lr=1e20 .*exploded.*\n(.*\n)*.*Adam .*loss 1\.\d+ ", shown)


def test_of_one_it_is_a_name() -> None:
    with pytest.raises(UsageError, match="is no run folder"):
        History.read("nowhere")


def test_a_run_has_one_style_in_all_parts_and_in_its_events(tmp_path: Path) -> None:
    x = np.random.RandomState(0).standard_normal((40, 2))
    np.savez("both.npz", x_train=x[:30], y_train=x[:30, 0] > 0, x_test=x[30:], y_test=x[30:, 0] > 0)

    class Drop(Callback):
        def epoch(self, training: Training) -> None:
            if training.epoch == 3:
                training.tune(lr=0.01)

    for name, config in {"without": Config(epochs=5), "with": Config(data="both.npz", epochs=5)}.items():
        train(replace(config, hidden=(3,), device="cpu"), out=name, callbacks=[Drop()] * (name == "with"), report=False)
    figure = plots.overlay([History.read("without"), History.read("with")])
    seen: dict[str, set[Any]] = {"without": set(), "with": set()}
    titles = {}
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.lines if line.get_label() in seen}
        titles[axes.get_title()] = set(lines)
        for name, line in lines.items():
            seen[name].add((line.get_color(), line.get_marker()))
        (top,) = (
            line
            for line in axes.lines
            if line.get_xdata()[:1] == [3] and line.get_marker() != "None" and line.get_label() not in seen
        )
        assert {(top.get_color(), top.get_marker())} == seen["with"]
    assert [title for title, names in titles.items() if names == {"with"}] == ["Test loss", "Test accuracy"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["without", "with"]
    assert [len(styles) for styles in seen.values()] == [1, 1]
    assert seen["with"].isdisjoint(seen["without"])


def assert_all_is_seen(figure: Any) -> None:
    """The legend is on the picture, and hides nothing of the axes and what is written at them."""
    (legend,) = figure.legends
    box = legend.get_window_extent()
    for inner in [box, *(axes.get_tightbbox() for axes in figure.axes)]:
        assert figure.bbox.x0 <= inner.x0 < inner.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= inner.y0 < inner.y1 <= figure.bbox.y1
    assert all(not box.overlaps(axes.get_tightbbox()) for axes in figure.axes)


@pytest.mark.parametrize("classes", [2, 7, 14])
def test_legends_hide_nothing(classes: int) -> None:
    """Neither curves nor samples, however long the names are."""
    x = np.random.RandomState(0).standard_normal((60, 2))
    np.savez("some.npz", x_train=x, y_train=np.arange(60) % classes, x_test=x, y_test=np.arange(60) % classes)
    train(Config(data="some.npz", epochs=5, hidden=(3,), device="cpu"), out="run", report=False)
    run = History.read("run")
    several = plots.overlay([run.called(f"SGD_lr=0.{k}_nesterov=true_momentum=0.9") for k in range(classes)])
    regions = plane(run)
    for figure in [*dict(plots.figures(run)).values(), several, regions]:
        assert_all_is_seen(figure)
    assert regions is not None
    named = [text.get_text() for text in regions.legends[0].get_texts()]
    assert named == [f"class {k}" for k in range(classes)]


def test_events_long_after_the_last_row_are_on_the_picture(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "pause", "step": 60000}\n')
    report.draw(run)
    for _, figure in plots.figures(History.read(run)):
        assert figure.axes[0].get_xlim()[1] > 60000


def test_events_at_one_step_do_not_hide_each_other() -> None:
    class Drop(Callback):
        def epoch(self, training: Training) -> None:
            training.tune(lr=0.01)

    for name in ("a", "b"):
        train(Config(epochs=1, hidden=(3,), device="cpu"), out=name, callbacks=[Drop()], report=False)
    for axes in plots.overlay([History.read("a"), History.read("b")]).axes:
        tops = [line.get_ydata()[0] for line in axes.lines if line.get_transform() != axes.transData]
        assert len(tops) == len(set(tops)) + 1  # both vertical lines begin at the bottom


def test_black_is_seen_on_all_colours_of_numbers() -> None:
    x = np.random.RandomState(0).standard_normal((60, 2))
    np.savez("numbers.npz", x_train=x, y_train=x.sum(axis=1))
    train(Config(data="numbers.npz", epochs=5, hidden=(3,), device="cpu"), out="run", report=False)
    figure = plane(History.read("run"))
    assert figure is not None
    (filled, *_) = figure.axes[0].collections
    shades = filled.cmap(np.linspace(0, 1, 20))[:, :3] @ (0.299, 0.587, 0.114)
    assert shades.min() > 0.3
    assert (np.diff(shades) > 0).all()


def test_regions_can_be_told_apart_without_colour(ran: Path) -> None:
    figure = plane(History.read(ran))
    assert figure is not None
    shades = np.asarray(figure.axes[0].images[0].get_array()) @ (0.299, 0.587, 0.114)
    found = np.unique(shades.round(6))
    assert len(found) == 3
    assert np.diff(found).min() > 0.1


def test_the_validation_part_of_the_spiral_is_what_its_report_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []

    def outcomes(_: Any, data: Any, **__: Any) -> list[Any]:
        drawn.append(data)
        return []

    monkeypatch.setattr(report, "outcomes", outcomes)
    train(replace(SHORT, epochs=2, validation=0.25, device="cpu"), out=tmp_path / "run")
    report.draw(tmp_path / "run")
    (data,) = drawn
    assert len(data.train) == 3 * len(data.test) > 0
