"""Fitting a bundle's calibrator, on support sets of base classes and on target photos with and without the class.

Only photos of the train split are opened; test photos are for evaluation. Targets that training did not open come
first, because a model is more certain on photos that it was trained on than it will be on new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fss_models.bundle import BundleInfo
from fss_models.calibration import GOOD_IOU, MIN_ADJUST, Calibrator, describe_support, look, measure, stack
from fss_models.calibration_fit import Observation, auroc, expected_error, fit_calibrator
from fss_models.clip import Features
from fss_models.errors import FssError
from fss_models.leave_one_out import iou_at, leave_one_out, segment_trials
from fss_models.prompts import mask_prompt
from fss_models.segmenter import Segmenter
from pipelines.base.progress import say
from pipelines.base.ray_stage import run_task
from pipelines.bundles.bundle import load_bundle, read_bundle_info, save_calibrator
from pipelines.bundles.hub import on_hub
from pipelines.config.choose import CalibrateConfig
from pipelines.config.recipe import Recipe
from pipelines.data.schema import Sample
from pipelines.data.shardset import Shards
from pipelines.evaluation.evaluate import FeatureCache, true_masks

SHOTS = (1, 5, 1, 3)  # shots of successive support sets of a class, as far as it has photos
GROUPS = 4  # groups of classes; each is left out once to check the fit
OnProgress = Callable[[int, int], None]  # (support sets done, number of support sets)


@dataclass(frozen=True, kw_only=True)
class CalibrationDraw:
    """A support set for the fit: image ids of its shots, and of target photos with and without the class."""

    class_id: int
    shots: tuple[int, ...]
    present: tuple[int, ...]
    absent: tuple[int, ...]


class TooFewPhotosError(FssError):
    """There are too few photos for fitting a calibrator."""


def draw_sets(shards: Shards, classes: Sequence[int], config: CalibrateConfig, *, seen: Sequence[str] = (),
              split: str = "train") -> list[CalibrationDraw]:
    """Draw `config.sets` support sets, one class after another.

    `seen` are photos that training opened (sha256, first 16 digits). Raises `TooFewPhotosError` if no class has two
    photos in the split.
    """
    rng, known = np.random.default_rng(config.seed), set(seen)
    photos = {c: shards.photos_of(c, split) for c in classes}
    usable = [c for c in classes if len(photos[c]) > 1]
    if not usable:
        raise TooFewPhotosError(f"no class has two {split} photos", where=shards.url,
                                hint="build shards with more photos")
    rows = shards.images(split)
    fresh = {row["image_id"] for row in rows if row["sha256"][:16] not in known}
    lacking = {c: [row["image_id"] for row in rows if c not in row["class_ids"]] for c in usable}
    drawn = []
    for number in range(config.sets):
        c = usable[number % len(usable)]
        k = min(SHOTS[number // len(usable) % len(SHOTS)], len(photos[c]) - 1)
        k = k if k >= MIN_ADJUST else 1
        order = [int(i) for i in rng.permutation(photos[c])]
        shots, rest = order[:k], order[k:]
        drawn.append(CalibrationDraw(class_id=c, shots=tuple(shots), present=_first(rest, fresh, config.targets),
                                     absent=_first([int(i) for i in rng.permutation(lacking[c])], fresh,
                                                   config.targets)))
    return drawn


def _first(photos: Sequence[int], fresh: set[int], count: int) -> tuple[int, ...]:
    """The first `count` photos, those in `fresh` before the others."""
    return tuple(sorted(photos, key=lambda i: i not in fresh)[:count])


@torch.inference_mode()
def observe(model: Segmenter, shards: Shards, draws: Sequence[CalibrationDraw], *,
            on_progress: OnProgress = lambda done, total: None) -> Iterator[tuple[Observation, torch.Tensor]]:
    """For each draw: the observation that a calibrator is fitted on, and its photos' scene features [K + T, C]."""
    cache = FeatureCache(model)
    for number, draw in enumerate(draws):
        yield _observe(model, shards, cache, draw)
        on_progress(number + 1, len(draws))


def _observe(model: Segmenter, shards: Shards, cache: FeatureCache, draw: CalibrationDraw) -> tuple[Observation,
                                                                                                    torch.Tensor]:
    shots = shards.samples(draw.shots, draw.class_id)
    targets = shards.samples([*draw.present, *draw.absent], draw.class_id)
    features, row_of = cache([*shots, *targets])
    own = features.take(torch.tensor([row_of[s.image_id] for s in shots], device=model.device))
    prompts = [mask_prompt(s.mask) for s in shots]
    name = shards.classes[draw.class_id].name
    memory = model.memorise(own, model.collate([prompts], own.sizes.cpu(), names=[name]).to(model.device))
    pairs = torch.tensor([[0, row_of[t.image_id]] for t in targets], device=model.device)
    prediction = model.segment(memory, features, pairs)
    masks = torch.stack([model.preprocessor.mask(s.mask) for s in shots])
    ious = [_iou(model, logits, t) for logits, t in zip(prediction.logits, targets, strict=True)]
    present = torch.arange(len(targets)) < len(draw.present)
    left_out = _left_out(model, own, masks, shots, name) if len(shots) >= MIN_ADJUST else None
    observed = Observation(class_id=draw.class_id, present=present, iou=torch.tensor(ious) * present, left_out=left_out,
                           measured=measure(prediction, features, describe_support(own, masks), pairs).cpu())
    return observed, torch.nn.functional.normalize(look(features).mean(dim=(2, 3)), dim=1).cpu()


