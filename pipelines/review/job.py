"""A labelling job's folder, opened for review. The job may be unfinished."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import ValidationError

from fss_models.errors import FssError
from fss_models.marks import check_mark
from fss_models.photo_files import decode_image
from pipelines.base.progress import say
from pipelines.base.storage import Store
from pipelines.labelling.decisions import (
    Decision,
    Decisions,
    add_decisions,
    add_last,
    last_decisions,
    parse_decision,
    read_decisions,
)
from pipelines.labelling.instance_decisions import follow_instance
from pipelines.labelling.manifest import MANIFEST, PLAIN, JobManifest
from pipelines.labelling.parts import finished_chunks, part_name
from pipelines.labelling.photo_reader import read_photo

Row = dict[str, Any]  # a row of a part


@dataclass(frozen=True)
class ReviewedJob:
    """The folder of a labelling job and its manifest."""

    out: Store
    manifest: JobManifest

    @cached_property
    def chunks(self) -> list[int]:
        """The chunks that were labelled when this property was first read, sorted."""
        return sorted(finished_chunks(self.out))

    def check_complete(self) -> None:
        """Raises `FssError` while parts are missing."""
        if self.manifest.watched and not self._last_batch_is_done():
            raise FssError("photos that have arrived are being labelled", where=self.out.url,
                           hint="wait for `fss label --watch`, or start it again")
        if len(self.chunks) < self.manifest.chunks:
            raise FssError(f"only {len(self.chunks)} of {self.manifest.chunks} parts are labelled", where=self.out.url,
                           hint="run `fss label` again to finish the job")

    def _last_batch_is_done(self) -> bool:
        """Whether the part that has photos of two batches has all of them."""
        first = self.manifest.before // self.manifest.chunk
        if first not in self.chunks:
            return self.manifest.before == self.manifest.images_count
        ids = self.out.read_table(part_name(first), ["image_id"])["image_id"]
        return len(ids.unique()) == len(self.manifest.rows(first))

    def rows(self, columns: list[str] | None = None) -> Iterator[list[Row]]:
        """The labels of each finished part without decisions, one part at a time. Unreadable photos are left out."""
        for chunk in self.chunks:
            yield [r for r in self.out.read_table(part_name(chunk), columns).to_pylist() if r["error"] is None]

    def rows_of(self, image_id: int) -> list[Row]:
        """One photo's rows. Raises `FssError` for an unknown id, and for a photo that is not labelled or unreadable."""
        chunk = (image_id - 1) // self.manifest.chunk
        if not 1 <= image_id <= self.manifest.images_count or not self.out.exists(part_name(chunk)):
            raise FssError(f"photo {image_id} is not labelled", where=self.out.url)
        rows = [r for r in self.out.read_table(part_name(chunk)).to_pylist() if r["image_id"] == image_id]
        if not rows:
            raise FssError(f"photo {image_id} is not labelled yet", where=self.out.url)
        if rows[0]["error"] is not None:
            raise FssError(f"photo {image_id} could not be read, so it has no label", where=self.out.url)
        return rows

    def photo(self, image_id: int, file_name: str) -> bytes:
        """The bytes of a photo. Raises `FssError` if it cannot be read."""
        return read_photo(self.out, self.manifest, image_id, file_name)

    def pixels(self, image_id: int, file_name: str) -> np.ndarray:
        """The upright photo as [H, W, 3] uint8. Raises `BadImage`, and `FssError` as `photo` does."""
        return decode_image(self.photo(image_id, file_name), limits=self.manifest, exif=True, where=file_name)

    @property
    def decisions(self) -> Decisions:
        """The decisions in force, read from storage."""
        return read_decisions(self.out)

    def decide(self, decisions: list[Decision]) -> None:
        """Check decisions against the labels and save them. Raises `FssError`, and saves none, if one is wrong.

        Decisions about one instance become decisions about its label.
        """
        last = last_decisions(self.out) if any(d.instance is not None for d in decisions) else {}
        found: list[Decision] = []
        for number, decision in enumerate(decisions, 1):
            found.append(self._checked(decision, f"decision {number}", last))
            add_last(last, found[-1])
        add_decisions(self.out, found)

    def _checked(self, decision: Decision, where: str, last: Decisions) -> Decision:
        rows = {r["class_name"]: r for r in self.rows_of(decision.image_id)}
        row = rows.get(decision.class_name)
        if row is None:
            raise FssError(f"the job has no class {decision.class_name[:80]!r}", where=where,
                           hint=f"its classes are {self.manifest.title}")
        if row["file_name"] != decision.image:
            raise FssError(f"photo {decision.image_id} is {row['file_name']!r}, not {decision.image[:80]!r}",
                           where=where, hint="check that the decision is for this job")
        if (decision.mask is not None) != (decision.decision == "correct"):
            raise FssError("`correct` needs a mask, and other decisions must not have one", where=where)
        if decision.mask is not None:
            mark = check_mark({"mask": decision.mask}, row["height"], row["width"], where)
            decision = decision.model_copy(update={"mask": mark["mask"]})
        if decision.instance is None:
            return self._with_checked_instances(decision, row, where)
        return follow_instance(row, last.get(decision.key), decision)

    def _with_checked_instances(self, decision: Decision, row: Row, where: str) -> Decision:
        """The decision, with the run lengths of its instances checked. Raises `FssError`."""
        checked = []
        for one in decision.instances or ():
            mask = {"size": [row["height"], row["width"]], "counts": one.counts}
            found = check_mark({"mask": mask}, row["height"], row["width"], where)["mask"]
            checked.append(one.model_copy(update={"counts": found["counts"]}))
        return decision.model_copy(update={"instances": tuple(checked)}) if checked else decision


