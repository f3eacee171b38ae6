"""The live page: who gets in, what it knows, and, in a headless Chromium, what its slider and buttons do."""

import asyncio
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from running import Running, gpuopt, opened, rows

from gpuopt.runs.control.channel import Server
from gpuopt.runs.control.live import Page, curves
from gpuopt.runs.control.live.guard import Guard
from gpuopt.runs.control.live.watcher import Watcher
from gpuopt.runs.record.folder import RunFolder
from gpuopt.training import UsageError

TOKEN, HOST = "secret", "127.0.0.1:80"
SCREENSHOTS = "GPUOPT_SCREENSHOTS"
"""Names the folder for pictures to be looked at."""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    yield from opened(tmp_path / "run")


@pytest.mark.parametrize(
    ("path", "headers", "welcome"),
    [
        ("/secret/", {}, True),
        ("/secret/a/b", {"origin": f"http://{HOST}"}, True),
        ("/", {}, False),
        ("/secre/", {}, False),
        ("/secret2/", {}, False),
        ("/s\u00e9cret/", {}, False),
        ("/a/secret/", {}, False),
        ("/secret/", {"origin": "http://evil.example"}, False),
        ("/secret/", {"origin": "null"}, False),
        ("/secret/", {"origin": "http://127.0.0.1:81"}, False),
        ("/secret/", {"host": "evil.example:80"}, False),
        ("/secret/", {"host": "evil.example:80", "origin": "http://evil.example:80"}, False),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_only_who_has_the_address_gets_in(kind: str, path: str, headers: dict[str, str], welcome: bool) -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "welcome"})

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    given = [(name.encode(), value.encode()) for name, value in ({"host": HOST} | headers).items()]
    scope = {"type": kind, "path": path, "headers": given}
    asyncio.run(Guard(app, TOKEN, {HOST})(scope, receive, send))
    refusal = "websocket.close" if kind == "websocket" else "http.response.start"
    assert sent[0]["type"] == ("welcome" if welcome else refusal)
    if kind == "http" and not welcome:
        assert sent[0]["status"] == 403
    sent.clear()  # on another interface every address leads there, and no name
    asyncio.run(Guard(app, TOKEN, set(), addresses=True)(scope, receive, send))
    assert (sent[0]["type"] == "welcome") == welcome


@pytest.mark.parametrize("method", ["BREW", "PUT", "get", ""])
def test_odd_methods_get_an_answer(method: str) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": f"/{TOKEN}/", "headers": [(b"host", HOST.encode())]}
    asyncio.run(Guard(cast("Any", None), TOKEN, {HOST})(scope, cast("Any", None), send))
    assert sent[0]["status"] == 405


def test_listening_for_everybody_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    page = Page("0.0.0.0")
    page._place.socket.close()
    assert "whoever is told the page's address may steer the run" in caplog.text


def test_without_the_extra_it_says_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, output = gpuopt("train", "--live", "--out", tmp_path / "run")
    assert (code, output.count("\n"), 'pip install "gpuopt[live]"' in output) == (2, 1, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("127.0.0.1:x", "port x, expected one from 1 to 65535"),
        ("127.0.0.1:-1", "port -1, expected one"),
        ("127.0.0.1:70000", "port 70000, expected one"),
        ("no such name", ""),
        ("192.0.2.1", ""),
    ],
)
def test_an_address_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, host: str, why: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match=f"--live-host {host}: cannot listen there: {why}"):
        Page(host)


def test_every_address_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    pages = [Page(), Page(), Page("localhost")]
    try:
        assert all(re.fullmatch(r"http://(127\.0\.0\.1|localhost):\d+/[\w-]{22}/", page.url) for page in pages)
        assert len({page.url.split("/")[3] for page in pages}) == 3
        for page in pages:
            assert page._place.socket.getsockname()[0] == "127.0.0.1"
    finally:
        for page in pages:
            page._place.socket.close()


