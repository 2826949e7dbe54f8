"""Review of a labelling job with a real model and no cluster: order, decisions, outputs with them, labelling again."""

from __future__ import annotations

import json
import re
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from pycocotools.coco import COCO

from fss_models import registry
from fss_models.errors import FssError
from fss_models.marks import rle_json
from pipelines.base.storage import Store
from pipelines.bundles.bundle import save_bundle
from pipelines.config.label import LabelConfig
from pipelines.config.recipe import Recipe
from pipelines.data import rle
from pipelines.inference.labeler import Labeler
from pipelines.inference.support_files import read_support_file
from pipelines.labelling.decisions import DECISIONS, Decision, add_decisions, apply_decisions, read_decisions
from pipelines.labelling.images import keep_unread
from pipelines.labelling.job import LabellingJob
from pipelines.labelling.manifest import MANIFEST
from pipelines.labelling.outputs import write_outputs
from pipelines.labelling.parts import part_name
from pipelines.labelling.run import LabelRequest
from pipelines.review import redo
from pipelines.review.doubt import order_by_doubt, rows_at, sureness
from pipelines.review.job import ReviewedJob, decide_by_name, import_decisions, open_job
from pipelines.review.page import PAGE, write_review
from pipelines.review.redo import (
    SNAPSHOT,
    RedoRequest,
    begin_redo,
    extend_supports,
    prepare_redo,
    rows_to_redo,
    run_redo,
)
from tests.labelling.helpers import DirectEngine, make_job
from tests.serving.browser import NEEDS_BROWSER, browser
from tests.serving.helpers import ball, encoded, photo_folder, supports_file

COUNT = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("review")


@pytest.fixture(scope="module")
def labeler(bundle: str, place: Path) -> Iterator[Labeler]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Labeler(bundle, supports_url=str(place / "supports"))
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def support(labeler: Labeler, place: Path) -> str:
    given = read_support_file(str(supports_file(place)))
    given.save(str(place / "supports"))
    return labeler.add_support(given)


@pytest.fixture(scope="module")
def photos(place: Path) -> Path:
    return photo_folder(place / "p", COUNT)


@pytest.fixture
def job(photos: Path, tmp_path: Path, labeler: Labeler, support: str) -> ReviewedJob:
    """A finished job."""
    made = make_job(photos, tmp_path / "job", support, labeler)
    made.run(DirectEngine(labeler), made.chunks_left(), 1)
    write_outputs(made.out, made.manifest)
    return open_job(made.out.url)


def _parts(job: ReviewedJob | LabellingJob) -> list[bytes]:
    return [job.out.read_bytes(part_name(c)) for c in range(job.manifest.chunks)]


def _truth(name: str) -> np.ndarray:
    return ball(int(Path(name).stem))[1]


def _iou(row: dict[str, Any]) -> float:
    found, truth = rle.decode(row["rle"].encode(), row["height"], row["width"]), _truth(row["file_name"])
    return float((found & truth).sum() / (found | truth).sum())


def test_the_most_doubtful_come_first_whatever_is_held(job: ReviewedJob) -> None:
    whole, few = order_by_doubt(job), order_by_doubt(job, most=5)
    scores = {r["image_id"]: r["score"] for rows in job.rows() for r in rows}
    assert whole.image_ids.tolist() == sorted(scores, key=lambda i: (scores[i], i))
    assert few.image_ids.tolist() == whole.image_ids[:5].tolist()
    assert (len(few), few.total) == (5, COUNT)
    assert [r["image_id"] for r in rows_at(job, whole, [7, 0, 3])] == whole.image_ids[[7, 0, 3]].tolist()


