"""Labelled photos as pictures: the surest, the middle and the least sure, and some where nothing was found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from fss_models.errors import BadImage, FssError
from pipelines.base.storage import Store
from pipelines.data import rle
from pipelines.data.decode import decode_image
from pipelines.data.shardset import Shards
from pipelines.labelling.parts import decided_parts
from pipelines.pages.pictures import photo_url
from pipelines.report.collect import FinishedJob

EACH = 4
MAX_FAILURES = 200  # the table of the page; failures.parquet has all
KINDS = ("surest", "in the middle", "least sure", "nothing found")
FAILURE_COLUMNS = {"file": "file_name", "stage": "stage", "reason": "error"}
Label = dict[str, Any]  # a row of a part


@dataclass(frozen=True, kw_only=True)
class GalleryPicture:
    """One labelled photo."""

    kind: str
    caption: str
    url: str


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How labels agree with masks that the labelling never saw; all as fractions."""

    shown: int  # photos that truly show the class
    found: int  # of these, with a label that overlaps it
    mean_iou: float  # over these, 0 where nothing was found
    absent: int  # photos without the class
    false: int  # of these, with a label all the same


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """One labelling job of the page."""

    labels: FinishedJob
    class_name: str
    counts: tuple[int, int]  # photos with and without a mask
    pictures: list[GalleryPicture]
    agreement: Agreement | None
    failures: list[dict[str, str]]
    problem: str = ""


def galleries(labels: FinishedJob, shards: Shards | None) -> list[Gallery]:
    """One a class of the job."""
    return [gallery(labels, shards, name) for name in labels.manifest.classes]


def gallery(labels: FinishedJob, shards: Shards | None, class_name: str) -> Gallery:
    """Pictures and facts of one class of a labelling job; `shards` tell the truth about photos of their test split.

    Labels are as people decided. Parts are read one at a time: the memory does not grow with the number of photos.
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
        problem = f"The photos cannot be shown: {error}"
    return Gallery(labels=labels, class_name=class_name, counts=(some, none), pictures=pictures,
                   agreement=truth.agreement, failures=failures, problem=problem)


class RowSelection:
    """The rows worth showing of any number of rows."""

    def __init__(self, each: int = EACH, held: int = 500) -> None:
        self._each, self._held, self._count = each, held, 0
        self._top: list[Label] = []
        self._low: list[Label] = []
        self._none: list[Label] = []
        self._some: list[Label] = []  # every photo has the same chance to be here
        self._rng = np.random.default_rng(0)

    def add(self, row: Label) -> None:
        """One more row without an error."""
        if not row["area"]:
            self._none = [*self._none, row][: self._each]
            return
        self._count += 1
        self._top = sorted([*self._top, row], key=lambda r: -r["score"])[: self._each]
        self._low = sorted([*self._low, row], key=lambda r: r["score"])[: self._each]
        place = int(self._rng.integers(self._count))
        if len(self._some) < self._held:
            self._some.append(row)
        elif place < self._held:
            self._some[place] = row

    def kinds(self) -> dict[str, list[Label]]:
        """Kind -> rows, no photo twice."""
        seen = {r["image_id"] for r in self._top}
        low = [r for r in self._low if r["image_id"] not in seen]
        seen |= {r["image_id"] for r in low}
        rest = sorted((r for r in self._some if r["image_id"] not in seen), key=lambda r: -r["score"])
        start = max(0, (len(rest) - self._each) // 2)
        return dict(zip(KINDS, (self._top, rest[start : start + self._each], low[::-1], self._none), strict=True))


def _picture(labels: FinishedJob, kind: str, row: Label) -> GalleryPicture:
    data = Store(labels.manifest.images_url).read_bytes(row["file_name"])
    image = decode_image(data, max_pixels=labels.manifest.max_pixels, max_bytes=labels.manifest.max_bytes, exif=True,
                         where=row["file_name"])
    mask = _mask(row) if row["area"] else None
    name = str(row["file_name"]).rsplit("/", 1)[-1]
    return GalleryPicture(kind=kind, caption=f"{name}: {row['score']:.2f}", url=photo_url(image, mask))


def _mask(row: Label) -> np.ndarray:
    return rle.decode(str(row["rle"]).encode(), row["height"], row["width"]).astype(bool)


class TruthComparison:
    """Compares labels with the test photo of the same name in the shards, where there is one such."""

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
        """One more row without an error."""
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
        """What was found so far; None if no photo is known."""
        if not self._ious and not self._absent:
            return None
        return Agreement(shown=len(self._ious), found=sum(i > 0 for i in self._ious), absent=self._absent,
                         mean_iou=float(np.mean(self._ious)) if self._ious else 0.0, false=self._false)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))
