"""LabelMe: one JSON file for each photo, as LabelMe keeps it beside the photo.

LabelMe's polygons have no holes, and it fills them with their border. So a piece of a mask without holes is a polygon
that a person can move, and a piece with holes is a `mask` shape, a PNG of its box, which is exact everywhere.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.data import rle
from pipelines.labelling.formats.files import UniqueStems, mask_of
from pipelines.labelling.formats.folders import LISTED, write_all
from pipelines.labelling.formats.outline import borders, joined
from pipelines.labelling.manifest import PLAIN, JobManifest
from pipelines.labelling.parts import PhotoRows, photos

VERSION = "5.5.0"  # of LabelMe, whose files have masks and descriptions
SURENESS = ("score", "presence", "quality")


def write_labelme(out: Store, manifest: JobManifest, name: str) -> None:
    """Write NAME.json for each readable photo, and beside it a link to the photo if both are in local folders.

    `imagePath` is the photo's file name, so the files may also be copied beside the photos. In a job with instances the
    shapes of one share a `group_id`. Scores are in `description`; the status, and where a mask is from, are flags.
    Raises `FssError` for two photos whose names differ only in the suffix.
    """
    stems = UniqueStems(ordered=manifest.in_order)

    def one(photo: PhotoRows) -> tuple[str, bytes]:
        if stems.name(photo.path) == photo.path:
            raise FssError(f"{photo.path} would share its JSON file with another photo", where=out.path(name),
                           hint="LabelMe ignores the suffix of a name: rename one of the photos")
        return f"{name}/{os.path.splitext(photo.path)[0]}.json", json.dumps(_document(photo, manifest)).encode()

    write_all(out, manifest, one)
    if manifest.inputs in PLAIN and "://" not in manifest.images_url and out.is_local:
        for photo in photos(out, manifest, LISTED):
            with suppress(FileExistsError):
                Path(out.path(f"{name}/{photo.path}")).symlink_to(Path(manifest.images_url) / photo.file_name)


def _document(photo: PhotoRows, manifest: JobManifest) -> dict[str, Any]:
    shapes = [shape for group, (number, row) in enumerate(photo.objects, 1)
              for shape in _shapes(photo, row, manifest.classes[number], group if "number" in row else None)]
    return {"version": VERSION, "flags": {}, "shapes": shapes, "imagePath": os.path.basename(photo.path),
            "imageData": None, "imageHeight": photo.height, "imageWidth": photo.width}


def _shapes(photo: PhotoRows, row: dict[str, Any], label: str, group: int | None) -> Iterator[dict[str, Any]]:
    known = [f"{key} {row[key]:.4f}" for key in SURENESS if row.get(key) is not None]
    flags = {row[key]: True for key in ("status", "origin") if row.get(key)}
    about = {"label": label, "group_id": group, "description": ", ".join(known), "flags": flags}
    for border, holes in borders(mask_of(photo, row)):
        if holes:
            yield {**about, **_picture(joined([border, *holes]), photo)}
        else:
            yield {**about, "shape_type": "polygon", "points": border.tolist(), "mask": None}


def _picture(corners: np.ndarray, photo: PhotoRows) -> dict[str, Any]:
    """A `mask` shape: the corners of its box, both inside it, and a PNG of the box in base64."""
    counts = rle.from_polygons([corners.ravel().tolist()], photo.height, photo.width)
    left, top, width, height = (int(v) for v in rle.bbox(counts, photo.height, photo.width))
    part = rle.decode(counts, photo.height, photo.width)[top:top + height, left:left + width]
    file = io.BytesIO()
    Image.fromarray(part.astype(np.uint8)).save(file, "PNG")
    return {"shape_type": "mask", "points": [[left, top], [left + width - 1, top + height - 1]],
            "mask": base64.b64encode(file.getvalue()).decode()}
