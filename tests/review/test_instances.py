"""Instances in review: the page shows each in a colour of its own, one is selected and rejected alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fss_models.errors import FssError
from pipelines.console.answers import LabelRow
from pipelines.console.jobs import shown_label
from pipelines.data import rle
from pipelines.labelling.decisions import Decision
from pipelines.review.job import ReviewedJob, decide_by_name, import_decisions, open_job
from pipelines.review.page import write_review
from tests.labelling.test_instances import (  # noqa: F401
    job,
    mask,
    photos,
    rows_of,
    several,
)
from tests.serving.browser import NEEDS_BROWSER, browser


@pytest.fixture
def reviewed(job: Any) -> ReviewedJob:  # noqa: F811
    return open_job(job.out.url)


def test_the_page_has_an_outline_and_a_number_for_each_instance(reviewed: ReviewedJob, tmp_path: Path) -> None:
    first, _pages = write_review(reviewed, str(tmp_path / "pages"))
    page = Path(first).read_text()
    rows = rows_of(reviewed)
    assert len(re.findall(r"<path [^>]*data-number=", page)) == sum(len(r["instances"]) for r in rows)
    row = several(reviewed)
    assert f": {len(row['instances'])} objects" in page
    (card,) = re.findall(rf'data-id="{row["image_id"]}".*?</figure>', page, re.DOTALL)
    assert len(set(re.findall(r"hsl\((\d+) ", card))) == len(row["instances"])


@NEEDS_BROWSER
def test_a_click_selects_an_instance_and_r_rejects_it_alone(reviewed: ReviewedJob, tmp_path: Path) -> None:
    """What the page saves is a decision about that instance, which the job takes."""
    row = several(reviewed)
    first, _pages = write_review(reviewed, str(tmp_path / "pages"))
    with browser(Path(first).as_uri()) as page:
        card = f'.card[data-id="{row["image_id"]}"]'
        page.click(f'{card} path[data-number="2"]')
        assert page.evaluate(f"document.querySelector('{card} path.selected').dataset.number") == "2"
        page.keyboard.press("r")
        assert page.evaluate(f"document.querySelectorAll('{card} path.gone').length") == 1
        assert page.evaluate(f"document.querySelector('{card}').dataset.decision") == "correct"
        with page.expect_download() as saved:
            page.click("#save")
        saved.value.save_as(tmp_path / "decisions.jsonl")
    (line,) = [json.loads(one) for one in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert (line["decision"], line["instance"]) == ("reject", 2)
    assert import_decisions(reviewed, str(tmp_path / "decisions.jsonl")) == 1
    (decision,) = reviewed.decisions.values()
    assert [one.number for one in decision.instances or ()] == [
        n for n in range(1, len(row["instances"]) + 1) if n != 2]
    again, _pages = write_review(reviewed, str(tmp_path / "again"))
    assert len(re.findall(r"<path [^>]*data-number=", Path(again).read_text())) == sum(
        len(r["instances"]) for r in rows_of(reviewed)) - 1


def test_an_instance_is_named_by_its_number(reviewed: ReviewedJob) -> None:
    row = several(reviewed)
    assert decide_by_name(reviewed, {f"{row['file_name']}#1": ("reject", None)}, "") == 1
    (decision,) = reviewed.decisions.values()
    kept = rle.decode(decision.mask["counts"].encode(), row["height"], row["width"]) if decision.mask else None
    assert kept is not None
    assert (kept == (mask(row) & ~mask(row["instances"][0], row))).all()
    with pytest.raises(FssError, match="has no label"):
        decide_by_name(reviewed, {"none.jpg#1": ("reject", None)}, "")


def test_the_console_is_told_of_the_instances_that_are_left(reviewed: ReviewedJob) -> None:
    row = several(reviewed)
    plain = shown_label(row, None)
    assert LabelRow.model_validate(plain).instances
    assert [one["number"] for one in plain["instances"]] == list(range(1, len(row["instances"]) + 1))
    reviewed.decide([Decision(image_id=row["image_id"], image=row["file_name"], class_name="ball", decision="reject",
                              instance=1)])
    now = shown_label(row, next(iter(reviewed.decisions.values())))
    assert [one["number"] for one in now["instances"]] == list(range(2, len(row["instances"]) + 1))
    assert shown_label({k: v for k, v in row.items() if k != "instances"}, None)["instances"] is None
    assert np.array_equal(rle.decode(now["counts"].encode(), row["height"], row["width"]),
                          mask(row) & ~mask(row["instances"][0], row))