def test_the_follower_knows_rows_events_and_more_points(running: Running) -> None:
    watcher = Watcher(RunFolder(running.folder), running._thread.is_alive)

    async def follow() -> None:
        following = asyncio.create_task(watcher.run())
        while watcher.now is None or not watcher.rows:
            await asyncio.sleep(0.01)
        assert await watcher.ask({"tune": {"lr": 0.125}}) is None
        assert "expected a number" in (await watcher.ask({"tune": {"lr": -1}}) or "")
        assert await watcher.ask({"pause": None}) is None
        version = watcher.version
        assert await watcher.ask({}) is None
        assert watcher.version == version  # nothing to be drawn
        assert await watcher.ask({"rollback": "last", "stop": None}) is None
        await following
        assert await watcher.ask({"pause": None}) == "no training is running"

    asyncio.run(follow())
    running._thread.join()
    assert (watcher.ended, watcher.killed) == (True, False)
    assert [row for row in watcher.rows if "loss" in row] == rows(running.folder)
    assert [event["event"] for event in watcher.events] == ["tune", "pause", "rollback", "stop"]
    for found in (watcher.rows, watcher.points):
        assert [row["step"] for row in found if "loss" not in row] == [watcher.events[2]["back_to_step"]]
    assert watcher.points[-1]["step"] == watcher.events[-1]["step"]


def test_the_follower_goes_on_with_a_training_that_goes_on_and_tells_when_it_was_killed(tmp_path: Path) -> None:
    folder, alive = RunFolder(tmp_path), [True]
    folder.config.touch()
    now = {"step": 1, "lr": 0.5}
    watcher = Watcher(folder, lambda: alive[0])

    async def served(following: "asyncio.Task[None]", pause: bool, seen: Callable[[], Any]) -> None:
        """Be a training that answers, until its answers are seen."""

        def answer(request: Any) -> Any:
            if is_over:
                raise ConnectionError
            return {"events": [], "now": {**now, "paused": pause}}

        is_over = False
        server = Server(folder.control, answer)
        while not seen():
            assert not following.done()
            await asyncio.sleep(0.01)
        content, is_over = folder.control.read_bytes(), True
        server.close()
        folder.control.write_bytes(content)  # as after a kill
        while not watcher.ended:
            await asyncio.sleep(0.01)

    async def follow() -> None:
        following = asyncio.create_task(asyncio.wait_for(watcher.run(), 60))
        await served(following, False, lambda: watcher.now is not None and not watcher.ended)
        assert not watcher.killed
        await served(following, True, lambda: watcher.now is not None and watcher.now["paused"] and not watcher.ended)
        alive[0] = False
        await following
        assert watcher.killed

    asyncio.run(follow())


def test_the_follower_forgets_every_second_point(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuopt.runs.control.live.watcher.MOST", 10)
    points: list[dict[str, Any]] = []
    for step in range(100):
        Watcher._add(points, {"step": step})
    steps = [point["step"] for point in points]
    assert (len(steps) <= 10, steps[0], steps[-1], steps) == (True, 0, 99, sorted(steps))


@pytest.mark.parametrize(
    ("steps", "taken", "left"),
    [
        ([], [], []),
        ([1, 2, 2, 3], [1, 2, 2, 3], []),
        ([1, 2, 3, 4, 2, 3, 4, 5], [1, 2, 3, 4, 5], [2, 3, 4, None]),
        ([1, 5, 9, 3, 4], [1, 3, 4], [5, 9, None]),
        ([5, 9, 1], [1], [5, 9, None]),
        ([1, 2, 3, 4, 5, 2, 3, 4, 2, 3, 9], [1, 2, 3, 9], [2, 3, 4, 5, None, 2, 3, 4, None]),
        ([1, 2, 3, 1, 4, 5, 4, 6], [1, 4, 6], [1, 2, 3, None, 4, 5, None]),
        ([1, 2, 5, 9, "3", 7, 8], [1, 2, None, 7, 8], [5, 9, None]),
        ([1, 2, 5, 9, "2", 7, 8], [1, None, 7, 8], [2, 5, 9, None]),
        ([1, 2, "2", 3], [1, 2, None, 3], []),
    ],
    ids=str,
)
def test_what_a_rollback_left_is_drawn_apart(steps: list[Any], taken: list[int], left: list[int | None]) -> None:
    """Steps as text are where it went back to."""
    parts = curves.parted([{"step": int(step)} | ({"loss": 1.0} if isinstance(step, int) else {}) for step in steps])
    assert [[row["step"] if "loss" in row else None for row in part] for part in parts] == [taken, left]


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([0.1], (0.01, 1)),
        ([0.05, 0.2], (0.01, 1)),
        ([1.0, 10.0], (0.1, 100)),
        ([], (0.1, 10)),
        ([5e-324, 1.7e308], (1e-307, 1e308)),
    ],
    ids=str,
)
def test_no_value_is_at_an_end_of_a_logarithmic_axis(values: list[float], ends: tuple[float, float]) -> None:
    assert tuple(curves.decades(values).values()) == pytest.approx(ends)


