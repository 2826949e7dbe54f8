"""The regions of Label Studio's annotations: the label of each, where it is, and the masks of those that have one."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np

from fss_models.errors import BadImage
from fss_models.mask_files import read_mask_picture
from pipelines.data import rle
from pipelines.data.sources.annotated import no_mask, polygon
from pipelines.data.sources.brush_rle import decode_brush
from pipelines.data.sources.text import class_name, whole_number

POLYGON, BRUSH, BITMASK = "polygon", "brush", "bitmask"
RECTANGLE, KEYPOINT = "a rectangle", "a key point"
MASKS = frozenset({POLYGON, BRUSH, BITMASK})  # kinds that are masks
_REGIONS = {POLYGON: POLYGON, BRUSH: BRUSH, BITMASK: BITMASK, "rectangle": RECTANGLE, "ellipse": "an ellipse",
            "keypoint": KEYPOINT, "vector": "a vector line"}
Region = tuple[str, str, Any, str]  # id, kind, value, label


def regions(results: list[dict[str, Any]]) -> Iterator[Region]:
    """The regions of an annotation, one per label; "" as the label if there is none.

    The label of a region may be in another result with the same id.
    """
    apart: dict[str, list[str]] = {}
    for result in results:
        if result.get("type") == "labels":
            apart.setdefault(str(result.get("id")), []).extend(_labels(result.get("value", {}).get("labels")))
    for number, result in enumerate(results, 1):
        type_, value = str(result.get("type", "")), result.get("value", {})
        base = type_.removesuffix("labels")
        if base not in _REGIONS or type_ == "labels":
            continue  # choices, texts, ratings and relations describe the photo, not pixels
        kind, region = _REGIONS[base], str(result.get("id") or number)
        if result.get("image_rotation"):
            kind = "a region on a rotated photo"
        for label in _labels(value.get(type_)) or apart.get(str(result.get("id"))) or [""]:
            yield region, kind, _pixels(kind, value), label


def region_mask(kind: str, value: Any, height: int, width: int) -> bytes:
    """The mask of a region on an upright photo as run lengths (`pipelines.data.rle`).

    Raises ValueError for a value that is damaged or of another size, and `no_mask`'s error for a kind without a mask.
    """
    if kind == BRUSH:
        return rle.encode(decode_brush(value, height, width))
    if kind == BITMASK:
        return rle.encode(_bitmask(value, height, width))
    if kind == POLYGON:
        points = np.asarray(value or [], dtype=np.float64).reshape(-1, 2) * [width / 100, height / 100]
        return polygon(points.ravel().tolist(), height, width)
    raise no_mask(kind)


def chosen_annotation(task: dict[str, Any]) -> dict[str, Any] | None:
    """The annotation that counts: the ground truth, else the last one that was not cancelled; None if there is none."""
    done = [a for a in task["annotations"] if not a.get("was_cancelled")]
    truth = [a for a in done if a.get("ground_truth")]
    return (truth or done)[-1] if done else None


def photo_size(result: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) of the photo as the result records it, None if it does not. Raises ValueError for no numbers."""
    height, width = result.get("original_height"), result.get("original_width")
    if not height or not width:
        return None
    size = whole_number(str(height)), whole_number(str(width))
    if not size[0] or not size[1]:
        raise ValueError(f"its size is recorded as {str(width)[:20]}x{str(height)[:20]}")
    return size[0], size[1]


def _labels(found: object) -> list[str]:
    """The names of labels in a value, which may be one name or a list."""
    return [name for text in (found if isinstance(found, list) else [found or ""]) if (name := class_name(text))]


def _pixels(kind: str, value: dict[str, Any]) -> Any:
    """What says where a region is: a polygon's points, a brush's run lengths, a bitmask's PNG (b"": none), or all."""
    if kind == POLYGON:
        return value.get("points")
    if kind == BITMASK:
        return _data_url(value.get("imageDataURL"))
    if kind != BRUSH:
        return value
    runs = value.get("rle")
    return bytes(runs) if isinstance(runs, list) and all(isinstance(v, int) and 0 <= v < 256 for v in runs) else b""


def _bitmask(data: bytes, height: int, width: int) -> np.ndarray:
    """The mask of a PNG, which is opaque where the object is. Raises ValueError."""
    try:
        mask = read_mask_picture(data).mask
    except BadImage as error:
        raise ValueError(f"bitmask: {error.reason}") from error
    if mask.shape != (height, width):
        raise ValueError(f"bitmask is {mask.shape[1]}x{mask.shape[0]}, its image {width}x{height}")
    return mask


def _data_url(text: object) -> bytes:
    """The bytes in a URL such as data:image/png;base64,..., b"" if it is none."""
    head, _, body = text.partition(",") if isinstance(text, str) else ("", "", "")
    try:
        return base64.b64decode(body) if head.startswith("data:image/") and head.endswith(";base64") else b""
    except ValueError:
        return b""
