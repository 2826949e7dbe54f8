"""The customary scores: IoU accumulated for each class, mIoU, FB-IoU, and bootstrap intervals over fixed episodes.

Letters: E episodes, S seeds (repetitions of training), R resamples, C classes. Column 0 is background, 1 foreground.
A class's IoU is (sum of intersections) / (sum of unions) over all its episodes; mIoU is the mean over the fold's
classes, a class without any episode counting 0; FB-IoU pools the fold's classes before it divides.
All scores are fractions in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fss_models.errors import FssError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Metric = Literal["miou", "fb_iou"]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Pixel counts of E episodes, from which all scores are computed.

    class_ids [E] int64; inter, union [E, 2] int64: pixels of (background, foreground)
    """

    class_ids: Ints
    inter: Ints
    union: Ints

    def __len__(self) -> int:
        return len(self.class_ids)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one fold: `per_class` maps a class id to its IoU."""

    miou: float
    fb_iou: float
    per_class: dict[int, float]


def episode_counts(pred: Tensor, truth: Tensor, ignore: Tensor | None = None) -> tuple[list[int], list[int]]:
    """One episode's (intersection, union), each [background, foreground] pixels; `ignore` pixels enter neither.

    pred, truth, ignore [H, W] bool, all of the query's original size. Raises `FssError` if the sizes differ.
    """
    if pred.shape != truth.shape:
        raise FssError(f"prediction is {tuple(pred.shape)}, truth {tuple(truth.shape)}")
    keep = torch.ones_like(truth) if ignore is None else ~ignore
    both = int((pred & truth & keep).sum())
    either = int(((pred | truth) & keep).sum())
    total = int(keep.sum())
    return [total - either, both], [total - both, either]


def score(counts: Counts, class_ids: Iterable[int]) -> Scores:
    """Scores over the classes of interest; episodes of other classes are left out."""
    classes = list(class_ids)
    sums = _sums(counts, classes)
    iou = _ratio(sums[0], sums[1])[:, 1]
    pooled = _ratio(sums[0].sum(axis=0), sums[1].sum(axis=0))
    per_class = {c: float(v) for c, v in zip(classes, iou, strict=True)}
    return Scores(miou=float(iou.mean()), fb_iou=float(pooled.mean()), per_class=per_class)


def _sums(counts: Counts, classes: Sequence[int]) -> tuple[Floats, Floats]:
    """Intersections and unions, each [C, 2], summed over each class's episodes."""
    rows = [counts.class_ids == c for c in classes]
    inter = np.stack([counts.inter[r].sum(axis=0) for r in rows]).astype(np.float64)
    union = np.stack([counts.union[r].sum(axis=0) for r in rows]).astype(np.float64)
    return inter, union


def _ratio(inter: Floats, union: Floats) -> Floats:
    return inter / np.maximum(union, 1.0)


@dataclass(frozen=True, kw_only=True)
class MethodCounts:
    """One method's counts on the episodes of several folds, which the bootstrap resamples.

    folds, class_ids [E]; inter, union [S, E, 2]; every seed has the same episodes
    """

    folds: Ints
    class_ids: Ints
    inter: Ints
    union: Ints

    @staticmethod
    def of(folds: Sequence[tuple[int, Sequence[Counts]]]) -> MethodCounts:
        """Join folds, each with one `Counts` a seed. Raises `FssError` if seeds or episodes do not match."""
        if len({len(seeds) for _, seeds in folds}) != 1:
            raise FssError("folds have different numbers of seeds")
        for fold, seeds in folds:
            if any(not np.array_equal(s.class_ids, seeds[0].class_ids) for s in seeds):
                raise FssError(f"the seeds of fold {fold} were scored on different episodes")
        first = [(f, seeds[0]) for f, seeds in folds]
        return MethodCounts(
            folds=np.concatenate([np.full(len(c), f, dtype=np.int64) for f, c in first]),
            class_ids=np.concatenate([c.class_ids for _, c in first]),
            inter=np.concatenate([np.stack([s.inter for s in seeds]) for _, seeds in folds], axis=1),
            union=np.concatenate([np.stack([s.union for s in seeds]) for _, seeds in folds], axis=1),
        )

    def same_episodes(self, other: MethodCounts) -> bool:
        """Whether both were scored on the same list."""
        return np.array_equal(self.folds, other.folds) and np.array_equal(self.class_ids, other.class_ids)


