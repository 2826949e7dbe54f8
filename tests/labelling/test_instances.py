"""Instances in labelling jobs: parts, decisions and every output, with a real model and no cluster."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO

from fss_models import registry
from fss_models.errors import FssError
from fss_models.marks import rle_json
from pipelines.base.storage import Store
from pipelines.bundles.bundle import save_bundle
from pipelines.config.data import SourceConfig
from pipelines.config.recipe import Recipe
from pipelines.data import rle
from pipelines.data.open import open_source
from pipelines.inference.labeler import Labeler
from pipelines.inference.support_files import read_support_file
from pipelines.labelling.decisions import DECISIONS, Decision, apply_decisions
from pipelines.labelling.job import LabellingJob
from pipelines.labelling.manifest import MANIFEST
from pipelines.labelling.outputs import FORMATS, summary_line, write_outputs
from pipelines.labelling.parts import part_name
from pipelines.labelling.run import LabelRequest, run_label_job
from pipelines.review.job import ReviewedJob, open_job
from pipelines.serving.answers import LabelAnswer
from pipelines.serving.client import _results, results_json
from tests.labelling.finished import finished_job, known_masks
from tests.labelling.helpers import DirectEngine, make_job
from tests.serving.helpers import encoded, supports_file

#: the outputs of `finished_job` as they were before jobs had instances
BEFORE = {"labels.json": "418369139ba59837", "labels_polygons.json": "f27c0f950439f1a8",
          "label_studio.json": "bea2f64a0d751dfa", "annotations.xml": "536e0f4c33c66157", "yolo": "36667cf4a258584e"}
COUNT = 6


def balls(seed: int) -> np.ndarray:
    """A photo of noise with two or three red balls."""
    rng = np.random.default_rng(seed)
    photo = rng.integers(40, 100, (180, 300, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:180, :300]
    for x in (50, 150, 250)[: 2 + seed % 2]:
        photo[(rows - rng.integers(70, 110)) ** 2 + (columns - x) ** 2 < int(rng.integers(28, 36)) ** 2] = [220, 30, 30]
    return photo


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balls")
    for i in range(COUNT):
        (folder / f"{i}.jpg").write_bytes(encoded(balls(i), quality=95))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8")
    return folder


@pytest.fixture
def job(photos: Path, tmp_path: Path, labeler: Labeler, support: str) -> LabellingJob:
    """A finished job whose instances are pieces, in all formats."""
    made = make_job(photos, tmp_path / "job", support, labeler, instances="pieces", speck=0.0, chunk=4)
    made.run(DirectEngine(labeler), made.chunks_left(), 1)
    write_outputs(made.out, made.manifest, list(FORMATS))
    return made


def rows_of(job: LabellingJob | ReviewedJob) -> list[dict[str, Any]]:
    """The readable rows of the job's Parquet output."""
    return [r for r in pq.read_table(job.out.path("labels.parquet")).to_pylist() if r["error"] is None]


def mask(row: dict[str, Any], like: dict[str, Any] | None = None) -> np.ndarray:
    """The mask of a row, or of an instance of the row `like`."""
    size = like or row
    return rle.decode(row["rle"].encode(), size["height"], size["width"])


def union(row: dict[str, Any]) -> np.ndarray:
    return rle.union([i["rle"].encode() for i in row["instances"]], row["height"], row["width"])


def several(job: LabellingJob | ReviewedJob) -> dict[str, Any]:
    """A row with at least two instances."""
    return next(r for r in rows_of(job) if len(r["instances"]) > 1)


def test_the_instances_of_a_row_fill_its_mask(job: LabellingJob) -> None:
    found = rows_of(job)
    assert len(found) == COUNT
    assert any(len(r["instances"]) > 1 for r in found)
    for row in found:
        assert (union(row) == mask(row)).all()
        for one in row["instances"]:
            assert one["area"] == mask(one, row).sum() == rle.area(one["rle"].encode(), row["height"], row["width"])
            assert one["bbox"] == rle.bbox(one["rle"].encode(), row["height"], row["width"])
    (bad,) = [r for r in pq.read_table(job.out.path("labels.parquet")).to_pylist() if r["error"] is not None]
    assert bad["instances"] is None
    summary = json.loads(Path(job.out.path("summary.json")).read_text())
    assert summary["instances"] == {"ball": sum(len(r["instances"]) for r in found)}
    assert f"; {summary['instances']['ball']} instances" in summary_line(summary)


