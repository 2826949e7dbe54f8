"""The same small dataset in every layout that users have, what each reader refuses, and the rows it leaves behind."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fss_models.errors import BadImage, FssError
from pipelines.config.data import DataConfig, SourceConfig, SplitConfig
from pipelines.data import rle
from pipelines.data.open import open_source
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards
from pipelines.data.sources.base import ImageMasks, Source, SourceImage
from pipelines.data.sources.brush_rle import decode_brush
from pipelines.data.sources.cvat import box_mask
from tests.data import exports
from tests.data.conftest import jpeg, write
from tests.data.exports import CLASSES, HEIGHT, LAYOUTS, PHOTOS, WIDTH

Write = Callable[[Path], None]
OWN: dict[str, Write] = {"yolo": exports.yolo, "label_studio": exports.label_studio, "labelme": exports.labelme,
                         "cvat": exports.cvat, "table": exports.table}


def _open(kind: str, root: Path, **over: str) -> Source:
    source = open_source(SourceConfig(format=kind, root=str(root), **over))  # type: ignore[arg-type]
    items, failures = source.items, source.failures
    travelled: Source = pickle.loads(pickle.dumps(source))  # as it is in a worker
    travelled.items, travelled.failures = items, failures
    return travelled


def _item(source: Source, stem: str) -> SourceImage:
    return next(i for i in source.items if Path(i.file_name).stem == stem)


def _marks(source: Source, number: int) -> ImageMasks:
    item = _item(source, Path(exports.name(number)).stem)
    return source.rasterise(item, source.fetch(item), HEIGHT, WIDTH)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_masks(layout: str, tmp_path: Path) -> None:
    """RLE and PNG exactly, polygons but for the rounding of their corners."""
    kind, make, exact = LAYOUTS[layout]
    make(tmp_path)
    source, truth = _open(kind, tmp_path), exports.truth()
    assert not source.failures
    assert {Path(i.file_name).stem for i in source.items} == truth.keys()
    least = 1.0
    for item in source.items:
        marks = source.rasterise(item, source.fetch(item), HEIGHT, WIDTH)
        assert not marks.problems
        assert source.fetch(item).data == exports.photo(int(Path(item.file_name).stem[-6:]))
        found = {source.classes[m.class_id]: rle.decode(m.rle, HEIGHT, WIDTH) for m in marks.instances}
        expected = truth[Path(item.file_name).stem]
        assert found.keys() == expected.keys()
        least = min(least, *(_iou(found[c], expected[c]) for c in expected))
    print(f"{layout}: least IoU {least:.4f}")
    assert least == 1.0 if exact else least > 0.98


@pytest.mark.parametrize("kind", OWN)
def test_the_fingerprint_follows_photos_and_annotations(kind: str, tmp_path: Path) -> None:
    OWN[kind](tmp_path)
    before = _open(kind, tmp_path)
    assert _open(kind, tmp_path).fingerprint == before.fingerprint
    stamps = {i.file_name: i.stamp for i in before.items}
    target = next(p for p in tmp_path.rglob("*") if p.is_file() and p.suffix in (".txt", ".json", ".xml", ".parquet"))
    if kind == "table":
        rows = pq.read_table(target).slice(2)
        pq.write_table(rows, target, row_group_size=3)
    else:
        text = target.read_text()
        target.write_text(text.replace(text[text.rindex("1") - 3 : text.rindex("1") + 1], "0.5", 1) if kind == "yolo"
                          else text.replace("bottle", "car", 2))
    after = _open(kind, tmp_path)
    assert after.fingerprint != before.fingerprint
    assert {i.file_name: i.stamp for i in after.items} != stamps


# ---- YOLO ---------------------------------------------------------------------------------------------------------

def test_yolo_of_boxes_is_refused(tmp_path: Path) -> None:
    exports.yolo(tmp_path)
    for label in (tmp_path / "labels").rglob("*.txt"):
        label.write_text("0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.1 0.1\n")
    with pytest.raises(FssError, match=r"train/2010_000000\.txt: the file has boxes \(5 numbers a line\), no polygons"):
        _open("yolo", tmp_path)


def test_yolo_mistakes_are_told_by_line(tmp_path: Path) -> None:
    exports.yolo(tmp_path)
    label = tmp_path / "labels" / "train" / "2010_000000.txt"
    label.write_text(label.read_text() + "\n0 0.5 0.5 0.2 0.2\n9 0 0 1 0 1 1\n1 0 0 640 0 640 480\n1 0 0 a 0 1 1\n"
                     "0 0.1 0.1 0.2 0.2 0.3\n")
    (tmp_path / "labels" / "train" / "2010_000001.txt").write_text("0 0.5 0.5 0.2 0.2\n")  # boxes only
    write(tmp_path, "labels/train/ghost.txt", "0 0 0 1 0 1 1\n")
    write(tmp_path, "images/train/empty.jpg", jpeg(HEIGHT, WIDTH))  # no label file: it shows nothing
    source = _open("yolo", tmp_path)
    marks = _marks(source, 0)
    assert len(marks.instances) == 2
    assert [p.split(": ", 1) for p in marks.problems] == [
        ["line 4", "bottle: a box cannot be read as a mask"],
        ["line 5", "class 9: the class list has no such label"],
        ["line 6", "car: coordinates are not shares of width and height (0 to 1)"],
        ["line 7", "car: could not convert string to float: 'a'"],
        ["line 8", "bottle: a box with a confidence (a prediction) cannot be read as a mask"],
    ]
    with pytest.raises(BadImage, match="boxes only"):
        _marks(source, 1)
    assert [(f.file_name, f.stage) for f in source.failures] == [("labels/train/ghost.txt", "index")]
    empty = _item(source, "empty")
    assert source.rasterise(empty, source.fetch(empty), HEIGHT, WIDTH) == ImageMasks()


@pytest.mark.parametrize(("text", "message"), [
    (None, "neither data.yaml nor classes.txt"), ("names: [", "not valid YAML"), ("nc: 2\n", "has no `names`"),
    ("names: {0: a, 2: b}\n", "have gaps"),
])
def test_yolo_class_names_that_are_none(text: str | None, message: str, tmp_path: Path) -> None:
    exports.yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    if text is not None:
        write(tmp_path, "data.yaml", text)
    with pytest.raises(FssError, match=message):
        _open("yolo", tmp_path)


def test_yolo_with_classes_txt_and_folders_of_a_split(tmp_path: Path) -> None:
    """Roboflow's layout: train/images beside train/labels."""
    exports.yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    write(tmp_path, "classes.txt", "\n".join(CLASSES) + "\n")
    for kind in ("images", "labels"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / kind / "train").rename(tmp_path / "train" / kind)
    source = _open("yolo", tmp_path)
    assert len(source.items) == PHOTOS
    assert source.classes == list(CLASSES)
    assert len(_marks(source, 0).instances) == 2