# In the browser

browser = pytest.mark.browser


def driver() -> Any:
    """A headless Chromium; skips where there is none."""
    pytest.importorskip("nicegui", reason="the extra live is not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, service = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or service is None:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,960"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(service))


@pytest.fixture
def chromium() -> Iterator[Any]:
    opened = driver()
    yield opened
    opened.quit()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", str, Path]]:
    """A training with a page: its process, its address, its folder."""
    pytest.importorskip("nicegui", reason="the extra live is not installed")
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "gpuopt.cli",
        "train",
        "--live",
        "--device",
        "cpu",
        "--optimizer",
        "SGD",
        "--lr",
        "1",
    ]
    command += ["--set", "momentum=0.5", "--epochs", "10000000", "--report-every", "500", "--out", str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        found = (re.search(r"Live: +(\S+)", line) for line in process.stdout)
        url = next(match[1] for match in found if match)
        draining = threading.Thread(target=process.stdout.read)
        draining.start()
        try:
            yield process, url, folder
        finally:
            process.kill()
            draining.join()


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait for something that comes in time; what it is."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def take(chromium: Any, name: str) -> None:
    """A picture to be looked at."""
    if SCREENSHOTS in os.environ:
        folder = Path(os.environ[SCREENSHOTS])
        folder.mkdir(parents=True, exist_ok=True)
        time.sleep(2)
        chromium.save_screenshot(str(folder / f"{name}.png"))


def press(chromium: Any, text: str) -> None:
    """Press a button."""
    chromium.find_element("xpath", f"//button[normalize-space()='{text}']").click()


def slide(chromium: Any, slider: Any, share: float) -> None:
    """Set a slider to a share of its length."""
    actions = importlib.import_module("selenium.webdriver").ActionChains(chromium)
    width = slider.size["width"]
    actions.move_to_element_with_offset(slider, int((share - 0.5) * width), 0).click().perform()


@browser
def test_the_page_steers(chromium: Any, live: tuple["subprocess.Popen[str]", str, Path]) -> None:
    process, url, folder = live
    chromium.get(url)

    def status() -> str:
        return str(chromium.find_element("css selector", ".status").text)

    def body() -> str:
        return str(chromium.find_element("tag name", "body").text)

    slider = until(lambda: chromium.find_elements("css selector", "[role=slider][aria-label=lr]"))[0]
    until(lambda: len(rows(folder)) > 10)
    take(chromium, "live-before")

    # The learning rate, by its slider, from 1 (at 6/7 of it) to about 0.003
    slide(chromium, slider, 0.5)
    change = until(lambda: rows(folder, "tune"))[0]
    assert (change["name"], change["old"], change["by"]) == ("lr", 1.0, "hand")
    assert 1e-3 < change["new"] < 1e-2
    later = until(lambda: [row for row in rows(folder) if row["step"] > change["step"]])[0]
    assert later["lr"] == change["new"]
    until(lambda: f"lr: 1 -> {change['new']:.4g} after step {change['step']}" in body())
    until(lambda: len(rows(folder)) > 25)
    take(chromium, "live-after")

    # A value that cannot be is refused with the message, and the training goes on.
    field = chromium.find_element("css selector", "input[aria-label=momentum]")
    field.send_keys("\ue009a\ue000", "2\ue007")  # select all, then Enter
    until(lambda: "SGD: momentum: got 2.0, expected a number in [0, 1)" in body())
    until(lambda: field.get_attribute("value") == "0.5")
    assert [row["name"] for row in rows(folder, "tune")] == ["lr"]

    press(chromium, "Pause")
    until(lambda: status() == "paused")
    (paused,) = rows(folder, "pause")
    press(chromium, "One step")
    assert until(lambda: rows(folder, "step"))[0]["step"] == paused["step"] + 1
    press(chromium, "Save now")
    assert until(lambda: rows(folder, "save"))[0]["step"] == paused["step"] + 1
    take(chromium, "live-paused")
    chromium.find_element("css selector", ".q-select").click()
    option = f"//*[contains(@class, 'q-item')][contains(., 'before change ({change['step']:,})')]"
    until(lambda: chromium.find_elements("xpath", option))[0].click()
    press(chromium, "Roll back")
    back = until(lambda: rows(folder, "rollback"))[0]
    assert (back["step"], back["back_to_step"], back["lr"]) == (paused["step"] + 1, change["step"], 1.0)
    until(lambda: any("Resume" in b.text for b in chromium.find_elements("tag name", "button")))
    press(chromium, "Resume")
    until(lambda: status() == "training")
    assert len(rows(folder, "resume")) == 1

    take(chromium, "live-rolled-back")

    # What it loaded came from there, and nothing was wrong.
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    addresses = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {address.split("/")[2] for address in addresses if address.startswith("http")} == {url.split("/")[2]}
    assert [e for e in chromium.get_log("browser") if e["level"] == "SEVERE"] == []

    press(chromium, "Stop")
    until(lambda: status() == "ended")
    assert process.wait(60) == 0
    assert json.loads((folder / "summary.json").read_text())["stopped"] == "stopped by hand"
    take(chromium, "live-ended")
    until(lambda: not reachable(url))  # the page's process has ended, too


@browser
def test_an_own_loop_shows_its_picture(chromium: Any, tmp_path: Path) -> None:
    """Followed from another terminal, with `gpuopt live`."""
    folder = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    program = [sys.executable, str(Path(__file__).parent / "own_loop.py"), str(folder), str(10**8), "0"]
    with subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL) as process:
        until((folder / "image-x.png").exists)
        command = [sys.executable, "-m", "gpuopt", "live", str(folder)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as page:
            try:
                assert page.stdout is not None
                url = page.stdout.readline().split()[1]
                until(lambda: reachable(url))
                chromium.get(url)

                def source() -> str:
                    pictures = chromium.find_elements("css selector", "img[alt=x]")
                    return str(pictures[0].get_attribute("src")) if pictures else ""

                first = until(source)
                assert first.startswith("data:image/png;base64,")
                until(lambda: chromium.find_elements("css selector", "[role=slider][aria-label=lr]"))
                press(chromium, "Pause")
                until(lambda: chromium.find_element("css selector", ".status").text == "paused")
                field = chromium.find_element("css selector", "input[aria-label=lr]")
                field.send_keys("\ue009a\ue000", "2\ue007")  # 2, which shakes it
                until(lambda: rows(folder, "tune"))
                take(chromium, "live-own")
                press(chromium, "Resume")
                until(lambda: source() != first)
                press(chromium, "Stop")
                assert (process.wait(60), page.wait(60)) == (0, 0)
            finally:
                page.kill()
                process.kill()


def reachable(url: str) -> bool:
    """Whether somebody listens there."""
    port = int(url.split("/")[2].rpartition(":")[2])
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def code(url: str, **headers: str) -> int:
    """The status of a request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@browser
def test_the_page_wants_its_token_and_lasts_as_long_as_its_training(
    live: tuple["subprocess.Popen[str]", str, Path],
) -> None:
    process, url, _ = live
    root, token = url[: url.index("/", 8)], url.split("/")[3]
    assert code(url) == 200
    assert code(url, Origin=root) == 200
    refused = {
        "no token": code(f"{root}/"),
        "another": code(f"{root}/{token[:-1]}/"),
        "no token for a file": code(f"{root}/_nicegui/"),
        "socket": code(f"{root}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"),
        "another origin": code(url, Origin="http://evil.example"),
        "another host": code(url, Host="evil.example"),
        "socket from another origin": code(
            f"{url}_nicegui_ws/socket.io/?EIO=4&transport=polling", Origin="http://evil.example"
        ),
    }
    assert set(refused.values()) == {403}, refused
    process.kill()
    until(lambda: not reachable(url))
