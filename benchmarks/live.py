"""What steering and the live page cost: the built-in run as it is, without steering, and with a page that is looked at.

python -m benchmarks.live [--repeat 5] [--epochs 60000] [--out FOLDER]

Times the processes as a whole, in turn: ``gpuopt train``; the same with the part that listens for commands taken out;
and ``gpuopt train --live`` with the page open in a headless Chromium, which needs the extra ``live``, selenium and
Chromium. It takes some seconds until a browser has loaded the page: of a run of 10,000 epochs, most of its time. Prints
medians and their ratios, and saves them as ``live.json``. Where processors are few, the browser takes its share of them:
the third line holds for a browser on the same machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.timing import machine, table, versions

if TYPE_CHECKING:
    from collections.abc import Callable

# What `gpuopt train` does, but nobody listens.
WITHOUT = """
import sys
from gpuopt.cli import main
from gpuopt.training import Callback, run
run.Steering = lambda checkpoints: Callback()
sys.argv[0] = "gpuopt"
main()
"""


def command(epochs: int, folder: str, *more: str, code: str | None = None) -> list[str]:
    """The command line of a run."""
    start = ["-m", "gpuopt.cli"] if code is None else ["-c", code]
    return [
        sys.executable,
        *start,
        "train",
        "--device",
        "cpu",
        "--epochs",
        str(epochs),
        "--out",
        f"{folder}/run",
        *more,
    ]


def plain(epochs: int, code: str | None = None) -> float:
    """Seconds of a run, and nobody looks."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        subprocess.run(command(epochs, folder, code=code), stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - begin


def watched(epochs: int, browser: Any) -> float:
    """Seconds of a run with its page open from the first moment."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        run = command(epochs, folder, "--live")
        with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            url = next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
            browser.get(url)
            process.stdout.read()
            process.wait()
        seconds = time.perf_counter() - begin
        browser.get("about:blank")
        time.sleep(3)  # the page's process says farewell
        return seconds


def chromium() -> Any:
    """A headless browser, or None."""
    if importlib.util.find_spec("nicegui") is None or importlib.util.find_spec("selenium") is None:
        return None
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,960"):
        options.add_argument(f"--{argument}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    runs: dict[str, Callable[[], float]] = {
        "nobody listens": lambda: plain(options.epochs, WITHOUT),
        "nothing open": lambda: plain(options.epochs),
    }
    browser = chromium()
    if browser is None:
        print("the extra live or selenium is not installed: the page is left out")
    else:
        runs["--live, page open"] = lambda: watched(options.epochs, browser)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeat):
        for name, run in runs.items():
            seconds[name].append(run())
    if browser is not None:
        browser.quit()
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    first, second, *_ = medians.values()
    rows = [
        [
            name,
            f"{medians[name]:.2f} s",
            f"{min(seconds[name]):.2f} s",
            f"{medians[name] / (first if k < 2 else second):.3f}",
        ]
        for k, name in enumerate(medians)
    ]
    print(table([f"{options.epochs:,} epochs, the whole process", "median", "minimum", "to the one above"], rows))
    about = {"machine": machine(), "versions": versions("gpuopt", "numpy", "nicegui"), "seconds": seconds}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "live.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
