"""What people drew on a task, as marks of supports: one mask a class, and its boxes and key points.

Brush masks, bitmasks and polygons of a class become one mask. A box is a mark of its own, since it may hold another
object than the mask. The key points of a class are one mark. Regions are in percent of the upright photo.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fss_models.errors import FssError
from fss_models.limits import LIMITS
from fss_models.marks import Mark, rle_json
from pipelines.data import rle
from pipelines.data.sources.label_studio_regions import KEYPOINT, MASKS, RECTANGLE, photo_size, region_mask, regions


def read_marks(results: list[dict[str, Any]], image: str) -> dict[str, list[Mark]]:
    """The marks of each class in the results of an annotation, of those regions that are on the tag `image`.

    Raises `FssError` for results that are damaged, or for photos of different sizes.
    """
    own = [r for r in results if isinstance(r, dict) and r.get("to_name") == image
           and isinstance(r.get("value", {}), dict)]
    try:
        sizes = {size for result in own if (size := photo_size(result))}
        if not sizes:
            return {}
        if len(sizes) > 1:
            raise ValueError(f"its regions are for photos of different sizes (height, width): {sorted(sizes)}")
        height, width = sizes.pop()
        if height * width > LIMITS.max_pixels:
            raise ValueError(f"its photo is recorded as {width}x{height}, more than {LIMITS.max_pixels:,} pixels")
        return _marks(own, height, width)
    except KeyError as error:
        raise FssError(f"one of its regions has no {error}") from error
    except (ValueError, TypeError) as error:
        raise FssError(str(error)) from error


def _marks(results: list[dict[str, Any]], height: int, width: int) -> dict[str, list[Mark]]:
    masks: dict[str, list[bytes]] = {}
    boxes: dict[str, list[Mark]] = {}
    points: dict[str, Mark] = {}
    positive = {str(r.get("id")): r.get("is_positive", 1) for r in results}
    for region, kind, value, label in regions(results):
        if not label:
            continue
        if kind in MASKS:
            masks.setdefault(label, []).append(region_mask(kind, value, height, width))
        elif kind == RECTANGLE:
            if box := _box(value, height, width):
                boxes.setdefault(label, []).append({"box": box})
        elif kind == KEYPOINT:
            mark = points.setdefault(label, {"points": [], "labels": []})
            mark["points"].append(_inside([[value["x"], value["y"]]], height, width)[0])
            mark["labels"].append(int(bool(positive.get(region, 1))))
    found: dict[str, list[Mark]] = {}
    for label, own in masks.items():
        mask = rle.union(own, height, width)
        if mask.any():
            found[label] = [{"mask": rle_json(mask)}]
    for label, rows in boxes.items():
        found.setdefault(label, []).extend(rows)
    for label, mark in points.items():
        if 1 in mark["labels"]:
            found.setdefault(label, []).append(mark)
    return found


def _box(value: dict[str, Any], height: int, width: int) -> list[float] | None:
    """[left, top, right, bottom] in pixels around a rectangle, which may be turned; None for one without an area."""
    turn = np.deg2rad(float(value.get("rotation") or 0))
    across = np.array([np.cos(turn), np.sin(turn)]) * float(value["width"]) / 100 * width
    down = np.array([-np.sin(turn), np.cos(turn)]) * float(value["height"]) / 100 * height
    first = np.array([float(value["x"]) / 100 * width, float(value["y"]) / 100 * height])
    corners = np.stack([first, first + across, first + down, first + across + down]).clip(0, [width, height])
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return [float(v) for v in (left, top, right, bottom)] if left < right and top < bottom else None


def _inside(points: Any, height: int, width: int) -> list[list[float]]:
    """Points in percent -> in pixels, moved into the photo."""
    scaled = np.asarray(points, dtype=np.float64) / 100 * [width, height]
    moved: list[list[float]] = scaled.clip(0, [width, height]).tolist()
    return moved
