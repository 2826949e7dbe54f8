"""Label Studio: the export "JSON" of an image segmentation project (polygons, brush masks, bitmasks), and the photos.

Polygons are in percent of the upright photo's size. Brush masks are run lengths in a format of their own (`brush_rle`),
bitmasks PNGs. The photos of a task are found below the root by the end of their references (`label_studio_photos`);
nothing is downloaded. Of several annotations of a task, the one marked as ground truth is used, else the last one that
was not cancelled. Predictions are ignored. Regions without a label are listed as failures.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from fss_models.errors import FssError
from pipelines.config.data import SourceConfig
from pipelines.data.sources.annotated import ExportSource, LabelledShape
from pipelines.data.sources.base import BarePhoto, MissingPhoto, digest_of
from pipelines.data.sources.finder import FileFinder
from pipelines.data.sources.label_studio_photos import (
    TaskPhoto,
    find_photo,
    image_references,
    photos_of_task,
    shown_name,
)
from pipelines.data.sources.label_studio_regions import MASKS, chosen_annotation, photo_size, region_mask, regions


class LabelStudioSource(ExportSource):
    """Class ids follow the sorted labels of the export, because it does not have the project's own list."""

    masks = MASKS

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        name = self.only_file(".json")
        raw, where = self.store.read_bytes(name), self.store.path(name)
        tasks = _tasks(raw, where)
        chosen = [annotation for task in tasks if (annotation := chosen_annotation(task))]
        self.classes = sorted({label for a in chosen for *_, label in regions(a["result"]) if label})
        self._ids = {label: number for number, label in enumerate(self.classes)}
        for task in tasks:
            self._add(task)
        self.drop_repeated()
        self.check_some_masks(where, "label with PolygonLabels, BrushLabels or BitmaskLabels")
        self.fingerprint = digest_of(hashlib.sha256(raw).hexdigest(), self.photo_sizes())

    def _add(self, task: dict[str, Any]) -> None:
        """Add the photos of a task to the index, or to the failures."""
        name, chosen = f"task {task.get('id', '?')}", chosen_annotation(task)
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
                  for number, kind, value, label in regions(photo.results) if label]
        try:
            sizes = {s for result in photo.results if (s := photo_size(result))}
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
        bare = list(dict.fromkeys(number for number, *_, label in regions(photo.results) if not label))
        if bare:
            what = f"{len(bare)} regions have" if len(bare) > 1 else "a region has"
            self.fail(path, f"{task}: {what} no label ({', '.join(bare[:3])})")

    @staticmethod
    def shape_counts(shape: LabelledShape, height: int, width: int) -> bytes:
        """The counts of a region with one label."""
        return region_mask(shape.kind, shape.value, height, width)




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