def test_photos_of_a_list_that_share_a_name(place: Path, labeler: Labeler, support: str, tmp_path: Path) -> None:
    """Review shows each photo under its own mask, and a correction of the second one is a support with its pixels."""
    (tmp_path / "a").mkdir()
    for number, name in enumerate(("1.jpg", "a/1.jpg"), 6):
        (tmp_path / name).write_bytes(encoded(ball(number)[0], quality=90))
    (tmp_path / "l.csv").write_text("url\na/../1.jpg\na/1.jpg\n")
    made = make_job(tmp_path / "l.csv", tmp_path / "job", support, labeler)
    keep_unread(made.out, made.images)
    made.run(DirectEngine(labeler), made.chunks_left(), 1)
    job = open_job(made.out.url)
    assert {job.rows_of(i)[0]["file_name"] for i in (1, 2)} == {"a/1.jpg"}
    assert [job.photo(i, "a/1.jpg") for i in (1, 2)] == [(tmp_path / n).read_bytes() for n in ("1.jpg", "a/1.jpg")]
    with pytest.raises(FssError, match=r"several photos are named 'a/1\.jpg'"):
        decide_by_name(job, {"a/1.jpg": ("reject", None)}, "")
    fixed = Decision(image_id=2, image="a/1.jpg", class_name="ball", decision="correct", mask=rle_json(ball(7)[1]))
    (supports,) = extend_supports(job, {fixed.key: fixed}, str(place / "supports"))
    assert supports.supports[-1].image == (tmp_path / "a/1.jpg").read_bytes()


def test_doubt_of_an_empty_label_is_that_the_class_is_there() -> None:
    assert sureness({"score": 0.4, "area": 9, "quality": 0.8, "presence": 0.9}) == 0.8
    assert sureness({"score": 0.4, "area": 0, "quality": 0.01, "presence": 0.1}) == 0.9
    assert sureness({"score": 0.4, "area": 9, "quality": None, "presence": None}) == 0.4


def test_gallery_pages_hold_their_pictures_and_are_bounded(photos: Path, tmp_path: Path, labeler: Labeler,
                                                           support: str) -> None:
    """The pages of a job in which a part is missing."""
    made = make_job(photos, tmp_path / "half", support, labeler)
    made.run(DirectEngine(labeler), [0, 2], 1)
    first, pages = write_review(open_job(made.out.url), str(tmp_path / "pages"), most=PAGE)
    text = Path(first).read_text()
    assert pages == 1
    assert "12 of 20 photos are labelled" in text
    assert text.count('class="card"') == 12
    assert not re.search(r'(src|href)="(?!data:)', text)
    shown = [float(v) for v in re.findall(r"<b>(0\.\d\d)</b>", text)]
    assert shown == sorted(shown)


def test_decisions_are_in_the_outputs_and_parts_stay(job: ReviewedJob) -> None:
    before = _parts(job)
    names = {r["image_id"]: r["file_name"] for rows in job.rows() for r in rows}
    mask = _truth(names[3])
    decide_by_name(job, {names[1]: ("reject", None), names[2]: ("accept", None),
                         names[3]: ("correct", rle_json(mask))}, "")
    job.decide([Decision(image_id=4, image=names[4], class_name="ball", decision="reject"),
                Decision(image_id=4, image=names[4], class_name="ball", decision="undo")])
    summary = write_outputs(job.out, job.manifest, ["parquet", "yolo"])
    assert summary["decisions"] == {"accept": 1, "correct": 1, "reject": 1}
    assert (summary["with_object"], summary["without_object"]) == (COUNT - 1, 1)
    labels = COCO(job.out.path("labels.json"))
    found = {a["image_id"]: a for a in labels.anns.values()}
    assert set(found) == set(range(2, COUNT + 1))
    assert (coco.decode(found[3]["segmentation"]).astype(bool) == mask).all()
    assert found[3]["area"] == mask.sum()
    table = {r["image_id"]: r for r in job.out.read_table("labels.parquet").to_pylist()}
    assert (table[1]["area"], table[3]["area"]) == (0, mask.sum())
    drawn = [bool(job.out.read_bytes(p)) for p in job.out.list("yolo/labels", suffix=".txt")]
    assert (len(drawn), sum(drawn)) == (COUNT, COUNT - 1)
    assert _parts(job) == before


