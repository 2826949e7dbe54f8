"""Fitting and measuring a calibrator: plain logistic regressions, AUROC, expected calibration error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fss_models.calibration import GOOD_IOU, RIDGE, Calibrator, ShotAgreement, distance, with_one
from fss_models.errors import FssError

DIRECTIONS = 8  # main directions of the scenes that are kept
NEWTON_STEPS = 50
MIN_SETS = 20  # support sets with leave-one-out results that the shift needs
EM_STEPS = 200
FAR = 1.5  # a photo is far beyond this multiple of the fitted photos' largest distance


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One support set on T images: measured [T, F], present [T] bool, iou [T] (0 where the class is absent).

    left_out: the `measure`s [K, F] and IoUs [K] of each shot segmented by the others, for sets of three shots or more.
    """

    class_id: int
    measured: Tensor
    present: Tensor
    iou: Tensor
    left_out: tuple[Tensor, Tensor] | None = None


def fit_calibrator(sets: Sequence[Observation], scenes: Tensor, about: dict[str, str]) -> Calibrator:
    """Fit a calibrator to observations; scenes [N, C] are the unit vectors of single photos.

    Raises `FssError` if all images have the class, or none has.
    """
    measured, present, iou = (torch.cat([getattr(s, k) for s in sets]) for k in ("measured", "present", "iou"))
    if bool(present.all()) or not bool(present.any()):
        raise FssError("a calibrator needs photos with and without the classes", hint="give shards with more photos")
    centre, scale = measured.mean(dim=0), measured.std(dim=0).clamp(min=1e-6)
    inputs = with_one((measured - centre) / scale)
    weights = torch.where(present, 0.5 / present.float().mean(), 0.5 / (~present).float().mean())
    there = logistic(inputs, present, weights)
    good = logistic(inputs[present], iou[present] >= GOOD_IOU, torch.ones(int(present.sum())))
    known, spread, limit = _domain(scenes)
    plain = Calibrator(centre=centre, scale=scale, presence=there, quality=good, shift=torch.zeros(2, 4),
                       usual=torch.zeros(3), scenes=known, spread=spread, limit=limit, about=about)
    return _with_shift(plain, [s for s in sets if s.left_out is not None])


def opinion_of(calibrator: Calibrator, measured: Tensor, ious: Tensor) -> ShotAgreement:
    """Leave-one-out summary of a support set: measures [K, F] and ious [K] of each shot segmented by the others."""
    there, good = calibrator.logits(measured).mean(dim=0).tolist()
    return ShotAgreement(presence=there, quality=good, iou=float(ious.mean()))


def _with_shift(plain: Calibrator, sets: Sequence[Observation]) -> Calibrator:
    """Add second regressions, on the first ones' logits and the support set's leave-one-out results."""
    if len(sets) < MIN_SETS:
        return plain
    opinions = [opinion_of(plain, *s.left_out) for s in sets if s.left_out is not None]
    told = torch.tensor([[o.presence, o.quality, o.iou] for o in opinions])
    usual = told.mean(dim=0)
    gaps = torch.cat([g.expand(len(s.present), -1) for g, s in zip((told - usual)[:, None], sets, strict=True)])
    logits = torch.cat([plain.logits(s.measured) for s in sets])
    present, iou = (torch.cat([getattr(s, k) for s in sets]) for k in ("present", "iou"))
    weights = torch.where(present, 0.5 / present.float().mean(), 0.5 / (~present).float().mean())
    inputs = [with_one(torch.cat([logits[:, [i]], gaps[:, [i, 2]]], dim=1)) for i in (0, 1)]
    there = logistic(inputs[0], present, weights)
    good = logistic(inputs[1][present], iou[present] >= GOOD_IOU, torch.ones(int(present.sum())))
    return Calibrator(**{**plain.__dict__, "shift": torch.stack([there, good]), "usual": usual})


def logistic(inputs: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Weights [F] of a logistic regression on rows [N, F] (the last column ones), by Newton's method.

    The labels are [N] bool and the rows' weights [N]. All weights but the constant are shrunk. The targets are Platt's,
    a little less than 1 and a little more than 0, so that the fit of separable rows converges.
    """
    x, w = inputs.double(), weights.double()
    yes, no = float(w[truth].sum()), float(w[~truth].sum())
    y = torch.where(truth, (yes + 1) / (yes + 2), 1 / (no + 2)).double()
    ridge = torch.full((x.shape[1],), RIDGE * float(w.sum()), dtype=torch.float64)
    ridge[-1] = 1e-9
    found = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(NEWTON_STEPS):
        p = (x @ found).sigmoid()
        slope = x.T @ (w * (p - y)) + ridge * found
        curve = (x * (w * p * (1 - p))[:, None]).T @ x + torch.diag(ridge)
        step = torch.linalg.solve(curve, slope)
        found = found - step
        if float(step.abs().max()) < 1e-9:
            break
    return found.float()


def _domain(scenes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean scene and main directions [M, C], standard deviations along them and of the rest [M], the limit [1]."""
    mean = scenes.mean(dim=0)
    _, lengths, directions = torch.linalg.svd(scenes - mean, full_matrices=False)
    m = min(DIRECTIONS, len(scenes) - 1)
    spread = (lengths ** 2 / (len(scenes) - 1)).sqrt()
    rest = (spread[m:] ** 2).sum().sqrt()
    known, widths = torch.cat([mean[None], directions[:m]]), torch.cat([spread[:m], rest[None]]).clamp(min=1e-6)
    return known, widths, FAR * distance(scenes, known, widths).amax()[None]


def estimate_prevalence(logits: Tensor) -> float:
    """Estimate the share of N images that show the class, from their logits [N] at a prevalence of one half.

    The method is expectation maximisation (Saerens, Latinne and Decaestecker, 2002); the result is at least 0.5 / N.
    """
    least = 0.5 / len(logits)
    share = torch.tensor(0.5)
    for _ in range(EM_STEPS):
        share = (logits + share.logit()).sigmoid().mean().clamp(least, 1 - least)
    return float(share)


def auroc(scores: Tensor, truth: Tensor) -> float:
    """Probability that a positive scores higher than a negative, ties counting half. NaN if either kind is missing."""
    yes, no = scores[truth].double(), scores[~truth].double()
    if not len(yes) or not len(no):
        return float("nan")
    ordered = no.sort().values
    below = torch.searchsorted(ordered, yes, right=False) + torch.searchsorted(ordered, yes, right=True)
    return float(below.double().mean() / (2 * len(no)))


def reliability(chances: Tensor, truth: Tensor, bins: int = 10) -> list[tuple[float, float, int]]:
    """Mean probability, share of positives and count of each non-empty bin; the bins are equally wide."""
    which = (chances * bins).long().clamp(0, bins - 1)
    return [(float(chances[which == b].mean()), float(truth[which == b].float().mean()), int((which == b).sum()))
            for b in range(bins) if bool((which == b).any())]


def expected_error(chances: Tensor, truth: Tensor, bins: int = 10) -> float:
    """Expected calibration error: the gap between probability and share of positives, averaged over bins by count."""
    return sum(abs(said - was) * count for said, was, count in reliability(chances, truth, bins)) / len(truth)
