"""Annotations that are there already are kept, filled in or compared with, and never replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco

from fss_models.errors import FssError
from fss_models.photo_files import decode_image
from pipelines.base.storage import Store
from pipelines.config.label import LabelConfig
from pipelines.config.recipe import Recipe
from pipelines.console.records import job_recipe
from pipelines.data import rle
from pipelines.data.annotations import Annotations
from pipelines.inference.labeler import Labeler
from pipelines.labelling.decisions import Decision
from pipelines.labelling.existing import keep_about, open_existing
from pipelines.labelling.images import list_images
from pipelines.labelling.job import LabellingJob
from pipelines.labelling.manifest import claim_folder
from pipelines.labelling.outputs import FORMATS, summary_line, write_outputs
from pipelines.labelling.parts import part_name
from pipelines.review.doubt import order_by_doubt
from pipelines.review.job import ReviewedJob
from pipelines.review.page import write_review
from pipelines.review.redo import rows_to_redo
from tests.labelling.finished import finished_job, known_masks
from tests.labelling.helpers import DirectEngine, make_job
from tests.serving.helpers import ball, photo_folder

COUNT = 12
CLASSES = ["ball", "shadow"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_folder(tmp_path_factory.mktemp("photos") / "p", COUNT)


def square(height: int, width: int, left: int = 3) -> np.ndarray:
    """A mask that no model would make."""
    mask = np.zeros((height, width), dtype=bool)
    mask[5:14, left:left + 9] = True
    return mask


def coco_file(place: Path, photos: Path, masks: dict[str, dict[str, np.ndarray]], *more: str) -> Path:
    """COCO annotations of photos (name -> class -> mask); `more`: names of photos that there are not."""
    names = sorted({c for own in masks.values() for c in own} | {"bolt"})
    images = [{"id": n, "file_name": name, **dict(zip(("width", "height"), _size(photos, name), strict=True))}
              for n, name in enumerate([*masks, *more], 1)]
    notes: list[dict[str, Any]] = []
    for n, name in enumerate(masks, 1):
        for label, mask in masks[name].items():
            coded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
            notes.append({"id": len(notes) + 1, "image_id": n, "category_id": names.index(label) + 1, "iscrowd": 0,
                          "segmentation": {"size": coded["size"], "counts": coded["counts"].decode()}})
    place.write_text(json.dumps({"images": images, "annotations": notes, "categories": [
        {"id": n, "name": c} for n, c in enumerate(names, 1)]}))
    return place


def _size(photos: Path, name: str) -> tuple[int, int]:
    return Image.open(photos / name).size if (photos / name).exists() else (64, 64)


def begin(photos: Path, out: Path, labeler: Labeler, support: str, annotations: Path, mode: str,
          **changes: Any) -> LabellingJob:
    """A claimed job with existing annotations, of the classes `CLASSES`, which one support set stands for."""
    fields = {"class_names": CLASSES, "support_ids": [support, support], **changes}
    plain = make_job(photos, f"{out}-plain", support, labeler, **fields)
    config = LabelConfig.model_validate({"existing": str(annotations), "existing_mode": mode})
    existing = open_existing(config, plain.images, plain.manifest.classes)
    assert existing is not None
    manifest = plain.manifest.model_copy(update=existing.describe())
    store = Store(str(out))
    claim_folder(store, manifest)
    keep_about(store, existing, plain.images, manifest.classes)
    return LabellingJob(store, plain.images, manifest, existing=existing)


def rows_of(job: LabellingJob) -> dict[tuple[str, str], dict[str, Any]]:
    found = [r for c in range(job.manifest.chunks) for r in job.out.read_table(part_name(c)).to_pylist()]
    return {(r["file_name"], r["class_name"]): r for r in found}


@pytest.fixture
def names(photos: Path) -> list[str]:
    return list(list_images(str(photos)).names)


def some(photos: Path, names: list[str], place: Path) -> tuple[Path, dict[str, dict[str, np.ndarray]]]:
    """Annotations of three photos: both classes, one class, and none of the job's."""
    sizes = {n: _size(photos, n)[::-1] for n in names}
    masks = {names[0]: {"ball": square(*sizes[names[0]]), "shadow": square(*sizes[names[0]], 20)},
             names[1]: {"ball": square(*sizes[names[1]])}, names[2]: {"bolt": square(*sizes[names[2]])}, names[3]: {}}
    return coco_file(place, photos, masks, "elsewhere.jpg"), masks


def same(row: dict[str, Any], mask: np.ndarray) -> bool:
    return bool((rle.decode(row["rle"].encode(), row["height"], row["width"]) == mask).all())