def test_a_persons_mask_wins_where_no_pixel_may_have_two_classes() -> None:
    left, right = np.zeros((4, 6), dtype=bool), np.zeros((4, 6), dtype=bool)
    left[:, :3], right[:, 3:] = True, True
    mine = np.zeros((4, 6), dtype=bool)
    mine[:, :4] = True
    about: dict[str, Any] = {"image_id": 1, "height": 4, "width": 6, "bbox": [], "area": 12, "score": 0.5,
                             "error": None}
    rows = [{**about, "class_name": n, "rle": rle.encode(m).decode()} for n, m in (("a", left), ("b", right))]
    fixed = Decision(image_id=1, image="x", class_name="a", decision="correct", mask=rle_json(mine))
    for resolve, area in ((True, 8), (False, 12)):
        a, b = apply_decisions(rows, {fixed.key: fixed}, resolve=resolve)
        assert (a["area"], b["area"]) == (16, area)
    seen = Decision(image_id=1, image="x", class_name="b", decision="accept")
    later = seen.model_copy(update={"decision": "correct", "mask": rle_json(~left), "time": "2"})
    for second, areas in ((seen, (16, 8)), (later, (12, 12))):
        a, b = apply_decisions(rows, {fixed.key: fixed, second.key: second}, resolve=True)
        assert (a["area"], b["area"]) == areas
        assert not (rle.decode(a["rle"].encode(), 4, 6) & rle.decode(b["rle"].encode(), 4, 6)).any()


@pytest.mark.parametrize(("change", "line"), [
    ({"image_id": 99}, "photo 99 is not labelled"), ({"class_name": "cup"}, "no class 'cup'"),
    ({"image": "other.jpg"}, "check that the decision is for this job"), ({"decision": "correct"}, "needs a mask"),
    ({"mask": {"size": [1, 1], "counts": "1"}}, "other decisions must not have one"),
    ({"decision": "correct", "mask": {"size": [1, 1], "counts": "1"}}, "its photo"),
])
def test_wrong_decisions_are_refused_whole(job: ReviewedJob, change: dict[str, Any], line: str) -> None:
    name = job.rows_of(1)[0]["file_name"]
    good = {"image_id": 1, "image": name, "class_name": "ball", "decision": "accept"}
    with pytest.raises(FssError, match=line):
        job.decide([Decision.model_validate(good), Decision.model_validate({**good, **change})])
    assert not job.out.exists(DECISIONS)


def test_the_file_survives_a_torn_line_and_many_writers(tmp_path: Path) -> None:
    """Would catch half a line that is an error, and lines of two writers that are mixed."""
    out = Store(str(tmp_path))
    add_decisions(out, [Decision(image_id=1, image="a", class_name="c", decision="accept")])
    with (tmp_path / DECISIONS).open("ab") as file:
        file.write(b'{"image_id": 2, "ima')
    assert list(read_decisions(out)) == [(1, "c")]

    def write(start: int) -> None:
        for i in range(20):
            add_decisions(out, [Decision(image_id=start + i, image="a" * 300, class_name="c", decision="reject")])

    threads = [threading.Thread(target=write, args=(100 * n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_decisions(out)) == 81
    (tmp_path / DECISIONS).write_text('{"image_id": "x"}\n')
    with pytest.raises(FssError, match=r"line 1: is not a decision: image_id"):
        read_decisions(out)


def test_a_nearly_full_disk_keeps_all_decisions_or_none(tmp_path: Path) -> None:
    """A limit on the file's size stands for a full disk: it takes only a part of what is written."""
    out, limits = Store(str(tmp_path)), resource.getrlimit(resource.RLIMIT_FSIZE)
    made = [Decision(image_id=i, image="a", class_name="c", decision="accept") for i in range(9)]
    add_decisions(out, made[:1])
    before = (tmp_path / DECISIONS).read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * len(before), limits[1]))
    try:
        with pytest.raises(FssError, match="cannot be written: File too large"):
            add_decisions(out, made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / DECISIONS).read_bytes() == before


