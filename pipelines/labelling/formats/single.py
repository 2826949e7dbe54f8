"""Formats that are a single file: Parquet, CVAT's XML."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import quoteattr

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.base.storage import Store
from pipelines.labelling.formats.files import by_model, mask_of
from pipelines.labelling.manifest import JobManifest
from pipelines.labelling.parts import PhotoRows, decided_parts, photos, schema_of


def write_parquet(out: Store, manifest: JobManifest, name: str) -> None:
    """Write the rows of all parts, unreadable photos included, with one row group for each part."""
    schema = schema_of(manifest)
    with out.stream(name) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for rows in decided_parts(out, manifest):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


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
