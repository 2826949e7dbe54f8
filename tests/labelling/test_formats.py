"""Every output is read again by our own readers of the formats, and by pycocotools, Pillow and pyarrow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.open import open_source
from pipelines.data.sources.brush_rle import decode_brush, encode_brush
from pipelines.inference.masks import make_label
from pipelines.labelling.formats.files import UniqueStems
from pipelines.labelling.formats.outline import polygons
from pipelines.labelling.images import list_images
from pipelines.labelling.manifest import JobManifest
from pipelines.labelling.outputs import write_outputs
from pipelines.labelling.parts import write_part
from tests.labelling.finished import NAMES, Masks, finished_job, known_masks
from tests.serving.helpers import encoded


@pytest.fixture(scope="module")
def truth() -> Masks:
    return known_masks()


@pytest.fixture(scope="module")
def job(truth: Masks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job: two classes, eight photos and one that cannot be read, all formats."""
    return finished_job(tmp_path_factory.mktemp("formats"), truth)


def check(read: Masks, truth: Masks) -> None:
    """Check that the masks of each photo and class are exactly the same."""
    for name, masks in truth.items():
        for label, mask in masks.items():
            found = read.get(name, {}).get(label, np.zeros_like(mask))
            assert (found == mask).all(), f"{name} {label}: {int((found != mask).sum())} pixels differ"


def by_source(format_: str, root: Path, photos: Path, truth: Masks, **more: str) -> Masks:
    """The masks that one of our readers finds in the photos of `truth`."""
    source = open_source(SourceConfig(format=format_, root=str(root), **more))  # type: ignore[arg-type]
    found: Masks = {}
    for item in source.items:
        name = next((n for n in truth if item.file_name.endswith(n)), "")
        if not name:
            assert item.file_name.endswith("bad.jpg")  # in the folder, but never labelled
            continue
        height, width = truth[name]["fork"].shape
        marks = source.rasterise(item, source.fetch(item), height, width)
        assert not marks.problems
        for mark in marks.instances:
            own = found.setdefault(name, {})
            one = rle.decode(mark.rle, height, width)
            label = source.classes[mark.class_id]
            own[label] = own.get(label, np.zeros_like(one)) | one
    return found


@pytest.mark.parametrize("file", ["labels.json", "labels_polygons.json"])
def test_coco(job: Path, truth: Masks, file: str) -> None:
    read = COCO(str(job / file))
    found: Masks = {}
    for note in read.anns.values():
        name, label = read.imgs[note["image_id"]]["file_name"], read.cats[note["category_id"]]["name"]
        found.setdefault(name, {})[label] = read.annToMask(note).astype(bool)
    assert {i["file_name"] for i in read.imgs.values()} == set(truth)
    check(found, truth)


def test_yolo(job: Path, truth: Masks) -> None:
    root = job / "yolo"
    assert yaml.safe_load((root / "data.yaml").read_text())["names"] == dict(enumerate(NAMES))
    listed = [line.removeprefix("./") for line in (root / "photos.txt").read_text().splitlines()]
    assert set(listed) == {f"images/{name}" for name in truth}  # bad.jpg is no background
    assert all((root / name).exists() for name in listed)
    assert (root / "labels" / "7.txt").read_bytes() == b""
    check(by_source("yolo", root, root / "images", truth), truth)


def test_label_studio(job: Path, truth: Masks) -> None:
    """Our reader reads annotations, which predictions become when a person accepts them."""
    tasks = json.loads((job / "label_studio.json").read_text())
    assert [t["id"] for t in tasks] == sorted(t["id"] for t in tasks)
    for task in tasks:
        (task["annotations"],) = [[{"id": 1, "result": p["result"]}] for p in task["predictions"]]
    (job.parent / "photos" / "export.json").write_text(json.dumps(tasks))
    check(by_source("label_studio", job.parent / "photos", job.parent / "photos", truth), truth)


def test_cvat(job: Path, truth: Masks) -> None:
    photos = job.parent / "photos"
    (photos / "annotations.xml").write_bytes((job / "annotations.xml").read_bytes())
    check(by_source("cvat", photos, photos, truth), truth)


def test_labelme(job: Path, truth: Masks) -> None:
    """The files open where they are, beside links to the photos, and read the same beside the photos themselves."""
    root, photos = job / "labelme", job.parent / "beside"
    assert {p.relative_to(root) for p in root.rglob("*.json")} == {Path(n).with_suffix(".json") for n in truth}
    check(by_source("labelme", root, root, truth), truth)
    for name in truth:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes((job.parent / "photos" / name).read_bytes())
        (photos / name).with_suffix(".json").write_bytes((root / name).with_suffix(".json").read_bytes())
    check(by_source("labelme", photos, photos, truth), truth)
    shapes = [s for p in root.rglob("*.json") for s in json.loads(p.read_text())["shapes"]]
    assert {s["shape_type"] for s in shapes} == {"polygon", "mask"}
    assert all(s["description"].startswith("score 0.") and s["group_id"] is None for s in shapes)


