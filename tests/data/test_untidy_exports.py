"""Exports and folders as people really have them: encodings, repeated names, strange references, other tools' files."""

from __future__ import annotations

import base64
import codecs
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fss_models.errors import BadImage, FssError
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.open import open_source
from pipelines.data.sources.base import ImageMasks, Source
from pipelines.data.sources.text import class_name, merge_names, plain_text, whole_number
from tests.data import exports
from tests.data.conftest import jpeg, png, write
from tests.data.exports import HEIGHT, WIDTH

MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[8:24, 16:48] = True
CORNERS = [(16, 8), (48, 8), (48, 24), (16, 24)]
SHARES = " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in CORNERS)


def opened(kind: str, root: Path) -> Source:
    return open_source(SourceConfig(format=kind, root=str(root)))  # type: ignore[arg-type]


def marks(source: Source, name: str) -> ImageMasks:
    item = next(i for i in source.items if i.file_name == name)
    return source.rasterise(item, source.fetch(item), HEIGHT, WIDTH)


def masks(source: Source, name: str) -> dict[str, np.ndarray]:
    """Class -> the union of its masks."""
    found: dict[str, list[bytes]] = {}
    for mark in marks(source, name).instances:
        found.setdefault(source.classes[mark.class_id], []).append(mark.rle)
    return {label: rle.union(counts, HEIGHT, WIDTH) for label, counts in found.items()}


def failures(source: Source) -> dict[str, str]:
    return {f.file_name: f.reason for f in source.failures}


# ---- text ---------------------------------------------------------------------------------------------------------

def test_text_of_every_encoding() -> None:
    assert plain_text(codecs.BOM_UTF8 + "0 é\r\n".encode()) == "0 é\r\n"
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        with pytest.raises(BadImage, match=r"the file is UTF-(16|32); save it as UTF-8"):
            plain_text("0 0.5 0.5".encode(encoding))
    with pytest.raises(BadImage, match=r"not UTF-8 \(byte 4\)"):
        plain_text("café".encode("latin-1"))


def test_numbers_and_names_written_as_text() -> None:
    assert [whole_number(t) for t in ("3", "3.0", "3.000e+00", " 3 ", "3.5", "-1", "nan", "inf", "x", "")] == [
        3, 3, 3, 3, None, None, None, None, None, None]
    assert class_name(" cup \r\n") == "cup"
    assert merge_names(["cup", "fork", "cup "]) == (
        ["cup", "fork"], [0, 1, 0], ["classes 0 and 2 have the same name (cup); they are read as one"])


# ---- YOLO ---------------------------------------------------------------------------------------------------------

def yolo(root: Path, lines: dict[str, str | bytes], names: str | bytes = "names: [cup, fork]\n") -> Source:
    write(root, "data.yaml", names)
    for stem, text in lines.items():
        write(root, f"images/{stem}.jpg", exports.photo(0))
        write(root, f"labels/{stem}.txt", text)
    return opened("yolo", root)


def test_yolo_labels_with_byte_order_marks_and_classes_as_floats(tmp_path: Path) -> None:
    source = yolo(tmp_path, {
        "a": codecs.BOM_UTF8 + f"1 {SHARES}\r\n".encode(), "b": f"1.000000000000000000e+00 {SHARES}\n",
        "c": f"1.0\t{SHARES}\r\n\r\n", "d": f"1 {SHARES}".encode("utf-16"), "e": f"1.5 {SHARES}\n2 {SHARES}",
        "f": f"0 {SHARES} 0.93\n0 0.5 0.5 0.1 0.1 0.93\n"})
    for stem in "abc":
        found = masks(source, f"images/{stem}.jpg")
        assert found.keys() == {"fork"}
        assert np.array_equal(found["fork"], MASK)
    with pytest.raises(BadImage, match=r"labels/d\.txt: the file is UTF-16"):
        masks(source, "images/d.jpg")
    assert marks(source, "images/e.jpg").problems == [
        "line 1: class 1.5: the class list has no such label", "line 2: class 2: the class list has no such label"]
    assert marks(source, "images/f.jpg").problems == [
        "line 1: cup: 9 numbers after the class are no pairs of x and y (predictions have a confidence at the end)",
        "line 2: cup: a box with a confidence (a prediction) cannot be read as a mask"]


