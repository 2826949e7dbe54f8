"""The outputs of a job: labels, failures and a summary, written from its parts with one part in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.base.storage import Store
from pipelines.data.schema import FAILURES
from pipelines.labelling.decisions import count_decisions, read_decisions
from pipelines.labelling.existing_report import ExistingReport, annotation_failures, existing_line
from pipelines.labelling.formats.coco import write_coco
from pipelines.labelling.formats.folders import write_semantic, write_yolo
from pipelines.labelling.formats.label_studio import write_label_studio
from pipelines.labelling.formats.labelme import write_labelme
from pipelines.labelling.formats.single import write_cvat, write_parquet
from pipelines.labelling.images import UNREAD
from pipelines.labelling.listing import ABOUT
from pipelines.labelling.manifest import JobManifest
from pipelines.labelling.parts import SOURCE_ID, photos, read_parts

LABELS, FAILED, SUMMARY = "labels.json", "failures.parquet", "summary.json"
REASONS = 3  # of photos of a list that cannot be read, the most frequent ones, in its summary
Writer = Callable[[Store, JobManifest, str], None]
FORMATS: dict[str, tuple[str, Writer]] = {  # format -> its file or folder, and its writer
    "coco_polygons": ("labels_polygons.json", partial(write_coco, outlines=True)),
    "parquet": ("labels.parquet", write_parquet),
    "yolo": ("yolo", write_yolo),
    "semantic": ("semantic", write_semantic),
    "label_studio": ("label_studio.json", write_label_studio),
    "cvat": ("annotations.xml", write_cvat),
    "labelme": ("labelme", write_labelme),
}


def write_outputs(out: Store, manifest: JobManifest, formats: Sequence[str] = ()) -> dict[str, Any]:
    """Write labels.json, failures.parquet, the `formats` and, last, summary.json. Returns the summary."""
    unread = out.read_json(UNREAD) if out.exists(UNREAD) else []
    existing = ExistingReport.begin(out, manifest)
    reasons = _write_failures(out, manifest, unread + existing.failures)
    failed = sum(reasons.values())
    write_coco(out, manifest, LABELS)
    for name in formats:
        place, write = FORMATS[name]
        write(out, manifest, place)
    existing.write(out, manifest)
    named = {"class_names": manifest.class_names} if manifest.class_names else {"class_name": manifest.class_name}
    summary = {"images": manifest.images_count, **_counts(out, manifest), "failed": failed, **named,
               **manifest.supports, "bundle_id": manifest.bundle_id, "method": manifest.method,
               "preset": manifest.preset, "threshold": manifest.threshold, "precision": manifest.precision,
               "calibrator": manifest.calibrator,
               "labels": out.path(LABELS),
               "failures": out.path(FAILED), **existing.summary}
    if some := sum(row["stage"] == "read" for row in unread):
        summary["unread"] = some
    if manifest.inputs == "list" and out.exists(ABOUT):
        about = out.read_json(ABOUT)
        summary["list"] = {"rows": about["seen"], **about["left"], "reasons": dict(reasons.most_common(REASONS))}
    if decided := read_decisions(out):
        summary["decisions"] = count_decisions(decided)
    if formats:
        summary["formats"] = {name: out.path(FORMATS[name][0]) for name in formats}
    out.write_json(SUMMARY, summary)
    return summary


def _write_failures(out: Store, manifest: JobManifest, unread: list[dict[str, str]]) -> Counter[str]:
    """Write the rows of unreadable photos, then those of what was not tried. Returns the reasons of the first."""
    reasons: Counter[str] = Counter()
    own = [SOURCE_ID.name] if manifest.source_ids else []
    schema = FAILURES.append(SOURCE_ID) if own else FAILURES
    own += ["existing_problem"] if manifest.existing_mode else []
    with out.stream(FAILED) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for rows in read_parts(out, manifest.chunks, ["file_name", "stage", "error", *own]):
            bad = [{**r, "reason": r["error"]} for r in rows if r["error"]]
            if told := bad + annotation_failures(rows):
                writer.write_table(pa.Table.from_pylist(told, schema=schema))
            reasons.update(r["error"] for r in bad)
        if unread:
            writer.write_table(pa.Table.from_pylist(unread, schema=schema))
    return reasons


def _counts(out: Store, manifest: JobManifest) -> dict[str, Any]:
    """Summary fields: photos with and without a mask, with several classes by class, labels by status, instances."""
    each = dict.fromkeys(manifest.classes, 0)
    statuses: Counter[str] = Counter()
    some = none = 0
    objects = dict.fromkeys(manifest.classes, 0)
    columns = ["image_id", "file_name", "height", "width", "class_name", "area", "error"]
    columns += (["status"] if manifest.calibrator else []) + (["instances"] if manifest.instances != "none" else [])
    for photo in photos(out, manifest, columns):
        for number, _ in photo.objects:
            objects[manifest.classes[number]] += 1
        statuses.update(row["status"] for row in photo.rows if manifest.calibrator)
        found = [row["class_name"] for _, row in photo.masks]
        some, none = some + bool(found), none + (not found)
        for name in found:
            each[name] += 1
    return {"with_object": some, "without_object": none, **({"with_class": each} if manifest.class_names else {}),
            **({"status": dict(sorted(statuses.items()))} if manifest.calibrator else {}),
            **({"instances": objects} if manifest.instances != "none" else {})}


def summary_line(summary: dict[str, Any]) -> str:
    """A job's summary in one line for people."""
    what = repr(summary["class_name"]) if "class_name" in summary else f"{len(summary['class_names'])} classes"
    decisions = sum(summary.get("decisions", {}).values())
    trust = f"{summary['status'].get('review', 0)} masks to review" if summary.get("calibrator") else "uncalibrated"
    return (f"{summary['images']} photos: {summary['with_object']} with a mask of {what}, "
            f"{summary['without_object']} without, {summary['failed']} could not be read{_reasons(summary)}; {trust}"
            + (f"; {sum(summary['instances'].values())} instances" if "instances" in summary else "")
            + (f"; {summary['unread']} left out, in formats that are not read" if summary.get("unread") else "")
            + (f"; {decisions} decisions by people" if decisions else "") + existing_line(summary))


def _reasons(summary: dict[str, Any]) -> str:
    """Why photos of a list cannot be read, such as " (28 HTTP 404, 2 does not exist)"."""
    found = summary.get("list", {}).get("reasons", {})
    return f" ({', '.join(f'{n} {reason}' for reason, n in found.items())})" if found else ""