def test_keep_leaves_annotated_photos_as_they_are(
    photos: Path, names: list[str], tmp_path: Path, labeler: Labeler, support: str
) -> None:
    place, masks = some(photos, names, tmp_path / "a.json")
    job = begin(photos, tmp_path / "out", labeler, support, place, "keep")
    engine = DirectEngine(labeler)
    job.run(engine, job.chunks_left(), 2)
    assert sum(engine.requests) == COUNT - 3  # photos with no mask in the file may never have been looked at
    rows = rows_of(job)
    assert all(same(rows[names[0], c], masks[names[0]][c]) for c in CLASSES)
    assert same(rows[names[1], "ball"], masks[names[1]]["ball"])
    assert [rows[n, c]["area"] for n, c in ((names[1], "shadow"), (names[2], "ball"), (names[2], "shadow"))] == [0] * 3
    origins = {key: row["origin"] for key, row in rows.items()}
    assert {key for key, origin in origins.items() if origin == "existing"} == {
        (n, c) for n in names[:3] for c in CLASSES}
    summary = write_outputs(job.out, job.manifest, [f for f in FORMATS if f != "yolo"])
    assert summary["existing"] == {
        "path": str(place), "format": "coco", "mode": "keep", "photos": 3, "missing": 1, "other_classes": ["bolt"],
        "new_classes": [], "problems": 0, "kept": {"ball": 3, "shadow": 3}}
    assert summary_line(summary).endswith("; labels kept as they were: 6")
    lost = pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    assert [(r["file_name"], r["stage"]) for r in lost] == [("elsewhere.jpg", "existing")]
    exported(tmp_path / "out", names)


def exported(out: Path, names: list[str]) -> None:
    """Check that the exports say which masks were there."""
    labels = json.loads((out / "labels.json").read_text())
    of = {i["id"]: i["file_name"] for i in labels["images"]}
    assert {a["origin"] for a in labels["annotations"] if of[a["image_id"]] in names[:3]} == {"existing"}
    assert {a["origin"] for a in labels["annotations"] if of[a["image_id"]] not in names[:3]} == {"model"}
    xml = (out / "annotations.xml").read_text()
    assert xml.count('source="manual"') == 3
    results = [r for t in json.loads((out / "label_studio.json").read_text()) for p in t["predictions"]
               for r in p["result"]]
    assert sum(r.get("origin") == "manual" for r in results) == 3
    shapes = json.loads((out / "labelme" / names[0]).with_suffix(".json").read_text())["shapes"]
    assert all(s["flags"]["existing"] for s in shapes)


def test_fill_labels_what_has_no_mask(
    photos: Path, names: list[str], tmp_path: Path, labeler: Labeler, support: str
) -> None:
    place, masks = some(photos, names, tmp_path / "a.json")
    job = begin(photos, tmp_path / "out", labeler, support, place, "fill")
    engine = DirectEngine(labeler)
    job.run(engine, job.chunks_left(), 1)
    assert sum(engine.requests) == COUNT - 1
    rows = rows_of(job)
    assert {key for key, row in rows.items() if row["origin"] == "existing"} == {
        (n, c) for n, own in masks.items() for c in own if c in CLASSES}
    plain = make_job(photos, tmp_path / "plain", support, labeler, class_names=CLASSES, support_ids=[support] * 2)
    plain.run(DirectEngine(labeler), plain.chunks_left(), 1)
    for key, row in rows_of(plain).items():
        if rows[key]["origin"] == "model":
            assert row.items() <= rows[key].items(), key
    assert "origin" not in pq.read_schema(tmp_path / "plain" / part_name(0)).names
    assert "existing" not in "".join(Store(str(tmp_path / "plain")).read_json("manifest.json"))


def test_kept_masks_are_not_cut_and_have_instances(
    photos: Path, names: list[str], tmp_path: Path, labeler: Labeler, support: str
) -> None:
    size = _size(photos, names[1])[::-1]
    theirs = ball(int(Path(names[1]).stem))[1] | square(*size)
    place = coco_file(tmp_path / "a.json", photos, {names[1]: {"shadow": theirs}})
    job = begin(photos, tmp_path / "out", labeler, support, place, "fill", overlaps="resolve", instances="pieces")
    job.run(DirectEngine(labeler), job.chunks_left(), 1)
    rows = rows_of(job)
    kept, cut = rows[names[1], "shadow"], rows[names[1], "ball"]
    assert [(i["area"], i["score"]) for i in kept["instances"]] == [(kept["area"], None)]
    masks = [rle.decode(r["rle"].encode(), *size) for r in (kept, cut)]
    assert same(kept, theirs)
    assert not (masks[0] & masks[1]).any()


