"""From parts to what consumers read: the labels, the failures, a summary. Streamed: one part in memory at a time."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data.schema import FAILURES
from pipelines.labelling.formats.coco import write_coco
from pipelines.labelling.manifest import JobManifest
from pipelines.labelling.parts import photos, read_parts
from pipelines.storage import Store

LABELS, FAILED, SUMMARY = "labels.json", "failures.parquet", "summary.json"


def write_outputs(out: Store, manifest: JobManifest) -> dict[str, Any]:
    """labels.json, failures.parquet and, last, summary.json. Returns the summary."""
    failed = _write_failures(out, manifest)
    write_coco(out, manifest, LABELS)
    named = {"class_names": manifest.class_names} if manifest.class_names else {"class_name": manifest.class_name}
    summary = {"images": manifest.images_count, **_counts(out, manifest), "failed": failed, **named,
               **manifest.supports, "bundle_id": manifest.bundle_id, "method": manifest.method,
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


def _counts(out: Store, manifest: JobManifest) -> dict[str, Any]:
    """Photos with and without a mask; of several classes also the photos with a mask of each."""
    each = dict.fromkeys(manifest.classes, 0)
    some = none = 0
    for photo in photos(out, manifest, ["image_id", "file_name", "height", "width", "class_name", "area", "error"]):
        found = [row["class_name"] for _, row in photo.found]
        some, none = some + bool(found), none + (not found)
        for name in found:
            each[name] += 1
    return {"with_object": some, "without_object": none, **({"with_class": each} if manifest.class_names else {})}


def summary_line(summary: dict[str, Any]) -> str:
    """A job's summary as a person reads it."""
    what = repr(summary["class_name"]) if "class_name" in summary else f"{len(summary['class_names'])} classes"
    return (f"{summary['images']} photos: {summary['with_object']} got a mask of {what}, "
            f"{summary['without_object']} none, {summary['failed']} cannot be read")