def test_a_saved_file_is_taken_over(job: ReviewedJob, tmp_path: Path) -> None:
    name = job.rows_of(2)[0]["file_name"]
    row = {"image_id": 2, "image": name, "class_name": "ball", "decision": "reject", "time": "2026-01-01T00:00:00"}
    (tmp_path / "saved.jsonl").write_text(json.dumps(row) + "\n")
    assert import_decisions(job, str(tmp_path / "saved.jsonl")) == 1
    assert job.decisions[(2, "ball")].time == "2026-01-01T00:00:00"
    for word, later in (("correct", "2026-01-02T09:00:00+00:00"), ("undo", "2026-01-03T09:00:00+00:00")):
        mask = rle_json(_truth(name)) if word == "correct" else None
        job.decide([Decision.model_validate({**row, "decision": word, "mask": mask, "time": later})])
        before = job.decisions
        for old in ("2026-01-01T00:00:00", "2026-01-02T10:30:00+02:00"):
            (tmp_path / "saved.jsonl").write_text(json.dumps({**row, "decision": "accept", "time": old}) + "\n")
            assert import_decisions(job, str(tmp_path / "saved.jsonl")) == 0
            assert job.decisions == before
    (tmp_path / "saved.jsonl").write_text(json.dumps({**row, "time": ""}) + "\n")
    assert import_decisions(job, str(tmp_path / "saved.jsonl")) == 1


def test_a_correction_that_is_accepted_stays(tmp_path: Path) -> None:
    """The page shows the corrected mask, and after `undo` that of the model."""
    out, mask = Store(str(tmp_path)), rle_json(np.eye(4, dtype=bool))
    about: dict[str, Any] = {"image_id": 1, "image": "a", "class_name": "c"}

    def say(word: str) -> Decision | None:
        given = {"mask": mask} if word == "correct" else {}
        add_decisions(out, [Decision.model_validate({**about, "decision": word, **given})])
        return read_decisions(out).get((1, "c"))

    for word in ("correct", "accept", "accept"):
        kept = say(word)
        assert kept is not None
        assert (kept.decision, kept.mask) == ("correct", mask)
    assert say("undo") is None
    again = say("accept")
    assert again is not None
    assert (again.decision, again.mask) == ("accept", None)


@pytest.mark.slow
@NEEDS_BROWSER
def test_what_the_gallery_saved_it_does_not_save_again(job: ReviewedJob, tmp_path: Path) -> None:
    first, _ = write_review(job, str(tmp_path / "pages"))
    instead = ("() => { HTMLAnchorElement.prototype.click = "
               "() => { told = document.getElementById('count').textContent; }; }")
    with browser(Path(first).as_uri()) as page:
        page.evaluate(instead)
        page.click("[data-word=accept]")
        page.click("#save")
        assert page.evaluate("window.told") == "1 decision not saved yet"
        assert page.evaluate("document.getElementById('save').disabled")
        assert page.evaluate("cards[0].dataset.decision") == "accept"
        page.goto(Path(first).as_uri())
        assert page.evaluate("document.getElementById('count').textContent") == "No unsaved decisions"