# ---- Label Studio -------------------------------------------------------------------------------------------------

def test_brush_rle_as_label_studio_writes_it() -> None:
    """Bytes from label-studio-converter 0.0.59 (`brush.encode_rle`), with copied and repeated runs."""
    data = bytes([0, 0, 0, 252, 57, 27, 254, 83, 0, 191, 255, 24, 4, 255, 243, 128, 95, 255, 194, 96, 23, 255, 240,
                  152, 5, 255, 252, 86, 0])
    expected = np.zeros((7, 9), dtype=bool)
    expected[2:6, 3:7], expected[2, 8], expected[3, 0] = True, True, True
    assert np.array_equal(decode_brush(data, 7, 9), expected)
    for wrong, message in ((data[:20], "ends early"), (data[:3], "ends early"), (b"", "ends early")):
        with pytest.raises(ValueError, match=message):
            decode_brush(wrong, 7, 9)
    with pytest.raises(ValueError, match="252 values, a photo of 9x8 has 288"):
        decode_brush(data, 8, 9)


def test_label_studio_mistakes_are_told(tmp_path: Path) -> None:
    exports.label_studio(tmp_path)
    tasks = exports.label_studio_tasks()
    result = tasks[0]["annotations"][1]["result"]
    box = exports.region(exports.objects(0)[0], 7, brush=False)
    box |= {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 9, "height": 9, "rectanglelabels": ["car"]}}
    turned = exports.region(exports.objects(0)[0], 8, brush=False) | {"image_rotation": 90}
    torn = exports.region(exports.objects(0)[0], 9, brush=True)
    torn["value"]["rle"] = torn["value"]["rle"][:30]
    result += [box, turned, torn]
    tasks[1]["annotations"] = tasks[1]["annotations"][:1]  # cancelled
    tasks[2]["annotations"] = []
    tasks[3]["data"] = {"image": "/data/upload/3/99999999-missing.jpg"}
    tasks[4]["data"] = {"text": "hello"}
    tasks.append(json.loads(json.dumps(tasks[0])) | {"id": 999})  # the same photo again
    write(tmp_path, "project-3.json", json.dumps(tasks))
    source = _open("label_studio", tmp_path)
    marks = _marks(source, 0)
    assert len(marks.instances) == 2
    assert marks.problems == [
        "region r7: car: a rectangle cannot be read as a mask",
        "region r8: bottle: a region on a rotated photo cannot be read as a mask",
        "region r9: bottle: brush RLE ends early",
    ]
    reasons = {f.file_name: f.reason for f in source.failures}
    assert "cancelled" in next(r for n, r in reasons.items() if "000001" in n)
    assert "not annotated" in next(r for n, r in reasons.items() if "000002" in n)
    assert "not below the root" in reasons["/data/upload/3/99999999-missing.jpg"]
    assert reasons["task 104"] == "its data names no image file"
    assert "another record has this photo already" in reasons["photos/2010_000000.jpg"]
    assert len(source.items) + len(source.failures) == len(tasks)


