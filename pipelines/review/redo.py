"""Labelling the doubtful labels of a job again, with people's corrections as further supports.

The new folder is a complete labelling job: its parts have the labels of the old job, except doubtful labels without a
decision, which are made with the new support sets. `origin.json` names the old job, and a copy of its decisions lies
beside it, so that a killed job continues from the same decisions even if there are new ones meanwhile.
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
from pipelines.base.webhook import read_secret, told_if_it_fails
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import about_bundle, read_bundle_info
from pipelines.config.recipe import Recipe
from pipelines.inference.masks import PhotoFailure
from pipelines.inference.supports import Support, SupportSet, UnknownSupportError, load_support_set
from pipelines.labelling.decisions import (
    DECISIONS,
    Decisions,
    decisions_hash,
    read_decisions,
    with_agreement,
    without,
)
from pipelines.labelling.engines import Engine
from pipelines.labelling.existing import EXISTING
from pipelines.labelling.images import PhotoReader, list_images
from pipelines.labelling.job import LabellingJob, label_rows
from pipelines.labelling.listing import read_listing
from pipelines.labelling.manifest import JobManifest, claim_folder, describe_classes
from pipelines.labelling.notify import JobEvents
from pipelines.labelling.outputs import write_outputs
from pipelines.labelling.parts import part_name, result_columns, schema_of
from pipelines.labelling.run import LabelRequest, check_bundle, choose_service, label_chunks
from pipelines.review.doubt import sureness
from pipelines.review.job import ReviewedJob, Row, open_job

ORIGIN, SNAPSHOT = "origin.json", "origin_decisions.jsonl"
MAX_ADDED = 20  # corrections of a class that become supports, the most doubtful labels first


@dataclass(frozen=True)
class RedoJob(LabellingJob):
    """A job that labels again, of the job `old`, the labels less sure than `below` that are not in `decisions`."""

    old: ReviewedJob
    decisions: Decisions
    below: float

    def label_chunk(self, chunk: int, engine: Engine, reader: PhotoReader) -> tuple[int, int]:
        """Write a chunk's part from the old part and new labels. Returns its photos, and those that were unreadable."""
        rows = self.manifest.rows(chunk)
        before = self.old.out.read_table(part_name(chunk))
        listed = before.to_pylist()
        again = rows_to_redo(listed, self.decisions, self.below, whole=self.manifest.overlaps == "resolve")
        if again:
            listed = self._relabel(listed, sorted({image_id - 1 for image_id, _ in again}), again, engine, reader)
            before = pa.Table.from_pylist(listed, schema=schema_of(self.manifest))
        self.out.write_table(part_name(chunk), before)
        return len(rows), len({r["image_id"] for r in listed if r["error"] is not None})

    def _relabel(self, listed: list[Row], photos: list[int], again: set[tuple[int, str]], engine: Engine,
                 reader: PhotoReader) -> list[Row]:
        """The rows with new labels for those in `again`. A photo that has become unreadable keeps its labels."""
        results = label_rows(photos, engine, reader, self.manifest, self.max_seconds)
        fresh: dict[tuple[int, str], Row] = {}
        for row, result in zip(photos, results, strict=True):
            if isinstance(result, PhotoFailure):
                say(f"{self.images.names[row]} keeps its labels, because it cannot be read: {result.reason}")
                continue
            fresh.update({(row + 1, str(c["class_name"])): c for c in result_columns(result, self.manifest)})
        new = {key: columns for key, columns in fresh.items() if key in again}
        if self.manifest.overlaps == "resolve":
            for r in (r for r in listed if r.get("origin") == EXISTING and r["area"]):
                new.update({key: without(columns, [r["rle"].encode()]) for key, columns in new.items()
                            if key[0] == r["image_id"]})
        return [with_agreement({**r, **new.get((r["image_id"], r["class_name"]), {})}) for r in listed]


def rows_to_redo(rows: list[Row], decisions: Decisions, below: float, *, whole: bool) -> set[tuple[int, str]]:
    """(photo, class) of the labels to make again: those less sure than `below` and without a decision.

    With `whole` also the other labels of these photos, except those with a decision. Annotations that the job keeps are
    never made again.
    """
    good = [r for r in rows if r["error"] is None and r.get("origin") != EXISTING]
    free = {(r["image_id"], r["class_name"]) for r in good} - decisions.keys()
    bad = {key for r in good if (key := (r["image_id"], r["class_name"])) in free and sureness(r) < below}
    photos = {image_id for image_id, _ in bad}
    return {key for key in free if key[0] in photos} if whole else bad


@dataclass(frozen=True, kw_only=True)
class RedoRequest:
    """The options of `fss review again`. With `below` None the bound is the old job's `review_below`."""

    recipe: Recipe
    job: str
    out: str
    below: float | None = None
    bundle: str = ""
    service: str = ""


