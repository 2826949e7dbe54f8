"""Labelled photos as pictures: labels of the highest, middle and lowest score, and photos without a label."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from fss_models.errors import BadImage, FssError
from fss_models.photo_files import decode_image
from pipelines.base.storage import Store
from pipelines.data import rle
from pipelines.data.shardset import Shards
from pipelines.labelling.parts import decided_parts
from pipelines.labelling.photo_reader import read_photo
from pipelines.pages.pictures import photo_url
from pipelines.report.collect import FinishedJob

EACH = 4  # photos of each kind
MAX_FAILURES = 200  # rows of the page's table; failures.parquet lists all failures
KINDS = ("highest score", "middle score", "lowest score", "no label")
FAILURE_COLUMNS = {"file": "file_name", "stage": "stage", "reason": "error"}
Label = dict[str, Any]  # a row of a part


@dataclass(frozen=True, kw_only=True)
class GalleryPicture:
    """A picture of one labelled photo; `url` is a data URL."""

    kind: str
    caption: str
    url: str


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of labels with masks that the labelling never saw."""

    present: int  # number of photos that show the class
    overlapping: int  # number of these whose label overlaps the object
    mean_iou: float  # mean IoU over the photos that show the class, as a fraction; a photo without a label counts 0
    absent: int  # number of photos without the class
    false_labels: int  # number of these that have a label


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """One class of a labelling job on the page."""

    labels: FinishedJob
    class_name: str
    counts: tuple[int, int]  # photos with and without a mask
    pictures: list[GalleryPicture]
    agreement: Agreement | None
    failures: list[dict[str, str]]
    problem: str = ""


def make_galleries(labels: FinishedJob, shards: Shards | None) -> list[Gallery]:
    """A gallery for each class of the job."""
    return [make_gallery(labels, shards, name) for name in labels.manifest.classes]


def make_gallery(labels: FinishedJob, shards: Shards | None, class_name: str) -> Gallery:
    """Pictures and counts of one class of a labelling job.

    Labels that appear as test photos in `shards` are compared with the masks there. People's decisions are applied to
    the labels. Parts are read one at a time, so the memory does not grow with the number of photos.
    """
    chosen, truth = RowSelection(), TruthComparison(shards, class_name)
    some = none = 0
    failures: list[dict[str, str]] = []
    for rows in decided_parts(Store(labels.url), labels.manifest):
        row: Label
        for row in rows:
            if row["error"] is None and row["class_name"] == class_name:
                chosen.add(row)
                truth.add(row)
                some, none = some + bool(row["area"]), none + (not row["area"])
            elif row["error"] is not None and len(failures) < MAX_FAILURES:
                failures.append({k: str(row[c]) for k, c in FAILURE_COLUMNS.items()})
    pictures, problem = [], ""
    try:
        pictures = [_picture(labels, kind, row) for kind, rows in chosen.kinds().items() for row in rows]
    except (FssError, BadImage) as error:
        problem = f"The photos of this class cannot be shown: {error}"
    return Gallery(labels=labels, class_name=class_name, counts=(some, none), pictures=pictures,
                   agreement=truth.agreement, failures=failures, problem=problem)


class RowSelection:
    """Selects the rows to show from any number of rows, in bounded memory."""

    def __init__(self, each: int = EACH, sample_size: int = 500) -> None:
        self._each, self._sample_size, self._count = each, sample_size, 0
        self._top: list[Label] = []
        self._low: list[Label] = []
        self._none: list[Label] = []
        self._some: list[Label] = []  # every photo has the same chance to be here
        self._rng = np.random.default_rng(0)

    def add(self, row: Label) -> None:
        """Add a row that has no error."""
        if not row["area"]:
            self._none = [*self._none, row][: self._each]
            return
        self._count += 1
        self._top = sorted([*self._top, row], key=lambda r: -r["score"])[: self._each]
        self._low = sorted([*self._low, row], key=lambda r: r["score"])[: self._each]
        place = int(self._rng.integers(self._count))
        if len(self._some) < self._sample_size:
            self._some.append(row)
        elif place < self._sample_size:
            self._some[place] = row

    def kinds(self) -> dict[str, list[Label]]:
        """Kind -> rows; no photo is in two kinds."""
        seen = {r["image_id"] for r in self._top}
        low = [r for r in self._low if r["image_id"] not in seen]
        seen |= {r["image_id"] for r in low}
        rest = sorted((r for r in self._some if r["image_id"] not in seen), key=lambda r: -r["score"])
        start = max(0, (len(rest) - self._each) // 2)
        return dict(zip(KINDS, (self._top, rest[start : start + self._each], low[::-1], self._none), strict=True))


def _picture(labels: FinishedJob, kind: str, row: Label) -> GalleryPicture:
    data = read_photo(Store(labels.url), labels.manifest, row["image_id"], row["file_name"])
    image = decode_image(data, limits=labels.manifest, exif=True, where=row["file_name"])
    mask = _mask(row) if row["area"] else None
    name = str(row["file_name"]).rsplit("/", 1)[-1]
    return GalleryPicture(kind=kind, caption=f"{name}: {row['score']:.2f}", url=photo_url(image, mask))


def _mask(row: Label) -> np.ndarray:
    return rle.decode(str(row["rle"]).encode(), row["height"], row["width"]).astype(bool)


class TruthComparison:
    """Compares labels with the test photos of the same file names in the shards; names that occur twice are ignored."""

    def __init__(self, shards: Shards | None, class_name: str) -> None:
        self._shards = shards
        classes = shards.manifest.classes if shards else []
        self._class_id = next((c.class_id for c in classes if c.name == class_name), None)
        known = shards.images("test") if shards and self._class_id is not None else []
        times = Counter(row["file_name"].rsplit("/", 1)[-1] for row in known)
        self._known = {n: row for row in known if times[n := row["file_name"].rsplit("/", 1)[-1]] == 1}
        self._ious: list[float] = []
        self._absent = self._false = 0

    def add(self, row: Label) -> None:
        """Add a row that has no error; a row whose photo is not in the shards is ignored."""
        about = self._known.get(str(row["file_name"]).rsplit("/", 1)[-1])
        if about is None or self._shards is None or self._class_id is None:
            return
        if self._class_id not in about["class_ids"]:
            self._absent += 1
            self._false += bool(row["area"])
            return
        truth = self._shards.sample(about["image_id"], self._class_id)
        if truth.mask.shape == (row["height"], row["width"]) and truth.mask.any():
            self._ious.append(_iou(_mask(row) & ~truth.ignore, truth.mask) if row["area"] else 0.0)

    @property
    def agreement(self) -> Agreement | None:
        """The agreement over the rows so far; None if none of the photos is in the shards."""
        if not self._ious and not self._absent:
            return None
        return Agreement(present=len(self._ious), overlapping=sum(i > 0 for i in self._ious), absent=self._absent,
                         mean_iou=float(np.mean(self._ious)) if self._ious else 0.0, false_labels=self._false)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))
