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
from pycocotools import mask as coco

from tests.serving.browser import Browser, browser, circle, find_browser, shot
from tests.serving.helpers import Running, ball, encoded, photo_folder, run_fss

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_browser() is None, reason="needs chromium and chromedriver")]
LIMIT_S = 120
ARROW, SPACE = "\ue014", " "


def keys(page: Browser, text: str) -> None:
    """Type keys into the focused element."""
    page.call("POST", "actions", actions=[{"type": "key", "id": "keys", "actions": [
        {"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]}])


def severe(page: Browser) -> list[str]:
    """The browser's errors, without the refusals that a test provoked."""
    found = [e["message"] for e in page.call("POST", "se/log", type="browser") if e["level"] == "SEVERE"]
    return [m for m in found if "status of 4" not in m]


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
    with browser(tmp_path / "profile") as page:
        began = time.monotonic()
        page.call("POST", "url", url=service.url)
        page.wait("document.getElementById('facts').textContent.includes('prior / nano')")
        assert page.script("return document.getElementById('job-start').disabled")
        shot(page, "1-start")
        page.type("#name", "ball")
        page.type("#support-file", str(tmp_path / "support.png"))
        page.wait("!document.getElementById('marker').hidden")
        page.drag("#stage", circle(mask))
        shot(page, "2-marked")
        page.click("#learn")
        page.wait("document.getElementById('learn-message').textContent.includes('Learned')")
        page.type("#query-files", f"{tmp_path / 'query41.jpg'}\n{tmp_path / 'query42.jpg'}")
        page.wait("document.querySelectorAll('#results figure').length === 2")
        shot(page, "3-found")
        page.type("#job-images", str(tmp_path / "nowhere"))
        page.click("#job-start")
        page.wait("document.getElementById('job-message').textContent.includes('does not exist')")
        page.script("document.getElementById('job-images').value = ''")
        page.type("#job-images", str(photos))
        page.click("#job-start")
        page.wait("document.querySelector('.job')")
        shot(page, "4-job")
        page.call("POST", "url", url=service.url)  # a reload: the job goes on
        page.wait("document.querySelector('.job.done')", LIMIT_S)
        assert page.script("return state.classes.map(c => c.name)") == ["ball"]
        took = time.monotonic() - began
        assert "1 photo could not be read" in page.script("return document.querySelector('.job').textContent")
        shot(page, "5-done")
        review(page, service)
        assert severe(page) == []
    print(f"labelled after {took:.1f} s")
    assert took < LIMIT_S


def review(page: Browser, service: Running) -> None:
    """Accept, reject and correct by keys, then read the labels."""
    page.click(".job .main")
    page.wait("document.querySelectorAll('#cards canvas').length === 24")
    sure = page.script("return reviewed.rows.map(r => r.sure)")
    assert sure == sorted(sure)
    names = page.script("return reviewed.rows.map(r => r.image)")
    keys(page, "a")
    page.wait("reviewed.rows[0].decision === 'accept'")
    keys(page, "r")
    page.wait("reviewed.rows[1].decision === 'reject'")
    keys(page, "c")
    page.wait("document.getElementById('fix').open")
    shot(page, "6-correct")
    page.click("#clear")
    page.click("[data-tool=outline]")
    truth = ball(int(Path(names[2]).stem))[1]
    page.drag("#stage", circle(truth))
    page.click("#fix-save")
    page.wait("!document.getElementById('fix').open")
    page.wait("document.getElementById('review-about').textContent.includes('3 decisions')")
    shot(page, "7-review")
    page.click("#review-download")
    page.wait("document.getElementById('job-message').textContent.includes('Saved as')")
    folder, found = labels_of(service)
    assert names[0] in found
    assert names[1] not in found
    drawn = coco.decode(found[names[2]]["segmentation"]).astype(bool)
    assert (drawn & truth).sum() / (drawn | truth).sum() > 0.9
    assert len((folder / "decisions.jsonl").read_text().splitlines()) == 3


def test_the_same_job_from_the_command_line(service: Running, tmp_path: Path) -> None:
    """The command line that the page shows resumes the job in the same folder."""
    with browser(tmp_path / "profile") as page:
        page.call("POST", "url", url=service.url)
        command = page.wait("document.querySelector('.job code')?.textContent")
    folder, _ = labels_of(service)
    before = {p.name: p.read_bytes() for p in (folder / "parts").iterdir()}
    lost = folder / "parts" / "chunk-000000.parquet"
    lost.unlink()
    done = run_fss(*shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in (folder / "parts").iterdir()} == before


def test_marks_by_keyboard(service: Running, tmp_path: Path) -> None:
    (tmp_path / "support.png").write_bytes(encoded(ball(1, 300, 400)[0], "PNG"))
    with browser(tmp_path / "profile") as page:
        page.call("POST", "url", url=service.url)
        page.type("#support-file", str(tmp_path / "support.png"))
        page.wait("!document.getElementById('marker').hidden")
        page.click("[data-tool=box]")
        page.script("document.getElementById('stage').focus()")
        keys(page, SPACE + ARROW * 5 + "\ue015" * 4 + SPACE)
        assert page.script("return state.marks[0].box") == [200, 150, 240, 182]
        page.click("[data-tool=scribble]")
        page.drag("#stage", [(0.2, 0.2), (0.4, 0.4)])
        assert page.script("return state.marks.map(m => m.kind)") == ["scribble"]
        assert severe(page) == []
