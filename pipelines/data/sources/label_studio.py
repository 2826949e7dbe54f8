"""Label Studio: the export "JSON" of an image segmentation project (polygons, brush masks, bitmasks), and the photos.

Polygons are in percent of the upright photo's size. Brush masks are run lengths in a format of their own (`brush_rle`),
bitmasks PNGs. The photos of a task are found below the root by the end of their references (`label_studio_photos`);
nothing is downloaded. Of several annotations of a task, the one marked as ground truth is used, else the last one that
was not cancelled. Predictions are ignored. Regions without a label are listed as failures.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from fss_models.errors import BadImage, FssError
from fss_models.mask_files import read_mask_picture
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.sources.annotated import (
    LabelledShape,
    check_some_masks,
    drop_repeated,
    no_mask,
    only_file,
    polygon,
    rasterise_shapes,
)
from pipelines.data.sources.base import (
    BarePhoto,
    FetchedImage,
    ImageMasks,
    MissingPhoto,
    Source,
    SourceImage,
    digest_of,
)
from pipelines.data.sources.brush_rle import decode_brush
from pipelines.data.sources.finder import FileFinder
from pipelines.data.sources.label_studio_photos import (
    TaskPhoto,
    find_photo,
    image_references,
    photos_of_task,
    shown_name,
)
from pipelines.data.sources.text import class_name, whole_number

POLYGON, BRUSH, BITMASK = "polygon", "brush", "bitmask"
_REGIONS = {POLYGON: POLYGON, BRUSH: BRUSH, BITMASK: BITMASK, "rectangle": "a rectangle", "ellipse": "an ellipse",
            "keypoint": "a key point", "vector": "a vector line"}


class LabelStudioSource(Source):
    """Class ids follow the sorted labels of the export, because it does not have the project's own list."""

    upright = True

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        name = cfg.annotations or only_file(self.files, ".json", self.store.url)
        raw, where = self.store.read_bytes(name), self.store.path(name)
        tasks = _tasks(raw, where)
        chosen = [annotation for task in tasks if (annotation := _chosen_annotation(task))]
        self.classes = sorted({label for a in chosen for *_, label in _regions(a["result"]) if label})
        self._ids = {label: number for number, label in enumerate(self.classes)}
        for task in tasks:
            self._add(task)
        drop_repeated(self)
        check_some_masks(self.items, frozenset({POLYGON, BRUSH, BITMASK}), where,
                         "label with PolygonLabels, BrushLabels or BitmaskLabels")
        self.fingerprint = digest_of(hashlib.sha256(raw).hexdigest(), self.photo_sizes())

    def _add(self, task: dict[str, Any]) -> None:
        """Add the photos of a task to the index, or to the failures."""
        name, chosen = f"task {task.get('id', '?')}", _chosen_annotation(task)
        first = _first_reference(task, self.photos)
        if first is None:
            self.fail(name, "its data names no image file")
        elif chosen is None:
            reason = "its annotation was cancelled" if task["annotations"] else "it is not annotated"
            self.fail(shown_name(first), f"{name}: {reason}", BarePhoto)
        else:
            try:
                photos = list(photos_of_task(task, chosen["result"], self.photos))
            except ValueError as error:
                return self.fail(shown_name(first), f"{name}: {error}")
            for photo in photos:
                self._add_photo(name, photo)

    def _add_photo(self, task: str, photo: TaskPhoto) -> None:
        name = shown_name(photo.reference)
        shapes = [LabelledShape(f"region {number}", self._ids[label], label, kind, value)
                  for number, kind, value, label in _regions(photo.results) if label]
        try:
            sizes = {s for result in photo.results if (s := _size(result))}
            path = find_photo(photo.reference, self.photos)
        except (FssError, ValueError) as error:
            reason = error.what if isinstance(error, FssError) else str(error)
            return self.fail(name, f"{task}: {reason}" if isinstance(error, ValueError) else reason)
        if len(sizes) > 1:
            reason = f"its regions are for photos of different sizes (height, width): {sorted(sizes)}"
            return self.fail(name, f"{task}: {reason}")
        if path is None:
            return self.fail(name, f"{task} names this photo but it is not below the root", MissingPhoto)
        self.add(path, shapes, size=next(iter(sizes), None))
        bare = list(dict.fromkeys(number for number, *_, label in _regions(photo.results) if not label))
        if bare:
            what = f"{len(bare)} regions have" if len(bare) > 1 else "a region has"
            self.fail(path, f"{task}: {what} no label ({', '.join(bare[:3])})")

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mask per region and label."""
        return rasterise_shapes(fetched.payload, _rasterise, height, width)


_Region = tuple[str, str, Any, str]  # id, kind, value, label


def _rasterise(shape: LabelledShape, height: int, width: int) -> bytes:
    if shape.kind == BRUSH:
        return rle.encode(decode_brush(shape.value, height, width))
    if shape.kind == BITMASK:
        return rle.encode(_bitmask(shape.value, height, width))
    if shape.kind == POLYGON:
        points = np.asarray(shape.value or [], dtype=np.float64).reshape(-1, 2) * [width / 100, height / 100]
        return polygon(points.ravel().tolist(), height, width)
    raise no_mask(shape.kind)


def _bitmask(data: bytes, height: int, width: int) -> np.ndarray:
    """The mask of a PNG, which is opaque where the object is. Raises ValueError."""
    try:
        mask = read_mask_picture(data).mask
    except BadImage as error:
        raise ValueError(f"bitmask: {error.reason}") from error
    if mask.shape != (height, width):
        raise ValueError(f"bitmask is {mask.shape[1]}x{mask.shape[0]}, its image {width}x{height}")
    return mask


def _regions(results: list[dict[str, Any]]) -> Iterator[_Region]:
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


def _labels(found: object) -> list[str]:
    """The names of labels in a value, which may be one name or a list."""
    return [name for text in (found if isinstance(found, list) else [found or ""]) if (name := class_name(text))]


def _pixels(kind: str, value: dict[str, Any]) -> Any:
    """What the workers rasterise: a polygon's points, a brush's run lengths or a bitmask's PNG (b"": none)."""
    if kind == POLYGON:
        return value.get("points")
    if kind == BITMASK:
        return _data_url(value.get("imageDataURL"))
    runs = value.get("rle") if kind == BRUSH else None
    return bytes(runs) if isinstance(runs, list) and all(isinstance(v, int) and 0 <= v < 256 for v in runs) else b""


