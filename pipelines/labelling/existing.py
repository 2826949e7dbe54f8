"""Annotations that are there already, in a labelling job. They are never replaced by a model's masks.

keep     an annotated photo keeps its masks, and a class that the annotations know and that has none is absent there.
         Other photos, and classes that the annotations do not know, are labelled
fill     masks are kept; every photo and class without a mask is labelled, also in annotated photos
compare  everything is labelled; the masks of the annotations, and the IoU, are columns beside the labels

A photo is annotated if its record has an annotation of any class, or if its format tells that a person found nothing
(`data.annotations`). Of a photo with an annotation that cannot be read, the readable masks count, and no absence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fss_models.errors import BadImage, FssError
from pipelines.base.storage import Store
from pipelines.config.label import ExistingMode, LabelConfig
from pipelines.data import rle
from pipelines.data.annotations import Annotations, PhotoAnnotations, unread
from pipelines.data.sources.base import SourceImage
from pipelines.inference.masks import Labels, PhotoFailure
from pipelines.labelling.decisions import Row, instance_row, with_agreement, without
from pipelines.labelling.listing import MOST_ROWS, ImageList
from pipelines.labelling.manifest import JobManifest
from pipelines.labelling.parts import result_columns
from pipelines.labelling.photo_reader import PhotoReader

ABOUT = "existing.json"
AT_ONCE = 8  # photos in memory whose annotations are read
EXISTING, MODEL = "existing", "model"  # values of the column `origin`


@dataclass(frozen=True)
class KnownPhoto:
    """What annotations say of a photo: its masks that count, class -> counts of each object, [] for an absent class."""

    height: int
    width: int
    masks: Mapping[str, list[bytes]]
    problem: str | None


@dataclass(frozen=True)
class ExistingLabels:
    """The annotations of a job's photos. items: number of a photo from 0 -> its record."""

    annotations: Annotations
    mode: ExistingMode
    items: Mapping[int, SourceImage]
    classes: tuple[str, ...]  # those of the job that the annotations know
    url: str

    def describe(self) -> dict[str, Any]:
        """The manifest's fields."""
        names = f"{self.annotations.hash} {self.annotations.classes}"
        return {"existing": self.url, "existing_mode": self.mode,
                "existing_hash": hashlib.sha256(names.encode()).hexdigest()[:16]}

    def read(self, rows: Sequence[int], reader: PhotoReader,
             manifest: JobManifest) -> dict[int, KnownPhoto | PhotoFailure]:
        """What is said of those of the photos `rows` that are annotated; failures of the photos that are unreadable."""
        listed = [row for row in rows if row in self.items]
        found: dict[int, KnownPhoto | PhotoFailure] = {}
        for start in range(0, len(listed), AT_ONCE):
            some = listed[start:start + AT_ONCE]
            for row, data in zip(some, reader.read(some), strict=True):
                found[row] = data if isinstance(data, PhotoFailure) else self._known(self.items[row], data, manifest)
        return found

    def _known(self, item: SourceImage, data: bytes, manifest: JobManifest) -> KnownPhoto:
        try:
            said = self.annotations.read(item, data, manifest)
        except BadImage as error:  # of another size: the photo is labelled, and the reason told
            return KnownPhoto(0, 0, {}, error.reason)
        return KnownPhoto(said.height, said.width, self._that_count(said), "; ".join(said.problems)[:500] or None)

    def _that_count(self, said: PhotoAnnotations) -> dict[str, list[bytes]]:
        """A class of the job -> its masks, [] where it is said to be absent; without those of which nothing is said."""
        absent = said.looked and self.mode != "fill"
        return {c: said.masks.get(c, []) for c in self.classes if c in said.masks or absent}

    def is_whole(self, known: KnownPhoto | PhotoFailure | None, manifest: JobManifest) -> bool:
        """Whether nothing is left to label in a photo."""
        return isinstance(known, PhotoFailure) or (known is not None and self.mode != "compare"
                                                   and known.masks.keys() >= set(manifest.classes))

    def rows(self, known: KnownPhoto | PhotoFailure | None, result: Labels | PhotoFailure | None,
             manifest: JobManifest) -> list[Row]:
        """A photo's rows in a part, without its id and name. `result` is None for a photo that was not labelled."""
        if isinstance(known, PhotoFailure):
            return list(result_columns(known, manifest))
        labelled = [] if result is None else list(result_columns(result, manifest))
        if isinstance(result, PhotoFailure) or known is None:
            return [{**row, **({"origin": MODEL} if row.get("rle") is not None else {})} for row in labelled]
        if self.mode == "compare":
            return [_beside(row, known) for row in labelled]
        by_class = {row["class_name"]: {**row, "origin": MODEL} for row in labelled}
        kept = {name: _kept_row(name, masks, known, manifest) for name, masks in known.masks.items()}
        if manifest.overlaps == "resolve":
            taken = [row["rle"].encode() for row in kept.values() if row["area"]]
            by_class = {name: without(row, taken) for name, row in by_class.items()}
        return [{**{**by_class, **kept}[name], "existing_problem": known.problem} for name in manifest.classes]


