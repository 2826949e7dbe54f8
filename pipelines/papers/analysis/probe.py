"""A linear probe beside the few-shot score: whether the features contain the classes at all (SANSA, section 3.2).

The paper's argument: frozen SAM 2 features separate classes linearly nearly as well as adapted ones (65.8 and 69.2
mIoU on COCO-20i, fold 0), but few-shot matching works with the adapted features only (28.9 and 57.5 mIoU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.segmenter import Segmenter
from pipelines.base.progress import say
from pipelines.config.recipe import Recipe
from pipelines.data.episodes import Episode, EpisodeList, load_episode
from pipelines.data.schema import EpisodeSample
from pipelines.data.shardset import Shards
from pipelines.evaluation.evaluate import mask_iou
from pipelines.pages.pictures import PREDICTION, photo_url
from pipelines.papers.analysis.figures import interval_text, pct, signed_points
from pipelines.papers.analysis.page import Analysis, AnalysisFile, PictureStrip, TextTable, write_page
from pipelines.papers.analysis.pictures import LEGEND, marked_photos
from pipelines.papers.analysis.scores import (
    FewShotScores,
    first_of_each_class,
    predict_masks,
    score_few_shot,
)
from pipelines.papers.analysis.study import Study, cautions, draw_photos, encode_stride16

CELLS = 200_000  # training cells over all photos
ITERATIONS = 200
DECAY = 1e-4  # factor of the squared weights in the loss; features are standardised
SHOWN = 6
IGNORED = -1


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features: weight [Y, C], bias [Y], mean and std [C].

    The Y outcomes are the background, then the classes.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    @staticmethod
    def fit(cells: Tensor, labels: Tensor, outcomes: int) -> LinearProbe:
        """Fit by L-BFGS on cells [N, C] with labels [N] in 0 .. `outcomes` - 1. The problem is convex: no seed."""
        mean, std = cells.mean(dim=0), cells.std(dim=0).clamp(min=1e-6)
        x, y = (cells - mean) / std, labels.long()
        weight = torch.zeros(outcomes, cells.shape[1], device=x.device, requires_grad=True)
        bias = torch.zeros(outcomes, device=x.device, requires_grad=True)
        solver = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            solver.zero_grad()
            value = F.cross_entropy(x @ weight.T + bias, y) + DECAY * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        solver.step(loss)  # type: ignore[no-untyped-call]
        return LinearProbe(weight.detach(), bias.detach(), mean, std)

    def __call__(self, maps: Tensor) -> Tensor:
        """Feature maps [N, C, h, w] -> logits [N, Y, h, w]."""
        scaled = (maps - self.mean.view(1, -1, 1, 1)) / self.std.view(1, -1, 1, 1)
        return torch.einsum("nchw,yc->nyhw", scaled, self.weight) + self.bias.view(1, -1, 1, 1)


def label_map(shards: Shards, image_id: int, class_ids: Sequence[int]) -> np.ndarray:
    """The photo's labels [H, W] int64: 0 for background, 1 + the class's place in `class_ids` for an object.

    Void pixels, crowd pixels and pixels of two of the classes are `IGNORED`.
    """
    shown = [c for c in class_ids if c in shards.rows[image_id]["class_ids"]]
    labels = np.zeros(shards.pixels(image_id).shape[:2], dtype=np.int64)
    void = np.zeros(labels.shape, dtype=bool)
    for class_id in shown or class_ids[:1]:
        sample = shards.sample(image_id, class_id)
        void |= sample.ignore | (sample.mask & (labels > 0))
        labels[sample.mask] = class_ids.index(class_id) + 1
    labels[void] = IGNORED
    return labels


def train_probe(model: Segmenter, shards: Shards, photos: Sequence[int], class_ids: Sequence[int], *, batch: int,
                seed: int, name: str) -> tuple[LinearProbe, int]:
    """Fit a probe on the photos' cells, each labelled by the pixel at its centre; every model gets the same cells.

    Returns the probe and the number of cells.
    """
    each, found = max(1, CELLS // len(photos)), []
    for ids, maps in encode_stride16(model, shards, photos, batch, f"{name} features of train photos"):
        for image_id, one in zip(ids, maps, strict=True):
            labels = torch.from_numpy(label_map(shards, image_id, class_ids))
            small = F.interpolate(labels[None, None].float(), size=one.shape[-2:], mode="nearest-exact")
            at = (small.flatten() != IGNORED).nonzero()[:, 0]
            rng = np.random.default_rng([seed, image_id])
            at = at[torch.from_numpy(rng.permutation(len(at))[:each])]
            found.append((one.flatten(1).T[at.to(one.device)].float(), small.flatten()[at].to(one.device)))
    cells, labels = (torch.cat(x) for x in zip(*found, strict=True))
    say(f"{name} features: fitting the probe on {len(cells)} cells")
    return LinearProbe.fit(cells, labels, len(class_ids) + 1), len(cells)


@torch.no_grad()
def probe_scores(probe: LinearProbe, model: Segmenter, shards: Shards, photos: Sequence[int],
                 class_ids: Sequence[int], *, batch: int, name: str) -> list[float]:
    """IoU of the background and of each class over the photos; logits are resized to the original size (bilinear)."""
    outcomes = len(class_ids) + 1
    confusion = torch.zeros(outcomes * outcomes, dtype=torch.int64)
    for ids, maps in encode_stride16(model, shards, photos, batch, f"{name} features of test photos"):
        for image_id, logits in zip(ids, probe(maps.float()), strict=True):
            truth = torch.from_numpy(label_map(shards, image_id, class_ids))
            found = predict_labels(logits, truth.shape).cpu()
            keep = truth != IGNORED
            confusion += torch.bincount(truth[keep] * outcomes + found[keep], minlength=outcomes * outcomes)
    table = confusion.view(outcomes, outcomes).double()
    both = table.diagonal()
    scores: list[float] = (both / (table.sum(0) + table.sum(1) - both).clamp(min=1)).tolist()
    return scores


def predict_labels(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Logits [Y, h, w] -> the most likely outcome [H, W] int64, at `size` (H, W)."""
    full = F.interpolate(logits[None], size=tuple(size), mode="bilinear", align_corners=False)
    best: Tensor = full[0].argmax(dim=0)
    return best