def _data_url(text: object) -> bytes:
    """The bytes in a URL such as data:image/png;base64,..., b"" if it is none."""
    head, _, body = text.partition(",") if isinstance(text, str) else ("", "", "")
    try:
        return base64.b64decode(body) if head.startswith("data:image/") and head.endswith(";base64") else b""
    except ValueError:
        return b""


def _chosen_annotation(task: dict[str, Any]) -> dict[str, Any] | None:
    done = [a for a in task["annotations"] if not a.get("was_cancelled")]
    truth = [a for a in done if a.get("ground_truth")]
    return (truth or done)[-1] if done else None


def _size(result: dict[str, Any]) -> tuple[int, int] | None:
    """(height, width) of the photo as the result records it, None if it does not. Raises ValueError for no numbers."""
    height, width = result.get("original_height"), result.get("original_width")
    if not height or not width:
        return None
    size = whole_number(str(height)), whole_number(str(width))
    if not size[0] or not size[1]:
        raise ValueError(f"its size is recorded as {str(width)[:20]}x{str(height)[:20]}")
    return size[0], size[1]


def _first_reference(task: dict[str, Any], finder: FileFinder) -> str | None:
    """The first photo that the data of a task names."""
    found = image_references(task, ("image",), finder)
    return next((pages[0] for pages in found.values()), None)


def _tasks(raw: bytes, where: str) -> list[dict[str, Any]]:
    """The tasks of an export. Raises `FssError` if one has no list of annotations with results."""
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise FssError(f"the file is not valid JSON: {error}", where=where) from error
    if not isinstance(document, list) or not all(isinstance(t, dict) for t in document):
        is_coco = isinstance(document, dict) and "images" in document
        raise FssError("this is a COCO file" if is_coco else "this is not a list of tasks", where=where,
                       hint='export from Label Studio as "JSON", or read a COCO file with format coco')
    for number, task in enumerate(document):
        found = task.get("annotations")
        if isinstance(found, list) and all(isinstance(a, dict) and _is_results(a.get("result")) for a in found):
            continue
        what = f"task {task.get('id', number)} has no annotations with results"
        raise FssError(what, where=where, hint='export as "JSON"; "JSON-MIN" and old "completions" are not read')
    return document


def _is_results(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(r, dict) and isinstance(r.get("value", {}), dict) for r in found)