def resampled_scores(sample: MethodCounts, *, resamples: int, seed: int, metric: Metric = "miou") -> Floats:
    """Scores [R] (means over folds) when seeds, classes within folds and episodes within classes are resampled.

    The draws depend on the seed and on the episode list only, so two methods on one list are resampled alike: the
    difference of their results is the paired bootstrap.
    """
    rng = np.random.default_rng([seed, 0])
    pick = np.random.default_rng([seed, 1]).random((resamples, len(sample.inter)))
    seeds = np.minimum((pick * len(sample.inter)).astype(np.int64), len(sample.inter) - 1)
    folds = [_resample_fold(sample, f, seeds, rng, metric) for f in np.unique(sample.folds)]
    mean: Floats = np.mean(folds, axis=0)
    return mean


def _resample_fold(sample: MethodCounts, fold: int, seeds: Ints, rng: np.random.Generator, metric: Metric) -> Floats:
    """Resampled scores [R] of one fold."""
    resamples, drawn = seeds.shape
    classes = np.unique(sample.class_ids[sample.folds == fold])
    chosen = rng.integers(0, len(classes), (resamples, len(classes)))
    inter, union = [], []
    for c in classes:
        rows = np.flatnonzero((sample.folds == fold) & (sample.class_ids == c))
        weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
        inter.append(np.einsum("re,sek->rsk", weights, sample.inter[:, rows]))
        union.append(np.einsum("re,sek->rsk", weights, sample.union[:, rows]))
    # [R, S, C, 2], then the drawn seeds and the drawn classes of each resample
    row = np.arange(resamples)[:, None, None]
    i, u = (np.stack(x, axis=2)[row, seeds[:, :, None], chosen[:, None, :]] for x in (inter, union))
    if metric == "miou":
        scores: Floats = _ratio(i, u)[..., 1].mean(axis=2)
    else:
        scores = _ratio(i.sum(axis=2), u.sum(axis=2)).mean(axis=2)
    assert scores.shape == (resamples, drawn)
    result: Floats = scores.mean(axis=1)
    return result


@dataclass(frozen=True, kw_only=True)
class PhotoScores:
    """Scores of R resamples of photos: miou, fb_iou [R]; per_class [R, C], NaN where no drawn photo shows the class."""

    miou: Floats
    fb_iou: Floats
    per_class: Floats


def resampled_photos(inter: Ints, union: Ints, present: npt.NDArray[np.bool_], *, resamples: int,
                     seed: int) -> PhotoScores:
    """Scores when photos are resampled, each with all its classes.

    inter, union [P, C, 2] pixels of P photos and C classes; present [P, C]: whether the photo shows the class. Classes
    that a resample does not show are left out of its means. The draws depend on the seed and on P only, so the
    difference of two models' scores on the same photos is the paired bootstrap.
    """
    rng, photos = np.random.default_rng(seed), len(inter)
    drawn: list[tuple[Floats, Floats, Floats]] = []
    size = max(1, 10_000_000 // photos)  # resamples at a time
    for first in range(0, resamples, size):
        weights = rng.multinomial(photos, np.full(photos, 1 / photos), size=min(size, resamples - first))
        i, u = (np.einsum("rp,pck->rck", weights, x.astype(np.float64)) for x in (inter, union))
        shown = (weights @ present.astype(np.int64)) > 0
        each = np.where(shown, _ratio(i, u)[..., 1], np.nan)
        pooled = _ratio(*((x * shown[..., None]).sum(axis=1) for x in (i, u))).mean(axis=1)
        some = shown.any(axis=1)
        drawn.append((np.nanmean(each[some], axis=1), pooled[some], each[some]))
    miou, fb_iou, per_class = (np.concatenate(x) for x in zip(*drawn, strict=True))
    return PhotoScores(miou=miou, fb_iou=fb_iou, per_class=per_class)


def interval(scores: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled scores (or of differences)."""
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_difference(
    a: MethodCounts, b: MethodCounts, *, resamples: int, seed: int, metric: Metric = "miou", confidence: float = 0.95
) -> tuple[float, float]:
    """The interval of score(a) - score(b) on the same episodes. Raises `FssError` if the lists differ."""
    if not a.same_episodes(b):
        raise FssError("the two methods were scored on different episode lists", hint="run the sweep again")
    first, second = (resampled_scores(s, resamples=resamples, seed=seed, metric=metric) for s in (a, b))
    return interval(first - second, confidence)