@dataclass(frozen=True, kw_only=True)
class ProbeScores:
    """One model's probe, its IoU of the background and of each class, and the model's few-shot scores."""

    probe: LinearProbe
    ious: list[float]
    few: FewShotScores

    @property
    def miou(self) -> float:
        """The probe's mean IoU over the classes, without the background."""
        return float(np.mean(self.ious[1:]))


def analyse_probe(recipe: Recipe, *, bundle: str, fold: int, photos: int) -> AnalysisFile:
    """Probe and few-shot mIoU of frozen and adapted features on a fold's novel classes.

    The probe is fitted on up to `photos` train photos and scored on up to `photos` test photos. Raises `FssError` for
    a bundle without trained tensors or stride-16 features, and for a bundle trained on a class of the fold or on one
    of the test photos.
    """
    study = Study.open(recipe, bundle)
    models, episodes = study.models, study.draw_unseen(fold)
    class_ids, seed, batch = episodes.class_ids, recipe.eval.seed, recipe.eval.batch
    train, test = (draw_photos(study.shards, class_ids, split, photos, seed) for split in ("train", "test"))
    study.refuse_training_photos(test)
    found: dict[str, ProbeScores] = {}
    for name, model in models.items():
        probe, cells = train_probe(model, study.shards, train, class_ids, batch=batch, seed=seed, name=name)
        ious = probe_scores(probe, model, study.shards, test, class_ids, batch=batch, name=name)
        few = score_few_shot(model, study.shards, episodes, recipe, f"{name} few-shot")
        found[name] = ProbeScores(probe=probe, ious=ious, few=few)
    strips = _strips(study, models, found, episodes)
    counts = {"train_photos": len(train), "test_photos": len(test), "cells": cells}
    return write_page(_analysis(study, fold, found, episodes, strips, counts), study)