def run_redo(request: RedoRequest) -> dict[str, Any]:
    """Label doubtful labels again. Returns the summary of the new job. Raises `FssError` for a person's mistakes."""
    old, out = open_job(request.job), Store(request.out)
    old.check_complete()
    if request.recipe.label.notify:
        read_secret()
    config = request.recipe.label.model_copy(update={
        "batch": old.manifest.batch, "features": old.manifest.features, **old.manifest.computing()})
    options = LabelRequest(recipe=request.recipe.model_copy(update={"label": config}), images=old.manifest.images_url,
                           supports="", out=out.url, bundle=request.bundle, service=request.service)
    chosen = None
    if not out.exists(ORIGIN):
        chosen = choose_service_of(old.manifest, options)
        begin_redo(old, out, old.manifest.review_below if request.below is None else request.below)
    origin = out.read_json(ORIGIN)
    _check_origin(request, old, out, origin)
    job, classes = resume_redo(out, Workspace(request.recipe.out).supports)
    left = job.chunks_left()
    events = JobEvents(out, job.manifest, config.notify)
    with told_if_it_fails(events.ended):
        if left:
            label_chunks(job, left, classes, *(chosen or choose_service_of(job.manifest, options)), options)
        summary = events.done(write_outputs(out, job.manifest, config.formats))
    return {**summary, "parts_now": len(left),
            "again": origin["labels"], "origin": old.out.url}


def choose_service_of(manifest: JobManifest, options: LabelRequest) -> tuple[str, dict[str, Any] | None]:
    """As `choose_service`, for the bundle of an earlier job. Raises `FssError` for another bundle."""
    service, health = choose_service(options)
    about = health if health and not options.bundle else about_bundle(read_bundle_info(options.bundle_url))
    check_bundle(manifest, about, hint="give the job's bundle with --bundle, or the workspace whose champion it is "
                 "with --workspace, or label all photos with `fss label`")
    return service, health


def begin_redo(old: ReviewedJob, out: Store, below: float) -> None:
    """Write origin.json and the decisions. Raises `FssError`, and writes nothing, if no label is to be made again."""
    if out.list("parts") or out.url == old.out.url:
        raise FssError("holds another labelling job", where=out.url, hint="choose another --out")
    decisions = old.decisions
    if not any(d.decision == "correct" for d in decisions.values()):
        raise FssError("no mask has been corrected, so the labels would be the same again", where=old.out.url,
                       hint="correct masks with `fss review decide` or in the console")
    counted: Counter[str] = Counter()
    for rows in old.rows():
        keys = rows_to_redo(rows, decisions, below, whole=old.manifest.overlaps == "resolve")
        counted.update(labels=len(keys), photos=len({image_id for image_id, _ in keys}))
    if not counted["labels"]:
        raise FssError(f"no label without a decision is less sure than {below:g}", where=old.out.url,
                       hint="give a higher --below")
    data = old.out.read_bytes(DECISIONS)
    out.write_bytes(SNAPSHOT, data)
    out.write_bytes(DECISIONS, data)
    out.write_json(ORIGIN, {"job": old.out.url, "below": below, "labels": counted["labels"],
                            "photos": counted["photos"], "decisions": decisions_hash(out, SNAPSHOT),
                            "supports": old.manifest.supports})


def _check_origin(request: RedoRequest, old: ReviewedJob, out: Store, origin: dict[str, Any]) -> None:
    """Raises `FssError` if the folder has labels of another job again, or with another bound."""
    if origin["supports"] != old.manifest.supports or request.below not in (None, origin["below"]):
        raise FssError(f"holds the labels of {origin['job']} below {origin['below']:g}", where=out.url,
                       hint="choose another --out, or use the same arguments as before")


def resume_redo(out: Store, supports_url: str) -> tuple[RedoJob, list[SupportSet]]:
    """The job that `begin_redo` wrote into the folder, and its support sets."""
    origin = out.read_json(ORIGIN)
    return prepare_redo(open_job(origin["job"]), out, origin["below"], read_decisions(out, SNAPSHOT), supports_url)


def prepare_redo(old: ReviewedJob, out: Store, below: float, decisions: Decisions,
                 supports_url: str) -> tuple[RedoJob, list[SupportSet]]:
    """Claim the folder. Returns the job and its support sets.

    Raises `FssError` if photos have changed or a support set is missing.
    """
    kept = None if old.manifest.inputs == "folder" else read_listing(old.out)
    images = kept or list_images(old.manifest.images_url, old.manifest.limit, outs=[old.out.url, out.url])
    if images.hash != old.manifest.images_hash:
        raise FssError("photos were added, removed or changed since they were labelled", where=images.url,
                       hint="label them with `fss label` to a new --out")
    classes = extend_supports(old, decisions, supports_url)
    manifest = JobManifest.model_validate({
        **old.manifest.content(), **describe_classes(classes), "images_url": images.url,
        "redoes": hashlib.sha256(out.read_bytes(ORIGIN)).hexdigest()[:16]})
    claim_folder(out, manifest)
    images.save(out)
    return RedoJob(out, images, manifest, old, decisions, below), classes


def extend_supports(old: ReviewedJob, decisions: Decisions, supports_url: str) -> list[SupportSet]:
    """The job's support sets, each with its class's corrected masks added. Raises `FssError` for a missing set."""
    fixed = [d for d in decisions.values() if d.decision == "correct"]
    rows = {d.key: next(r for r in old.rows_of(d.image_id) if r["class_name"] == d.class_name) for d in fixed}
    fixed.sort(key=lambda d: (sureness(rows[d.key]), d.image_id))
    sets = []
    for support_id, name in zip(old.manifest.mask_request.support_ids, old.manifest.classes, strict=True):
        own = [d for d in fixed if d.class_name == name]
        if len(own) > MAX_ADDED:
            say(f"{name}: of {len(own)} corrections the {MAX_ADDED} most doubtful labels become supports")
        known = _find(support_id, [join(old.out.url, "supports"), supports_url])
        more = tuple(Support(old.photo(d.image_id, d.image), {"mask": d.mask}) for d in own[:MAX_ADDED])
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
                   hint="give the workspace that has it with --workspace")
