"""A browser for tests: the system's Chromium, driven by Playwright."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
NEEDS_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@contextlib.contextmanager
def browser(url: str, *, ours: bool = True) -> Iterator[Page]:
    """The page at `url` in a browser with a fresh profile. An exception in scripts of `ours` fails the test."""
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 1200, "height": 1500})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(url)
        yield page
        chromium.close()
    # A refusal that a test provokes is no error of the page.
    assert not ours or not [line for line in errors if "status of 4" not in line]


def wait_until(page: Page, condition: str, seconds: float = 30) -> None:
    """Wait until the JavaScript expression is true. Playwright's own wait needs `eval`, which the pages forbid."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"{condition} did not come; the page says: {page.inner_text('body')[:800]}"
        page.wait_for_timeout(100)


def drag(page: Page, css: str, path: list[tuple[float, float]]) -> None:
    """Press, move and release; positions are shares of the element's width and height."""
    page.locator(css).scroll_into_view_if_needed()
    box = page.locator(css).bounding_box()
    assert box
    (first, *rest) = [(round(box["x"] + x * box["width"]), round(box["y"] + y * box["height"])) for x, y in path]
    page.mouse.move(*first)
    page.mouse.down()
    for x, y in rest:
        page.mouse.move(x, y)
    page.mouse.up()


def shot(page: Page, name: str) -> None:
    """Write a picture of the window into the folder FSS_SCREENSHOTS, if that is set."""
    if folder := os.environ.get("FSS_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def circle(mask: np.ndarray) -> list[tuple[float, float]]:
    """An outline of the ball, as shares of width and height."""
    rows, columns = np.nonzero(mask)
    radius = (rows.max() - rows.min()) / 2
    angles = np.linspace(0, 2 * np.pi, 25)
    y, x = rows.mean() + radius * np.sin(angles), columns.mean() + radius * np.cos(angles)
    return list(zip((x / mask.shape[1]).tolist(), (y / mask.shape[0]).tolist(), strict=True))
