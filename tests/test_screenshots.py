"""The pages as a browser shows them, in headless Chromium. With GPUOPT_SCREENSHOTS=FOLDER they are left there, to look at."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpuopt.landscape import PRESETS, draw
from gpuopt.training import Callback, Config, Training, report, train
from gpuopt.training.compare import compare

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


def a_report(folder: Path) -> Path:
    """Of a run whose learning rate is changed on the way."""

    class Hand(Callback):
        def step(self, training: Training) -> None:
            if training.optimizer.steps == 700:
                training.tune(lr=0.005)

    train(Config(epochs=1000, device="cpu"), out=folder / "run", callbacks=[Hand()])
    return report.draw(folder / "run")


def a_comparison(folder: Path) -> Path:
    return compare(config=Config(epochs=300, device="cpu"), out=folder / "all").folder / "report.html"


def a_landscape(folder: Path) -> Path:
    return draw("himmelblau", PRESETS["himmelblau"], folder)[-1]


@dataclass(frozen=True)
class Page:
    """A page, and how many pixels of it have to be neither white nor black nor grey."""

    make: Callable[[Path], Path]
    height: int
    coloured: int


PAGES = {
    "report": Page(a_report, 2100, 15_000),
    "comparison": Page(a_comparison, 1900, 5_000),
    "landscape": Page(a_landscape, 1500, 2_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_screenshot(name: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUOPT_BACKEND", "numpy")
    page = PAGES[name]
    folder = Path(os.environ.get("GPUOPT_SCREENSHOTS", tmp_path)).absolute()
    file = folder / f"{name}-{scheme}.png"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    options += ["--blink-settings=preferredColorScheme=0"] * (scheme == "dark")
    options += [f"--window-size=1280,{page.height}", f"--screenshot={file}", page.make(tmp_path).as_uri()]
    subprocess.run([str(BROWSER), *options], check=True, capture_output=True, timeout=120)
    with Image.open(file) as shot:
        assert shot.size == (1280, page.height)
        pixels = np.asarray(shot.convert("RGB")).astype(int)
    assert (pixels.max(axis=2) - pixels.min(axis=2) > 60).sum() > page.coloured
    brightness = float(np.median(pixels[:, :20].mean(axis=2)))  # of the margin
    assert (brightness < 80) == (scheme == "dark")
