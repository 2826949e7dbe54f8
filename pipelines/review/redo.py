"""Labelling again what a job was unsure of, with people's corrections as further supports.

The new folder is a whole labelling job of its own: its parts have the old labels, but for doubtful ones that nobody
decided on, which the new support sets give. `origin.json` names the old job; what people had decided when it began is
kept beside it, so that a job that is killed goes on as it began, whatever they decide on the old one meanwhile.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from fss_models.errors import FssError
from pipelines.base.progress import say
from pipelines.base.storage import Store, join
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import about_bundle, read_bundle_info
from pipelines.config.recipe import Recipe
from pipelines.inference.masks import PhotoFailure
from pipelines.inference.supports import Support, SupportSet, UnknownSupportError, load_support_set
from pipelines.labelling.decisions import DECISIONS, Decided, decisions_hash, read_decisions
from pipelines.labelling.engines import Engine
from pipelines.labelling.images import PhotoReader, list_images
from pipelines.labelling.job import LabellingJob, label_rows
from pipelines.labelling.manifest import JobManifest, claim, describe_classes
from pipelines.labelling.outputs import write_outputs
from pipelines.labelling.parts import part_name, result_columns, schema_of
from pipelines.labelling.run import LabelRequest, check_bundle, choose_service, run_left
from pipelines.review.doubt import sureness
from pipelines.review.job import ReviewedJob, Row, open_job

ORIGIN, SNAPSHOT = "origin.json", "origin_decisions.jsonl"
MAX_ADDED = 20  # corrections of a class that become supports, those first that the model was least sure of


@dataclass(frozen=True)
class RedoJob(LabellingJob):
    """A claimed folder that goes on from `old`; labels below `below` that are not `decided` are made anew."""

    old: ReviewedJob
    decided: Decided
    below: float

    def label_chunk(self, chunk: int, engine: Engine, reader: PhotoReader) -> tuple[int, int]:
        """See `LabellingJob`."""
        rows = self.manifest.rows(chunk)
        before = self.old.out.read_table(part_name(chunk))
        listed = before.to_pylist()
        again = rows_to_redo(listed, self.decided, self.below, whole=self.manifest.overlaps == "resolve")
        if again:
            listed = self._again(listed, sorted({image_id - 1 for image_id, _ in again}), again, engine, reader)
            before = pa.Table.from_pylist(listed, schema=schema_of(self.manifest))
        self.out.write_table(part_name(chunk), before)
        return len(rows), len({r["image_id"] for r in listed if r["error"] is not None})

    def _again(self, listed: list[Row], photos: list[int], again: set[tuple[int, str]], engine: Engine,
               reader: PhotoReader) -> list[Row]:
        """The rows with those in `again` made anew. A photo that cannot be read any more keeps its labels."""
        results = label_rows(photos, engine, reader, self.manifest)
        fresh: dict[tuple[int, str], dict[str, object]] = {}
        for row, result in zip(photos, results, strict=True):
            if isinstance(result, PhotoFailure):
                say(f"{self.images.names[row]} keeps its labels: {result.reason}")
                continue
            fresh.update({(row + 1, str(c["class_name"])): c for c in result_columns(result, self.manifest)})
        made = {key: columns for key, columns in fresh.items() if key in again}
        return [{**r, **made.get((r["image_id"], r["class_name"]), {})} for r in listed]


def rows_to_redo(rows: list[Row], decided: Decided, below: float, *, whole: bool) -> set[tuple[int, str]]:
    """(photo, class) of the labels that are made anew; with `whole` all of a photo that nobody decided on."""
    good = [r for r in rows if r["error"] is None]
    free = {(r["image_id"], r["class_name"]) for r in good} - decided.keys()
    bad = {key for r in good if (key := (r["image_id"], r["class_name"])) in free and sureness(r) < below}
    photos = {image_id for image_id, _ in bad}
    return {key for key in free if key[0] in photos} if whole else bad


@dataclass(frozen=True, kw_only=True)
class RedoRequest:
    """What a person asked for; `below` None takes the old job's bound of review."""

    recipe: Recipe
    job: str
    out: str
    below: float | None = None
    bundle: str = ""
    service: str = ""


def run_redo(request: RedoRequest) -> dict[str, Any]:
    """Label again what is doubtful. Returns the summary of the new job. Raises `FssError` for a person's mistakes."""
    old, out = open_job(request.job), Store(request.out)
    old.need_all()
    config = request.recipe.label.model_copy(update={"batch": old.manifest.batch})
    asked = LabelRequest(recipe=request.recipe.model_copy(update={"label": config}), images=old.manifest.images_url,
                         supports="", out=out.url, bundle=request.bundle, service=request.service)
    chosen = None
    if not out.exists(ORIGIN):
        chosen = choose_same(asked, old.manifest)
        begin(old, out, old.manifest.review_below if request.below is None else request.below)
    origin = out.read_json(ORIGIN)
    _same(request, old, out, origin)
    job, classes = resume(out, Workspace(request.recipe.out).supports)
    left = job.left()
    if left:
        run_left(job, left, classes, *(chosen or choose_same(asked, job.manifest)), asked)
    return {**write_outputs(out, job.manifest, config.formats), "parts_now": len(left),
            "again": origin["labels"], "origin": old.out.url}


