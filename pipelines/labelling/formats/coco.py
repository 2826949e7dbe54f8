"""COCO JSON: `images` has the readable photos, `annotations` the masks that are not empty."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipelines.base.storage import Store
from pipelines.labelling.formats.files import mask_of
from pipelines.labelling.formats.outline import polygons
from pipelines.labelling.manifest import JobManifest
from pipelines.labelling.parts import PhotoRows, photos

SHORT = ["image_id", "file_name", "height", "width", "class_name", "error"]


def write_coco(out: Store, manifest: JobManifest, name: str, *, outlines: bool = False) -> None:
    """Write the file `name` photo by photo, with masks as run lengths, or with `outlines` as polygons.

    In a job with one class an annotation has the id of its photo; else ids count photos and classes. In a job with
    instances every instance is an annotation, and ids count them; those that a person drew have no score. Where a job
    keeps annotations, `origin` says of each whether it is one of them.
    """
    about = {"description": f"{manifest.title} by {manifest.method}/{manifest.preset}",
             "bundle_id": manifest.bundle_id, **manifest.supports, "version": manifest.code_version}
    categories = [{"id": i, "name": label, "supercategory": ""} for i, label in enumerate(manifest.classes, 1)]
    with out.stream(name) as file:
        file.write(b'{"info": ' + _line(about) + b',\n"licenses": [],\n"categories": ' + _line(categories))
        for key, rows in (("images", _images(out, manifest)), ("annotations", _annotations(out, manifest, outlines))):
            file.write(f',\n"{key}": ['.encode())
            for number, row in enumerate(rows):
                file.write((b",\n" if number else b"\n") + _line(row))
            file.write(b"\n]")
        file.write(b"}\n")


def _images(out: Store, manifest: JobManifest) -> Iterator[dict[str, Any]]:
    for photo in photos(out, manifest, SHORT):
        yield {"id": photo.image_id, "file_name": photo.file_name, "height": photo.height, "width": photo.width,
               **({} if photo.source_id is None else {"source_id": photo.source_id})}


def _annotations(out: Store, manifest: JobManifest, outlines: bool) -> Iterator[dict[str, Any]]:
    classes, count = len(manifest.classes), 0
    for photo in photos(out, manifest):
        for number, row in photo.objects:
            count += 1
            shape = _outlines(photo, row) if outlines else _run_lengths(photo, row)
            key = count if "number" in row else (photo.image_id - 1) * classes + number + 1
            yield {"id": key, "image_id": photo.image_id,
                   "category_id": number + 1, "iscrowd": 0, "segmentation": shape,
                   "bbox": row["bbox"], "area": row["area"],
                   **{k: row[k] for k in ("score",) if row[k] is not None},
                   **{k: row[k] for k in ("presence", "quality", "status") if row.get("status")},
                   **({"origin": row["origin"]} if row.get("origin") else {})}


def _outlines(photo: PhotoRows, row: dict[str, Any]) -> list[list[int]]:
    return [corners.ravel().tolist() for corners in polygons(mask_of(photo, row))]


def _run_lengths(photo: PhotoRows, row: dict[str, Any]) -> dict[str, Any]:
    return {"size": [photo.height, photo.width], "counts": row["rle"]}


def _line(value: Any) -> bytes:
    return json.dumps(value).encode()