def test_label_studio_takes_the_ground_truth_and_labels_apart(tmp_path: Path) -> None:
    """Of two annotations the ground truth; a polygon whose label is a result of its own."""
    exports.label_studio(tmp_path)
    tasks = exports.label_studio_tasks()
    bottle, car = exports.objects(0)
    first = exports.region(bottle, 1, brush=False)
    shape = first | {"type": "polygon", "value": {"points": first["value"]["points"]}}
    label = first | {"type": "labels", "value": {"points": first["value"]["points"], "labels": ["bottle"]}}
    tasks[0]["annotations"] = [
        {"id": 1, "was_cancelled": False, "ground_truth": True, "result": [shape, label]},
        {"id": 2, "was_cancelled": False, "ground_truth": False, "result": [exports.region(car, 1, brush=False)]},
    ]
    write(tmp_path, "project-3.json", json.dumps(tasks))
    source = _open("label_studio", tmp_path)
    assert [source.classes[m.class_id] for m in _marks(source, 0).instances] == ["bottle"]


@pytest.mark.parametrize(("document", "message"), [
    ("[", "not valid JSON"),
    ({"images": [], "annotations": []}, "is a COCO file"),
    ([{"id": 4, "image": "a.jpg", "label": [{"points": []}]}], "task 4 has no annotations with results"),
    ([{"id": 5, "completions": [], "data": {"image": "a.jpg"}}], "old .completions. are not read"),
])
def test_label_studio_files_that_are_none(document: Any, message: str, tmp_path: Path) -> None:
    exports.label_studio(tmp_path)
    write(tmp_path, "project-3.json", document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(FssError, match=message) as error:
        _open("label_studio", tmp_path)
    assert "project-3.json" in str(error.value)


def test_label_studio_of_boxes_is_refused(tmp_path: Path) -> None:
    exports.label_studio(tmp_path)
    text = (tmp_path / "project-3.json").read_text().replace("polygonlabels", "rectanglelabels")
    write(tmp_path, "project-3.json", text)
    with pytest.raises(FssError, match="the export has no masks, only a rectangle"):
        _open("label_studio", tmp_path)


# ---- CVAT ---------------------------------------------------------------------------------------------------------

def test_cvat_runs_are_rows_of_the_box() -> None:
    value = {"rle": "1, 2, 3, 1, 2", "left": "2", "top": "1", "width": "3", "height": "3"}
    mask = box_mask(value, 5, 6)
    assert np.argwhere(mask).tolist() == [[1, 3], [1, 4], [3, 2]]
    with pytest.raises(ValueError, match="add up to 9, the mask box has 12"):
        box_mask(value | {"width": "4"}, 5, 6)
    with pytest.raises(ValueError, match="does not lie in the photo"):
        box_mask(value | {"left": "4"}, 5, 6)


def test_cvat_mistakes_are_told(tmp_path: Path) -> None:
    exports.cvat(tmp_path)
    bottle, car = exports.objects(0)
    wrong = ('<box label="car" xtl="1" ytl="1" xbr="9" ybr="9"></box><polygon label="car" points="1,1;2,2"></polygon>'
             '<mask label="car" rle="1, 2" left="0" top="0" width="9" height="9"></mask><tag label="car"></tag>'
             '<polygon label="tree" points="1,1;9,1;9,9"></polygon>'
             '<polygon label="car" points="1,1;x,2;3,3"></polygon>')
    images = [exports.cvat_image(0, exports.cvat_mask(bottle) + wrong), exports.cvat_image(0, exports.cvat_mask(car)),
              exports.cvat_image(1, exports.cvat_polygon(car)), exports.cvat_image(99, exports.cvat_mask(car))]
    write(tmp_path, "annotations.xml", exports.cvat_document(images))
    source = _open("cvat", tmp_path)
    marks = _marks(source, 0)
    assert len(marks.instances) == 1
    assert [p.split(": ")[0] for p in marks.problems] == ["box 2", "polygon 3", "mask 4", "polygon 5", "polygon 6"]
    assert "a box cannot be read as a mask" in marks.problems[0]
    assert "no polygon with three corners" in marks.problems[1]
    assert "add up to 3" in marks.problems[2]
    assert marks.problems[3] == "polygon 5: tree: the class list has no such label"
    assert [f.file_name for f in source.failures] == [exports.name(99), f"images/{exports.name(0)}"]


@pytest.mark.parametrize(("text", "message"), [
    ("<annotations>", "not valid XML"),
    ("<html></html>", "not a CVAT export"),
    ("<annotations><version>1.1</version></annotations>", "names no image"),
    ('<annotations><track id="0" label="car"></track></annotations>', "names no image"),
    ('<annotations><track id="4" label="car"><polygon/></track></annotations>', "track 4: a shape lacks its frame"),
    ('<annotations><image id="0" name="a.jpg"></image></annotations>', "image 0 lacks its name, width or height"),
    ('<!DOCTYPE x [<!ENTITY a "b">]><annotations></annotations>', "declares a DOCTYPE"),
])
def test_cvat_files_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    exports.cvat(tmp_path)
    write(tmp_path, "annotations.xml", text)
    with pytest.raises(FssError, match=message) as error:
        _open("cvat", tmp_path)
    assert "annotations.xml" in str(error.value)


def test_cvat_of_boxes_is_refused(tmp_path: Path) -> None:
    exports.cvat(tmp_path)
    boxes = [exports.cvat_image(i, '<box label="car" xtl="1" ytl="1" xbr="9" ybr="9"></box>') for i in range(PHOTOS)]
    write(tmp_path, "annotations.xml", exports.cvat_document(boxes))
    with pytest.raises(FssError, match="the export has no masks, only a box"):
        _open("cvat", tmp_path)


# ---- tables -------------------------------------------------------------------------------------------------------

def _table(root: Path, rows: list[dict[str, Any]], **types: pa.DataType) -> None:
    root.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(types.items()))), root / "t.parquet")


