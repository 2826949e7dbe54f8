"""Output parts: one Parquet file for each chunk. The list of these files says which chunks are done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa

from pipelines.base.storage import Store
from pipelines.inference.masks import Label, Labels, PhotoFailure
from pipelines.labelling.decisions import apply_decisions, read_decisions
from pipelines.labelling.images import ImageList
from pipelines.labelling.manifest import JobManifest

FOLDER = "parts"
PARTS = pa.schema([  # one row for each photo and class, photo by photo; one row for an unreadable photo
    ("image_id", pa.int64()),
    ("file_name", pa.string()),
    ("height", pa.int32()),  # of the upright photo; null for an unreadable photo
    ("width", pa.int32()),
    ("class_name", pa.string()),
    ("rle", pa.string()),  # COCO's compressed counts
    ("bbox", pa.list_(pa.float64())),  # x, y, width, height (nulls of a fixed length do not survive Parquet)
    ("area", pa.int64()),  # 0: the object is not in the photo
    ("score", pa.float64()),
    ("stage", pa.string()),  # the stage that failed; null for a label
    ("error", pa.string()),
])
CALIBRATED = pa.schema([  # the parts of jobs with a calibrated bundle
    *PARTS,
    ("presence", pa.float64()),  # probability that the class is in the photo; null for a far domain
    ("quality", pa.float64()),  # probability that the class is there and the mask good; null for a far domain
    ("status", pa.string()),  # accepted, review, empty, uncalibrated (see `fss_models.presence`)
])
INSTANCE = pa.struct([
    ("rle", pa.string()),
    ("bbox", pa.list_(pa.float64())),
    ("area", pa.int64()),
    ("score", pa.float64()),  # null: a person drew it
])
INSTANCES = pa.field("instances", pa.list_(INSTANCE))  # by falling score; null for an unreadable photo, [] for none

SOURCE_ID = pa.field("source_id", pa.string())  # the photo's id in the person's list
KEPT = (  # of jobs that keep annotations
    pa.field("origin", pa.string()),  # existing: kept from the annotations; model; null for an unreadable photo
    pa.field("existing_problem", pa.string()),  # what of the photo's annotations could not be read; null for nothing
)
COMPARED = (  # of jobs that compare with annotations
    pa.field("existing_rle", pa.string()),  # the mask of the annotations; null where they say nothing
    pa.field("existing_iou", pa.float64()),  # of both masks, 1 where both are empty; null as before
    KEPT[1],
)


def schema_of(manifest: JobManifest) -> pa.Schema:
    """The schema of the job's parts: jobs with instances, ids of a list or existing annotations have more columns."""
    schema = CALIBRATED if manifest.calibrator else PARTS
    schema = schema if manifest.instances == "none" else schema.append(INSTANCES)
    for one in () if not manifest.existing_mode else COMPARED if manifest.existing_mode == "compare" else KEPT:
        schema = schema.append(one)
    return schema.append(SOURCE_ID) if manifest.source_ids else schema


def part_name(chunk: int) -> str:
    """The path of a chunk's part, relative to the job's folder."""
    return f"{FOLDER}/chunk-{chunk:06d}.parquet"


def finished_chunks(out: Store) -> set[int]:
    """The chunks that have a part."""
    return {int(n.rsplit("-", 1)[1].removesuffix(".parquet")) for n in out.list(FOLDER, suffix=".parquet")}


def write_part(out: Store, chunk: int, images: ImageList, rows: Sequence[int], manifest: JobManifest,
               results: Sequence[Labels | PhotoFailure], *, merge: bool = False) -> None:
    """Write the part of a chunk. `results` has one entry for each photo of `rows`.

    merge: the part keeps what it has of other photos.
    """
    write_rows(out, chunk, images, rows, manifest, [list(result_columns(r, manifest)) for r in results], merge=merge)