def _iou(model: Segmenter, logits: torch.Tensor, target: Sample) -> float:
    truth, ignore = true_masks(target)
    return iou_at(logits, truth, corners=model.corners_aligned, ignore=ignore)


def _left_out(model: Segmenter, own: Features, masks: torch.Tensor, shots: Sequence[Sample],
              name: str) -> tuple[torch.Tensor, torch.Tensor]:
    trials = leave_one_out(range(len(shots)))
    found = segment_trials(model, own, [mask_prompt(s.mask) for s in shots], trials, name)
    signatures = stack([describe_support(own.take(torch.tensor(kept)), masks[list(kept)]) for kept, _ in trials])
    pairs = torch.arange(len(shots))[:, None].expand(-1, 2).to(model.device)
    ious = [_iou(model, logits, s) for logits, s in zip(found.logits, shots, strict=True)]
    return measure(found, own, signatures, pairs).cpu(), torch.tensor(ious)


def calibrate_bundle(url: str, shards: Shards, config: CalibrateConfig, *, device: str = "cpu",
                     on_progress: OnProgress = lambda done, total: None) -> tuple[BundleInfo, Calibrator]:
    """Fit a calibrator and write it into the bundle at `url`; returns the new bundle.json and the calibrator.

    It is fitted on the classes that the bundle was trained on, or on all classes if it was trained on none. Raises
    `TooFewPhotosError` for shards with too few photos, and `FssError` for a bundle on the hub.
    """
    if on_hub(url):
        raise FssError("a bundle on the hub is not changed in place", where=url,
                       hint="fetch it, calibrate the copy and push that")
    model, info = load_bundle(url, device)
    base = [c.class_id for c in shards.manifest.classes if not info.classes or c.name in info.classes]
    draws = draw_sets(shards, base, config, seen=info.seen)
    if not draws or not any(d.absent for d in draws):
        raise TooFewPhotosError("every photo shows every class, so that absence cannot be learned", where=shards.url,
                                hint="give shards with photos of several classes")
    found = list(observe(model, shards, draws, on_progress=on_progress))
    sets, scenes = [o for o, _ in found], torch.unique(torch.cat([s for _, s in found]), dim=0)
    about = {"dataset": shards.manifest.dataset, "data": shards.manifest.content_hash, "seed": str(config.seed),
             "classes": str(len({s.class_id for s in sets})), "sets": str(len(sets)),
             "pairs": str(sum(len(s.present) for s in sets)), **_checked(sets, scenes)}
    calibrator = fit_calibrator(sets, scenes, about)
    return save_calibrator(url, calibrator), calibrator


def calibrate_refit(recipe: Recipe, bundle: str, shards: str, ray: Any) -> None:
    """Calibrate the bundle of a refit in a Ray task, unless it has a calibrator or `calibrate.sets` is 0.

    With too few photos the bundle stays uncalibrated, and a line says so. Raises `FssError` for any other failure, such
    as storage that cannot be reached.
    """
    if not recipe.calibrate.sets or read_bundle_info(bundle).calibrator:
        return
    workers = recipe.train.workers  # one worker's share fits on a machine
    cpus, gpus = recipe.sweep.cpus_per_run / workers, recipe.sweep.gpus_per_run / workers
    say("calibrating the refit")
    try:
        run_task(ray, _calibrate, bundle, shards, recipe.calibrate, gpus > 0, cpus=cpus, gpus=gpus)
    except TooFewPhotosError as error:
        say(f"the champion is not calibrated: {error}")


def _calibrate(bundle: str, shards: str, config: CalibrateConfig, gpu: bool) -> None:
    torch.set_num_threads(1)
    calibrate_bundle(bundle, Shards(shards), config, device="cuda" if gpu else "cpu")


def _checked(sets: Sequence[Observation], scenes: torch.Tensor) -> dict[str, str]:
    """AUROC and calibration error on classes left out of the fit; empty if there are fewer than `GROUPS` classes."""
    ids = sorted({s.class_id for s in sets})
    if len(ids) < GROUPS:
        return {}
    chances, present, good = [], [], []
    for group in range(GROUPS):
        out = set(ids[group::GROUPS])
        part = fit_calibrator([s for s in sets if s.class_id not in out], scenes, {})
        for s in sets:
            if s.class_id in out:
                chances.append(part.probabilities(s.measured))
                present.append(s.present)
                good.append(s.present & (s.iou >= GOOD_IOU))
    predicted, there, fine = torch.cat(chances), torch.cat(present), torch.cat(good)
    return {f"{name}_{what}": f"{figure(predicted[:, i], truth):.4f}"
            for i, (what, truth) in enumerate((("presence", there), ("good", fine)))
            for name, figure in (("auroc", auroc), ("ece", expected_error))}