def choose_same(asked: LabelRequest, manifest: JobManifest) -> tuple[str, dict[str, Any] | None]:
    """The service to use and its health, as `choose_service`. Raises `FssError` for another bundle than the job's."""
    service, health = choose_service(asked)
    about = health if health and not asked.bundle else about_bundle(read_bundle_info(asked.bundle_url))
    check_bundle(manifest, about, mend="name the job's bundle with --bundle, the workspace whose champion it is with "
                 "--workspace, or label all with `fss label`")
    return service, health


def begin(old: ReviewedJob, out: Store, below: float) -> None:
    """Write what decides the new job. Raises `FssError`, and writes nothing, where there is nothing to do."""
    if out.list("parts") or out.url == old.out.url:
        raise FssError("holds another labelling job", where=out.url, mend="choose another --out")
    decided = old.decided
    if not any(d.decision == "correct" for d in decided.values()):
        raise FssError("nobody has corrected a mask: the same supports would give the same labels", where=old.out.url,
                       mend="correct some with `fss review decide` or in the console")
    counted: Counter[str] = Counter()
    for rows in old.rows():
        keys = rows_to_redo(rows, decided, below, whole=old.manifest.overlaps == "resolve")
        counted.update(labels=len(keys), photos=len({image_id for image_id, _ in keys}))
    if not counted["labels"]:
        raise FssError(f"no undecided label is below {below:g}", where=old.out.url, mend="give a higher --below")
    data = old.out.read_bytes(DECISIONS)
    out.write_bytes(SNAPSHOT, data)
    out.write_bytes(DECISIONS, data)
    out.write_json(ORIGIN, {"job": old.out.url, "below": below, "labels": counted["labels"],
                            "photos": counted["photos"], "decisions": decisions_hash(out, SNAPSHOT),
                            "supports": old.manifest.supports})


def _same(request: RedoRequest, old: ReviewedJob, out: Store, origin: dict[str, Any]) -> None:
    """Raises `FssError` if the folder goes on from another job or with another bound."""
    if origin["supports"] != old.manifest.supports or request.below not in (None, origin["below"]):
        raise FssError(f"goes on from {origin['job']} below {origin['below']:g}", where=out.url,
                       mend="choose another --out, or give the same arguments again")


def resume(out: Store, supports_url: str) -> tuple[RedoJob, list[SupportSet]]:
    """The job that `begin` wrote down in the folder, and its support sets."""
    origin = out.read_json(ORIGIN)
    return prepare(open_job(origin["job"]), out, origin["below"], read_decisions(out, SNAPSHOT), supports_url)


def prepare(old: ReviewedJob, out: Store, below: float, decided: Decided, supports_url: str) -> tuple[RedoJob,
                                                                                                      list[SupportSet]]:
    """Claim the folder. Returns the job and its support sets. Raises `FssError` if photos or supports have gone."""
    images = list_images(old.manifest.images_url, old.manifest.limit, outs=[old.out.url, out.url])
    if images.hash != old.manifest.images_hash:
        raise FssError("photos were added, removed or changed since they were labelled", where=images.url,
                       mend="label them with `fss label` to a new --out")
    classes = grown_supports(old, decided, supports_url)
    manifest = JobManifest.model_validate({
        **old.manifest.content(), **describe_classes(classes), "images_url": images.url,
        "redoes": hashlib.sha256(out.read_bytes(ORIGIN)).hexdigest()[:16]})
    claim(out, manifest)
    return RedoJob(out, images, manifest, old, decided, below), classes


def grown_supports(old: ReviewedJob, decided: Decided, supports_url: str) -> list[SupportSet]:
    """The job's support sets with the corrected masks of each class added. Raises `FssError` for one that has gone."""
    fixed = [d for d in decided.values() if d.decision == "correct"]
    given = {d.key: next(r for r in old.rows_of(d.image_id) if r["class_name"] == d.class_name) for d in fixed}
    fixed.sort(key=lambda d: (sureness(given[d.key]), d.image_id))
    sets = []
    for support_id, name in zip(old.manifest.wanted.support_ids, old.manifest.classes, strict=True):
        own = [d for d in fixed if d.class_name == name]
        if len(own) > MAX_ADDED:
            say(f"{name}: {len(own)} corrections; the {MAX_ADDED} that the model was least sure of become supports")
        known = _find(support_id, [join(old.out.url, "supports"), supports_url])
        more = tuple(Support(old.photo(d.image), {"mask": d.mask}) for d in own[:MAX_ADDED])
        new = [s for s in more if s.sha256 not in {k.sha256 for k in known.supports}]
        sets.append(replace(known, class_name=name, supports=(*known.supports, *new)))
    return sets


def _find(support_id: str, roots: list[str]) -> SupportSet:
    for root in roots:
        try:
            return load_support_set(root, support_id)
        except UnknownSupportError:
            continue
    raise FssError(f"support set {support_id} is neither in {roots[0]} nor in {roots[1]}",
                   mend="name the workspace it was given to with --workspace")