def test_yolo_of_predicted_boxes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FssError, match="predicted boxes with a confidence, no polygons"):
        yolo(tmp_path, {"a": "0 0.5 0.5 0.1 0.1 0.93\n"})


@pytest.mark.parametrize(("text", "classes"), [
    ("names:\n  '0': cup\n  '1': fork\n", ["cup", "fork"]), ("names:\n  1.0: cup\n  0: fork\n", ["fork", "cup"]),
    ("names: [no, 1, ' cup ']\n", ["no", "1", "cup"]), (codecs.BOM_UTF8 + b"names: [cup]\r\n", ["cup"]),
])
def test_yolo_class_names_as_people_write_them(text: str | bytes, classes: list[str], tmp_path: Path) -> None:
    assert yolo(tmp_path, {"a": f"0 {SHARES}"}, text).classes == classes


def test_yolo_names_that_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(FssError, match="UTF-16"):
        yolo(tmp_path, {"a": f"0 {SHARES}"}, "names: [cup]".encode("utf-16"))
    with pytest.raises(FssError, match="class 1 in `names` has no name"):
        yolo(tmp_path, {"a": f"0 {SHARES}"}, "names: [cup, '']")


def test_yolo_names_that_are_there_twice_are_one_class(tmp_path: Path) -> None:
    source = yolo(tmp_path, {"a": f"2 {SHARES}", "b": f"1 {SHARES}"}, "names: [cup, fork, 'cup ']")
    assert source.classes == ["cup", "fork"]
    assert np.array_equal(masks(source, "images/a.jpg")["cup"], MASK)
    assert np.array_equal(masks(source, "images/b.jpg")["fork"], MASK)
    assert failures(source) == {"data.yaml": "classes 0 and 2 have the same name (cup); they are read as one"}


