"""Masks as COCO's compressed run lengths: the `counts` bytes. Height and width are passed separately."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from pycocotools import mask as coco


def encode(mask: np.ndarray) -> bytes:
    """Encode a mask: [H, W] bool -> counts."""
    return bytes(coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"])


def decode(counts: bytes, height: int, width: int) -> np.ndarray:
    """Decode a mask: counts -> [H, W] bool."""
    return _bools(coco.decode({"size": [height, width], "counts": counts}))


def union(counts: Iterable[bytes], height: int, width: int) -> np.ndarray:
    """The union of several masks, [H, W] bool. It is false everywhere if there are none."""
    rles = [{"size": [height, width], "counts": c} for c in counts]
    if not rles:
        return np.zeros((height, width), dtype=bool)
    return _bools(coco.decode(coco.merge(rles) if len(rles) > 1 else rles[0]))


def union_area(counts: Iterable[bytes], height: int, width: int) -> int:
    """Number of pixels in the union of several masks, computed without decoding them."""
    rles = [{"size": [height, width], "counts": c} for c in counts]
    return int(coco.area(coco.merge(rles))) if rles else 0


def area(counts: bytes, height: int, width: int) -> int:
    """Number of pixels in one mask."""
    return int(coco.area({"size": [height, width], "counts": counts}))


def bbox(counts: bytes, height: int, width: int) -> list[float]:
    """The bounding box of one mask, [x, y, width, height] in pixels."""
    return [float(v) for v in coco.toBbox({"size": [height, width], "counts": counts})]


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> bytes:
    """Polygons (x0, y0, x1, y1, ...) of one object -> counts. Raises ValueError if none has three corners."""
    usable = [[float(v) for v in p] for p in polygons if len(p) >= 6 and len(p) % 2 == 0]
    if not usable:
        raise ValueError("no polygon with three corners")
    return bytes(coco.merge(coco.frPyObjects(usable, height, width))["counts"])


def from_coco(segmentation: object, height: int, width: int) -> bytes:
    """Any `segmentation` in COCO's format (polygons, uncompressed or compressed RLE) -> counts.

    Raises ValueError if it is malformed or an RLE of another size.
    """
    if isinstance(segmentation, list):
        return from_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("segmentation is neither polygons nor RLE")
    if list(segmentation["size"]) != [height, width]:
        h, w = segmentation["size"]
        raise ValueError(f"mask is {w}x{h}, its image {width}x{height}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise ValueError("RLE counts do not add up to the image's size")
        return bytes(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"])
    return counts.encode() if isinstance(counts, str) else bytes(counts)


def _bools(mask: np.ndarray) -> np.ndarray:
    """A [H, W] array of 0 and 1 as bool, without a copy; it stays in column-major order."""
    found: np.ndarray = np.asarray(mask, dtype=np.uint8).view(bool)
    return found