def test_only_doubtful_labels_that_nobody_decided_on_are_made_again(job: ReviewedJob, tmp_path: Path, labeler: Labeler,
                                                                    place: Path) -> None:
    """A job that is killed after one part and run again ends with the bytes of an undisturbed job."""
    order = order_by_doubt(job)
    names = {r["image_id"]: r["file_name"] for rows in job.rows() for r in rows}
    worst, second = int(order.image_ids[0]), int(order.image_ids[1])
    truth = rle_json(_truth(names[worst]))
    decide_by_name(job, {names[worst]: ("correct", truth), names[second]: ("accept", None)}, "")
    below = float(order.sure[6]) + 1e-9
    doubtful = set(order.image_ids[2:7].tolist())
    done = []
    for name in ("left alone", "killed"):
        out = Store(str(tmp_path / name))
        begin_redo(job, out, below)
        again, classes = prepare_redo(job, out, below, read_decisions(out, SNAPSHOT), str(place / "supports"))
        assert len(classes[0].supports) == 2
        labeler.add_support(classes[0])
        engine = DirectEngine(labeler)
        if name == "killed":
            again.run(engine, [1], 1)
            decide_by_name(job, {names[int(order.image_ids[5])]: ("reject", None)}, "")  # too late for this job
            again, _ = prepare_redo(job, out, below, read_decisions(out, SNAPSHOT), str(place / "supports"))
            assert again.chunks_left() == [0, 2]
        again.run(engine, again.chunks_left(), 1)
        assert sum(engine.requests) == len(doubtful)
        write_outputs(out, again.manifest)
        done.append(_parts(again))
    assert done[0] == done[1]
    before = {r["image_id"]: r for rows in job.rows() for r in rows}
    after = {r["image_id"]: r for rows in open_job(str(tmp_path / "killed")).rows() for r in rows}
    assert {i for i in before if before[i] != after[i]} <= doubtful
    assert any(before[i]["rle"] != after[i]["rle"] for i in doubtful)
    labels = COCO(str(tmp_path / "killed" / "labels.json"))
    fixed = next(a for a in labels.anns.values() if a["image_id"] == worst)
    assert _iou({**before[worst], "rle": fixed["segmentation"]["counts"]}) == 1.0
    with pytest.raises(FssError, match="holds another"):
        make_job(Path(job.manifest.images_url), tmp_path / "killed", "f" * 16, labeler)


def test_labelling_again_needs_a_correction_and_doubt(job: ReviewedJob, tmp_path: Path) -> None:
    out = Store(str(tmp_path / "new"))
    with pytest.raises(FssError, match="no mask has been corrected"):
        begin_redo(job, out, 0.5)
    name = job.rows_of(1)[0]["file_name"]
    decide_by_name(job, {name: ("correct", rle_json(_truth(name)))}, "")
    with pytest.raises(FssError, match="no label without a decision is less sure than 0"):
        begin_redo(job, out, 0.0)
    with pytest.raises(FssError, match="holds another labelling job"):
        begin_redo(job, job.out, 0.5)
    assert not out.exists()


def test_labelling_again_with_another_bundle_writes_nothing(job: ReviewedJob, tmp_path: Path) -> None:
    name = job.rows_of(1)[0]["file_name"]
    decide_by_name(job, {name: ("correct", rle_json(_truth(name)))}, "")
    save_bundle(str(tmp_path / "ws" / "champion"), registry.build("prior", "nano", seed=1))
    recipe = Recipe.model_validate({"out": str(tmp_path / "ws")})
    with pytest.raises(FssError, match=r"the labels were made with bundle_id .* --bundle, .* --workspace"):
        run_redo(RedoRequest(recipe=recipe, job=job.out.url, out=str(tmp_path / "new"), below=1.0))
    assert not (tmp_path / "new").exists()


def test_labelling_again_computes_as_the_first_job(job: ReviewedJob, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a service that is used although it computes in another way than the job's manifest says."""
    manifest = job.out.read_json(MANIFEST)
    job.out.write_json(MANIFEST, {**manifest, "features": "keep", "precision": "bfloat16"})
    asked: list[LabelConfig] = []

    def choose(options: LabelRequest) -> tuple[str, None]:
        asked.append(options.recipe.label)
        raise FssError("seen")

    monkeypatch.setattr(redo, "choose_service", choose)
    with pytest.raises(FssError, match="seen"):
        run_redo(RedoRequest(recipe=Recipe(), job=job.out.url, out=str(tmp_path / "new")))
    assert (asked[0].features, asked[0].precision, asked[0].batch) == ("keep", "bfloat16", manifest["batch"])


def test_where_classes_share_pixels_a_photo_is_made_again_as_a_whole() -> None:
    rows = [{"image_id": i, "class_name": c, "error": None, "area": 1, "quality": q, "presence": 1.0, "score": q}
            for i, c, q in ((1, "a", 0.2), (1, "b", 0.9), (2, "a", 0.9))]
    assert rows_to_redo(rows, {}, 0.5, whole=False) == {(1, "a")}
    assert rows_to_redo(rows, {}, 0.5, whole=True) == {(1, "a"), (1, "b")}