def test_table_mistakes_are_told_by_row(tmp_path: Path) -> None:
    bottle = exports.objects(0)[0]
    kind, value = exports.MASK_TYPES["png"]
    good = {"file_name": "a.jpg", "class": "bottle", "mask": value(bottle), "image": exports.photo(0)}
    rows = [good, good | {"class": "car", "mask": b"no png"}, good | {"class": None}, good | {"mask": None},
            good | {"file_name": "b.jpg", "class": None, "mask": None},
            good | {"file_name": "c.jpg", "image": None}, good | {"file_name": None}]
    _table(tmp_path, rows, **{"file_name": pa.string(), "class": pa.string(), "mask": kind, "image": pa.binary()})
    source = _open("table", tmp_path)
    item = _item(source, "a")
    marks = source.rasterise(item, source.fetch(item), HEIGHT, WIDTH)
    assert len(marks.instances) == 1
    assert [p.split(": ")[0] for p in marks.problems] == ["row 1", "row 2", "row 3"]
    assert "unreadable mask" in marks.problems[0]
    assert marks.problems[1:] == ["row 2: has a mask but no class", "row 3: has a class but no mask"]
    nothing = _item(source, "b")
    assert source.rasterise(nothing, source.fetch(nothing), HEIGHT, WIDTH) == ImageMasks()
    with pytest.raises(BadImage, match=r"t\.parquet row 5: its image is empty"):
        source.fetch(_item(source, "c"))
    assert [(f.file_name, f.reason) for f in source.failures] == [("t.parquet row 6", "its file_name is empty")]


