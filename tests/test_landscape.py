"""Landscapes: their gradients are those of their values, and each preset does what its name says."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from test_cli import gpuopt_
from test_pictures import assert_all_is_seen

import gpuopt
from gpuopt import pictures
from gpuopt.landscape import LANDSCAPES, PRESETS, changed, draw, walk

Walks = dict[str, NDArray[np.float64]]
LOCAL, LOWEST = (2.839604, 0.0), (0.0, 0.0)


@pytest.mark.parametrize("name", LANDSCAPES)
def test_gradients_and_minima(name: str) -> None:
    place = LANDSCAPES[name]
    random = np.random.RandomState(0)
    (left, bottom), (right, top) = place.window
    assert left < place.start[0] < right
    assert bottom < place.start[1] < top
    h = 1e-5
    for x, y in random.uniform((left, bottom), (right, top), (50, 2)):
        expected = [
            (place.value(x + h, y) - place.value(x - h, y)) / (2 * h),
            (place.value(x, y + h) - place.value(x, y - h)) / (2 * h),
        ]
        np.testing.assert_allclose(place.gradient(x, y), expected, rtol=1e-5, atol=1e-5)
    for x, y in place.minima:
        np.testing.assert_allclose(place.gradient(x, y), 0, atol=1e-4)
        around = [place.value(x + 0.01 * math.cos(a), y + 0.01 * math.sin(a)) for a in range(12)]
        assert min(around) > place.value(x, y)


def test_a_walk_is_the_optimizers() -> None:
    place = LANDSCAPES["rosenbrock"]
    x, y, vx, vy = *place.start, 0.0, 0.0
    expected = [(x, y)]
    for _ in range(20):
        gx, gy = place.gradient(x, y)
        vx, vy = 0.9 * vx - 0.0005 * gx, 0.9 * vy - 0.0005 * gy
        x, y = x + vx, y + vy
        expected.append((x, y))
    np.testing.assert_allclose(walk(place, gpuopt.SGD(lr=0.0005, momentum=0.9), 20), expected, rtol=1e-12)


def heights(name: str, path: Any) -> NDArray[np.float64]:
    return np.asarray(PRESETS[name].place.value(*path.T))


def far(path: Any, point: tuple[float, float]) -> float:
    return float(np.hypot(*(path[-1] - point)))


def stagnates(walks: Walks) -> None:
    (path,) = walks.values()
    assert (np.diff(heights("too-small", path)) < 0).all()  # downhill, always
    assert np.hypot(*(path[-1] - path[0])) < 0.1 * np.hypot(*path[0])  # but hardly anywhere
    assert heights("too-small", path)[-1] > 0.8 * heights("too-small", path)[0]


def bounces(walks: Walks) -> None:
    (path,) = walks.values()
    y = path[:, 1]
    assert (np.sign(y[1:]) == -np.sign(y[:-1])).all()  # on the other side after every step
    assert abs(y[-1]) > 0.25 * abs(y[0])  # and not near the bottom even at the end
    assert np.abs(y).max() == abs(y[0])  # without exploding
    assert far(path, LOCAL) > 0.4


def rolls_out(walks: Walks) -> None:
    plain, rolling = walks.values()
    assert far(plain, LOCAL) < 1e-3
    assert far(rolling, LOWEST) < 0.05
    assert np.diff(heights("momentum", rolling)).max() > 0.05  # it went uphill on the way


def explodes(walks: Walks) -> None:
    (path,) = walks.values()
    assert (np.diff(heights("explodes", path)) > 0).all()
    assert heights("explodes", path)[-1] > 50 * heights("explodes", path)[0]


LESSONS: dict[str, Callable[[Walks], None]] = {
    "too-small": stagnates,
    "too-large": bounces,
    "momentum": rolls_out,
    "explodes": explodes,
}


@pytest.mark.parametrize("name", LESSONS)
def test_a_preset_does_what_its_name_says(name: str) -> None:
    assert PRESETS[name].landscape == "wells"
    LESSONS[name](PRESETS[name].walks())


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in LESSONS])
def test_all_optimizers_get_down(name: str) -> None:
    preset = PRESETS[name]
    assert {type(rule) for rule in preset.rules.values()} == {gpuopt.SGD, gpuopt.AdaGrad, gpuopt.RMSProp, gpuopt.Adam}
    (left, bottom), (right, top) = preset.place.window
    for who, path in preset.walks().items():
        assert heights(name, path)[-1] < 0.3 * heights(name, path)[0], who
        assert ((left, bottom) < path).all(), who
        assert (path < (right, top)).all(), who


def test_who_ends_where() -> None:
    """In the wells only momentum gets over the hill; Himmelblau's minima are reached by different ones."""
    ends = {who: far(path, LOWEST) < 0.05 for who, path in PRESETS["wells"].walks().items()}
    assert [who for who, there in ends.items() if there] == ["SGD, momentum 0.9"]
    preset = PRESETS["himmelblau"]
    minima = preset.place.minima
    nearest = {min(range(4), key=lambda k: far(path, minima[k])) for path in preset.walks().values()}
    assert len(nearest) >= 3


