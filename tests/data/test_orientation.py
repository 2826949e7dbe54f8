"""Photos with an EXIF orientation: whose rule decides, for every format."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from fss_models.errors import BadImage
from fss_models.photo_files import decode_sized, load_oriented
from pipelines.config.data import DataConfig, SourceConfig
from pipelines.data import rle
from pipelines.data.ledger import reading_rules, versions_of
from pipelines.data.open import open_source
from pipelines.data.parts import PartBuilder, exif_name, part_name
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards
from tests.data.conftest import png, write

HEIGHT, WIDTH = 60, 80
X0, Y0, X1, Y1 = 8, 5, 30, 20  # the red object of the upright photo
STORED = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_270}
CORNERS = [(X0, Y0), (X1, Y0), (X1, Y1), (X0, Y1)]
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[Y0:Y1, X0:X1] = True


def tagged(value: int, height: int = HEIGHT, width: int = WIDTH, kind: str = "JPEG") -> bytes:
    """A photo whose upright pixels have the red object, stored as a camera with this orientation stores it."""
    pixels = np.full((height, width, 3), (60, 120, 200), dtype=np.uint8)
    pixels[Y0:Y1, X0:X1] = (220, 30, 30)
    image, exif, out = Image.fromarray(pixels), Image.Exif(), io.BytesIO()
    image = image.transpose(STORED[value]) if value in STORED else image
    exif[0x0112] = value
    image.save(out, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return out.getvalue()


def red(pixels: np.ndarray) -> np.ndarray:
    """Where the object is, [H, W] bool."""
    return (pixels[..., 0] > 150) & (pixels[..., 2] < 100)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def photos(root: Path, folder: str, **size: int) -> None:
    for value in range(1, 9):
        write(root, f"{folder}o{value}.jpg", tagged(value, **size))


def yolo(root: Path, height: int, width: int) -> None:
    photos(root, "images/", height=height, width=width)
    write(root, "data.yaml", "names: [cup]\n")
    for value in range(1, 9):
        write(root, f"labels/o{value}.txt", "0 " + " ".join(f"{x / width} {y / height}" for x, y in CORNERS))


def labelme(root: Path, height: int, width: int) -> None:
    photos(root, "", height=height, width=width)
    for value in range(1, 9):
        shape = {"label": "cup", "points": CORNERS, "shape_type": "polygon"}
        write(root, f"o{value}.json", json.dumps({"shapes": [shape], "imagePath": f"o{value}.jpg", "imageData": None,
                                                  "imageHeight": height, "imageWidth": width}))


def label_studio(root: Path, height: int, width: int) -> None:
    photos(root, "", height=height, width=width)
    points = [[100 * x / width, 100 * y / height] for x, y in CORNERS]
    write(root, "export.json", json.dumps([
        {"id": v, "data": {"image": f"/data/upload/1/1a2b3c4d-o{v}.jpg"}, "annotations": [{"result": [
            {"id": "r", "type": "polygonlabels", "to_name": "image", "original_height": height, "original_width": width,
             "value": {"points": points, "polygonlabels": ["cup"]}}]}]} for v in range(1, 9)]))


def cvat(root: Path, height: int, width: int) -> None:
    photos(root, "images/", height=height, width=width)
    points = ";".join(f"{x},{y}" for x, y in CORNERS)
    images = "".join(f'<image id="{v}" name="o{v}.jpg" width="{width}" height="{height}">'
                     f'<polygon label="cup" points="{points}"/></image>' for v in range(1, 9))
    write(root, "annotations.xml", "<annotations><meta><task><labels><label><name>cup</name></label></labels></task>"
                                   f"</meta>{images}</annotations>")


def table(root: Path, height: int, width: int) -> None:
    flat = [[float(v) for corner in CORNERS for v in corner]]
    rows = [{"file_name": f"o{v}.jpg", "class": "cup", "mask": flat, "image": tagged(v, height, width)}
            for v in range(1, 9)]
    schema = pa.schema([("file_name", pa.string()), ("class", pa.string()), ("image", pa.binary()),
                        ("mask", pa.list_(pa.list_(pa.float64())))])
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), root / "rows.parquet")


UPRIGHT: dict[str, Callable[[Path, int, int], None]] = {
    "yolo": yolo, "labelme": labelme, "label_studio": label_studio, "cvat": cvat, "table": table}


def part(source: SourceConfig, out: Path, **over: Any) -> tuple[list[dict[str, Any]], list[str], dict[str, int]]:
    """One part of all photos: its rows, its failures and the counts of orientations."""
    cfg = DataConfig(source=source, **over)
    opened = open_source(cfg.source)
    entries = [(item, "train") for item in opened.items]
    PartBuilder(source=opened, cfg=cfg, out=str(out))((0, entries))
    wrong = pq.read_table(out / "build/failures-00000.parquet").to_pylist()
    failures = [f"{r['file_name']}: {r['reason']}" for r in wrong]
    return pq.read_table(out / part_name(0)).to_pylist(), failures, json.loads((out / exif_name(0)).read_text())


def overlap(row: dict[str, Any]) -> float:
    """How well the mask of a row lies on the object in its photo, as readers of shards decode it."""
    pixels = decode_sized(row["image"], row["height"], row["width"])
    counts = [i["rle"] for a in row["annotations"] for i in a["instances"]]
    return iou(rle.union(counts, row["height"], row["width"]), red(pixels))


@pytest.mark.parametrize("side", [(HEIGHT, WIDTH), (80, 80)], ids=["oblong", "square"])
@pytest.mark.parametrize("kind", UPRIGHT)
def test_formats_of_upright_photos(kind: str, side: tuple[int, int], tmp_path: Path) -> None:
    """All eight orientations, also where the size does not tell: mirrored, upside down, square."""
    UPRIGHT[kind](tmp_path / "in", *side)
    rows, failures, counts = part(SourceConfig(format=kind, root=str(tmp_path / "in")),  # type: ignore[arg-type]
                                  tmp_path / "out")
    assert not failures
    assert counts == {"turned": 7, "as_stored": 0}
    assert {(r["height"], r["width"]) for r in rows} == {side}
    assert min(map(overlap, rows)) > 0.9
    kept = {r["file_name"][-6:]: r["image"] == tagged(int(r["file_name"][-5]), *side) for r in rows}
    assert kept["o1.jpg"]
    assert kept["o6.jpg"] == (side != (80, 80)), "a photo whose size tells keeps its bytes"


def test_the_setting_turns_all_photos_or_none(tmp_path: Path) -> None:
    yolo(tmp_path / "in", HEIGHT, WIDTH)
    for setting, counts in (("ignore", {"turned": 0, "as_stored": 7}), ("apply", {"turned": 7, "as_stored": 0})):
        cfg = SourceConfig(format="yolo", root=str(tmp_path / "in"), exif=setting)  # type: ignore[arg-type]
        rows, _, found = part(cfg, tmp_path / setting)
        assert found == counts
        sizes = {r["file_name"][-6:]: (r["height"], r["width"]) for r in rows}
        assert sizes["o6.jpg"] == ((HEIGHT, WIDTH) if setting == "apply" else (WIDTH, HEIGHT))


def _coco(root: Path, stored: bool) -> None:
    """Annotations of the photos as stored (as COCO's tools see them), or of the upright ones."""
    images, notes = [], []
    for value in range(1, 9):
        data = tagged(value)
        write(root, f"images/o{value}.jpg", data)
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) if stored else None
        mask = red(pixels) if pixels is not None else MASK
        images.append({"id": value, "file_name": f"o{value}.jpg", "height": mask.shape[0], "width": mask.shape[1]})
        notes.append({"id": value, "image_id": value, "category_id": 1, "iscrowd": 0,
                      "segmentation": {"size": list(mask.shape), "counts": rle.encode(mask).decode()}})
    write(root, "annotations/instances.json",
          json.dumps({"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cup"}]}))


