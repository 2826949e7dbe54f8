"""Instances in the console, in a real browser: one object of a label is selected by a click and rejected alone.

The page's requests about the job are answered by the console's own `Jobs` in this process, without a cluster.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route

from pipelines.console.answers import LabelsPage
from pipelines.console.jobs import Jobs
from pipelines.console.page import page_html
from pipelines.console.records import JobRecord
from pipelines.review.job import open_job
from tests.console.test_records import jobs as console_jobs
from tests.labelling.test_instances import job, photos, rows_of  # noqa: F401
from tests.serving.browser import NEEDS_BROWSER, browser, shot, wait_until

pytestmark = NEEDS_BROWSER
#: where in the window the second object of the label number `n` is
SECOND = """n => {
  const row = reviewed.rows[n], mask = unpack(row.instances[1].counts, row.height * row.width);
  const at = mask.findIndex((v, i) => v && mask[i + 5 * row.height + 5]) + 5 * row.height + 5;
  const r = document.querySelectorAll("#cards canvas")[n].getBoundingClientRect();
  const scale = Math.min(r.width / row.width, r.height / row.height);
  return [r.left + (r.width - row.width * scale) / 2 + Math.floor(at / row.height) * scale,
          r.top + (r.height - row.height * scale) / 2 + at % row.height * scale];
}"""


def serve(page: Page, served: Jobs) -> None:
    """Answer the page's requests about jobs."""

    def answer(route: Route) -> None:
        path, body = route.request.url.partition("/v1/jobs/ball-1")[2], route.request.post_data_json or {}
        if path.startswith("/photos/"):
            route.fulfill(body=served.photo("ball-1", int(path.rpartition("/")[2])), content_type="image/jpeg")
        elif path == "/decisions":
            route.fulfill(json=served.decide("ball-1", body["decisions"]))
        elif path.startswith("/labels"):
            found = LabelsPage.model_validate(served.labels("ball-1", 0, undecided=False))
            route.fulfill(json=found.model_dump(mode="json"))
        else:
            route.fulfill(json={"jobs": []})

    page.route("**/v1/jobs**", answer)


@pytest.fixture
def served(job: Any, tmp_path: Path) -> Jobs:  # noqa: F811
    """The console's jobs with one finished job whose instances are pieces."""
    found = console_jobs(tmp_path / "console", roots=None)
    found.records.add(JobRecord(job_id="ball-1", out=job.out.url, images=job.images.url, title="ball", classes=["ball"],
                                photos=len(job.images), settings={}, started=time.time(), command="fss label"))
    return found


def test_one_object_of_a_label_is_selected_and_rejected(served: Jobs, job: Any, tmp_path: Path) -> None:  # noqa: F811
    blank = tmp_path / "blank.html"
    blank.write_text("<!doctype html><title>-</title>")
    with browser(blank.as_uri()) as page:
        page.route("http://console/", lambda route: route.fulfill(body=page_html(), content_type="text/html"))
        page.route("**/v1/health", lambda route: route.fulfill(json={
            "method": "prior", "preset": "nano", "device": "cpu", "bundle_id": "b", "classes": [], "token": False,
            "untrained": False, "roots": None}))
        page.route("**/favicon.ico", lambda route: route.fulfill(body=b""))
        serve(page, served)
        page.goto("http://console/")
        page.evaluate("review({ job_id: 'ball-1', title: 'ball' })")
        wait_until(page, f"document.querySelectorAll('#cards canvas').length === {len(rows_of(job))}")
        place = page.evaluate("reviewed.rows.findIndex(r => r.instances.length > 1)")
        count = page.evaluate(f"reviewed.rows[{place}].instances.length")
        card = page.locator("#cards > figure").nth(place)
        assert f"ball: {count} objects" in card.inner_text()
        card.scroll_into_view_if_needed()
        page.mouse.click(*page.evaluate(SECOND, place))
        wait_until(page, f"reviewed.rows[{place}].selected === reviewed.rows[{place}].instances[1]")
        assert "number 2 selected" in card.inner_text()
        shot(page, "instances-selected")
        page.keyboard.press("i")  # the next one, and after the last none
        page.keyboard.press("i")
        page.mouse.click(*page.evaluate(SECOND, place))
        wait_until(page, f"reviewed.rows[{place}].selected?.number === 2")
        page.keyboard.press("r")
        wait_until(page, f"reviewed.rows[{place}].instances.length === {count - 1}")
        assert page.evaluate(f"reviewed.rows[{place}].decision") == "correct"
        shot(page, "instances-rejected")
        page.keyboard.press("u")
        wait_until(page, f"reviewed.rows[{place}].instances.length === {count}")
    assert not open_job(job.out.url).decisions
    lines = [json.loads(one) for one in (Path(job.out.path("decisions.jsonl"))).read_text().splitlines()]
    assert [one["decision"] for one in lines] == ["correct", "undo"]
    assert len(lines[0]["instances"]) == count - 1
