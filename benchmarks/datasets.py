"""Data for benchmarks: real photos if they are available, else generated ones, both in COCO layout."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

CORNERS, CLASSES = 64, 80


def coco_root(config: dict[str, object], folder: Path) -> tuple[str, str]:
    """A folder in COCO layout, and a description of its photos.

    With `data` "auto" these are the real photos in $FSS_SHARED, or in ../shared beside the checkout. If there are none,
    and with any other `data`, `images` photos of 480 x 640 pixels are generated below `folder`.
    """
    place = Path(os.environ.get("FSS_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data" / "coco_union"
    if config["data"] == "auto" and (place / "annotations").is_dir():
        return str(place), "549 real COCO photos"
    root, count = folder / "raw", int(str(config["images"]))
    write_coco(root, count, per_photo=3, size=(480, 640), classes=8, seed=int(str(config["seed"])))
    return str(root), f"{count} generated photos of 480 x 640"


def write_coco(root: Path, photos: int, *, per_photo: int, size: tuple[int, int], classes: int = CLASSES,
               seed: int = 0) -> None:
    """Write photos, `size` (height, width), and annotations/instances.json with polygons of 64 corners.

    Photos and annotations are written one at a time, so memory does not grow with their number.
    """
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    for i in range(photos):
        path = root / "images" / f"{i // 1000:04d}" / f"{i:08d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_photo(rng, *size))
    with (root / "annotations" / "instances.json").open("w") as out:
        for text in _document(photos, per_photo, size, classes, rng):
            out.write(text)


def _photo(rng: np.random.Generator, height: int, width: int) -> bytes:
    """A JPEG of noise of three octaves, which has about as many bytes for each pixel as a photo."""
    total = np.zeros((height, width, 3), dtype=np.float32)
    for cells, weight in ((8, 0.5), (32, 0.3), (128, 0.2)):
        small = Image.fromarray(rng.integers(0, 256, (min(cells, height), min(cells, width), 3), dtype=np.uint8))
        total += weight * np.asarray(small.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
    out = io.BytesIO()
    Image.fromarray(total.astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def _document(photos: int, per_photo: int, size: tuple[int, int], classes: int,
              rng: np.random.Generator) -> Iterator[str]:
    """The text of instances.json in pieces; annotations come in random order of photos, as in COCO's own files."""
    height, width = size
    yield json.dumps({"categories": [{"id": c + 1, "name": f"class {c}"} for c in range(classes)]})[:-1]
    yield ', "images": ['
    for i in range(photos):
        record = {"id": i, "file_name": f"{i:08d}.jpg", "height": height, "width": width}
        yield ("," if i else "") + json.dumps(record)
    yield '], "annotations": ['
    angles = np.arange(CORNERS) * 2 * np.pi / CORNERS
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for n, slot in enumerate(rng.permutation(photos * per_photo)):
        radius, centre = rng.uniform(0.1, 0.25) * height, rng.uniform(0.25, 0.75, 2) * (width, height)
        polygon = (centre + radius * circle).round(2).ravel().tolist()
        record = {"id": n, "image_id": int(slot) // per_photo, "category_id": 1 + int(rng.integers(classes)),
                  "iscrowd": 0, "segmentation": [polygon]}
        yield ("," if n else "") + json.dumps(record)
    yield "]}"