def test_coco_follows_the_recorded_size(tmp_path: Path) -> None:
    _coco(tmp_path / "stored", stored=True)
    rows, failures, counts = part(SourceConfig(format="coco", root=str(tmp_path / "stored")), tmp_path / "a")
    assert counts == {"turned": 0, "as_stored": 7}
    assert not failures
    assert min(map(overlap, rows)) > 0.9
    assert all(r["image"] == tagged(int(r["file_name"][1])) for r in rows)
    _coco(tmp_path / "upright", stored=False)
    cfg = SourceConfig(format="coco", root=str(tmp_path / "upright"))
    rows, _, counts = part(cfg, tmp_path / "b")
    assert counts == {"turned": 4, "as_stored": 3}, "2, 3 and 4 have the recorded size as they are stored"
    rows, _, counts = part(cfg.model_copy(update={"exif": "apply"}), tmp_path / "c")
    assert counts == {"turned": 7, "as_stored": 0}
    assert min(map(overlap, rows)) > 0.9


@pytest.mark.parametrize("exif", ["auto", "apply"])
def test_pairs_follow_the_size_of_the_mask(exif: str, tmp_path: Path) -> None:
    for value in range(1, 9):
        write(tmp_path, f"in/images/o{value}.jpg", tagged(value))
        write(tmp_path, f"in/masks/cup/o{value}.png", png(MASK * 255))
    cfg = SourceConfig(format="pairs", root=str(tmp_path / "in"), exif=exif)  # type: ignore[arg-type]
    rows, failures, counts = part(cfg, tmp_path / "out")
    assert not failures
    assert counts == ({"turned": 4, "as_stored": 3} if exif == "auto" else {"turned": 7, "as_stored": 0})
    off = [r["file_name"] for r in rows if overlap(r) < 0.9]
    assert off == (["o2.jpg", "o3.jpg", "o4.jpg"] if exif == "auto" else [])