def open_job(url: str) -> ReviewedJob:
    """The labelling job at `url`. Raises `FssError` if there is none."""
    out = Store(url)
    if not out.exists(MANIFEST):
        raise FssError("holds no labelling job", where=out.url, hint="give the --out of `fss label`")
    try:
        return ReviewedJob(out, JobManifest.model_validate(out.read_json(MANIFEST)))
    except ValidationError as error:
        raise FssError("the manifest is not of this version", where=out.path(MANIFEST)) from error


def import_decisions(job: ReviewedJob, url: str) -> int:
    """Add the decisions of a file that the gallery saved, except those that are older than the job's own.

    Returns how many were added.
    """
    source = Store(url)
    lines = source.read_bytes().splitlines()
    found = [parse_decision(line, f"{source.url}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    last = last_decisions(job.out)
    new = [d for d in found if d.key not in last or not _older(d, last[d.key])]
    if len(new) < len(found):
        say(f"{len(found) - len(new)} decisions are left out, because there are later ones about the same labels")
    job.decide(new)
    return len(new)


def _older(one: Decision, other: Decision) -> bool:
    """Whether both decisions have a time and that of `one` is earlier."""
    first, second = _moment(one.time), _moment(other.time)
    return first is not None and second is not None and first < second


def _moment(time: str) -> datetime | None:
    """The time as a datetime, in UTC if it has no zone; None for an invalid time."""
    try:
        found = datetime.fromisoformat(time)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def decide_by_name(job: ReviewedJob, verdicts: dict[str, tuple[str, dict[str, Any] | None]], class_name: str) -> int:
    """Save decisions about photos by name: name -> (verdict, mask). Returns how many. `NAME#2` names an instance.

    `class_name` may be empty if the job has one class. Raises `FssError` for an unlabelled name, one that several
    photos of a list share, or a missing class.
    """
    classes = job.manifest.classes
    if not class_name and len(classes) > 1:
        raise FssError(f"the job has {len(classes)} classes", hint="choose one with --class")
    ids: dict[str, int] = {}
    wanted = {name: _instance_named(name) if job.manifest.instances != "none" else (name, None) for name in verdicts}
    photos = {photo for photo, _ in wanted.values()}
    for rows in job.rows(["image_id", "file_name", "error"]):
        for r in (r for r in rows if r["file_name"] in photos):
            if ids.setdefault(r["file_name"], r["image_id"]) != r["image_id"]:
                raise FssError(f"several photos are named {r['file_name']!r}", where=job.out.url,
                               hint="decide about them in the console or on a review page")
        if len(ids) == len(photos) and job.manifest.inputs in PLAIN:
            break
    missing = sorted(photos - ids.keys())
    if missing:
        raise FssError(f"photo {missing[0]!r} has no label", where=job.out.url, hint="names are relative to --images")
    job.decide([Decision.model_validate({
        "image_id": ids[wanted[name][0]], "image": wanted[name][0], "class_name": class_name or classes[0],
        "decision": verdict, "mask": mask, "instance": wanted[name][1]}) for name, (verdict, mask) in verdicts.items()])
    return len(verdicts)


def _instance_named(name: str) -> tuple[str, int | None]:
    """The photo and the instance that `a.jpg#2` names; a name without a number is that of a photo."""
    photo, hash_, number = name.rpartition("#")
    return (photo, int(number)) if hash_ and number.isdecimal() else (name, None)
