"""What the outputs of a job tell of annotations that were there: how many are kept, and where labels disagree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.base.storage import Store
from pipelines.data import rle
from pipelines.labelling.decisions import Row
from pipelines.labelling.existing import ABOUT, EXISTING
from pipelines.labelling.manifest import JobManifest
from pipelines.labelling.parts import decided_parts

DISAGREEMENTS = "disagreements.parquet"
SCHEMA = pa.schema([  # one row for each photo and class of which the annotations say something, the lowest IoU first
    ("image_id", pa.int64()),
    ("file_name", pa.string()),
    ("class_name", pa.string()),
    ("iou", pa.float64()),  # of both masks; 1 where both are empty
    ("area", pa.int64()),  # pixels of the label
    ("existing_area", pa.int64()),  # pixels of the annotation
])


@dataclass(frozen=True)
class ExistingReport:
    """The rows about annotations in failures.parquet, and the fields about them in the summary, which `write` fills."""

    failures: list[dict[str, Any]]
    summary: dict[str, Any]

    @classmethod
    def begin(cls, out: Store, manifest: JobManifest) -> ExistingReport:
        """What was known before the first photo; nothing in a job without annotations."""
        if not manifest.existing_mode or not out.exists(ABOUT):
            return cls([], {})
        about = out.read_json(ABOUT)
        return cls(about.pop("failures"), {"existing": about})

    def write(self, out: Store, manifest: JobManifest) -> None:
        """Count what is kept, or write disagreements.parquet and the mean IoU of each class."""
        if not self.summary:
            return
        about = self.summary["existing"]
        if manifest.existing_mode != "compare":
            columns = ["image_id", "class_name", "origin"]
            kept = Counter(row["class_name"] for rows in decided_parts(out, manifest, columns) for row in rows
                           if row["origin"] == EXISTING)
            about["kept"] = {name: kept[name] for name in manifest.classes}
            return
        parts = [pa.Table.from_pylist([_compared(row) for row in rows if row["existing_iou"] is not None], SCHEMA)
                 for rows in decided_parts(out, manifest)]
        found = pa.concat_tables(parts).sort_by([("iou", "ascending"), ("image_id", "ascending")])
        out.write_table(DISAGREEMENTS, found)
        some = found.filter(pc.or_(pc.greater(found["area"], 0), pc.greater(found["existing_area"], 0)))
        means = some.group_by("class_name").aggregate([("iou", "count"), ("iou", "mean")]).to_pylist()
        about["compared"] = {one["class_name"]: {"labels": one["iou_count"], "mean_iou": one["iou_mean"]}
                             for one in sorted(means, key=lambda one: manifest.classes.index(one["class_name"]))}
        about["disagreements"] = out.path(DISAGREEMENTS)


def _compared(row: Row) -> Row:
    theirs = rle.area(row["existing_rle"].encode(), row["height"], row["width"])
    return {"image_id": row["image_id"], "file_name": row["file_name"], "class_name": row["class_name"],
            "iou": row["existing_iou"], "area": row["area"], "existing_area": theirs}


def annotation_failures(rows: Sequence[Row]) -> list[Row]:
    """The rows of failures.parquet for the photos of a part whose annotations could not be read, or not wholly."""
    found = {row["file_name"]: row for row in rows if row.get("existing_problem")}
    return [{**row, "stage": EXISTING, "reason": row["existing_problem"]} for row in found.values()]


def existing_line(summary: dict[str, Any]) -> str:
    """The end of a job's line for people: such as "; labels kept as they were: 12", "" without annotations."""
    about = summary.get("existing", {})
    if "kept" in about:
        return f"; labels kept as they were: {sum(about['kept'].values())}"
    if "compared" not in about:
        return ""
    each = [f"{name} {one['mean_iou']:.3f} ({one['labels']})" for name, one in about["compared"].items()]
    return f"; mean IoU with the annotations: {', '.join(each[:5]) or 'none to compare'}"
