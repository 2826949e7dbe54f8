"""Output parts: one Parquet file a chunk, named by it. The listing of parts is the ledger of what is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipelines.labelling.images import ImageList
from pipelines.serving.labeler import Failure, Label
from pipelines.storage import Store

FOLDER = "parts"
PARTS = pa.schema([  # one row a photo
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


def part_name(chunk: int) -> str:
    """Where a chunk's part is, below the job's output."""
    return f"{FOLDER}/chunk-{chunk:06d}.parquet"


def finished(out: Store) -> set[int]:
    """The chunks that have a part."""
    return {int(n.rsplit("-", 1)[1].removesuffix(".parquet")) for n in out.list(FOLDER, suffix=".parquet")}


def write_part(out: Store, chunk: int, images: ImageList, rows: range, class_name: str,
               results: Sequence[Label | Failure]) -> None:
    """Write a chunk's part. `results` has one entry a row."""
    written = [{"image_id": row + 1, "file_name": images.names[row], "class_name": class_name, **_columns(result)}
               for row, result in zip(rows, results, strict=True)]
    out.write_table(part_name(chunk), pa.Table.from_pylist(written, schema=PARTS))


def _columns(result: Label | Failure) -> dict[str, object]:
    if isinstance(result, Failure):
        return {"stage": result.stage, "error": result.reason}
    return {"height": result.height, "width": result.width, "rle": result.counts, "bbox": list(result.bbox),
            "area": result.area, "score": result.score}


def read_parts(out: Store, chunks: int, columns: list[str] | None = None) -> Iterator[list[dict[str, object]]]:
    """The rows of every part, one part at a time, in order."""
    for chunk in range(chunks):
        yield out.read_table(part_name(chunk), columns).to_pylist()
