"""The web page, in a real browser: mark an object by hand, find it in other photos.

Would catch: a page that loads something from elsewhere, marks that arrive shifted, overlays drawn row by row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.serving.browser import NEEDS_BROWSER, browser, circle, drag, shot, wait_until
from tests.serving.helpers import Running, ball, encoded

pytestmark = [pytest.mark.slow, NEEDS_BROWSER]


def test_outline_learn_and_find(service: Running, tmp_path: Path) -> None:
    photo, mask = ball(1, 300, 400)
    query, truth = ball(2, 240, 200)
    files = {"support.png": encoded(photo, "PNG"), "query.png": encoded(query, "PNG"), "broken.jpg": b"\xff\xd8\xff no"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with browser(service.url) as page:
        wait_until(page, "document.getElementById('facts').textContent.includes('prior / nano')")
        assert "41.0 (38.0–44.0) mIoU" in page.evaluate("document.getElementById('facts').textContent")
        shot(page, "1-start")
        page.fill("#name", "ball")
        page.set_input_files("#support-file", str(tmp_path / "support.png"))
        wait_until(page, "!document.getElementById('marker').hidden")
        drag(page, "#stage", circle(mask))
        shot(page, "2-marked")
        page.click("#learn")
        wait_until(page, "document.getElementById('learn-message').textContent.includes('Learned')")
        page.set_input_files("#query-files", [tmp_path / "query.png", tmp_path / "broken.jpg"])
        wait_until(page, "document.querySelectorAll('#results figure').length === 2")
        captions = page.evaluate("[...document.querySelectorAll('.score')].map(s => s.textContent)")
        assert captions[0].startswith("score 0.")
        assert "not an image" in captions[1] or "unreadable" in captions[1] or "corrupt" in captions[1], captions
        shot(page, "3-found")
        drawn = page.evaluate(
            "() => { const r = state.results[0], [h, w] = r.segmentation.size;"
            "return [h, w, Array.from(unpack(r.segmentation.counts, h * w))]; }")
        found = np.array(drawn[2], dtype=bool).reshape(drawn[1], drawn[0]).T
        overlap = (found & truth).sum() / (found | truth).sum()
        assert overlap > 0.5, overlap


def test_a_negative_photo_is_sent_without_a_mark(service: Running, tmp_path: Path) -> None:
    """Learned from a marked photo and one that is not the object; a negative one alone teaches nothing."""
    for name, seed in (("support.png", 1), ("other.png", 2)):
        (tmp_path / name).write_bytes(encoded(ball(seed, 300, 400)[0], "PNG"))
    with browser(service.url) as page:
        wait_until(page, "state.negatives === 'marks'")
        assert page.evaluate("document.getElementById('prompt-field').hidden"), "prior reads no names"
        page.fill("#name", "ball")
        page.set_input_files("#support-file", str(tmp_path / "other.png"))
        wait_until(page, "!document.getElementById('marker').hidden")
        page.check("#negative")
        assert "or nothing if all of the photo is not" in page.inner_text("#hint")
        assert page.is_disabled("#learn")
        assert page.is_enabled("#keep")
        page.set_input_files("#support-file", str(tmp_path / "support.png"))
        wait_until(page, "state.examples.length === 1 && state.photo !== null")
        assert not page.is_checked("#negative")
        assert "Draw around the object" in page.inner_text("#hint")
        drag(page, "#stage", circle(ball(1, 300, 400)[1]))
        with page.expect_request("**/v1/supports") as sent:
            page.click("#learn")
        rows = sent.value.post_data_json["supports"]
        assert [sorted(row) for row in rows] == [["image", "negative"], ["image", "mask"]]
        wait_until(page, "document.getElementById('learn-message').textContent.includes('from 2 photos')")
        assert "not the object" in page.inner_text("#thumbs")


def test_box_refused_by_method_is_shown(service: Running, tmp_path: Path) -> None:
    (tmp_path / "support.png").write_bytes(encoded(ball(1, 300, 400)[0], "PNG"))
    with browser(service.url) as page:
        page.fill("#name", "ball")
        page.set_input_files("#support-file", str(tmp_path / "support.png"))
        wait_until(page, "!document.getElementById('marker').hidden")
        page.click("[data-tool=box]")
        drag(page, "#stage", [(0.2, 0.2), (0.5, 0.5), (0.7, 0.8)])
        box = page.evaluate("state.marks[0].box")
        assert np.allclose(box, [80, 60, 280, 240], atol=2)
        page.click("#learn")
        wait_until(page, "document.getElementById('learn-message').textContent.includes('reads no box marks')")
        shot(page, "4-refused")