def test_table_without_names_has_a_photo_a_row(tmp_path: Path) -> None:
    kind, value = exports.MASK_TYPES["rle"]
    rows = [{"class": o.label, "mask": value(o), "image": exports.photo(i)}
            for i in range(3) for o in exports.objects(i)]
    _table(tmp_path, rows, **{"class": pa.string(), "mask": kind, "image": pa.binary()})
    source = _open("table", tmp_path)
    assert [i.file_name for i in source.items] == [f"t.parquet#{n}" for n in range(6)]
    assert source.fetch(source.items[3]).data == exports.photo(1)


@pytest.mark.parametrize(("types", "message"), [
    ({"class": pa.string(), "mask": pa.binary()}, "has neither a column image nor file_name"),
    ({"image": pa.binary(), "mask": pa.binary()}, "has no column class"),
    ({"image": pa.binary(), "class": pa.int64(), "mask": pa.binary()}, "column class has the wrong type int64"),
    ({"image": pa.binary(), "class": pa.string(), "mask": pa.list_(pa.float64())},
     "column mask has the wrong type list"),
    ({"image": pa.string(), "class": pa.string(), "mask": pa.binary()}, "column image has the wrong type string"),
])
def test_table_of_another_schema(types: dict[str, pa.DataType], message: str, tmp_path: Path) -> None:
    _table(tmp_path, [], **types)
    with pytest.raises(FssError, match=message) as error:
        _open("table", tmp_path)
    assert "t.parquet" in str(error.value)
    assert "columns: image (binary) or file_name (string)" in str(error.value)


def test_a_name_that_fits_two_photos_is_not_guessed(tmp_path: Path) -> None:
    exports.table(tmp_path, kind="polygon", embedded=False)
    write(tmp_path, f"other/{exports.name(2)}", exports.photo(0))
    source = _open("table", tmp_path)
    assert [f.file_name for f in source.failures] == [exports.name(2)]
    assert "2 photos have this name" in source.failures[0].reason


# ---- the whole build ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", OWN)
def test_a_build_accounts_for_every_photo(kind: str, tmp_path: Path, ray_cluster: object) -> None:
    """A truncated photo, an empty one and one of another size are rows with their reasons; the others become shards."""
    if kind == "table":
        exports.table(tmp_path / "in", embedded=False)
    else:
        OWN[kind](tmp_path / "in")
    paths = {p.name: p for p in (tmp_path / "in").rglob("*.jpg")}
    paths[exports.name(0)].write_bytes(exports.photo(0)[:400])
    paths[exports.name(1)].write_bytes(b"")
    sized = kind in ("label_studio", "labelme", "cvat")  # these formats say how large a photo is
    paths[exports.name(2)].write_bytes(jpeg(HEIGHT + (4 if sized else 0), WIDTH, 2))
    names = [exports.name(i) for i in range(PHOTOS)]
    write(tmp_path, "splits.json", json.dumps({"in": {"train": names[:5], "test": names[5:]}}))
    config = DataConfig(name=kind, source=SourceConfig(format=kind, root=str(tmp_path / "in")),  # type: ignore[arg-type]
                        split=SplitConfig(file=str(tmp_path / "splits.json")), min_images=1, folds=1, images_per_part=3)
    manifest = build_shards(config, str(tmp_path / "out"))
    shards = Shards(str(tmp_path / "out"))
    reasons = {Path(r["file_name"]).name: (r["stage"], r["reason"]) for r in shards.failures.to_pylist()}
    print(f"{kind}: {sum(manifest.images.values())} photos, rejected: {reasons}")
    assert sum(manifest.images.values()) + len(reasons) == PHOTOS
    assert reasons[exports.name(0)] == ("decode", "truncated file")
    assert reasons[exports.name(1)] == ("decode", "empty file (0 bytes)")
    if sized:
        assert reasons[exports.name(2)] == ("decode", "recorded as 64x48 but the photo is 64x52")
    for row in shards.rows.values():
        for class_id, info in shards.classes.items():
            expected = exports.truth()[Path(row["file_name"]).stem][info.name]
            assert _iou(shards.sample(row["image_id"], class_id).mask, expected) > 0.98
