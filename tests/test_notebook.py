"""What a notebook shows of an optimizer and of a run: HTML that is whole, escaped, and needs nothing from outside."""

import math
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import notebook
from gpuopt.training import Callback, Config, Training, train


def parsed(html: str) -> ET.Element:
    """The tree; an error if a tag is not closed or a sign not escaped."""
    assert "http" not in html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "<script" not in html
    return ET.fromstring(f"<div>{html}</div>")


def cells(tree: ET.Element) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row] for row in tree.iter("tr")]


def svgs(tree: ET.Element) -> list[ET.Element]:
    return list(tree.iter("{http://www.w3.org/2000/svg}svg"))


def test_optimizer() -> None:
    params = [{"w": np.zeros((3, 2)), "<b>&'\"": np.zeros(2, np.float32)}]
    cosine = gpuopt.schedules.cosine(0.1, steps=50)
    rules = {"*.w": gpuopt.Adam(lr=cosine), "*": gpuopt.SGD(lr=0.5, momentum=lambda step: 0.9)}
    optimizer = gpuopt.Optimizer(params, rules)
    optimizer.tune("*", lr=0.25)
    tree = parsed(optimizer._repr_html_())
    rows = cells(tree)
    assert ["0.<b>&'\"", "(2,)", "float32", "*"] in rows
    assert ["0.w", "(3, 2)", "float64", "*.w"] in rows
    assert ["*.w", "Adam", "lr", "0.1", repr(cosine)] in rows
    assert ["*", "SGD", "lr", "0.25", ""] in rows
    assert "Optimizer: 0 steps taken, 2 leaves, 8 parameters" in "".join(tree.itertext())
    assert len(svgs(tree)) == 1


@pytest.mark.parametrize(
    ("lr", "words", "drawn"),
    [
        (gpuopt.schedules.exponential(1.0, decay=2.0), None, 1),
        (gpuopt.schedules.polynomial(1.0, steps=9, final=-1.0), None, 1),
        (gpuopt.schedules.step(1.0, factor=1e300, every=1), "step: beyond the floats at step 2", 1),
        (gpuopt.schedules.piecewise(1e308, [10, 20], [0.0, 1e-308]), None, 1),
        (lambda step: 1 / (2 - step), "SGD: lr at step 2, by its schedule: ZeroDivisionError: ", 0),
        (lambda step: "<0.1>" if step == 2 else 0.1, "SGD: lr at step 2, by its schedule: got '<0.1>' (str)", 0),
    ],
    ids=["overflows later", "negative later", "overflows", "large", "divides", "text"],
)
def test_optimizer_whose_schedule_fails(lr: Any, words: str | None, drawn: int) -> None:
    optimizer = gpuopt.Optimizer(np.zeros(1), gpuopt.SGD(lr=lr))
    for _ in range(2):
        optimizer.step(np.zeros(1))
    tree = parsed(optimizer._repr_html_())
    (shown,) = [row[3] for row in cells(tree) if row[2:3] == ["lr"]]
    assert words is None or words in shown
    assert len(svgs(tree)) == drawn
    assert "nan" not in optimizer._repr_html_()


def test_optimizer_with_many_leaves() -> None:
    optimizer = gpuopt.Optimizer([np.zeros(2) for _ in range(1000)], gpuopt.SGD(lr=0.1))
    rows = cells(parsed(optimizer._repr_html_()))
    assert rows[-1] == ["and 960 more"]


class Change(Callback):
    def epoch(self, training: Training) -> None:
        if training.epoch == 5:
            training.tune(lr=0.02)


@pytest.mark.parametrize("kind", ["classes", "regression"])
def test_run(tmp_path: Path, kind: str) -> None:
    x = np.random.RandomState(0).rand(40, 3)
    y = x.argmax(axis=1) if kind == "classes" else x.sum(axis=1)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    config = Config(data=str(tmp_path / "data.npz"), hidden=(4,), device="cpu", lr=0.05)
    result = train(config, out=tmp_path / "<run>&", callbacks=[Change()])
    tree = parsed(result._repr_html_())
    rows = cells(tree)
    assert ["steps", f"{result.steps:,}"] in rows
    assert ["*", "Adam", "lr", "0.05", "0.02"] in rows
    assert ["*", "Adam", "beta1", "0.9", ""] in rows
    assert ["layers.0.w", "[3, 4]", "float32"] in rows
    text = "".join(tree.itertext())
    assert "Run <run>&" in text
    titles = [svg.get("aria-label") for svg in svgs(tree)]
    loss = "loss (cross-entropy, nats)" if kind == "classes" else "loss (mean squared error)"
    accuracy = ["accuracy (fraction of samples)"] * (kind == "classes")
    assert titles == [loss, *accuracy, "learning rate (per step)"]
    assert "step (number)" in text
    assert "test" in text

    (tmp_path / "<run>&" / "metrics.jsonl").write_text("no JSON\n")
    (tmp_path / "<run>&" / "checkpoint.safetensors").write_bytes(b"damaged")
    assert not svgs(parsed(result._repr_html_()))
    shutil.rmtree(tmp_path / "<run>&")
    assert ["steps", f"{result.steps:,}"] in cells(parsed(result._repr_html_()))


@pytest.mark.parametrize(
    ("points", "lines"),
    [
        ([], None),
        ([(1, None), (2, math.nan), (3, math.inf)], None),
        ([(1, 2.0)], 1),
        ([(1, 2.0), (2, 2.0)], 1),
        ([(1, 1.0), (2, None), (3, 2.0)], 2),  # a gap
        ([(1, 1.0), (2, 2.0), (1, 3.0)], 2),  # it went back
        ([(1, 1e-3), (2, 10.0)], 1),
        ([(1, 5e-324), (2, 1.7e308)], 1),
        ([(1, -1.7e308), (2, 1.7e308)], 1),
    ],
    ids=str,
)
def test_curves(points: list[tuple[float, float | None]], lines: int | None) -> None:
    svg = notebook.curves("<loss>", {"a": points}, marks=[1.5, 99])
    if lines is None:
        assert svg == ""
        return
    paths = [path.get("d") or "" for path in parsed(svg).iter("{http://www.w3.org/2000/svg}path")]
    assert sum(path.count("M") for path in paths[-1:]) == lines
    assert "nan" not in svg
    values = [value for _, value in points if value is not None]
    assert (", logarithmic" in svg) == (min(values) > 0 and max(values) / min(values) > 20)