def test_every_format_has_as_many_masks(job: LabellingJob) -> None:
    """Read by pycocotools, an XML parser and our own readers; the union of what they read is the class's mask."""
    found = {r["file_name"]: r for r in rows_of(job)}
    count = {name: len(r["instances"]) for name, r in found.items()}
    for file in ("labels.json", "labels_polygons.json"):
        read = COCO(job.out.path(file))
        assert sorted(read.anns) == list(range(1, sum(count.values()) + 1))
        for image in read.imgs.values():
            notes = read.loadAnns(read.getAnnIds(imgIds=[image["id"]]))
            assert len(notes) == count[image["file_name"]]
            assert not any(note["iscrowd"] for note in notes)
            drawn = np.logical_or.reduce([read.annToMask(n) > 0 for n in notes])
            assert (drawn == mask(found[image["file_name"]])).all()
    for name, one in count.items():
        lines = Path(job.out.path(f"yolo/labels/{Path(name).stem}.txt")).read_text().splitlines()
        assert len(lines) == one
    tasks = json.loads(Path(job.out.path("label_studio.json")).read_text())
    results = [r for task in tasks for r in task["predictions"][0]["result"]]
    assert len({r["id"] for r in results}) == len(results) == sum(count.values())
    images = ElementTree.parse(job.out.path("annotations.xml")).findall("image")
    assert {i.get("name"): len(i.findall("mask")) for i in images} == count
    for image in images:
        assert [m.get("z_order") for m in image.findall("mask")] == [str(n) for n in range(count[image.get("name")])]


def test_yolo_and_cvat_are_read_again_as_the_same_instances(job: LabellingJob, photos: Path, tmp_path: Path) -> None:
    """Pieces of an instance that are joined by a slit, and holes, come back as they were."""
    found = {r["file_name"]: r for r in rows_of(job)}
    (tmp_path / "cvat").mkdir()
    for name in found:
        (tmp_path / "cvat" / name).write_bytes((photos / name).read_bytes())
    (tmp_path / "cvat" / "annotations.xml").write_bytes(Path(job.out.path("annotations.xml")).read_bytes())
    for kind, root in (("yolo", job.out.path("yolo")), ("cvat", str(tmp_path / "cvat"))):
        source, seen = open_source(SourceConfig(format=kind, root=root)), 0
        for item in source.items:
            row = next((r for n, r in found.items() if item.file_name.endswith(n)), None)
            if row is None:
                continue
            marks = source.rasterise(item, source.fetch(item), row["height"], row["width"])
            own = {bytes(m.rle) for m in marks.instances}
            assert own == {one["rle"].encode() for one in row["instances"]}, (kind, item.file_name)
            seen += len(marks.instances)
        assert seen == sum(len(r["instances"]) for r in found.values())


def test_the_shapes_of_an_instance_share_a_group_in_labelme(job: LabellingJob) -> None:
    root = job.out.path("labelme")
    source = open_source(SourceConfig(format="labelme", root=root))
    for row in rows_of(job):
        (item,) = [i for i in source.items if i.file_name == row["file_name"]]
        marks = source.rasterise(item, source.fetch(item), row["height"], row["width"]).instances
        shapes = json.loads((Path(root) / row["file_name"]).with_suffix(".json").read_text())["shapes"]
        groups: dict[int, list[bytes]] = {}
        for shape, mark in zip(shapes, marks, strict=True):
            groups.setdefault(shape["group_id"], []).append(mark.rle)
        found = [rle.encode(rle.union(own, row["height"], row["width"])) for own in groups.values()]
        assert found == [one["rle"].encode() for one in row["instances"]]


def test_without_instances_every_output_is_as_before(tmp_path: Path) -> None:
    out = finished_job(tmp_path, known_masks())
    yolo = sorted(p for p in (out / "yolo").rglob("*") if p.is_file() and "images" not in p.parts)
    found = {name: hashlib.sha256((out / name).read_bytes()).hexdigest()[:16] for name in BEFORE if name != "yolo"}
    found["yolo"] = hashlib.sha256(b"".join(p.read_bytes() for p in yolo)).hexdigest()[:16]
    assert found == BEFORE
    assert "instances" not in pq.read_schema(out / "labels.parquet").names
    assert "instances" not in json.loads((out / "summary.json").read_text())


def test_a_lost_part_comes_back_with_the_same_bytes(job: LabellingJob, labeler: Labeler) -> None:
    before = {c: job.out.read_bytes(part_name(c)) for c in range(job.manifest.chunks)}
    job.out.delete(part_name(1))
    assert job.chunks_left() == [1]
    job.run(DirectEngine(labeler), [1], 1)
    assert {c: job.out.read_bytes(part_name(c)) for c in range(job.manifest.chunks)} == before