def test_of_yolo_photos_that_share_a_label_file_none_is_read(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", png(MASK))
    write(tmp_path, "images/bare.png", png(MASK))
    write(tmp_path, "images/bare.jpg", exports.photo(1))
    source = yolo(tmp_path, {"a": f"0 {SHARES}", "b": f"0 {SHARES}"})
    assert [i.file_name for i in source.items] == ["images/b.jpg", "images/bare.jpg", "images/bare.png"]
    reason = "2 photos have the label file labels/a.txt, the first images/a.jpg and images/a.png"
    assert failures(source) == {"images/a.jpg": reason, "images/a.png": reason}


# ---- Label Studio -------------------------------------------------------------------------------------------------

def polygon(to_name: str = "image", label: str | None = "cup", **more: Any) -> dict[str, Any]:
    value: dict[str, Any] = {"points": [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in CORNERS]}
    value |= {} if label is None else {"polygonlabels": [label]}
    return {"id": "r1", "type": "polygonlabels", "to_name": to_name, "original_width": WIDTH,
            "original_height": HEIGHT, "value": value, **more}


def label_studio(root: Path, tasks: list[tuple[Any, list[dict[str, Any]]]], photos: list[str]) -> Source:
    """tasks: their data and their results."""
    for number, name in enumerate(photos):
        write(root, name, exports.photo(number))
    document = [{"id": i, "data": data, "annotations": [{"result": results}]}
                for i, (data, results) in enumerate(tasks)]
    write(root, "export.json", json.dumps(document))
    return opened("label_studio", root)


@pytest.mark.parametrize(("reference", "name"), [
    ("s3://bucket/pics/c#d.jpg", "pics/c#d.jpg"), ("s3://bucket/pics/g?h.jpg", "pics/g?h.jpg"),
    ("gs://bucket/pics/100%.jpg", "pics/100%.jpg"), ("s3://bucket/pics/a+b.jpg", "pics/a+b.jpg"),
    ("/data/local-files/?d=pics/a+b.jpg", "pics/a+b.jpg"), ("/data/local-files/?d=pics%2Fe%20f.jpg", "pics/e f.jpg"),
    ("/data/local-files/?d=pics/x&y.jpg", "pics/x&y.jpg"), ("https://h.org/pics/e%20f.jpg?Sig=a/b.png", "pics/e f.jpg"),
    ("/data/upload/1/1a2b3c4d-e%20f.jpg", "pics/e f.jpg"), ("s3://bucket/pics/bare", "pics/bare.jpg"),
])
def test_label_studio_references(reference: str, name: str, tmp_path: Path) -> None:
    source = label_studio(tmp_path, [({"image": reference}, [polygon()])], [name, "pics/other.jpg"])
    assert [i.file_name for i in source.items] == [name]
    assert np.array_equal(masks(source, name)["cup"], MASK)


def test_label_studio_regions_go_to_their_own_photo(tmp_path: Path) -> None:
    two = {"left": "/data/upload/1/1a2b3c4d-a.jpg", "right": "s3://x/b.jpg", "thumb": "t.jpg"}
    pages = {"scans": ["c.jpg", "d.jpg"]}
    source = label_studio(tmp_path, [
        (two, [polygon("left", "cup"), polygon("right", "fork")]),
        (pages, [polygon("pages", "cup", item_index=1), polygon("pages", "fork", item_index=0)]),
        ({"one": "e.jpg", "two": "f.jpg"}, [polygon("img")]),
        ({"first": "g.jpg", "second": "elsewhere.jpg"}, [polygon("img")]),
        ({"scans": ["h.jpg", "i.jpg"]}, [polygon("pages")]),
    ], [f"{n}.jpg" for n in "abcdefghit"])
    found = {i.file_name: list(masks(source, i.file_name)) for i in source.items}
    assert found == {"a.jpg": ["cup"], "b.jpg": ["fork"], "c.jpg": ["fork"], "d.jpg": ["cup"], "g.jpg": ["cup"]}
    assert failures(source) == {
        "e.jpg": "task 2: it has the photos one, two, and its regions do not say on which they are",
        "h.jpg": "task 4: it has 2 photos, and a region does not say on which it is (item_index)"}


def test_label_studio_regions_without_a_label_are_listed(tmp_path: Path) -> None:
    bare = [polygon(label=None, id="r7"), polygon(label=" ", id="r8"),
            {**polygon(label=None, id="r9"), "type": "polygon"}]
    source = label_studio(tmp_path, [({"image": "a.jpg"}, [polygon(label="cup "), *bare])], ["a.jpg"])
    assert source.classes == ["cup"]
    assert len(marks(source, "a.jpg").instances) == 1
    assert failures(source) == {"a.jpg": "task 0: 3 regions have no label (r7, r8, r9)"}


def test_label_studio_bitmasks(tmp_path: Path) -> None:
    rgba = np.zeros((HEIGHT, WIDTH, 4))
    rgba[MASK] = (0, 0, 0, 255)  # black on transparent
    url = "data:image/png;base64," + base64.b64encode(png(rgba)).decode()
    region = {**polygon(), "type": "bitmasklabels", "value": {"imageDataURL": url, "bitmasklabels": ["cup"]}}
    small = {**region, "value": {**region["value"], "bitmasklabels": ["fork"],
                                 "imageDataURL": "data:image/png;base64," + base64.b64encode(png(rgba[:9])).decode()}}
    broken = {**region, "value": {"imageDataURL": "data:image/png;base64,AAA=", "bitmasklabels": ["fork"]}}
    source = label_studio(tmp_path, [({"image": "a.jpg"}, [region, small, broken])], ["a.jpg"])
    assert np.array_equal(masks(source, "a.jpg")["cup"], MASK)
    problems = marks(source, "a.jpg").problems
    assert problems[0] == f"region r1: fork: bitmask is {WIDTH}x9, its image {WIDTH}x{HEIGHT}"
    assert problems[1].startswith("region r1: fork: bitmask: unreadable mask")


def test_label_studio_sizes_as_text_or_none(tmp_path: Path) -> None:
    texts = polygon(original_width=f"{WIDTH}.0", original_height=str(HEIGHT))
    wrong = polygon(original_width="wide", original_height=HEIGHT)
    source = label_studio(tmp_path, [({"image": "a.jpg"}, [texts]), ({"image": "b.jpg"}, [wrong])], ["a.jpg", "b.jpg"])
    assert [i.size for i in source.items] == [(HEIGHT, WIDTH)]
    assert failures(source) == {"b.jpg": f"task 1: its size is recorded as widex{HEIGHT}"}


# ---- LabelMe ------------------------------------------------------------------------------------------------------

def shape(label: str | None = "cup", kind: str | None = "polygon", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": CORNERS, "shape_type": kind, **more}


def labelme(root: Path, name: str, photo: str, shapes: list[dict[str, Any]], **more: Any) -> None:
    write(root, name, json.dumps({"shapes": shapes, "imagePath": photo, "imageHeight": HEIGHT, "imageWidth": WIDTH,
                                  "imageData": None, **more}))


def test_labelme_shapes(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", exports.photo(0))
    labelme(tmp_path, "a.json", "a.jpg", [
        shape(), shape(" cup ", None), shape("cup", "rectangle"), shape(None), shape("__ignore__"),
        shape("_background_"), shape(points=[[1, 2], [3, "x"], [5, 6]]),
        shape(points=[[1, 2], [3, float("nan")], [5, 6]]),
        shape("cup", "mask", points=[[60, 40], [70, 50]], mask=base64.b64encode(png(MASK[:20, :20] * 255)).decode()),
        shape("cup", "star")])
    source = opened("labelme", tmp_path)
    assert source.classes == ["cup"]
    found = marks(source, "a.jpg")
    assert len(found.instances) == 2
    assert np.array_equal(masks(source, "a.jpg")["cup"], MASK)
    assert found.void is not None
    assert np.array_equal(rle.decode(found.void, HEIGHT, WIDTH), MASK)
    assert found.problems == [
        "shape 3: cup: a rectangle cannot be read as a mask",
        "shape 7: cup: could not convert string to float: 'x'",
        "shape 8: cup: a polygon has a corner that is not finite (NaN or infinite)",
        f"shape 9: cup: mask of 20x20 at 60, 40 does not lie in the photo of {WIDTH}x{HEIGHT}",
        "shape 10: cup: a shape of type 'star' cannot be read as a mask"]
    assert failures(source) == {"a.jpg": "a.json: 1 shapes have no label"}


def test_labelme_finds_its_photo(tmp_path: Path) -> None:
    for name in ("images/1.jpg", "images/deep/2.jpg", "images/3.jpg", "new.jpg", "images/nobody.jpg", "s/1.jpg"):
        write(tmp_path, name, exports.photo(0))
    labelme(tmp_path, "json/1.json", "..\\images\\1.jpg", [shape()])
    labelme(tmp_path, "json/2.json", "C:\\Users\\me\\deep\\2.jpg", [shape()])
    labelme(tmp_path, "new.json", "old.jpg", [shape()])
    labelme(tmp_path, "s/1.json", "1.jpg", [shape()])
    labelme(tmp_path, "json/9.json", "9.jpg", [shape()], imageData=base64.b64encode(exports.photo(9)).decode())
    labelme(tmp_path, "json/10.json", "10.jpg", [shape()])
    labelme(tmp_path, "json/11.json", "../elsewhere/3.jpg", [shape()])
    labelme(tmp_path, "json/other.json", "3.jpg", [shape()])
    write(tmp_path, "json/config.json", "{}")
    source = opened("labelme", tmp_path)
    assert sorted(i.file_name for i in source.items) == [
        "images/1.jpg", "images/3.jpg", "images/deep/2.jpg", "json/9.jpg", "new.jpg", "s/1.jpg"]
    embedded = next(i for i in source.items if i.file_name == "json/9.jpg")
    assert source.fetch(embedded).data == exports.photo(9)
    assert failures(source) == {
        "json/10.jpg": "json/10.json: its photo is missing, and it has no imageData",
        "images/3.jpg": "another record has this photo already (images/3.jpg)",
        "json/config.json": "this is not a LabelMe file: it has no list of shapes",
        "images/nobody.jpg": "no .json file names this photo"}


def test_labelme_does_not_take_the_photo_of_another_file(tmp_path: Path) -> None:
    write(tmp_path, "b/1.jpg", exports.photo(0))
    labelme(tmp_path, "a/1.json", "1.jpg", [shape()])
    labelme(tmp_path, "b/1.json", "1.jpg", [shape("fork")])
    source = opened("labelme", tmp_path)
    assert list(masks(source, "b/1.jpg")) == ["fork"]
    assert failures(source) == {"a/1.jpg": "a/1.json: its photo is missing; b/1.jpg is that of b/1.json"}


def test_folders_without_labelme_files(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", exports.photo(0))
    write(tmp_path, "a.json", "[1, 2")
    with pytest.raises(FssError, match=r"no LabelMe file among 1 \.json files; the first one: .* not valid JSON"):
        opened("labelme", tmp_path)
    labelme(tmp_path, "a.json", "a.jpg", [shape("cup", "rectangle")])
    with pytest.raises(FssError, match="no masks, only a rectangle"):
        opened("labelme", tmp_path)


# ---- VOC ----------------------------------------------------------------------------------------------------------

LABEL_MAP = "# label:color_rgb:parts:actions\r\nbackground:0,0,0::\r\nmy:fork:10,20,30::\r\n cup :250,50,83:a,b:\r\n"


def indexed(values: np.ndarray) -> bytes:
    """A mask whose palette has the colours of the label map at other places."""
    image = np.zeros((*values.shape, 3))
    for value, colour in ((1, (10, 20, 30)), (2, (250, 50, 83))):
        image[values == value] = colour
    return png(image)


def test_voc_with_its_own_classes_and_photos_of_any_suffix(tmp_path: Path) -> None:
    write(tmp_path, "labelmap.txt", codecs.BOM_UTF8 + LABEL_MAP.encode())
    values = MASK.astype(int) * 2
    values[:4, :4] = 1
    for stem, data in (("rgb", indexed(values)), ("grey", png(values)), ("palette", png(values, palette=True))):
        write(tmp_path, f"JPEGImages/{stem}.png", exports.photo(0))
        write(tmp_path, f"SegmentationClass/{stem}.png", data)
    write(tmp_path, "JPEGImages/sub/deep.jpeg", exports.photo(0))
    write(tmp_path, "SegmentationClass/sub/deep.png", png(np.where(MASK, 7, np.where(values == 1, 255, 0))))
    write(tmp_path, "JPEGImages/twice.jpg", exports.photo(0))
    write(tmp_path, "JPEGImages/twice.png", exports.photo(0))
    write(tmp_path, "SegmentationClass/twice.png", png(values))
    source = opened("voc", tmp_path)
    assert source.classes == ["my:fork", "cup"]
    for stem in ("rgb", "grey", "palette"):
        found = masks(source, f"{stem}.png")
        assert np.array_equal(found["cup"], MASK), stem
        assert np.array_equal(found["my:fork"], values == 1), stem
    strange = marks(source, "sub/deep.jpeg")
    assert strange.problems == [f"mask value 7 of {MASK.sum()} pixels is not in labelmap.txt"]
    assert strange.void is not None
    assert rle.area(strange.void, HEIGHT, WIDTH) == 16
    assert {i.file_name for i in source.items} == {"rgb.png", "grey.png", "palette.png", "sub/deep.jpeg"}
    reason = ("2 photos have the mask SegmentationClass/twice.png, the first JPEGImages/twice.jpg and "
              "JPEGImages/twice.png")
    assert failures(source) == {"JPEGImages/twice.jpg": reason, "JPEGImages/twice.png": reason}
    write(tmp_path, "labelmap.txt", LABEL_MAP.replace("250,50,83", "1,2,3"))
    changed = opened("voc", tmp_path)
    assert changed.fingerprint != source.fingerprint
    assert {i.stamp for i in changed.items}.isdisjoint(i.stamp for i in source.items)


@pytest.mark.parametrize(("text", "message"), [
    ("background:0,0,0::\n", "names no class"), ("cup:red::\n", "no colour in the line 'cup:red::'"),
    ("cup:1,2,3::\nfork:1,2,3::\n", "two classes have the colour 1,2,3"), (":1,2,3::", "a class has no name"),
])
def test_label_maps_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, "labelmap.txt", text)
    write(tmp_path, "JPEGImages/a.jpg", exports.photo(0))
    write(tmp_path, "SegmentationClass/a.png", png(MASK))
    with pytest.raises(FssError, match=message):
        opened("voc", tmp_path)


# ---- pairs --------------------------------------------------------------------------------------------------------

def test_pairs_with_mask_suffixes_and_names_that_are_there_twice(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "b.png", "c.jpg", "d_mask.jpg", "d.jpg"):
        write(tmp_path, f"images/{name}", exports.photo(0))
    for name in ("cup/a_mask.png", "cup /d.png", "cup/b.png", "cup/c.png", "cup/c_mask.png", "fork/d_mask.png",
                 "fork/e_mask.png"):
        write(tmp_path, f"masks/{name}", png(MASK * 255))
    source = opened("pairs", tmp_path)
    assert source.classes == ["cup", "fork"]
    found = {i.file_name: list(masks(source, i.file_name)) for i in source.items}
    assert found == {"a.jpg": ["cup"], "d.jpg": ["cup"], "d_mask.jpg": ["fork"]}
    reason = "2 photos have the mask masks/cup/b.png, the first images/b.jpg and images/b.png"
    assert np.array_equal(masks(source, "a.jpg")["cup"], MASK)
    assert failures(source) == {
        "b.jpg": reason, "b.png": reason,
        "c.jpg": "masks/cup/c.png and masks/cup/c_mask.png are both masks of it and of one class",
        "e_mask": "masks/fork/e_mask.png has no photo of that name"}


def test_void_of_pairs_and_tables(tmp_path: Path) -> None:
    void = np.zeros_like(MASK)
    void[30:40, :10] = True
    data = png(np.where(MASK, 1, np.where(void, 255, 0)), palette=True)
    write(tmp_path, "pairs/images/a.jpg", exports.photo(0))
    write(tmp_path, "pairs/masks/cup/a.png", data)
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"file_name": ["a.jpg"], "class": [" cup"], "mask": [data], "image": [exports.photo(0)]}),
                   tmp_path / "table" / "rows.parquet")
    for kind in ("pairs", "table"):
        source = opened(kind, tmp_path / kind)
        found = marks(source, "a.jpg")
        assert np.array_equal(masks(source, "a.jpg")["cup"], MASK)
        assert found.void is not None
        assert np.array_equal(rle.decode(found.void, HEIGHT, WIDTH), void)


def test_a_photo_of_a_table_under_two_names(tmp_path: Path) -> None:
    write(tmp_path, "photos/a.jpg", jpeg(HEIGHT, WIDTH))
    box = [[float(v) for corner in CORNERS for v in corner]]
    pq.write_table(pa.table({"file_name": ["a.jpg", "./photos/a.jpg"], "class": ["cup", "cup"], "mask": [box, box]}),
                   tmp_path / "rows.parquet")
    source = opened("table", tmp_path)
    assert [i.file_name for i in source.items] == ["a.jpg"]
    assert failures(source) == {"./photos/a.jpg": "rows of a.jpg have this photo already"}
