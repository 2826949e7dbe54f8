"""How good FCP's pseudo masks are: the conventional prior beside the attention-based masks, step by step (table 3).

Published on PASCAL-5i, 1-shot, ResNet-50: mIoU, precision and recall 32.4, 46.5, 53.6 of conventional and 60.9, 69.1,
79.4 of attention-based masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from fss_models.metrics import Counts, MethodCounts, episode_counts, interval, paired_difference, resampled_scores
from fss_models.prototype_prompts.analysis import FcpAnalysis
from fss_models.prototype_prompts.pseudo_masks import THRESHOLD, PseudoMaskQuality, pseudo_mask_quality
from fss_models.segmenter import Segmenter
from pipelines.analysis.page import Analysis, Strip, Table, Written, between, pct, points, write_page
from pipelines.analysis.pictures import LEGEND
from pipelines.analysis.prompted import Analysed, analysed, cell_masks, open_study, remarks
from pipelines.analysis.scores import drawn_mask, first_of_each_class, mask_iou
from pipelines.analysis.study import Study
from pipelines.config import ChooseConfig, Recipe
from pipelines.data.episodes import EpisodeList
from pipelines.report.pictures import PREDICTION, SUPPORT, TRUTH, photo_url
from pipelines.training.evaluate import at_size

CONVENTIONAL = "conventional"
SHOWN = 6


def pseudo_masks(found: FcpAnalysis) -> dict[str, Tensor]:
    """Name -> masks [E, G, G], to be cut at one half: conventional, then attention-based, step by step."""
    steps = {f"attention, step {t}": m[:, 0] for t, m in enumerate(found.attention_masks, start=1)}
    return {CONVENTIONAL: found.conventional[:, 0]} | steps


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Masks of E rows (episode, shot) cut at one half, [E, G, G] bool by name; truth [E, G, G], class_ids [E]."""

    masks: dict[str, Tensor]
    truth: Tensor
    class_ids: Tensor

    def quality(self, name: str, classes: Sequence[int]) -> PseudoMaskQuality:
        """mIoU, precision and recall over the classes."""
        return pseudo_mask_quality(self.masks[name], self.truth, self.class_ids, classes)

    def sample(self, name: str) -> MethodCounts:
        """What the bootstrap resamples."""
        pairs = [episode_counts(m, t) for m, t in zip(self.masks[name], self.truth, strict=True)]
        inter, union = (np.array([p[i] for p in pairs]) for i in (0, 1))
        return MethodCounts.of([(0, [Counts(class_ids=self.class_ids.numpy(), inter=inter, union=union)])])


def cut(batches: Iterable[Analysed], model: Segmenter) -> Cut:
    """The masks of all batches, and the truth on their grid by nearest neighbour, void as background."""
    masks: dict[str, list[Tensor]] = {}
    truth: list[Tensor] = []
    class_ids: list[int] = []
    for batch in batches:
        found = _fcp(batch)
        rows = found.pair.tolist()
        truth.append(cell_masks(model, [batch.samples[p].targets[0].mask for p in rows], batch.size, fill=False).cpu())
        class_ids += [batch.episodes[p].class_id for p in rows]
        for name, values in pseudo_masks(found).items():
            masks.setdefault(name, []).append((values.float() > THRESHOLD).cpu())
    return Cut(masks={k: torch.cat(v) for k, v in masks.items()}, truth=torch.cat(truth),
               class_ids=torch.tensor(class_ids))


def _fcp(batch: Analysed) -> FcpAnalysis:
    assert isinstance(batch.found, FcpAnalysis)
    return batch.found


def analyse_pseudo_masks(recipe: Recipe, *, bundle: str, fold: int) -> Written:
    """Quality of FCP's pseudo masks over a fold's episodes, and pictures of them.

    Raises `FssError` for a bundle of another method, and one trained on a class of the fold or on one of the photos.
    """
    study = open_study(recipe, bundle, ("fcp",), "attention-based pseudo masks")
    episodes = study.unseen(fold).episodes(recipe.eval)
    study.refuse_seen([i for e in episodes for i in (e.query, *e.supports)])
    model = study.adapted
    made = cut(analysed(model, study.shards, episodes.episodes, recipe.eval, "pseudo masks"), model)
    return write_page(_analysis(study, fold, episodes, made, _strips(study, episodes)), recipe, study.shards,
                      [(bundle, study.info)])