def test_semantic(job: Path, truth: Masks) -> None:
    """Where two masks overlap, the surer one is on top."""
    assert (job / "semantic" / "classes.txt").read_text().splitlines() == NAMES
    for name, masks in truth.items():
        found = np.array(Image.open(job / "semantic" / Path(name).with_suffix(".png")))
        wanted = np.where(masks["fork"], 2, np.where(masks[NAMES[0]], 1, 0))
        assert (found == wanted).all()


def test_parquet(job: Path) -> None:
    table = pq.read_table(job / "labels.parquet")
    parts = [pq.read_table(p) for p in sorted((job / "parts").glob("*.parquet"))]
    assert table.to_pylist() == [row for part in parts for row in part.to_pylist()]


def test_polygons_are_exactly_the_mask() -> None:
    """Random masks contain every case: holes, islands in holes, corners that touch."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        height, width = (int(v) for v in rng.integers(2, 40, 2))
        mask = rng.random((height, width)) < rng.uniform(0.1, 0.9)
        found = np.zeros_like(mask)
        for corners in polygons(mask):
            (one,) = coco.frPyObjects([corners.ravel().astype(float).tolist()], height, width)
            found |= coco.decode(one).astype(bool)
        assert (found == mask).all()
        assert (decode_brush(encode_brush(mask), height, width) == mask).all()


def test_photos_that_differ_in_their_suffix(tmp_path: Path) -> None:
    stems = UniqueStems()
    names = ("a.b.jpg", "a.jpg", "a.k.png", "a.png", "b.jpg")
    assert [stems.name(n) for n in names] == ["a.b", "a", "a.k", "a.png", "b"]
    out, manifest = plain_job(tmp_path, "a.jpg", "a.png")
    write_outputs(out, manifest, ["semantic"])
    assert {p.name for p in (tmp_path / "out" / "semantic").iterdir()} == {"a.png", "a.png.png", "classes.txt"}
    with pytest.raises(FssError, match="share its label file"):
        write_outputs(out, manifest, ["yolo"])
    with pytest.raises(FssError, match="share its JSON file"):
        write_outputs(out, manifest, ["labelme"])


@pytest.mark.parametrize(("form", "line"), [("labelme", "share its JSON file"), ("yolo", "share its label file")])
def test_photos_of_a_watched_job_come_in_any_order(tmp_path: Path, form: str, line: str) -> None:
    """a.png arrives after b.jpg: would catch labels of a.jpg that are silently overwritten."""
    out, manifest = plain_job(tmp_path, "a.jpg", "a.png", "b.jpg")
    watched = manifest.model_copy(update={"watched": True, "chunk": 3})
    label = (make_label(coco.encode(np.ones((9, 9), dtype=np.uint8, order="F")), 0.5),)
    write_part(out, 0, list_images(watched.images_url), [0, 2, 1], watched, [label] * 3)
    with pytest.raises(FssError, match=line):
        write_outputs(out, watched, [form])


def test_photos_whose_yolo_labels_nobody_would_find(tmp_path: Path) -> None:
    out, manifest = plain_job(tmp_path, "a.jpg", "train/images/b.jpg")
    with pytest.raises(FssError, match="in a sub-folder named `images`"):
        write_outputs(out, manifest, ["yolo"])


def plain_job(root: Path, *names: str) -> tuple[Store, JobManifest]:
    """A job whose photos have 9 x 9 pixels, all of them object."""
    for name in names:
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "photos" / name).write_bytes(encoded(np.zeros((9, 9, 3), dtype=np.uint8), "PNG"))
    images = list_images(str(root / "photos"))
    manifest = JobManifest(
        images_url=str(root / "photos"), images_count=len(names), images_hash=images.hash, class_name="x",
        support_id="0" * 16, bundle_id="b", method="prior", preset="nano", chunk=2, batch=1, threshold=0.5, limit=0,
        max_pixels=10**8, max_bytes=10**8, code_version="0")
    out, mask = Store(str(root / "out")), np.ones((9, 9), dtype=np.uint8, order="F")
    write_part(out, 0, images, range(len(names)), manifest, [(make_label(coco.encode(mask), 0.5),)] * len(names))
    return out, manifest
