"""The four sources: what they index, what they mark, and what they say about mistakes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_models.errors import FssError
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.open import open_source
from pipelines.data.sources.base import ImageMasks, Source
from pipelines.data.sources.drawing import draw_image
from pipelines.data.sources.glyphs import class_names, glyph
from tests.data.conftest import jpeg, png, write


def _open(kind: str, root: Path, **over: str) -> Source:
    return open_source(SourceConfig(format=kind, root=str(root), **over))


def _marks(source: Source, name: str, height: int = 40, width: int = 60) -> ImageMasks:
    item = next(i for i in source.items if i.file_name == name)
    return source.rasterise(item, source.fetch(item), height, width)


def test_rle_round_trip_and_union() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 17, 31)) > 0.6
    assert np.array_equal(rle.decode(rle.encode(a), 17, 31), a)
    assert np.array_equal(rle.union([rle.encode(a), rle.encode(b)], 17, 31), a | b)
    assert rle.union_area([rle.encode(a), rle.encode(b)], 17, 31) == (a | b).sum()
    assert not rle.union([], 17, 31).any()


def test_coco_reads_polygons_rle_and_crowd(coco_root: Path) -> None:
    source = _open("coco", coco_root)
    assert source.classes == ["bird", "cup"]  # category-id order, not file order
    marks = _marks(source, "000.jpg")
    assert [(m.class_id, m.iscrowd) for m in marks.instances] == [(1, False), (0, False), (1, True)]
    cup, bird, crowd = (rle.decode(m.rle, 40, 60) for m in marks.instances)
    assert cup[5:25, 5:25].all()
    assert cup.sum() == 400
    assert bird[10:30, 30:50].all()
    assert bird.sum() == 400
    assert crowd[30:].all()


def test_coco_reads_compressed_rle(coco_root: Path) -> None:
    path = coco_root / "annotations" / "instances.json"
    document = json.loads(path.read_text())
    mask = np.zeros((40, 60), dtype=bool)
    mask[3:9, 4:44] = True
    document["annotations"][0]["segmentation"] = {"size": [40, 60], "counts": rle.encode(mask).decode()}
    path.write_text(json.dumps(document))
    assert np.array_equal(rle.decode(_marks(_open("coco", coco_root), "000.jpg").instances[0].rle, 40, 60), mask)


def test_coco_mistakes_are_told(coco_root: Path) -> None:
    source = _open("coco", coco_root)
    assert {(f.file_name, f.stage) for f in source.failures} == {("missing.jpg", "index"), ("image_id 999", "index")}
    assert _marks(source, "001.jpg").problems == [
        "annotation 901: cup: mask is 10x10, its image 60x40"]
    assert _marks(source, "002.jpg").problems == [
        "annotation 902: cup: no polygon with three corners (4 numbers instead of an even count of 6 or more)"]
    assert len(_marks(source, "002.jpg").instances) == 2  # the rest of the photo stays


def test_coco_prefers_the_folder_of_its_annotation_file(tmp_path: Path) -> None:
    for folder in ("train2017", "val2017"):
        write(tmp_path, f"{folder}/1.jpg", jpeg(10, 10))
        document = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], "categories": []}
        write(tmp_path, f"annotations/instances_{folder}.json", json.dumps(document))
    source = _open("coco", tmp_path, annotations="annotations/instances_val2017.json")
    assert source.items[0].path == "val2017/1.jpg"
    with pytest.raises(FssError, match="2 annotation files"):
        _open("coco", tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"),
                                               ('{"images": []}', "has no list 'annotations'")])
def test_coco_annotations_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "annotations/a.json", text)
    with pytest.raises(FssError, match=message):
        _open("coco", tmp_path)


def test_voc(voc_root: Path) -> None:
    source = _open("voc", voc_root)
    assert len(source.classes) == 20
    marks = _marks(source, "2007_000003.jpg")
    assert [m.class_id for m in marks.instances] == [0, 19]
    assert rle.area(marks.instances[0].rle, 40, 60) == 19 * 25
    assert marks.void is not None
    assert rle.area(marks.void, 40, 60) == 25
    assert [(f.file_name, f.stage) for f in source.failures] == [("2008_000002.jpg", "index")]
    item = next(i for i in source.items if i.file_name == "2008_000001.jpg")
    assert source.annotated_size(item, source.fetch(item)) == (30, 30)  # the build then refuses the photo


def test_voc_prefers_the_augmented_masks(voc_root: Path) -> None:
    write(voc_root, "VOC2012/SegmentationClassAug/2007_000000.png", png(np.full((40, 60), 3)))
    source = _open("voc", voc_root)
    assert len(source.items) == 1
    assert [m.class_id for m in _marks(source, "2007_000000.jpg").instances] == [2]


def test_pairs(pairs_root: Path) -> None:
    source = _open("pairs", pairs_root)
    assert source.classes == ["dent", "scratch"]
    marks = _marks(source, "p4.jpg")
    dent, scratch = (rle.decode(m.rle, 40, 60) for m in marks.instances)
    assert scratch[5:25, 5:30].all()
    assert np.array_equal(dent, scratch[::-1])
    assert _marks(source, "size.jpg").problems == ["masks/dent/size.png: mask is 20x20, its image 60x40"]
    assert _marks(source, "none.jpg").problems == ["masks/dent/none.png: empty mask"]
    assert {f.file_name for f in source.failures} == {"lonely.jpg", "ghost"}


def test_pairs_of_a_single_class(tmp_path: Path) -> None:
    write(tmp_path, "images/a.jpg", jpeg(20, 20))
    write(tmp_path, "masks/a.png", png(np.full((20, 20), 255)))
    source = _open("pairs", tmp_path)
    assert source.classes == ["object"]
    assert len(_marks(source, "a.jpg", 20, 20).instances) == 1


@pytest.mark.parametrize("kind", ["coco", "voc", "pairs"])
def test_a_folder_that_is_not_there(kind: str, tmp_path: Path) -> None:
    with pytest.raises(FssError, match="no such folder"):
        _open(kind, tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["coco", "voc", "pairs"])
def test_a_folder_of_another_layout(kind: str, tmp_path: Path) -> None:
    write(tmp_path, "readme.txt", "hello")
    with pytest.raises(FssError):
        _open(kind, tmp_path)


@pytest.mark.parametrize("kind", ["coco", "voc", "pairs"])
def test_the_fingerprint_follows_the_files(kind: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(f"{kind}_root")
    before = _open(kind, root).fingerprint
    assert _open(kind, root).fingerprint == before
    (root / _open(kind, root).items[0].path).write_bytes(jpeg(44, 60, 99))
    assert _open(kind, root).fingerprint != before


# ---- shapes -------------------------------------------------------------------------------------------------------

def test_a_drawing_is_a_pure_function_of_seed_and_number() -> None:
    one, same, other = draw_image(1, 5, 96), draw_image(1, 5, 96), draw_image(2, 5, 96)
    assert one.jpeg == same.jpeg
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(one.objects, same.objects, strict=True))
    assert one.jpeg != other.jpeg


def test_masks_do_not_overlap_and_are_not_tiny() -> None:
    several = 0
    for i in range(40):
        objects = draw_image(0, i, 96).objects
        assert objects
        several += len(objects) > 1
        assert np.sum([m for _, m in objects], axis=0).max() == 1
        assert min(m.sum() for _, m in objects) > 0.008 * 96 * 96
    assert several > 10


def test_every_class_is_drawn_in_twenty_pictures() -> None:
    assert len(class_names()) == 20
    assert {c for i in range(20) for c, _ in draw_image(3, i, 64).objects} == set(range(20))


def test_masks_lie_on_the_drawn_objects() -> None:
    """The pixels inside the mask differ from the background right around it more than two halves of the inside do."""
    from scipy.ndimage import binary_dilation, binary_erosion

    contrasts = []
    for i in range(20):
        drawing = draw_image(0, i, 128)
        pixels = np.asarray(Image.open(io.BytesIO(drawing.jpeg))).astype(float)
        everything = np.any([m for _, m in drawing.objects], axis=0)
        rim_in = everything & ~binary_erosion(everything, iterations=2)
        rim_out = binary_dilation(everything, iterations=6) & ~binary_dilation(everything, iterations=4)
        contrasts.append(np.abs(pixels[rim_in].mean(0) - pixels[rim_out].mean(0)).mean())
    assert np.median(contrasts) > 25


def test_the_outlines_differ() -> None:
    """Classes are told apart by shape: no two upright silhouettes overlap by more than 85 %."""
    from PIL import ImageDraw

    masks = []
    for class_id in range(20):
        image = Image.new("1", (64, 64))
        pen = ImageDraw.Draw(image)
        for stroke in glyph(class_id):
            if stroke.kind != "ink":
                pen.polygon([tuple(p) for p in stroke.points * 30 + 32], fill=int(stroke.kind == "add"))
        masks.append(np.asarray(image))
    for a in range(20):
        for b in range(a):
            overlap = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
            assert overlap < 0.85, (class_names()[a], class_names()[b])
