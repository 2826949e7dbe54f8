"""The console in a real browser: from nothing to a labelled and reviewed folder, by mouse and by keyboard.

Would catch: a job that does not start or whose end the page does not notice, marks that arrive shifted, decisions that
do not reach the labels, an error that nobody sees.
"""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page
from pycocotools import mask as coco

from tests.serving.browser import NEEDS_BROWSER, browser, circle, drag, shot, wait_until
from tests.serving.helpers import Running, ball, encoded, photo_folder, run_fss

pytestmark = [pytest.mark.slow, NEEDS_BROWSER]
LIMIT_S = 120


def labels_of(service: Running) -> tuple[Path, dict[str, dict[str, object]]]:
    """The folder of the only job, and its annotations by file name."""
    (folder,) = [p for p in (service.workspace / "labels").iterdir() if p.is_dir()]
    document = json.loads((folder / "labels.json").read_text())
    names = {i["id"]: i["file_name"] for i in document["images"]}
    return folder, {names[a["image_id"]]: a for a in document["annotations"]}


def test_from_nothing_to_a_reviewed_folder(service: Running, tmp_path: Path) -> None:
    photos = photo_folder(tmp_path / "photos", 30)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no")
    photo, mask = ball(1, 300, 400)
    (tmp_path / "support.png").write_bytes(encoded(photo, "PNG"))
    for i in (41, 42):
        (tmp_path / f"query{i}.jpg").write_bytes(encoded(ball(i, 240, 200)[0]))
    with browser(service.url) as page:
        began = time.monotonic()
        wait_until(page, "document.getElementById('facts').textContent.includes('prior / nano')")
        assert page.evaluate("document.getElementById('job-start').disabled")
        shot(page, "1-start")
        page.fill("#name", "ball")
        page.set_input_files("#support-file", str(tmp_path / "support.png"))
        wait_until(page, "!document.getElementById('marker').hidden")
        drag(page, "#stage", circle(mask))
        shot(page, "2-marked")
        page.click("#learn")
        wait_until(page, "document.getElementById('learn-message').textContent.includes('Learned')")
        page.set_input_files("#query-files", [tmp_path / "query41.jpg", tmp_path / "query42.jpg"])
        wait_until(page, "document.querySelectorAll('#results figure').length === 2")
        shot(page, "3-found")
        page.fill("#job-images", str(tmp_path / "nowhere"))
        page.click("#job-start")
        wait_until(page, "document.getElementById('job-message').textContent.includes('does not exist')")
        page.fill("#job-images", str(photos))
        page.click("#job-start")
        wait_until(page, "document.querySelector('.job')")
        shot(page, "4-job")
        page.goto(service.url)  # a reload: the job goes on
        wait_until(page, "document.querySelector('.job.done')", LIMIT_S)
        assert page.evaluate("state.classes.map(c => c.name)") == ["ball"]
        took = time.monotonic() - began
        assert "1 photo could not be read" in page.evaluate("document.querySelector('.job').textContent")
        shot(page, "5-done")
        review(page, service)
    print(f"labelled after {took:.1f} s")
    assert took < LIMIT_S


def review(page: Page, service: Running) -> None:
    """Accept, reject and correct by keys, then read the labels."""
    page.click(".job .main")
    wait_until(page, "document.querySelectorAll('#cards canvas').length === 24")
    sure = page.evaluate("reviewed.rows.map(r => r.sure)")
    assert sure == sorted(sure)
    names = page.evaluate("reviewed.rows.map(r => r.image)")
    page.keyboard.press("a")
    wait_until(page, "reviewed.rows[0].decision === 'accept'")
    page.keyboard.press("r")
    wait_until(page, "reviewed.rows[1].decision === 'reject'")
    page.keyboard.press("c")
    wait_until(page, "document.getElementById('fix').open")
    shot(page, "6-correct")
    page.click("#clear")
    page.click("[data-tool=outline]")
    truth = ball(int(Path(names[2]).stem))[1]
    drag(page, "#stage", circle(truth))
    page.click("#fix-save")
    wait_until(page, "!document.getElementById('fix').open")
    wait_until(page, "document.getElementById('review-about').textContent.includes('3 decisions')")
    shot(page, "7-review")
    page.click("#review-download")
    wait_until(page, "document.getElementById('job-message').textContent.includes('Saved as')")
    folder, found = labels_of(service)
    assert names[0] in found
    assert names[1] not in found
    drawn = coco.decode(found[names[2]]["segmentation"]).astype(bool)
    assert (drawn & truth).sum() / (drawn | truth).sum() > 0.9
    assert len((folder / "decisions.jsonl").read_text().splitlines()) == 3


def test_the_same_job_from_the_command_line(service: Running, tmp_path: Path) -> None:
    """The command line that the page shows resumes the job in the same folder."""
    with browser(service.url) as page:
        command = page.locator(".job code").first.text_content()
    assert command
    folder, _ = labels_of(service)
    before = {p.name: p.read_bytes() for p in (folder / "parts").iterdir()}
    lost = folder / "parts" / "chunk-000000.parquet"
    lost.unlink()
    done = run_fss(*shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in (folder / "parts").iterdir()} == before


def test_marks_by_keyboard(service: Running, tmp_path: Path) -> None:
    (tmp_path / "support.png").write_bytes(encoded(ball(1, 300, 400)[0], "PNG"))
    with browser(service.url) as page:
        page.set_input_files("#support-file", str(tmp_path / "support.png"))
        wait_until(page, "!document.getElementById('marker').hidden")
        page.click("[data-tool=box]")
        page.evaluate("document.getElementById('stage').focus()")
        for key in ("Space", *["ArrowRight"] * 5, *["ArrowDown"] * 4, "Space"):
            page.keyboard.press(key)
        assert page.evaluate("state.marks[0].box") == [200, 150, 240, 182]
        page.click("[data-tool=scribble]")
        drag(page, "#stage", [(0.2, 0.2), (0.4, 0.4)])
        assert page.evaluate("state.marks.map(m => m.kind)") == ["scribble"]