def test_compare_orders_by_disagreement(
    photos: Path, names: list[str], tmp_path: Path, labeler: Labeler, support: str
) -> None:
    good = [(n, ball(int(Path(n).stem))[1]) for n in names[:2]]
    masks = {**{n: {"ball": m} for n, m in good}, names[2]: {"ball": square(*_size(photos, names[2])[::-1])}}
    place = coco_file(tmp_path / "a.json", photos, masks)
    job = begin(photos, tmp_path / "out", labeler, support, place, "compare")
    engine = DirectEngine(labeler)
    job.run(engine, job.chunks_left(), 1)
    assert sum(engine.requests) == COUNT
    rows = rows_of(job)
    for name, own in masks.items():
        row = rows[name, "ball"]
        found = rle.decode(row["rle"].encode(), row["height"], row["width"])
        assert row["existing_iou"] == pytest.approx((found & own["ball"]).sum() / (found | own["ball"]).sum())
        assert rows[name, "shadow"]["existing_rle"] is None, "the annotations do not know this class"
    assert all(r["existing_iou"] is None for (n, _), r in rows.items() if n not in masks)
    summary = write_outputs(job.out, job.manifest)
    table = pq.read_table(tmp_path / "out" / "disagreements.parquet")
    assert table["file_name"].to_pylist()[0] == names[2]
    assert table["iou"].to_pylist() == sorted(rows[n, "ball"]["existing_iou"] for n in masks)
    about = summary["existing"]["compared"]["ball"]
    assert (about["labels"], about["mean_iou"]) == (3, pytest.approx(np.mean(table["iou"].to_pylist())))
    opened = ReviewedJob(job.out, job.manifest)
    order = order_by_doubt(opened)
    assert job.images.names[int(order.image_ids[0]) - 1] == names[2]
    page, _ = write_review(opened, str(tmp_path / "review"))
    assert Path(page).read_text().count(">IoU with the annotation<") == 3
    wrong = {"size": [rows[names[2], "ball"][k] for k in ("height", "width")],
             "counts": rows[names[2], "ball"]["existing_rle"]}
    opened.decide([Decision(image_id=int(order.image_ids[0]), image=names[2], class_name="ball", decision="correct",
                            mask=wrong)])
    write_outputs(job.out, job.manifest)
    assert pq.read_table(tmp_path / "out" / "disagreements.parquet")["iou"].to_pylist()[-1] == 1.0


def test_parts_do_not_depend_on_the_order(
    photos: Path, names: list[str], tmp_path: Path, labeler: Labeler, support: str
) -> None:
    place, _ = some(photos, names, tmp_path / "a.json")
    for name, step in (("a", 1), ("b", -1)):
        job = begin(photos, tmp_path / name, labeler, support, place, "fill")
        job.run(DirectEngine(labeler), job.chunks_left()[::step], 1)
        write_outputs(job.out, job.manifest)
    for file in (*(part_name(c) for c in range(job.manifest.chunks)), "labels.json", "failures.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_an_annotation_that_cannot_be_read_is_told(
    photos: Path, names: list[str], tmp_path: Path, labeler: Labeler, support: str
) -> None:
    """Of another size: the photo is labelled, and the annotation is listed; a changed file is another job."""
    place = coco_file(tmp_path / "a.json", photos, {names[0]: {"ball": np.ones((9, 9), dtype=bool)}})
    job = begin(photos, tmp_path / "out", labeler, support, place, "keep")
    job.run(DirectEngine(labeler), job.chunks_left(), 1)
    write_outputs(job.out, job.manifest)
    (row,) = pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    assert (row["file_name"], row["stage"]) == (names[0], "existing")
    assert "mask is 9x9" in row["reason"]
    assert rows_of(job)[names[0], "ball"]["origin"] == "model"
    coco_file(place, photos, {names[0]: {"ball": square(*_size(photos, names[0])[::-1])}})
    with pytest.raises(FssError, match="its existing_hash is"):
        begin(photos, tmp_path / "out", labeler, support, place, "keep")


def test_review_again_and_the_console_leave_annotations_alone() -> None:
    rows = [{"image_id": 1, "class_name": c, "error": None, "origin": o, "area": 9, "score": s}
            for c, o, s in (("ball", "model", 0.2), ("shadow", "existing", 0.1), ("bolt", "model", 0.9))]
    assert rows_to_redo(rows, {}, 0.5, whole=False) == {(1, "ball")}
    assert rows_to_redo(rows, {}, 0.5, whole=True) == {(1, "ball"), (1, "bolt")}
    model: Any = None
    with pytest.raises(FssError, match=r"label\.existing is for `fss label`"):
        job_recipe(Recipe(label=LabelConfig(existing="a.json")), model, {})