def test_an_upright_format_of_photos_as_stored_follows_the_recorded_size(tmp_path: Path) -> None:
    """Old browsers showed photos as stored, and recorded that size."""
    data = tagged(6)
    assert not load_oriented(data, (WIDTH, HEIGHT), "upright").turned
    assert load_oriented(data, (HEIGHT, WIDTH), "upright").turned
    assert load_oriented(data, None, "upright").turned
    for rule in ("recorded", "upright"):
        with pytest.raises(BadImage, match=f"recorded as 9x9 but the photo is {HEIGHT}x{WIDTH}$"):
            load_oriented(data, (9, 9), rule)  # type: ignore[arg-type]
    with pytest.raises(BadImage, match=r"data\.source\.exif=ignore"):
        load_oriented(data, (HEIGHT, WIDTH), "ignore")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_every_file_format_is_turned(value: int, kind: str) -> None:
    photo = load_oriented(tagged(value, kind=kind), None, "upright")
    assert iou(red(np.asarray(photo.image)), MASK) > 0.9
    assert photo.tagged == (value > 1 and kind != "TIFF"), "Pillow turns TIFF files by itself"


def test_the_default_leaves_no_trace_in_hashes(tmp_path: Path) -> None:
    plain = SourceConfig(format="coco", root="x")
    assert "exif" not in plain.model_dump()
    assert SourceConfig(format="coco", root="x", exif="apply").model_dump()["exif"] == "apply"
    assert SourceConfig.model_validate(plain.model_dump()) == plain
    with pytest.raises(ValidationError, match="ignores 'exif'"):
        SourceConfig(format="coco20i", root="x", exif="apply")
    _coco(tmp_path, stored=True)
    versions = []
    for exif in ("auto", "apply"):
        cfg = DataConfig(source=SourceConfig(format="coco", root=str(tmp_path), exif=exif))  # type: ignore[arg-type]
        source = open_source(cfg.source)
        assert reading_rules(source) == (() if exif == "auto" else ("apply",))
        versions.append(versions_of([(item, "train") for item in source.items], source, cfg))
    assert not set(versions[0]) & set(versions[1]), "parts are read again with another setting"


def test_the_build_counts_turned_photos(tmp_path: Path, ray_cluster: object) -> None:
    yolo(tmp_path / "in", HEIGHT, WIDTH)
    cfg = DataConfig(name="d", source=SourceConfig(format="yolo", root=str(tmp_path / "in")), min_images=1)
    assert build_shards(cfg, str(tmp_path / "out")).exif == {"turned": 7, "as_stored": 0}
    shards = Shards(str(tmp_path / "out"))
    for image_id in shards.rows:
        sample = shards.sample(image_id, 0)
        assert iou(sample.mask, red(sample.image)) > 0.9
    write(tmp_path, "in/images/o9.jpg", tagged(3))
    write(tmp_path, "in/labels/o9.txt", (tmp_path / "in/labels/o1.txt").read_text())
    assert build_shards(cfg, str(tmp_path / "out"), update=True).exif == {"turned": 8, "as_stored": 0}
