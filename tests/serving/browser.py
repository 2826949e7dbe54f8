"""A browser for tests: Chromium, driven through chromedriver's protocol (W3C WebDriver) without further packages."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--window-size=1200,1500"]
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One WebDriver session."""

    def __init__(self, http: httpx.Client, session: str) -> None:
        self._http, self._session = http, session

    def call(self, verb: str, path: str, **body: Any) -> Any:
        """Send a WebDriver command. Returns its value."""
        answer = self._http.request(verb, f"/session/{self._session}/{path}", json=body if verb == "POST" else None)
        value = answer.json()["value"]
        assert answer.is_success, value
        return value

    def find(self, css: str) -> str:
        """The WebDriver id of an element."""
        return str(self.call("POST", "element", using="css selector", value=css)[_ELEMENT])

    def click(self, css: str) -> None:
        """Click on an element."""
        self.call("POST", f"element/{self.find(css)}/click")

    def type(self, css: str, text: str) -> None:
        """Type text into an element, or set the paths of a file input."""
        self.call("POST", f"element/{self.find(css)}/value", text=text)

    def script(self, code: str) -> Any:
        """Run JavaScript in the page. Returns the value of its `return` statement."""
        return self.call("POST", "execute/sync", script=code, args=[])

    def drag(self, css: str, path: list[tuple[float, float]]) -> None:
        """Press, move and release; positions are shares of the element's width and height."""
        box = self.script(f"const e = document.querySelector({json.dumps(css)}); e.scrollIntoView(); "
                          "const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]")
        points = [(round(box[0] + x * box[2]), round(box[1] + y * box[3])) for x, y in path]
        moves = [{"type": "pointerMove", "duration": 10, "x": x, "y": y} for x, y in points]
        steps = [moves[0], {"type": "pointerDown", "button": 0}, *moves[1:], {"type": "pointerUp", "button": 0}]
        self.call("POST", "actions", actions=[{"type": "pointer", "id": "mouse", "actions": steps}])

    def wait(self, condition: str, seconds: float = 30) -> Any:
        """Wait until the JavaScript expression `condition` is true. Returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.script(f"return {condition}")):
            assert time.monotonic() < end, f"{condition} did not come; the page says: " + self.script(
                "return document.body.innerText")[:800]
            time.sleep(0.1)
        return value

    def screenshot(self, path: Path) -> None:
        """Write a picture of the window to a file."""
        path.write_bytes(base64.b64decode(self.call("GET", "screenshot")))


def find_browser() -> tuple[str, str] | None:
    """The paths of Chromium and of its driver."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile."""
    found = find_browser()
    assert found
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    driver = subprocess.Popen([found[1], f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            session = _start(http, found[0], profile)
            yield Browser(http, session)
            http.delete(f"/session/{session}")
    finally:
        driver.terminate()
        driver.wait(20)


def _start(http: httpx.Client, chromium: str, profile: Path) -> str:
    options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]}
    wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    for _ in range(50):
        with contextlib.suppress(httpx.TransportError):
            answer = http.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]
            return str(answer["sessionId"])
        time.sleep(0.2)
    raise AssertionError("chromedriver does not answer")


def shot(page: Browser, name: str) -> None:
    """Write a picture of the window into the folder FSS_SCREENSHOTS, if that is set."""
    if folder := os.environ.get("FSS_SCREENSHOTS"):
        page.screenshot(Path(folder) / f"{name}.png")


def circle(mask: np.ndarray) -> list[tuple[float, float]]:
    """An outline of the ball, as shares of width and height."""
    rows, columns = np.nonzero(mask)
    radius = (rows.max() - rows.min()) / 2
    angles = np.linspace(0, 2 * np.pi, 25)
    y, x = rows.mean() + radius * np.sin(angles), columns.mean() + radius * np.cos(angles)
    return list(zip((x / mask.shape[1]).tolist(), (y / mask.shape[0]).tolist(), strict=True))