def _beside(row: Row, known: KnownPhoto) -> Row:
    """A label with the mask of the annotations."""
    masks = known.masks.get(row["class_name"])
    theirs = None if masks is None else rle.encode(rle.union(masks, row["height"], row["width"])).decode()
    return with_agreement({**row, "existing_rle": theirs, "existing_problem": known.problem})


def _kept_row(name: str, masks: Sequence[bytes], known: KnownPhoto, manifest: JobManifest) -> Row:
    """The row of a class whose masks are kept. It is as sure as a label that a person has accepted."""
    row: Row = {"class_name": name, "height": known.height, "width": known.width}
    whole = instance_row(row, rle.encode(rle.union(masks, known.height, known.width)), 1.0)
    there = 1.0 if whole["area"] else 0.0
    objects = None if manifest.instances == "none" else [instance_row(row, one, None) for one in masks]
    return {**row, **whole, "presence": there, "quality": 1.0, "status": "accepted" if there else "empty",
            "instances": objects, "origin": EXISTING}


def open_existing(config: LabelConfig, images: ImageList, classes: Sequence[str]) -> ExistingLabels | None:
    """The annotations that the recipe names, None if it names none.

    Raises `FssError` if they are unreadable, or have none of the job's classes or photos.
    """
    if not config.existing:
        return None
    rows = {name: row for row, name in enumerate(images.names)}
    found = Annotations(config.existing, dict(zip(images.names, images.sizes, strict=True)), config.existing_format,
                        config.existing_classes)
    known = tuple(c for c in classes if c in found.classes)
    if not known:
        raise FssError(f"the annotations have none of the job's classes, but {_some(found.classes)}",
                       where=config.existing, hint="set label.existing_classes to {THEIR NAME: NAME IN THE SUPPORTS}")
    if not found.items:
        raise FssError(f"none of the {len(found.missing)} photos in the annotations is among --images",
                       where=config.existing, hint="photos are found by the end of their path")
    return ExistingLabels(found, config.existing_mode, {rows[n]: i for n, i in found.items.items()}, known,
                          Store(config.existing).url)


def keep_about(out: Store, existing: ExistingLabels, images: ImageList, classes: Sequence[str]) -> str:
    """Write existing.json into the job's folder. Returns what it says in one line for people."""
    found = existing.annotations
    other = sorted(set(found.classes) - set(classes))
    lacking = [c for c in classes if c not in existing.classes]
    about = {"path": existing.url, "format": found.format, "mode": existing.mode,
             "photos": sum(bool(i.annotations) for i in existing.items.values()), "missing": len(found.missing),
             "other_classes": other, "new_classes": lacking, "problems": len(found.problems)}
    out.write_json(ABOUT, {**about, "failures": [f.__dict__ for f in unread(found, MOST_ROWS)]})
    return (f"existing labels ({found.format}, {existing.mode}): {about['photos']:,} of {len(images):,} photos have "
            f"some; named there but not among --images: {len(found.missing):,}; "
            f"classes not asked for: {len(other)}{_named(other)}; "
            f"classes unknown there: {len(lacking)}{_named(lacking)}"
            + (f"; further problems: {len(found.problems):,} (failures.parquet)" if found.problems else ""))


def _named(names: Sequence[str]) -> str:
    return f" ({_some(names)})" if names else ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