def test_mistakes_are_one_line(photos: Path, names: list[str], tmp_path: Path) -> None:
    images = list_images(str(photos))
    place, _ = some(photos, names, tmp_path / "a.json")
    for config, words in (({"existing": str(tmp_path / "none.json")}, "does not exist"),
                          ({"existing": str(photos)}, "format of these annotations cannot be told"),
                          ({"existing": str(place), "existing_classes": {"nut": "ball"}}, "no class 'nut' to rename")):
        with pytest.raises(FssError, match=words):
            open_existing(LabelConfig.model_validate(config), images, CLASSES)
    with pytest.raises(FssError, match="none of the job's classes, but ball, bolt, shadow"):
        open_existing(LabelConfig(existing=str(place)), images, ["gear"])
    other = coco_file(tmp_path / "b.json", photos, {}, "elsewhere.jpg")
    with pytest.raises(FssError, match="none of the 1 photos in the annotations"):
        open_existing(LabelConfig(existing=str(other)), images, ["bolt"])
    results = tmp_path / "results.json"
    results.write_text('[{"image_id": 1, "category_id": 1, "score": 0.5}]')
    with pytest.raises(FssError, match="these are predictions"):
        open_existing(LabelConfig(existing=str(results)), images, CLASSES)
    with pytest.raises(ValueError, match="existing_mode needs annotations"):
        LabelConfig(existing_mode="fill")


@pytest.mark.parametrize("kind", ["coco", "yolo", "cvat", "labelme", "label_studio"])
def test_every_format_is_read_apart_from_its_photos(kind: str, tmp_path: Path) -> None:
    truth = known_masks()
    job = finished_job(tmp_path, truth)
    place = {"coco": job / "labels.json", "yolo": job / "yolo", "cvat": job / "annotations.xml",
             "labelme": job / "labelme", "label_studio": tmp_path / "tasks.json"}[kind]
    tasks = json.loads((job / "label_studio.json").read_text())
    for task in tasks:
        task["annotations"] = [{"id": 1, "result": p["result"]} for p in task["predictions"]]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    images = list_images(str(tmp_path / "photos"))
    found = Annotations(str(place), dict(zip(images.names, images.sizes, strict=True)))
    assert (found.format, found.missing) == (kind, [])
    assert found.items.keys() == truth.keys()
    for name, masks in truth.items():
        said = found.read(found.items[name], (tmp_path / "photos" / name).read_bytes())
        assert (said.height, said.width) == masks["fork"].shape
        for label, mask in masks.items():
            seen = rle.union(said.masks.get(label, []), said.height, said.width)
            assert (seen == mask).all(), f"{name} {label}"
        assert said.looked == (any(m.any() for m in masks.values()) or kind not in ("coco", "cvat"))


def test_label_files_of_yolo_that_fit_several_photos_or_none(tmp_path: Path) -> None:
    """None is guessed, and none is silently lost."""
    (tmp_path / "classes.txt").write_text("ball\n")
    for name in ("a", "train/b", "val/b", "gone", "twice"):
        (tmp_path / "labels" / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0 0 1 0 1 1\n")
    found = Annotations(str(tmp_path), {"a.jpg": 1, "b.jpg": 1, "x/twice.jpg": 1, "y/twice.jpg": 1})
    assert found.items.keys() == {"a.jpg", "b.jpg"}
    assert found.missing == ["labels/gone.txt"]
    assert {f.file_name: f.reason.split(" ")[:2] for f in found.problems} == {
        "labels/val/b.txt": ["labels/train/b.txt", "is"], "labels/twice.txt": ["2", "photos"]}


@pytest.mark.parametrize("value", range(1, 9))
def test_masks_of_a_photo_as_stored_are_turned_upright(value: int, tmp_path: Path) -> None:
    """COCO's tools ignore EXIF, and `fss label` does not: the mask has to follow the photo."""
    stored = np.zeros((40, 60, 3), dtype=np.uint8)
    mask = square(40, 60)
    stored[mask] = 255
    exif = Image.Exif()
    exif[0x0112] = value
    (tmp_path / "photos").mkdir()
    Image.fromarray(stored).save(tmp_path / "photos" / "a.png", exif=exif)
    place = coco_file(tmp_path / "a.json", tmp_path / "photos", {"a.png": {"ball": mask}})
    data = (tmp_path / "photos" / "a.png").read_bytes()
    found = Annotations(str(place), {"a.png": len(data)})
    said = found.read(found.items["a.png"], data)
    upright = decode_image(data, exif=True)[..., 0] > 0
    assert upright.shape == (said.height, said.width)
    assert (rle.union(said.masks["ball"], said.height, said.width) == upright).all()
