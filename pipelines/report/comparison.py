"""`fss compare`: predictions of several models scored on the same photos, with paired intervals of the differences."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fss_models.errors import FssError
from fss_models.limits import LIMITS
from fss_models.metrics import Counts, Floats, Ints, PhotoScores, episode_counts, interval, resampled_photos, score
from pipelines.base.progress import Bar
from pipelines.base.storage import Store
from pipelines.base.text_table import text_table
from pipelines.data import rle
from pipelines.data.annotations import Annotations, PhotoAnnotations
from pipelines.inference.masks import PhotoFailure
from pipelines.labelling.images import ImageList, PhotoReader, list_images
from pipelines.report.compared_masks import ComparedMasks, labels_of, open_predictions
from pipelines.report.comparison_page import write_page

READERS = 4
RESAMPLES, CONFIDENCE, SEED = 1000, 0.95, 0
OURS = "fss"


@dataclass(frozen=True, kw_only=True)
class ComparisonRequest:
    """The options of `fss compare`. labels: the folder of a finished job, "" for none; classes: () for all."""

    images: str
    truth: str
    predictions: tuple[str, ...]
    labels: str = ""
    out: str
    classes: tuple[str, ...] = ()
    rename: dict[str, str] = field(default_factory=dict)
    min_score: float = 0.5


@dataclass(frozen=True)
class ScoredPhotos:
    """Pixel counts of S models on P photos and C classes: inter, union [S, P, C, 2]; area [P, C] of the truth."""

    photos: list[str]
    classes: list[str]
    inter: Ints
    union: Ints
    area: Ints

    def iou(self) -> Floats:
        """IoU of the object [S, P, C]; 1 where truth and prediction are empty."""
        some = self.union[..., 1] > 0
        return np.where(some, self.inter[..., 1] / np.maximum(self.union[..., 1], 1), 1.0)


def run_comparison(request: ComparisonRequest) -> dict[str, Any]:
    """Score all models and write comparison.json and the page. Returns the content of comparison.json.

    Raises `FssError` for files that cannot be read, masks of another size, and where no photo or class is common.
    """
    images = list_images(request.images)
    rows = {name: row for row, name in enumerate(images.names)}
    sizes = dict(zip(images.names, images.sizes, strict=True))
    with tempfile.TemporaryDirectory(prefix="fss-compare-") as folder:
        truth = ComparedMasks("truth", request.truth, Annotations(request.truth, sizes), False)
        models = [ComparedMasks(OURS, request.labels, Annotations(labels_of(request.labels), sizes), False)
                  ] if request.labels else []
        for name, url in zip(_names(request.predictions), request.predictions, strict=True):
            models.append(open_predictions(name, url, sizes, request.truth, Path(folder), min_score=request.min_score,
                                           rename=request.rename))
        classes = _classes(truth, models, request.classes)
        photos = [n for n in images.names if truth.covers(n) and all(m.covers(n) for m in models)]
        if not photos:
            raise FssError("no photo is in the truth and in all predictions", where=request.truth,
                           hint="photos are found by the end of their path below --images")
        reader = PhotoReader(images, max_bytes=LIMITS.max_bytes, threads=READERS)
        try:
            scored, left = _score(truth, models, photos, classes, rows, reader)
            document = {**_document(request, truth, models, scored, images), "left_out": left}
            store = Store(request.out)
            document["page"] = write_page(store, document, scored.photos, scored.classes, scored.iou(), truth, models,
                                          lambda name: reader.read([rows[name]])[0])
            store.write_json("comparison.json", document)
        finally:
            reader.close()
    return document


def _names(urls: Sequence[str]) -> list[str]:
    """A short name for each file or folder, by the end of its path; numbers where two are the same."""
    found: list[str] = []
    for url in urls:
        stem = Path(url.rstrip("/")).stem
        found.append(stem if stem not in (*found, OURS) else f"{stem}-{len(found) + 1}")
    return found


def _classes(truth: ComparedMasks, models: Sequence[ComparedMasks], asked: Sequence[str]) -> list[str]:
    known = truth.annotations.classes
    if unknown := [c for c in asked if c not in known]:
        raise FssError(f"the truth has no class {unknown[0]!r}", where=truth.path,
                       hint=f"it has {', '.join(known[:8])}")
    classes = list(dict.fromkeys(asked or known))
    for model in models:
        common = [c for c in classes if c in model.annotations.classes]
        if not common:
            raise FssError(f"has none of the classes {', '.join(classes[:5])}, but "
                           f"{', '.join(model.annotations.classes[:5])}", where=model.path,
                           hint="rename its classes with --rename THEIRS=OURS")
    return [c for c in classes if all(c in m.annotations.classes for m in models)]


def _score(truth: ComparedMasks, models: Sequence[ComparedMasks], photos: Sequence[str], classes: Sequence[str],
           rows: dict[str, int], reader: PhotoReader) -> tuple[ScoredPhotos, dict[str, Any]]:
    """The counts of all photos and classes, and what is left out: photos by reason, and classes."""
    if not classes:
        raise FssError("no class is in all predictions", where=truth.path, hint="compare them in pairs")
    left: dict[str, Any] = {"unreadable_photos": 0, "photos_with_unread_truth": 0}
    used, counted, areas = [], [], []
    with Bar("scoring", len(photos), unit="photos") as bar:
        for name in photos:
            bar.step()
            (data,) = reader.read([rows[name]])
            if isinstance(data, PhotoFailure):
                left["unreadable_photos"] += 1
                continue
            wanted = truth.read(name, data, LIMITS)
            assert wanted is not None
            if wanted.problems:
                left["photos_with_unread_truth"] += 1
                continue
            found = [model.read(name, data, LIMITS) for model in models]
            counts = [[_counts(wanted, one, c) for c in classes] for one in found]
            used.append(name)
            counted.append(counts)
            areas.append([rle.union_area(wanted.masks.get(c, []), wanted.height, wanted.width) for c in classes])
    area = np.array(areas, dtype=np.int64).reshape(-1, len(classes))
    shown = [k for k in range(len(classes)) if area[:, k].any()]
    if not shown:
        raise FssError("the truth has no mask of these classes in the common photos", where=truth.path)
    left["classes_without_truth"] = [c for k, c in enumerate(classes) if k not in shown]
    left["classes_of_some"] = [c for c in truth.annotations.classes if c not in classes]
    both = np.array(counted, dtype=np.int64)[:, :, shown].transpose(3, 1, 0, 2, 4)  # [2, S, P, C, 2]
    return ScoredPhotos(used, [classes[k] for k in shown], both[0], both[1], area[:, shown]), left


def _counts(wanted: PhotoAnnotations, found: PhotoAnnotations | None, label: str) -> tuple[list[int], list[int]]:
    size = wanted.height, wanted.width
    masks = [torch.from_numpy(np.ascontiguousarray(rle.union(one.masks.get(label, []) if one else [], *size)))
             for one in (found, wanted)]
    void = torch.from_numpy(np.ascontiguousarray(rle.decode(wanted.void, *size))) if wanted.void else None
    return episode_counts(masks[0], masks[1], void)


def _document(request: ComparisonRequest, truth: ComparedMasks, models: Sequence[ComparedMasks], scored: ScoredPhotos,
              images: ImageList) -> dict[str, Any]:
    photos, classes = len(scored.photos), len(scored.classes)
    draws = [resampled_photos(scored.inter[s], scored.union[s], scored.area > 0, resamples=RESAMPLES, seed=SEED)
             for s in range(len(models))]
    listed = []
    for s, model in enumerate(models):
        counts = Counts(class_ids=np.tile(np.arange(classes), photos), inter=scored.inter[s].reshape(-1, 2),
                        union=scored.union[s].reshape(-1, 2))
        found = score(counts, range(classes))
        of = model.annotations
        listed.append({
            "name": model.name, "path": model.path, "format": of.format, "miou": found.miou, "fb_iou": found.fb_iou,
            "per_class": {c: found.per_class[k] for k, c in enumerate(scored.classes)}, **_spans(draws[s], scored),
            "photos_without_record": sum(n not in of.items for n in scored.photos),
            "not_among_images": len(of.missing), "unread_records": len(of.problems),
            "other_classes": sorted(set(of.classes) - set(truth.annotations.classes))})
    differences = [{"of": models[s].name, "minus": models[0].name,
                    "miou": listed[s]["miou"] - listed[0]["miou"], "fb_iou": listed[s]["fb_iou"] - listed[0]["fb_iou"],
                    "per_class": {c: listed[s]["per_class"][c] - listed[0]["per_class"][c] for c in scored.classes},
                    **_spans(_minus(draws[s], draws[0]), scored)} for s in range(1, len(models))]
    return {"images": images.url, "truth": request.truth, "photos": photos, "photos_of_truth":
            len(truth.annotations.items), "classes": scored.classes, "min_score": request.min_score,
            "resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": SEED, "models": listed,
            "differences": differences}


def _minus(one: PhotoScores, other: PhotoScores) -> PhotoScores:
    return PhotoScores(miou=one.miou - other.miou, fb_iou=one.fb_iou - other.fb_iou,
                       per_class=one.per_class - other.per_class)


def _spans(draws: PhotoScores, scored: ScoredPhotos) -> dict[str, Any]:
    """The intervals of the scores, or of their differences."""
    each = {c: interval(column[np.isfinite(column)], CONFIDENCE)
            for c, column in zip(scored.classes, draws.per_class.T, strict=True)}
    return {"miou_interval": interval(draws.miou, CONFIDENCE), "fb_iou_interval": interval(draws.fb_iou, CONFIDENCE),
            "per_class_interval": each}


def comparison_lines(document: dict[str, Any]) -> list[str]:
    """The comparison as a table for people, in percent, and what was left out."""
    models, differences = document["models"], document["differences"]
    head = ["class", *(m["name"] for m in models), *(f"{d['of']} - {d['minus']}" for d in differences)]
    rows = [[c, *(_shown(m["per_class"][c], m["per_class_interval"][c]) for m in models),
             *(_shown(d["per_class"][c], d["per_class_interval"][c], "+") for d in differences)]
            for c in document["classes"]]
    rows += [[word, *(_shown(m[key], m[f"{key}_interval"]) for m in models),
              *(_shown(d[key], d[f"{key}_interval"], "+") for d in differences)]
             for word, key in (("mIoU", "miou"), ("FB-IoU", "fb_iou"))]
    left = document["left_out"]
    told = [f"{document['photos']} photos of {document['photos_of_truth']} in the truth; 95 % intervals by photos"]
    told += [f"classes left out, {why}: {', '.join(left[key][:8])}" for key, why in (
        ("classes_without_truth", "without a mask in these photos"),
        ("classes_of_some", "not asked for or not in all predictions")) if left[key]]
    told += [f"left out: {left[key]} photos {why}" for key, why in (
        ("unreadable_photos", "that cannot be read"),
        ("photos_with_unread_truth", "whose truth cannot be read wholly")) if left[key]]
    told += [f"{m['name']}: {m['unread_records']} problems in its records" for m in models if m["unread_records"]]
    return [text_table(rows, head=head), *told]


def _shown(value: float, span: tuple[float, float], sign: str = "") -> str:
    low, high = (100 * v for v in span)
    return f"{100 * value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"