def test_the_masks_do_not_depend_on_whether_instances_are_asked_for(job: LabellingJob, photos: Path, tmp_path: Path,
                                                                    labeler: Labeler, support: str) -> None:
    plain = make_job(photos, tmp_path / "plain", support, labeler, chunk=4)
    plain.run(DirectEngine(labeler), plain.chunks_left(), 1)
    for chunk in range(plain.manifest.chunks):
        both = [one.out.read_table(part_name(chunk)) for one in (plain, job)]
        assert both[1].select(both[0].column_names).equals(both[0])
        assert {*both[1].column_names} - {*both[0].column_names} == {"instances"}
    assert "instances" not in plain.out.read_json(MANIFEST)  # as in jobs of before
    assert open_job(plain.out.url).manifest.instances == "none"


def test_prompts_and_overlaps(photos: Path, tmp_path: Path) -> None:
    """A SAM 2-based method and two classes: with overlaps resolved no pixel has two classes, and instances follow."""
    url = str(tmp_path / "bundle")
    save_bundle(url, registry.build("fssam", "debug"))
    labeler = Labeler(url)
    ids = [labeler.add_support(read_support_file(str(supports_file(tmp_path)))),
           labeler.add_support(read_support_file(str(other_support(tmp_path))))]
    made = make_job(photos, tmp_path / "job", "", labeler, class_names=["ball", "noise"], support_ids=ids,
                    instances="prompts", speck=0.0, overlaps="resolve", chunk=4, method="fssam", threshold=0.4)
    made.run(DirectEngine(labeler), made.chunks_left(), 1)
    write_outputs(made.out, made.manifest, ["parquet"])
    rows = rows_of(made)
    assert any(r["area"] for r in rows)
    for row in rows:
        assert (union(row) == mask(row)).all()
        twin = next(r for r in rows if r["image_id"] == row["image_id"] and r["class_name"] != row["class_name"])
        assert not (union(row) & union(twin)).any()


def other_support(folder: Path) -> Path:
    content = json.loads((folder / "supports.json").read_text())
    shown = {"image": "ball.png", "box": [5, 5, 60, 60]}
    file = folder / "other.json"
    file.write_text(json.dumps({**content, "class_name": "noise", "supports": [shown]}))
    return file


@pytest.mark.parametrize(("source", "line"), [
    ("model", "method 'prior' has no instances from 'model' (use one of: pieces)"),
    ("prompts", "method 'prior' has no instances from 'prompts' (use one of: pieces)")])
def test_what_a_method_lacks_is_refused_before_anything_is_written(
        bundle: str, photos: Path, tmp_path: Path, source: str, line: str) -> None:
    recipe = Recipe(out=str(tmp_path / "ws"), label={"instances": source})
    with pytest.raises(FssError) as refused:
        run_label_job(LabelRequest(recipe=recipe, images=str(photos), supports=str(supports_file(tmp_path)),
                                   out=str(tmp_path / "out"), bundle=bundle))
    assert line in str(refused.value)
    assert not (tmp_path / "out").exists()


def decide(job: LabellingJob, row: dict[str, Any], *decisions: dict[str, Any]) -> ReviewedJob:
    """The job after decisions about the label of a row, with its outputs written again."""
    opened = open_job(job.out.url)
    opened.decide([Decision(image_id=row["image_id"], image=row["file_name"], class_name="ball", **d)
                   for d in decisions])
    write_outputs(opened.out, opened.manifest, ["parquet"])
    return opened


def after(job: ReviewedJob, row: dict[str, Any]) -> dict[str, Any]:
    return next(r for r in rows_of(job) if r["image_id"] == row["image_id"])


def test_an_edited_mask_cuts_its_instances_and_adds_one(job: LabellingJob) -> None:
    before, row = rows_of(job), several(job)
    new = mask(row).copy()
    new[:, :150] = False
    new[:20, :20] = True  # no instance was there
    opened = decide(job, row, {"decision": "correct", "mask": rle_json(new)})
    now = after(opened, row)
    assert (union(now) == new).all()
    assert [i["score"] is None for i in now["instances"]] == [False] * (len(now["instances"]) - 1) + [True]
    assert (mask(now["instances"][-1], now) == (np.indices(new.shape) < 20).all(axis=0)).all()
    others = [r for r in rows_of(opened) if r["image_id"] != row["image_id"]]
    assert others == [r for r in before if r["image_id"] != row["image_id"]]
    notes = json.loads(Path(job.out.path("labels.json")).read_text())["annotations"]
    assert [n for n in notes if "score" not in n and n["image_id"] == row["image_id"]]


