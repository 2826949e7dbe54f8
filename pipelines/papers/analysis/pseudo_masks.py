"""The quality of FCP's pseudo masks: the conventional prior and the attention-based masks of each step (FCP, table 3).

Published on PASCAL-5i, 1-shot, ResNet-50: mIoU, precision and recall are 32.4, 46.5, 53.6 for conventional masks and
60.9, 69.1, 79.4 for attention-based masks.
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
from pipelines.config.choose import ChooseConfig
from pipelines.config.recipe import Recipe
from pipelines.data.episodes import EpisodeList
from pipelines.evaluation.evaluate import at_size, full_size_mask, mask_iou
from pipelines.pages.pictures import PREDICTION, photo_url
from pipelines.papers.analysis.figures import interval_text, pct, signed_points
from pipelines.papers.analysis.page import Analysis, AnalysisFile, PictureStrip, TextTable, write_page
from pipelines.papers.analysis.pictures import LEGEND, marked_photos
from pipelines.papers.analysis.prompted import EpisodeBatch, analyse_batch, cell_masks, open_study, remarks
from pipelines.papers.analysis.scores import first_of_each_class
from pipelines.papers.analysis.study import Study

CONVENTIONAL = "conventional"
SHOWN = 6


def masks_by_step(found: FcpAnalysis) -> dict[str, Tensor]:
    """Name -> pseudo masks [E, G, G] in 0 to 1: the conventional one, then the attention-based one of each step."""
    steps = {f"attention, step {t}": m[:, 0] for t, m in enumerate(found.attention_masks, start=1)}
    return {CONVENTIONAL: found.conventional[:, 0]} | steps


@dataclass(frozen=True, kw_only=True)
class PseudoMasks:
    """Pseudo masks of E rows (episode, shot) at threshold one half.

    by_name  name -> masks [E, G, G] bool
    truth    [E, G, G] bool
    class_ids  [E]
    """

    by_name: dict[str, Tensor]
    truth: Tensor
    class_ids: Tensor

    def quality(self, name: str, classes: Sequence[int]) -> PseudoMaskQuality:
        """mIoU, precision and recall of the masks of that name, over the classes."""
        return pseudo_mask_quality(self.by_name[name], self.truth, self.class_ids, classes)

    def sample(self, name: str) -> MethodCounts:
        """The episode counts of the masks of that name, for the bootstrap."""
        pairs = [episode_counts(m, t) for m, t in zip(self.by_name[name], self.truth, strict=True)]
        inter, union = (np.array([p[i] for p in pairs]) for i in (0, 1))
        return MethodCounts.of([(0, [Counts(class_ids=self.class_ids.numpy(), inter=inter, union=union)])])


def threshold_masks(batches: Iterable[EpisodeBatch], model: Segmenter) -> PseudoMasks:
    """The masks of all batches, and the truth on the same grid (nearest neighbour, void as background)."""
    masks: dict[str, list[Tensor]] = {}
    truth: list[Tensor] = []
    class_ids: list[int] = []
    for batch in batches:
        found = _fcp(batch)
        rows = found.pair.tolist()
        truth.append(cell_masks(model, [batch.samples[p].targets[0].mask for p in rows], batch.size, fill=False).cpu())
        class_ids += [batch.episodes[p].class_id for p in rows]
        for name, values in masks_by_step(found).items():
            masks.setdefault(name, []).append((values.float() > THRESHOLD).cpu())
    return PseudoMasks(by_name={k: torch.cat(v) for k, v in masks.items()}, truth=torch.cat(truth),
                       class_ids=torch.tensor(class_ids))


def _fcp(batch: EpisodeBatch) -> FcpAnalysis:
    assert isinstance(batch.analysis, FcpAnalysis)
    return batch.analysis


def analyse_pseudo_masks(recipe: Recipe, *, bundle: str, fold: int) -> AnalysisFile:
    """Quality of FCP's pseudo masks over a fold's episodes, with pictures.

    Raises `FssError` for a bundle of another method, and for a bundle trained on a class of the fold or on one of the
    photos.
    """
    study = open_study(recipe, bundle, ("fcp",), "attention-based pseudo masks")
    episodes, model = study.draw_unseen(fold), study.adapted
    masks = threshold_masks(analyse_batch(model, study.shards, episodes.episodes, recipe.eval, "pseudo masks"), model)
    return write_page(_analysis(study, fold, episodes, masks, _strips(study, episodes)), study)


def _strips(study: Study, episodes: EpisodeList) -> list[PictureStrip]:
    """The first episode of each class with its first shot: every pseudo mask, and the final segmentation."""
    strips, model = [], study.adapted
    picks = first_of_each_class(episodes, SHOWN)
    for batch in analyse_batch(model, study.shards, picks, study.recipe.eval, "pictures"):
        found = _fcp(batch)
        for row in (found.shot == 0).nonzero()[:, 0].tolist():
            at = int(found.pair[row])
            sample = batch.samples[at]
            target, panels = sample.targets[0], marked_photos(sample)
            for name, values in masks_by_step(found).items():
                mask = (at_size(values[row], target.mask.shape) > THRESHOLD).cpu()
                panels.append((f"{name}: {mask_iou(mask, target) * 100:.0f}",
                               photo_url(target.image, mask.numpy(), PREDICTION)))
            final, iou = full_size_mask(found.prediction.logits[at], target)
            panels.append((f"segmentation: {iou * 100:.0f}", photo_url(target.image, final, PREDICTION)))
            strips.append(PictureStrip(title=sample.class_name, panels=panels))
    return strips


def _analysis(study: Study, fold: int, episodes: EpisodeList, masks: PseudoMasks,
              strips: list[PictureStrip]) -> Analysis:
    choose, classes = study.recipe.choose, episodes.class_ids
    found = {name: masks.quality(name, classes) for name in masks.by_name}
    spread = {name: _interval(masks.sample(name), choose) for name in masks.by_name}
    rows = [[name, pct(q.miou), interval_text(spread[name]), pct(q.precision), pct(q.recall)]
            for name, q in found.items()]
    per_class = [[study.shards.classes[c].name, *(pct(masks.quality(name, [c]).miou) for name in masks.by_name)]
                 for c in classes]
    return Analysis(
        name="pseudo-masks", title="Quality of FCP's pseudo masks",
        setting=f"fold {fold}, {episodes.shots}-shot",
        findings=[_verdict(found, masks, choose),
                  "In the paper (PASCAL-5i, 1-shot, ResNet-50; mIoU, precision, recall): conventional masks 32.4, "
                  "46.5, 53.6; attention-based masks 60.9, 69.1, 79.4."],
        table=TextTable(columns=["pseudo mask", "mIoU", "95 % interval", "precision", "recall"], rows=rows),
        tables=[TextTable(title="IoU of every class", columns=["class", *masks.by_name], rows=per_class)],
        figures={"fold": fold, "shots": episodes.shots, "episodes": len(episodes), "list_hash": episodes.sha256,
                 "quality": {name: {**asdict(q), "interval": spread[name]} for name, q in found.items()}},
        strips=strips, legend=(LEGEND[0], LEGEND[1], (LEGEND[2][0], "pseudo mask, segmentation")),
        notes=[f"The masks on the {masks.truth.shape[1]} x {masks.truth.shape[2]} grid at threshold {THRESHOLD} are "
               "compared with the truth on that grid; void counts as background. Cells are pooled over a class's "
               f"episodes, then classes are averaged{'; each shot has its own masks' if episodes.shots > 1 else ''}. "
               "The number under a picture is the IoU of the mask enlarged to the photo.", _guides(study),
               *remarks(study)])


def _verdict(found: dict[str, PseudoMaskQuality], masks: PseudoMasks, choose: ChooseConfig) -> str:
    last, plain = list(found)[-1], found[CONVENTIONAL]
    if last == CONVENTIONAL:
        return (f"The conventional mask has {pct(plain.miou)} mIoU. The model has one step, so there is no "
                "attention-based mask.")
    low, high = paired_difference(masks.sample(last), masks.sample(CONVENTIONAL), resamples=choose.resamples,
                                  seed=choose.seed)
    gain = found[last].miou - plain.miou
    return (f"Attention-based masks have {pct(found[last].miou)} mIoU after the last step, conventional masks "
            f"{pct(plain.miou)}: a difference of {signed_points(gain)} points (95 % interval "
            f"{interval_text((low, high))}).")


def _interval(sample: MethodCounts, choose: ChooseConfig) -> tuple[float, float]:
    return interval(resampled_scores(sample, resamples=choose.resamples, seed=choose.seed))


def _guides(study: Study) -> str:
    """A note that says which pseudo mask guides which step of the bundle's model."""
    kind = study.info.config["pseudo_mask"]
    uses = {"attention": "each attention mask guides the next step",
            "attention_last": "the last attention mask guides the value of the last step",
            "conventional": "the conventional mask guides every step; the attention masks are shown but not used"}
    return f"In this bundle (pseudo_mask: {kind}) {uses[str(kind)]}."