def write_rows(out: Store, chunk: int, images: ImageList, rows: Sequence[int], manifest: JobManifest,
               found: Sequence[Sequence[dict[str, Any]]], *, merge: bool = False) -> None:
    """As `write_part`, from the rows of each photo without its id and name."""
    written = [{"image_id": row + 1, "file_name": photo.name, "source_id": photo.source_id, **columns}
               for row, own, photo in zip(rows, found, map(images.photo, rows), strict=True) for columns in own]
    if merge and out.exists(part_name(chunk)):
        kept = [row for row in out.read_table(part_name(chunk)).to_pylist() if row["image_id"] - 1 not in set(rows)]
        written = sorted([*kept, *written], key=itemgetter("image_id"))
    out.write_table(part_name(chunk), pa.Table.from_pylist(written, schema=schema_of(manifest)))


def result_columns(result: Labels | PhotoFailure, manifest: JobManifest) -> Iterator[dict[str, Any]]:
    """The rows of a photo in a part, without its id and name: one for each class, or one for a failure."""
    names = manifest.classes
    if isinstance(result, PhotoFailure):  # the class is null, unless the job has one class
        yield {"class_name": names[0] if len(names) == 1 else None, "stage": result.stage, "error": result.reason}
        return
    for name, label in zip(names, result, strict=True):
        yield {"class_name": name, "height": label.height, "width": label.width, "rle": label.counts,
               "bbox": list(label.bbox), "area": label.area, "score": label.score,
               "presence": label.presence, "quality": label.quality, "status": label.status,
               "instances": _instance_rows(label)}


def _instance_rows(label: Label) -> list[dict[str, object]] | None:
    if label.instances is None:
        return None
    return [{"rle": one.counts, "bbox": list(one.bbox), "area": one.area, "score": one.score}
            for one in label.instances]


def read_parts(out: Store, chunks: int, columns: list[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """The rows of every part, one part at a time, in order."""
    for chunk in range(chunks):
        yield out.read_table(part_name(chunk), columns).to_pylist()


def decided_parts(out: Store, manifest: JobManifest,
                  columns: list[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """The rows of every part with people's decisions applied, one part at a time, in order.

    Where there are decisions, the rows have all columns.
    """
    decisions, resolve = read_decisions(out), manifest.overlaps == "resolve"
    for rows in read_parts(out, manifest.chunks, None if decisions else columns):
        if decisions:
            rows = [row for _, own in groupby(rows, key=itemgetter("image_id"))
                    for row in apply_decisions(list(own), decisions, resolve=resolve)]
        yield rows


@dataclass(frozen=True)
class PhotoRows:
    """A readable photo and its rows, one for each class, in the order of the classes."""

    image_id: int
    file_name: str
    height: int
    width: int
    rows: list[dict[str, Any]]
    source_id: str | None = None

    @property
    def path(self) -> str:
        """The name as a relative path: of a URL what follows its scheme."""
        return self.file_name.rpartition("://")[2].lstrip("/")

    @property
    def masks(self) -> list[tuple[int, dict[str, Any]]]:
        """(number of the class from 0, row) for each mask that is not empty."""
        return [(number, row) for number, row in enumerate(self.rows) if row["area"]]

    @property
    def objects(self) -> list[tuple[int, dict[str, Any]]]:
        """As `masks`, but with one row for each instance where the job has instances: `number` counts them from 1."""
        found: list[tuple[int, dict[str, Any]]] = []
        for number, row in self.masks:
            own = row.get("instances")
            found += [(number, row)] if own is None else [
                (number, {**row, **one, "number": place}) for place, one in enumerate(own, 1)]
        return found


def photos(out: Store, manifest: JobManifest, columns: list[str] | None = None) -> Iterator[PhotoRows]:
    """Every readable photo with people's decisions applied. One part is in memory at a time.

    `columns` (default: all) contain at least image_id, file_name, height, width and error.
    """
    if columns and manifest.source_ids:
        columns = [*columns, SOURCE_ID.name]
    for part in decided_parts(out, manifest, columns):
        for image_id, rows in groupby((r for r in part if r["error"] is None), key=itemgetter("image_id")):
            own = list(rows)
            yield PhotoRows(image_id, own[0]["file_name"], own[0]["height"], own[0]["width"], own,
                            own[0].get(SOURCE_ID.name))
