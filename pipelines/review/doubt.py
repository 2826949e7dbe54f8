"""Doubtful labels: the probability that a label is right, and the labels ordered by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.labelling.decisions import Decisions
from pipelines.labelling.parts import part_name
from pipelines.review.job import ReviewedJob, Row

MOST = 2000  # largest number of labels in an order; the surer ones are left for the next review


def sureness(row: Row) -> float:
    """The probability that the label is right: that its mask is good, or, if it is empty, that the class is absent.

    Without a calibrator, and for a far domain, it is the score.
    """
    if row.get("quality") is None:
        return float(row["score"])
    return float(row["quality"] if row["area"] else 1 - row["presence"])


def agreement(row: Row) -> float:
    """What labels are ordered by: their sureness, or in a job that compares the IoU with the annotation, if any."""
    return sureness(row) if row.get("existing_iou") is None else float(row["existing_iou"])


@dataclass(frozen=True)
class DoubtOrder:
    """The N most doubtful labels, the most doubtful first: ids of photos, numbers of classes and `agreement`, each [N].

    `total` is the number of labels before the order was cut to N.
    """

    image_ids: np.ndarray
    classes: np.ndarray
    sure: np.ndarray
    total: int

    def __len__(self) -> int:
        return len(self.image_ids)


def order_by_doubt(job: ReviewedJob, *, most: int = MOST, exclude: Decisions | None = None) -> DoubtOrder:
    """The labels by doubt, without those in `exclude`. Only one part and `most` labels are in memory at a time."""
    columns = ["image_id", "class_name", "area", "score", "error"]
    columns += ["presence", "quality"] if job.manifest.calibrator else []
    columns += ["existing_iou"] if job.manifest.existing_mode == "compare" else []
    number = {name: i for i, name in enumerate(job.manifest.classes)}
    worst, total = np.zeros((0, 3)), 0
    for rows in job.rows(columns):
        left = [r for r in rows if (r["image_id"], r["class_name"]) not in (exclude or {})]
        total += len(left)
        found = [(agreement(r), r["image_id"], number[r["class_name"]]) for r in left]
        worst = np.concatenate([worst, np.array(found, dtype=float).reshape(-1, 3)])
        worst = worst[np.lexsort((worst[:, 2], worst[:, 1], worst[:, 0]))][:most]
    return DoubtOrder(worst[:, 1].astype(np.int64), worst[:, 2].astype(np.int64), worst[:, 0], total)


def rows_at(job: ReviewedJob, order: DoubtOrder, places: Sequence[int]) -> list[Row]:
    """The rows of the labels at the positions `places` of the order. Each part is read once."""
    keys = {(int(order.image_ids[p]), job.manifest.classes[int(order.classes[p])]): n for n, p in enumerate(places)}
    found: dict[int, Row] = {}
    for chunk in sorted({(image_id - 1) // job.manifest.chunk for image_id, _ in keys}):
        for row in job.out.read_table(part_name(chunk)).to_pylist():
            if (place := keys.get((row["image_id"], row["class_name"]))) is not None:
                found[place] = row
    return [found[place] for place in sorted(found)]