def _strips(study: Study, models: dict[str, Segmenter], found: dict[str, ProbeScores],
            episodes: EpisodeList) -> list[PictureStrip]:
    """One episode of each class: the query's mask by each model's probe and by few-shot matching."""
    picks = first_of_each_class(episodes, SHOWN)
    samples = [load_episode(study.shards, e) for e in picks]
    panels = [marked_photos(s) for s in samples]
    made = {f"probe, {name}": _probed(study, model, found[name].probe, picks, samples, episodes.class_ids)
            for name, model in models.items()}
    made |= {f"few-shot, {name}": predict_masks(model, picks, samples, study.recipe.eval)
             for name, model in models.items()}
    for name, masks in made.items():
        for shown, sample, (mask, iou) in zip(panels, samples, masks, strict=True):
            shown.append((f"{name}: {iou * 100:.0f}", photo_url(sample.targets[0].image, mask, PREDICTION)))
    return [PictureStrip(title=s.class_name, panels=p) for s, p in zip(samples, panels, strict=True)]


@torch.no_grad()
def _probed(study: Study, model: Segmenter, probe: LinearProbe, picks: Sequence[Episode],
            samples: Sequence[EpisodeSample], class_ids: list[int]) -> list[tuple[np.ndarray, float]]:
    queries = [s.targets[0] for s in samples]
    photos = [q.image_id for q in queries]
    parts = encode_stride16(model, study.shards, photos, study.recipe.eval.batch, "probe, pictures")
    logits = torch.cat([probe(m.float()) for _, m in parts])
    found = []
    for episode, query, one in zip(picks, queries, logits, strict=True):
        mask = (predict_labels(one, query.mask.shape) == class_ids.index(episode.class_id) + 1).cpu()
        found.append((mask.numpy(), mask_iou(mask, query)))
    return found


def _analysis(study: Study, fold: int, found: dict[str, ProbeScores], episodes: EpisodeList, strips: list[PictureStrip],
              counts: dict[str, int]) -> Analysis:
    frozen, adapted = found["frozen"], found["adapted"]
    names = [study.shards.classes[c].name for c in episodes.class_ids]
    gain, few_gain = adapted.miou - frozen.miou, adapted.few.miou - frozen.few.miou
    per_class = [[name, *(pct(v.ious[i + 1]) for v in found.values()),
                  *(pct(v.few.per_class[name]) for v in found.values())] for i, name in enumerate(names)]
    per_class.append(["background", *(pct(found[k].ious[0]) for k in found), "–", "–"])
    return Analysis(
        name="probe", title="Linear probe and few-shot matching", setting=f"fold {fold}, {episodes.shots}-shot",
        findings=[f"Training changes the linear probe's mIoU by {signed_points(gain)} points and the few-shot mIoU by "
                  f"{signed_points(few_gain)} points.",
                  f"Both are on the {len(names)} novel classes of fold {fold}. In the paper (COCO-20i, fold 0): probe "
                  "65.8 and 69.2, few-shot 28.9 and 57.5. Frozen features contain the classes, but not in a form that "
                  "can be matched."],
        table=TextTable(columns=["features", "linear probe, mIoU", f"{episodes.shots}-shot, mIoU", "95 % interval"],
                    rows=[[k, pct(v.miou), pct(v.few.miou), interval_text(v.few.interval)] for k, v in found.items()]),
        tables=[TextTable(title="IoU of every class", rows=per_class,
                      columns=["class", "probe, frozen", "probe, adapted", "few-shot, frozen", "few-shot, adapted"])],
        figures={"fold": fold, "shots": episodes.shots, **counts,
                 "few_shot": {k: asdict(v.few) for k, v in found.items()},
                 "probe": {k: {"miou": v.miou, "background": v.ious[0],
                               "per_class": dict(zip(names, v.ious[1:], strict=True))} for k, v in found.items()}},
        strips=strips, legend=LEGEND,
        notes=[f"The probe is a multinomial logistic regression (background and {len(names)} classes) on stride-16 "
               f"cells, fitted on {counts['cells']} cells of {counts['train_photos']} train photos and scored on "
               f"{counts['test_photos']} test photos. It is trained on the classes, whereas few-shot matching sees one "
               "support set.",
               *cautions(study)])