def _strips(study: Study, episodes: EpisodeList) -> list[Strip]:
    """The first episode of each class with its first shot: every pseudo mask, and what comes of them."""
    strips, model = [], study.adapted
    picks = first_of_each_class(episodes, SHOWN)
    for batch in analysed(model, study.shards, picks, study.recipe.eval, "pictures"):
        found = _fcp(batch)
        for row in (found.shot == 0).nonzero()[:, 0].tolist():
            at = int(found.pair[row])
            sample = batch.samples[at]
            reference, target = sample.references[0], sample.targets[0]
            panels = [("support", photo_url(reference.image, reference.mask, SUPPORT)),
                      ("query, truth", photo_url(target.image, target.mask, TRUTH))]
            for name, values in pseudo_masks(found).items():
                mask = (at_size(values[row], target.mask.shape) > THRESHOLD).cpu()
                panels.append((f"{name}: {mask_iou(mask, target) * 100:.0f}",
                               photo_url(target.image, mask.numpy(), PREDICTION)))
            final, iou = drawn_mask(found.prediction.logits[at], target)
            panels.append((f"segmentation: {iou * 100:.0f}", photo_url(target.image, final, PREDICTION)))
            strips.append(Strip(title=sample.class_name, panels=panels))
    return strips


def _analysis(study: Study, fold: int, episodes: EpisodeList, made: Cut, strips: list[Strip]) -> Analysis:
    choose, classes = study.recipe.choose, episodes.class_ids
    found = {name: made.quality(name, classes) for name in made.masks}
    spread = {name: _interval(made.sample(name), choose) for name in made.masks}
    rows = [[name, pct(q.miou), between(spread[name]), pct(q.precision), pct(q.recall)] for name, q in found.items()]
    per_class = [[study.shards.classes[c].name, *(pct(made.quality(name, [c]).miou) for name in made.masks)]
                 for c in classes]
    return Analysis(
        name="pseudo-masks", title="The pseudo masks that guide FCP",
        setting=f"fold {fold}, {episodes.shots}-shot",
        said=[_verdict(found, made, choose),
              "In the paper (PASCAL-5i, 1-shot, ResNet-50; mIoU, precision, recall): conventional 32.4, 46.5, 53.6, "
              "attention-based 60.9, 69.1, 79.4."],
        table=Table(columns=["pseudo mask", "mIoU", "95 % interval", "precision", "recall"], rows=rows),
        tables=[Table(title="IoU of every class", columns=["class", *made.masks], rows=per_class)],
        figures={"fold": fold, "shots": episodes.shots, "episodes": len(episodes), "list_hash": episodes.sha256,
                 "quality": {name: {**asdict(q), "interval": spread[name]} for name, q in found.items()}},
        strips=strips, legend=(LEGEND[0], LEGEND[1], (LEGEND[2][0], "pseudo mask, segmentation")),
        notes=[f"Masks on the {made.truth.shape[1]} x {made.truth.shape[2]} grid, cut at {THRESHOLD}, against the "
               "truth on that grid, void as background. Cells are pooled over a class's episodes, then classes are "
               f"averaged{'; each shot has its own masks' if episodes.shots > 1 else ''}. The number under a picture "
               "is the IoU of the mask enlarged to the photo.", _guides(study), *remarks(study)])


def _verdict(found: dict[str, PseudoMaskQuality], made: Cut, choose: ChooseConfig) -> str:
    last, plain = list(found)[-1], found[CONVENTIONAL]
    if last == CONVENTIONAL:
        return f"The conventional mask has {pct(plain.miou)} mIoU; with one step there is no attention-based one."
    low, high = paired_difference(made.sample(last), made.sample(CONVENTIONAL), resamples=choose.resamples,
                                  seed=choose.seed)
    gain = found[last].miou - plain.miou
    return (f"Attention-based masks have {pct(found[last].miou)} mIoU after the last step, conventional ones "
            f"{pct(plain.miou)}: {points(gain)} points (95 % interval {between((low, high))}).")


def _interval(sample: MethodCounts, choose: ChooseConfig) -> tuple[float, float]:
    return interval(resampled_scores(sample, resamples=choose.resamples, seed=choose.seed))


def _guides(study: Study) -> str:
    kind = study.info.config["pseudo_mask"]
    told = {"attention": "each attention mask guides the next step",
            "attention_last": "the last attention mask guides the value of the last step",
            "conventional": "the conventional mask guides every step, attention masks are only looked at"}
    return f"In this bundle (pseudo_mask: {kind}) {told[str(kind)]}."