def test_a_rejected_label_has_no_instances_and_an_accepted_one_its_own(job: LabellingJob) -> None:
    row = several(job)
    assert after(decide(job, row, {"decision": "reject"}), row)["instances"] == []
    assert after(decide(job, row, {"decision": "accept"}), row)["instances"] == row["instances"]
    assert after(decide(job, row, {"decision": "undo"}), row) == row


def test_one_instance_is_rejected_corrected_and_restored_alone(job: LabellingJob) -> None:
    row = several(job)
    parts = [job.out.read_bytes(part_name(c)) for c in range(job.manifest.chunks)]
    first, *rest = row["instances"]
    rejected = after(decide(job, row, {"decision": "reject", "instance": 1}), row)
    assert rejected["instances"] == rest
    assert (mask(rejected) == (mask(row) & ~mask(first, row))).all()
    small = np.zeros_like(mask(row))
    small[0:5, 0:7] = True
    moved = after(decide(job, row, {"decision": "correct", "instance": 2, "mask": rle_json(small)}), row)
    assert moved["instances"][0] | {"rle": ""} == {"rle": "", "bbox": [0, 0, 7, 5], "area": 35, "score": None}
    assert moved["instances"][1:] == rest[1:]
    assert (union(moved) == mask(moved)).all()
    restored = decide(job, row, {"decision": "undo", "instance": 1}, {"decision": "undo", "instance": 2})
    assert after(restored, row) == row
    assert not restored.decisions
    assert [job.out.read_bytes(part_name(c)) for c in range(job.manifest.chunks)] == parts


def test_a_label_without_its_last_instance_is_rejected(job: LabellingJob) -> None:
    row = several(job)
    opened = decide(job, row, *({"decision": "reject", "instance": n + 1} for n in range(len(row["instances"]))))
    assert next(iter(opened.decisions.values())).decision == "reject"
    assert after(opened, row)["area"] == 0


@pytest.mark.parametrize(("wrong", "line"), [
    ({"decision": "reject", "instance": 9}, "none with the number 9"),
    ({"decision": "reject", "instance": 0}, "none with the number 0"),
    ({"decision": "accept", "instance": 1}, "one instance cannot be accepted alone")])
def test_wrong_decisions_about_instances_are_refused(job: LabellingJob, wrong: dict[str, Any], line: str) -> None:
    row = several(job)
    with pytest.raises(FssError, match=line):
        decide(job, row, {"decision": "reject", "instance": 1}, wrong)
    assert not job.out.exists(DECISIONS)


def test_resolved_overlaps_take_pixels_from_instances_too() -> None:
    whole = np.zeros((10, 10), dtype=bool)
    whole[:, 2:8] = True
    left = whole & (np.indices(whole.shape)[1] < 5)
    instances = [{"rle": rle.encode(m).decode(), "bbox": [], "area": 30, "score": 0.5} for m in (left, whole & ~left)]
    row = {"image_id": 1, "file_name": "a", "height": 10, "width": 10, "class_name": "x", "error": None, "score": 0.5,
           "rle": rle.encode(whole).decode(), "bbox": [2, 0, 6, 10], "area": 60, "instances": instances}
    taken = Decision(image_id=1, image="a", class_name="y", decision="correct", mask=rle_json(left), time="2026")
    found = apply_decisions([row, {**row, "class_name": "y"}], {(1, "y"): taken}, resolve=True)
    assert [i["area"] for i in found[0]["instances"]] == [30]
    assert [i["area"] for i in found[1]["instances"]] == [30]
    assert not (union(found[0]) & union(found[1])).any()


def test_the_service_sends_instances_as_they_are(labeler: Labeler, support: str) -> None:
    from pipelines.config.mask_request import MaskRequest

    request = MaskRequest(support_ids=(support,), instances="pieces")
    assert request.body()["instances"] == "pieces"
    found = labeler.label_classes([encoded(balls(1))], request)
    answer = results_json(found[0], many=False)
    assert LabelAnswer.model_validate(answer).instances
    assert _results(json.loads(json.dumps(answer))) == found[0]
    plain = labeler.label([encoded(balls(1))], support)[0]
    assert "instances" not in results_json((plain,), many=False)  # type: ignore[arg-type]


def test_another_source_is_another_job(job: LabellingJob, photos: Path, labeler: Labeler, support: str) -> None:
    assert Store(job.out.url).read_json(MANIFEST)["instances"] == "pieces"
    with pytest.raises(FssError, match="holds another job"):
        make_job(photos, job.out.url, support, labeler, chunk=4)
