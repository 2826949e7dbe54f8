"""From parts to what consumers read: one COCO JSON, the failures, a summary. Streamed: one part in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.schema import FAILURES
from pipelines.labelling.manifest import JobManifest
from pipelines.labelling.parts import read_parts
from pipelines.storage import Store

LABELS, FAILED, SUMMARY = "labels.json", "failures.parquet", "summary.json"


def write_outputs(out: Store, manifest: JobManifest) -> dict[str, Any]:
    """labels.json, failures.parquet and, last, summary.json. Returns the summary."""
    failed = _write_failures(out, manifest)
    counts = _write_labels(out, manifest)
    summary = {"images": manifest.images_count, **counts, "failed": failed, "class_name": manifest.class_name,
               "support_id": manifest.support_id, "bundle_id": manifest.bundle_id, "method": manifest.method,
               "preset": manifest.preset, "threshold": manifest.threshold, "labels": out.path(LABELS),
               "failures": out.path(FAILED)}
    out.write_json(SUMMARY, summary)
    return summary


def _write_failures(out: Store, manifest: JobManifest) -> int:
    count = 0
    with out.stream(FAILED) as file, pq.ParquetWriter(file, FAILURES, compression="zstd") as writer:
        for rows in read_parts(out, manifest.chunks, ["file_name", "stage", "error"]):
            bad = [{"file_name": r["file_name"], "stage": r["stage"], "reason": r["error"]} for r in rows if r["error"]]
            if bad:
                writer.write_table(pa.Table.from_pylist(bad, schema=FAILURES))
            count += len(bad)
    return count


def _write_labels(out: Store, manifest: JobManifest) -> dict[str, int]:
    """COCO: `images` are the readable photos, `annotations` the masks that are not empty (id = the photo's id)."""
    counts = {"with_object": 0, "without_object": 0}
    about = {"description": f"{manifest.class_name} by {manifest.method}/{manifest.preset}",
             "bundle_id": manifest.bundle_id, "support_id": manifest.support_id, "version": manifest.code_version}
    with out.stream(LABELS) as file:
        file.write(b'{"info": ' + _line(about) + b',\n"licenses": [],\n"categories": '
                   + _line([{"id": 1, "name": manifest.class_name, "supercategory": ""}]))
        for key, rows in (("images", _images(out, manifest)), ("annotations", _annotations(out, manifest, counts))):
            file.write(f',\n"{key}": ['.encode())
            for number, row in enumerate(rows):
                file.write((b",\n" if number else b"\n") + _line(row))
            file.write(b"\n]")
        file.write(b"}\n")
    return counts


def _images(out: Store, manifest: JobManifest) -> Iterator[dict[str, Any]]:
    for row in _good(read_parts(out, manifest.chunks, ["image_id", "file_name", "height", "width", "error"])):
        yield {"id": row["image_id"], "file_name": row["file_name"], "height": row["height"], "width": row["width"]}


def _annotations(out: Store, manifest: JobManifest, counts: dict[str, int]) -> Iterator[dict[str, Any]]:
    for row in _good(read_parts(out, manifest.chunks)):
        counts["with_object" if row["area"] else "without_object"] += 1
        if row["area"]:
            yield {"id": row["image_id"], "image_id": row["image_id"], "category_id": 1, "iscrowd": 0,
                   "segmentation": {"size": [row["height"], row["width"]], "counts": row["rle"]},
                   "bbox": row["bbox"], "area": row["area"], "score": row["score"]}


def _good(parts: Iterable[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    return (row for rows in parts for row in rows if row["error"] is None)


def _line(value: Any) -> bytes:
    return json.dumps(value).encode()


def summary_line(summary: dict[str, Any]) -> str:
    """A job's summary as a person reads it."""
    return (f"{summary['images']} photos: {summary['with_object']} got a mask of {summary['class_name']!r}, "
            f"{summary['without_object']} none, {summary['failed']} cannot be read")
