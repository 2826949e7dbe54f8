"""Output parts: one Parquet file a chunk, named by it. The listing of parts is the ledger of what is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa

from pipelines.base.storage import Store
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.labelling.decisions import apply_decisions, read_decisions
from pipelines.labelling.images import ImageList
from pipelines.labelling.manifest import JobManifest

FOLDER = "parts"
PARTS = pa.schema([  # one row a photo and class, photo by photo; a photo that cannot be read has one row
    ("image_id", pa.int64()),
    ("file_name", pa.string()),
    ("height", pa.int32()),  # of the upright photo; null where it cannot be read
    ("width", pa.int32()),
    ("class_name", pa.string()),
    ("rle", pa.string()),  # COCO's compressed counts
    ("bbox", pa.list_(pa.float64())),  # x, y, width, height (nulls of a fixed length do not survive Parquet)
    ("area", pa.int64()),  # 0: the object is not in the photo
    ("score", pa.float64()),
    ("stage", pa.string()),  # where it failed; null for a label
    ("error", pa.string()),
])
CALIBRATED = pa.schema([  # and in jobs of a bundle with a calibrator
    *PARTS,
    ("presence", pa.float64()),  # probability that the class is there; null where the supports are of a far domain
    ("quality", pa.float64()),  # and that the mask is good
    ("status", pa.string()),  # accepted, review, empty, uncalibrated (see `serving.presence`)
])


def schema_of(manifest: JobManifest) -> pa.Schema:
    """Of the job's parts."""
    return CALIBRATED if manifest.calibrator else PARTS


def part_name(chunk: int) -> str:
    """Where a chunk's part is, below the job's output."""
    return f"{FOLDER}/chunk-{chunk:06d}.parquet"


def finished_chunks(out: Store) -> set[int]:
    """The chunks that have a part."""
    return {int(n.rsplit("-", 1)[1].removesuffix(".parquet")) for n in out.list(FOLDER, suffix=".parquet")}


def write_part(out: Store, chunk: int, images: ImageList, rows: range, manifest: JobManifest,
               results: Sequence[Labels | PhotoFailure]) -> None:
    """Write a chunk's part. `results` has one entry a photo."""
    written = [{"image_id": row + 1, "file_name": images.names[row], **columns}
               for row, result in zip(rows, results, strict=True) for columns in result_columns(result, manifest)]
    out.write_table(part_name(chunk), pa.Table.from_pylist(written, schema=schema_of(manifest)))


def result_columns(result: Labels | PhotoFailure, manifest: JobManifest) -> Iterator[dict[str, object]]:
    """What a part says of a photo: a row a class, or one of a failure."""
    names = manifest.classes
    if isinstance(result, PhotoFailure):  # of no class, unless there is but one
        yield {"class_name": names[0] if len(names) == 1 else None, "stage": result.stage, "error": result.reason}
        return
    for name, label in zip(names, result, strict=True):
        yield {"class_name": name, "height": label.height, "width": label.width, "rle": label.counts,
               "bbox": list(label.bbox), "area": label.area, "score": label.score,
               "presence": label.presence, "quality": label.quality, "status": label.status}


def read_parts(out: Store, chunks: int, columns: list[str] | None = None) -> Iterator[list[dict[str, Any]]]:
    """The rows of every part, one part at a time, in order."""
    for chunk in range(chunks):
        yield out.read_table(part_name(chunk), columns).to_pylist()


def decided_parts(out: Store, manifest: JobManifest, columns: list[str] | None = None) -> Iterator[list[dict[str,
                                                                                                             Any]]]:
    """The same with people's decisions in it; where there are some, with all columns."""
    decided, resolve = read_decisions(out), manifest.overlaps == "resolve"
    for rows in read_parts(out, manifest.chunks, None if decided else columns):
        if decided:
            rows = [row for _, own in groupby(rows, key=itemgetter("image_id"))
                    for row in apply_decisions(list(own), decided, resolve=resolve)]
        yield rows


@dataclass(frozen=True)
class PhotoRows:
    """A readable photo and its rows, one a class, in the order of the classes."""

    image_id: int
    file_name: str
    height: int
    width: int
    rows: list[dict[str, Any]]

    @property
    def found(self) -> list[tuple[int, dict[str, Any]]]:
        """(number of the class from 0, row) of the masks that are not empty."""
        return [(number, row) for number, row in enumerate(self.rows) if row["area"]]


def photos(out: Store, manifest: JobManifest, columns: list[str] | None = None) -> Iterator[PhotoRows]:
    """Every photo that could be read, with what people decided, one part in memory at a time.

    `columns` (default: all) hold at least image_id, file_name, height, width and error.
    """
    for part in decided_parts(out, manifest, columns):
        for image_id, rows in groupby((r for r in part if r["error"] is None), key=itemgetter("image_id")):
            own = list(rows)
            yield PhotoRows(image_id, own[0]["file_name"], own[0]["height"], own[0]["width"], own)
