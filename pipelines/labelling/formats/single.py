"""Formats that are a single file: Parquet, Label Studio's tasks, CVAT's XML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.base.storage import Store
from pipelines.data.sources.brush_rle import encode_brush
from pipelines.labelling.formats.files import by_model, mask_of
from pipelines.labelling.manifest import JobManifest
from pipelines.labelling.parts import PhotoRows, decided_parts, photos, schema_of


def write_parquet(out: Store, manifest: JobManifest, name: str) -> None:
    """Write the rows of all parts, unreadable photos included, with one row group for each part."""
    schema = schema_of(manifest)
    with out.stream(name) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for rows in decided_parts(out, manifest):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def write_label_studio(out: Store, manifest: JobManifest, name: str) -> None:
    """Write tasks to import, with predictions: masks of the `BrushLabels` named `label` on the image named `image`.

    The names of photos in a local folder fit a local storage of Label Studio that has this folder as its root.
    """
    with out.stream(name) as file:
        file.write(b"[")
        for number, photo in enumerate(photos(out, manifest)):
            file.write((b",\n" if number else b"\n") + json.dumps(_task(photo, manifest)).encode())
        file.write(b"\n]\n")


def _task(photo: PhotoRows, manifest: JobManifest) -> dict[str, Any]:
    found = [{"id": "-".join(str(n) for n in (photo.image_id, number, row.get("number")) if n is not None),
              "type": "brushlabels", "from_name": "label", "to_name": "image",
              "original_width": photo.width, "original_height": photo.height, "image_rotation": 0,
              **({} if row["score"] is None else {"score": _sure(row)}),
              **({} if by_model(row) else {"origin": "manual"}),
              "value": {"format": "rle", "brushlabels": [manifest.classes[number]],
                        "rle": list(encode_brush(mask_of(photo, row)))}} for number, row in photo.objects]
    sure = min((_sure(row) for _, row in photo.masks), default=0.0)
    own = {} if photo.source_id is None else {"source_id": photo.source_id}
    return {"id": photo.image_id, "data": {"image": _url(photo, manifest), **own}, "predictions": [
        {"model_version": manifest.bundle_id, "score": sure, "result": found}]}


def _url(photo: PhotoRows, manifest: JobManifest) -> str:
    if "://" in photo.file_name:
        return photo.file_name
    place = Store(manifest.images_url)
    root = place.parent.url if manifest.inputs == "list" else place.url
    return f"{root}/{photo.file_name}" if "://" in root else f"/data/local-files/?d={quote(photo.file_name)}"


def _sure(row: dict[str, Any]) -> float:
    """The quality of a mask, or its score if it has no quality; an instance's own score."""
    return float(row["score"] if row.get("quality") is None or "number" in row else row["quality"])


def write_cvat(out: Store, manifest: JobManifest, name: str) -> None:
    """Write annotations.xml in the format "CVAT for images 1.1", with masks."""
    labels = "".join(f"<label><name>{_text(c)}</name><type>mask</type><attributes></attributes></label>\n"
                     for c in manifest.classes)
    with out.stream(name) as file:
        file.write(f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task>\n'
                   f"<name>{_text(manifest.title)}</name>\n<labels>\n{labels}</labels>\n</task></meta>\n".encode())
        for photo in photos(out, manifest):
            file.write("".join(_image(photo, manifest)).encode())
        file.write(b"</annotations>\n")


def _image(photo: PhotoRows, manifest: JobManifest) -> Iterator[str]:
    yield (f'<image id="{photo.image_id - 1}" name={quoteattr(photo.file_name)} width="{photo.width}" '
           f'height="{photo.height}">\n')
    ordered = photo.objects
    if any("number" in row for _, row in ordered):  # the surest instance is on top, what a person drew above all
        ordered.sort(key=lambda one: 1.0 if one[1]["score"] is None else one[1]["score"])
    for place, (number, row) in enumerate(ordered):
        left, top, width, height = (int(v) for v in row["bbox"])
        inside = mask_of(photo, row)[top:top + height, left:left + width]
        source = "auto" if by_model(row) else "manual"
        yield (f'<mask label={quoteattr(manifest.classes[number])} source="{source}" occluded="0" '
               f'rle="{", ".join(map(str, _runs(inside)))}" left="{left}" top="{top}" width="{width}" '
               f'height="{height}" z_order="{place if "number" in row else number}"></mask>\n')
    yield "</image>\n"


def _runs(mask: np.ndarray) -> list[int]:
    """The lengths of runs along the rows of a mask; the first is background."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    runs: list[int] = np.diff(ends, prepend=0).tolist()
    return [0, *runs] if flat[0] else runs


def _text(value: str) -> str:
    return quoteattr(value)[1:-1].replace("&quot;", '"')
