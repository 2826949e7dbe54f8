"""Tiny datasets in every layout."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def jpeg(height: int, width: int, seed: int = 0) -> bytes:
    """Bytes of a smooth random photo."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    out = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def scan_bomb(side: int, scans: int) -> bytes:
    """A JPEG of some kilobytes that takes a second a hundred scans to decode (2000 px): each visits all its blocks."""
    out = io.BytesIO()
    Image.new("L", (side, side), 200).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")  # start of the last scan
    return data[:-2] + data[last:-2] * scans + data[-2:]


def png(array: np.ndarray, palette: bool = False) -> bytes:
    """Bytes of a label image."""
    image = Image.fromarray(array.astype(np.uint8))
    if palette:
        image = image.convert("P")
        image.putpalette([v for i in range(256) for v in (i, 255 - i, (i * 7) % 256)])
        image.putdata(array.astype(np.uint8).ravel().tolist())
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write(root: Path, name: str, data: bytes | str) -> None:
    """A file below root."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def square(x: float, y: float, side: float) -> list[float]:
    """A polygon."""
    return [x, y, x + side, y, x + side, y + side, x, y + side]


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """Twelve photos, two classes with ids 7 and 3, every kind of segmentation, and five mistakes."""
    root = tmp_path / "tiny_coco"
    images, annotations = [], []
    for i in range(12):
        write(root, f"images/{i:03d}.jpg", jpeg(40, 60, i))
        images.append({"id": 100 + i, "file_name": f"{i:03d}.jpg", "height": 40, "width": 60})
        annotations.append(_note(i, 100 + i, 7, [square(5, 5, 20)]))
        annotations.append(_note(100 + i, 100 + i, 3, _uncompressed(40, 60, 30, 50, 10, 30)))
    annotations.append(_note(900, 100, 7, _uncompressed(40, 60, 0, 60, 30, 40), crowd=1))
    annotations.append(_note(901, 101, 7, {"size": [10, 10], "counts": [0, 100]}))  # a mask of another size
    annotations.append(_note(902, 102, 7, [[1, 2, 3, 4]]))  # two corners
    annotations.append(_note(903, 999, 7, [square(1, 1, 9)]))  # no such image record
    images.append({"id": 500, "file_name": "missing.jpg", "height": 40, "width": 60})
    write(root, "images/broken.jpg", jpeg(40, 60, 50)[:300])
    images.append({"id": 501, "file_name": "broken.jpg", "height": 40, "width": 60})
    write(root, "images/empty.jpg", b"")
    images.append({"id": 502, "file_name": "empty.jpg", "height": 40, "width": 60})
    document = {"images": images, "annotations": annotations,
                "categories": [{"id": 7, "name": "cup"}, {"id": 3, "name": "bird"}]}
    write(root, "annotations/instances.json", json.dumps(document))
    return root


def _note(number: int, image: int, category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd}


def _uncompressed(height: int, width: int, x0: int, x1: int, y0: int, y1: int) -> dict[str, Any]:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[y0:y1, x0:x1] = 1
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return {"size": [height, width], "counts": ([0] if flat[0] else []) + runs}


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """Ten photos of aeroplanes and tv monitors with a void rim; one mask of another size, one photo missing."""
    root = tmp_path / "VOCdevkit"
    for i in range(10):
        labels = np.zeros((40, 60))
        labels[5:25, 5:30], labels[5:6, 5:30] = 1, 255
        labels[28:38, 30:55] = 20
        write(root, f"VOC2012/JPEGImages/2007_{i:06d}.jpg", jpeg(40, 60, i))
        write(root, f"VOC2012/SegmentationClass/2007_{i:06d}.png", png(labels, palette=True))
    write(root, "VOC2012/JPEGImages/2008_000001.jpg", jpeg(40, 60))
    write(root, "VOC2012/SegmentationClass/2008_000001.png", png(np.ones((30, 30)), palette=True))
    write(root, "VOC2012/SegmentationClass/2008_000002.png", png(np.ones((40, 60)), palette=True))
    return root


@pytest.fixture
def pairs_root(tmp_path: Path) -> Path:
    """Ten photos of two classes; a mask of another size, an empty one, a photo without and a mask without photo."""
    root = tmp_path / "pairs"
    for i in range(10):
        mask = np.zeros((40, 60))
        mask[5:25, 5:30] = 255
        write(root, f"images/p{i}.jpg", jpeg(40, 60, i))
        write(root, f"masks/scratch/p{i}.png", png(mask))
        write(root, f"masks/dent/p{i}.png", png(mask[::-1] / 255))  # masks of zeros and ones are as good
    for name, mask in (("size", np.ones((20, 20))), ("none", np.zeros((40, 60)))):
        write(root, f"images/{name}.jpg", jpeg(40, 60))
        write(root, f"masks/dent/{name}.png", png(mask))
    write(root, "images/lonely.jpg", jpeg(40, 60))
    write(root, "masks/dent/ghost.png", png(np.ones((40, 60))))
    return root
