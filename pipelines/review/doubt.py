"""Which labels are doubtful: the probability that a label is right as it stands, and the labels ordered by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.labelling.decisions import Decided
from pipelines.labelling.parts import part_name
from pipelines.review.job import ReviewedJob, Row

MOST = 2000  # labels that an order holds; the surer ones wait for the next review


def sureness(row: Row) -> float:
    """The probability that the label is right: of a mask that it is good, of an empty label that the class is absent.

    Without a calibrator, and for domains it does not know, the score.
    """
    if row.get("quality") is None:
        return float(row["score"])
    return float(row["quality"] if row["area"] else 1 - row["presence"])


@dataclass(frozen=True)
class DoubtOrder:
    """The most doubtful labels, the worst first: [N] ids of photos, numbers of classes, sureness. `total` has all."""

    image_ids: np.ndarray
    classes: np.ndarray
    sure: np.ndarray
    total: int

    def __len__(self) -> int:
        return len(self.image_ids)


def order_by_doubt(job: ReviewedJob, *, most: int = MOST, decided: Decided | None = None) -> DoubtOrder:
    """Order the labels; those in `decided` stay out. One part and `most` labels are in memory, whatever the job."""
    columns = ["image_id", "class_name", "area", "score", "error"]
    columns += ["presence", "quality"] if job.manifest.calibrator else []
    number = {name: i for i, name in enumerate(job.manifest.classes)}
    held, total = np.zeros((0, 3)), 0
    for rows in job.rows(columns):
        left = [r for r in rows if (r["image_id"], r["class_name"]) not in (decided or {})]
        total += len(left)
        found = [(sureness(r), r["image_id"], number[r["class_name"]]) for r in left]
        held = np.concatenate([held, np.array(found, dtype=float).reshape(-1, 3)])
        held = held[np.lexsort((held[:, 2], held[:, 1], held[:, 0]))][:most]
    return DoubtOrder(held[:, 1].astype(np.int64), held[:, 2].astype(np.int64), held[:, 0], total)


def rows_at(job: ReviewedJob, order: DoubtOrder, places: Sequence[int]) -> list[Row]:
    """The rows of the labels at `places` of the order, each part being read once."""
    wanted = {(int(order.image_ids[p]), job.manifest.classes[int(order.classes[p])]): n for n, p in enumerate(places)}
    found: dict[int, Row] = {}
    for chunk in sorted({(image_id - 1) // job.manifest.chunk for image_id, _ in wanted}):
        for row in job.out.read_table(part_name(chunk)).to_pylist():
            if (place := wanted.get((row["image_id"], row["class_name"]))) is not None:
                found[place] = row
    return [found[place] for place in sorted(found)]
