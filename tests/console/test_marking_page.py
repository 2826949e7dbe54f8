"""The web page, in a real browser: mark an object by hand, find it in other photos.

Would catch: a page that loads something from elsewhere, marks that arrive shifted, overlays drawn row by row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.serving.browser import browser, circle, find_browser, shot
from tests.serving.helpers import Running, ball, encoded

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason="needs chromium and chromedriver")]


def test_outline_learn_and_find(service: Running, tmp_path: Path) -> None:
    photo, mask = ball(1, 300, 400)
    query, truth = ball(2, 240, 200)
    files = {"support.png": encoded(photo, "PNG"), "query.png": encoded(query, "PNG"), "broken.jpg": b"\xff\xd8\xff no"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with browser(tmp_path / "profile") as page:
        page.call("POST", "url", url=service.url)
        page.wait("document.getElementById('facts').textContent.includes('prior / nano')")
        assert "41.0 (38.0–44.0) mIoU" in page.script("return document.getElementById('facts').textContent")
        shot(page, "1-start")
        page.type("#name", "ball")
        page.type("#support-file", str(tmp_path / "support.png"))
        page.wait("!document.getElementById('marker').hidden")
        page.drag("#stage", circle(mask))
        shot(page, "2-marked")
        page.click("#learn")
        page.wait("document.getElementById('learn-message').textContent.includes('Learned')")
        page.type("#query-files", f"{tmp_path / 'query.png'}\n{tmp_path / 'broken.jpg'}")
        page.wait("document.querySelectorAll('#results figure').length === 2")
        captions = page.script("return [...document.querySelectorAll('.score')].map(s => s.textContent)")
        assert captions[0].startswith("score 0.")
        assert "not an image" in captions[1] or "unreadable" in captions[1] or "corrupt" in captions[1], captions
        shot(page, "3-found")
        drawn = page.script(
            "const r = state.results[0], [h, w] = r.segmentation.size, m = unpack(r.segmentation.counts, h * w);"
            "return [h, w, Array.from(m)]")
        found = np.array(drawn[2], dtype=bool).reshape(drawn[1], drawn[0]).T
        overlap = (found & truth).sum() / (found | truth).sum()
        assert overlap > 0.5, overlap
        errors = [e["message"] for e in page.call("POST", "se/log", type="browser") if e["level"] == "SEVERE"]
        assert not errors


def test_box_refused_by_method_is_shown(service: Running, tmp_path: Path) -> None:
    (tmp_path / "support.png").write_bytes(encoded(ball(1, 300, 400)[0], "PNG"))
    with browser(tmp_path / "profile") as page:
        page.call("POST", "url", url=service.url)
        page.type("#name", "ball")
        page.type("#support-file", str(tmp_path / "support.png"))
        page.wait("!document.getElementById('marker').hidden")
        page.click("[data-tool=box]")
        page.drag("#stage", [(0.2, 0.2), (0.5, 0.5), (0.7, 0.8)])
        box = page.script("return state.marks[0].box")
        assert np.allclose(box, [80, 60, 280, 240], atol=2)
        page.click("#learn")
        page.wait("document.getElementById('learn-message').textContent.includes('reads no box marks')")
        shot(page, "4-refused")
