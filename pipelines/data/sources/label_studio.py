"""Label Studio: the export "JSON" of an image segmentation project (polygons and brush masks), and the photos.

Polygons are in percent of the photo's size. Brush masks are run lengths in a format of their own (`brush_rle`). The
photo of a task is found below the root by the end of its reference (`/data/upload/1/1a2b3c4d-cup.jpg`,
`/data/local-files/?d=a/cup.jpg`, `s3://bucket/a/cup.jpg`, `https://...`); nothing is downloaded. Of several annotations
of a task, the one marked as ground truth is used, else the last one that was not cancelled. Predictions are ignored.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from fss_models.errors import FssError
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.sources.annotated import (
    LabelledShape,
    add_item,
    check_some_masks,
    drop_repeated,
    no_mask,
    only_file,
    polygon,
    rasterise_shapes,
)
from pipelines.data.sources.base import (
    FetchedImage,
    ImageMasks,
    Source,
    SourceFailure,
    SourceImage,
    digest_of,
    is_image,
    listing,
)
from pipelines.data.sources.brush_rle import decode_brush
from pipelines.data.sources.finder import FileFinder

POLYGON, BRUSH = "polygon", "brush"
_REGIONS = {POLYGON: POLYGON, BRUSH: BRUSH, "rectangle": "a rectangle", "ellipse": "an ellipse",
            "keypoint": "a key point", "vector": "a vector line", "bitmask": "a bitmask"}
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio puts before the name of an uploaded file


class LabelStudioSource(Source):
    """Class ids follow the sorted labels of the export, because it does not have the project's own list."""

    upright = True

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        files = listing(self.store)
        name = cfg.annotations or only_file(files, ".json", self.store.url)
        raw, where = self.store.read_bytes(name), self.store.path(name)
        tasks = _tasks(raw, where)
        regions = [list(_regions(_chosen_annotation(task))) for task in tasks]
        self.classes = sorted({label for found in regions for *_, label in found})
        finder = FileFinder(f for f in files if is_image(f))
        for task, found in zip(tasks, regions, strict=True):
            self._add(task, found, finder, files)
        drop_repeated(self)
        check_some_masks(self.items, frozenset({POLYGON, BRUSH}), where,
                         "label with PolygonLabels or BrushLabels")
        self.fingerprint = digest_of(hashlib.sha256(raw).hexdigest(), [(i.path, files[i.path]) for i in self.items])

    def _add(self, task: dict[str, Any], regions: list[_Region], finder: FileFinder, files: dict[str, int]) -> None:
        name_of_task = f"task {task.get('id', '?')}"
        chosen, reference = _chosen_annotation(task), _reference(task)
        if reference is None:
            self.failures.append(SourceFailure(name_of_task, "index", "its data names no image file"))
        elif chosen is None:
            reason = "its annotation was cancelled" if task["annotations"] else "it is not annotated"
            self.failures.append(SourceFailure(_name(reference), "index", f"{name_of_task}: {reason}"))
        else:
            shapes = [LabelledShape(f"region {number}", self.classes.index(label), label, kind, value)
                      for number, kind, value, label in regions]
            sizes = {s for result in chosen["result"] if (s := _size(result))}
            if len(sizes) > 1:
                reason = f"its regions are for photos of different sizes (height, width): {sorted(sizes)}"
                self.failures.append(SourceFailure(_name(reference), "index", f"{name_of_task}: {reason}"))
                return
            name = _name(reference)
            plain = _UPLOAD.sub("", PurePosixPath(name).name)  # the name before the upload, if only that file exists
            found = plain if finder.has(plain) and not finder.has(name) else name
            add_item(self, finder, files, found, size=next(iter(sizes), None), shapes=shapes,
                     missing_reason=f"{name_of_task} names this photo but it is not below the root")

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mask per region and label."""
        return rasterise_shapes(fetched.payload, _rasterise, height, width)


_Region = tuple[str, str, Any, str]  # id, kind, value, label


def _rasterise(shape: LabelledShape, height: int, width: int) -> bytes:
    if shape.kind == BRUSH:
        return rle.encode(decode_brush(shape.value, height, width))
    if shape.kind == POLYGON:
        points = np.asarray(shape.value or [], dtype=np.float64).reshape(-1, 2) * [width / 100, height / 100]
        return polygon(points.ravel().tolist(), height, width)
    raise no_mask(shape.kind)


def _regions(chosen: dict[str, Any] | None) -> Iterator[_Region]:
    """The labelled regions of an annotation. The label of a region may be in another result with the same id."""
    results = chosen["result"] if chosen else []
    apart: dict[str, list[str]] = {}
    for result in results:
        if result.get("type") == "labels":
            apart.setdefault(str(result.get("id")), []).extend(result["value"].get("labels", []))
    for number, result in enumerate(results, 1):
        type_, value = str(result.get("type", "")), result.get("value", {})
        base = type_.removesuffix("labels")
        if base not in _REGIONS or type_ == "labels":
            continue  # choices, texts, ratings and relations describe the photo, not pixels
        kind, region = _REGIONS[base], str(result.get("id") or number)
        if result.get("image_rotation"):
            kind = "a region on a rotated photo"
        for label in value.get(type_) or apart.get(str(result.get("id"))) or []:
            yield region, kind, _pixels(kind, value), str(label)


def _pixels(kind: str, value: dict[str, Any]) -> Any:
    """What the workers rasterise: the points of a polygon, or the run lengths of a brush as bytes (b"": none)."""
    if kind == POLYGON:
        return value.get("points")
    runs = value.get("rle") if kind == BRUSH else None
    return bytes(runs) if isinstance(runs, list) and all(isinstance(v, int) and 0 <= v < 256 for v in runs) else b""


def _chosen_annotation(task: dict[str, Any]) -> dict[str, Any] | None:
    done = [a for a in task["annotations"] if not a.get("was_cancelled")]
    truth = [a for a in done if a.get("ground_truth")]
    return (truth or done)[-1] if done else None


def _size(result: dict[str, Any]) -> tuple[int, int] | None:
    height, width = result.get("original_height"), result.get("original_width")
    return (int(height), int(width)) if height and width else None


def _reference(task: dict[str, Any]) -> str | None:
    """The URL or path of the task's photo: the first value of `data` that names an image, `image` before others."""
    data = task.get("data")
    values = [data.get("image"), *data.values()] if isinstance(data, dict) else []
    return next((v for v in values if isinstance(v, str) and is_image(_name(v))), None)


def _name(reference: str) -> str:
    """The path in a reference to a photo."""
    parts = urlsplit(reference)
    local = parse_qs(parts.query).get("d")  # /data/local-files/?d=folder/name.jpg
    return local[0] if local else unquote(parts.path)


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