def test_drawing(tmp_path: Path) -> None:
    preset = changed(PRESETS["momentum"], {"Adam": gpuopt.Adam(lr=0.1)}, 5, (1.0, 1.0))
    still, animation, page = draw("some", preset, tmp_path / "out")
    with Image.open(still) as picture, Image.open(animation) as frames:
        assert picture.size == (1488, 600)
        assert getattr(frames, "n_frames", 0) == 6
        assert frames.info["loop"] == 0
    text = page.read_text()
    assert "Adam(lr=0.1" in text
    assert text.count("data:image/") == 2
    assert "http" not in text
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_what_explodes_is_drawn(tmp_path: Path) -> None:
    draw("x", changed(PRESETS["explodes"], {"SGD": gpuopt.SGD(lr=1e9)}, 100, None), tmp_path)
    assert ">nan<" in (tmp_path / "x.html").read_text()


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = gpuopt_("landscape", "himmelblau", "Adam:lr=0.2", "--steps", "3", "--start", "1,-1", "--out", "out")
    assert result.stdout.split() == [f"out/himmelblau.{end}" for end in ("png", "gif", "html")]
    assert "Adam(lr=0.2" in Path("out/himmelblau.html").read_text()
    for arguments, message in [
        (["alps"], "gpuopt: alps: expected one of all, too-small, too-large, momentum, explodes, ravine,"),
        (["beale", "Adma"], "gpuopt: Adma: unknown (did you mean AdaMax?)"),
        (["beale", "SGD:lr"], "gpuopt: SGD:lr: expected NAME or NAME:ARG=VALUE,... as in SGD:lr=0.1,momentum=0.9"),
        (["beale", "SGD", "Adam:lr=cosin"], "gpuopt: Adam:lr=cosin: unknown schedule 'cosin' (did you mean 'cosine'?)"),
        (
            ["beale", "SGD:lr=polynomial:final=-1"],
            "gpuopt: SGD:lr=polynomial:final=-1: SGD: lr at step",
        ),
        (["beale", "--start", "3"], "gpuopt: --start 3: expected two numbers, as in -1.5,2"),
        (
            ["beale", "--start", "nan,1"],
            "gpuopt: --start nan,1: is not in the picture; expected x from -0.2 to 3.6 and",
        ),
        (
            ["all", "--start", "4,1.5"],
            "gpuopt: --start 4,1.5: is not in the picture; expected x from -4.6 to 1.4 and y",
        ),
        (["beale", "--steps", "1", "--out", "out/himmelblau.png"], "gpuopt: --out out/himmelblau.png: File exists"),
    ]:
        refused = gpuopt_("landscape", *arguments)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert refused.stderr.startswith(message)


def test_a_schedule_goes_over_the_steps_that_are_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert gpuopt_("landscape", "ravine", "SGD:lr=cosine", "--steps", "7").exit_code == 0
    assert "steps=7" in Path("landscapes/ravine.html").read_text()


@pytest.mark.parametrize("names", [["Adam"], [f"SGD:lr=0.00{i},momentum=0.9,nesterov=true" for i in range(1, 10)]])
def test_all_is_on_the_picture(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    png = pictures.png

    def seen(figure: Any, *, small: bool = False) -> bytes:
        drawn.append(figure)
        return png(figure, small=small)

    monkeypatch.setattr(pictures, "png", seen)
    with tempfile.TemporaryDirectory() as folder:
        draw("ravine", changed(PRESETS["ravine"], dict.fromkeys(names, gpuopt.SGD(lr=0.01)), 3, None), Path(folder))
    (figure,) = drawn
    assert_all_is_seen(figure)


def test_the_documents_show_every_preset() -> None:
    folder = Path(__file__).parent.parent / "docs"
    text = (folder / "landscape.md").read_text()
    for name, preset in PRESETS.items():
        assert f"gpuopt landscape {name}\n" in text
        assert f"(landscape/{name}.png)" in text
        assert preset.says in " ".join(text.split())
        file = folder / "landscape" / f"{name}.png"
        assert file.stat().st_size < 60_000
        with Image.open(file) as picture:
            assert picture.size == (1488, 600)
