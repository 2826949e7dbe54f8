"""The share of the prompts' attention that lies on the object, with and without FCP's matching.

FCP argues for its matching as follows: a prototype that attends to pixels also gathers background, a prototype that
attends to prototypes of the query's foreground does not. Both kinds of attention are compared as weights over the
query's cells. With matching, these are the matching's weights times the weights of the query prototypes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.errors import FssError
from fss_models.metrics import interval
from fss_models.prototype_prompts.analysis import FcpAnalysis, VrpAnalysis
from fss_models.segmenter import Segmenter
from pipelines.config.choose import ChooseConfig
from pipelines.config.recipe import Recipe
from pipelines.data.episodes import EpisodeList
from pipelines.evaluation.evaluate import full_size_mask
from pipelines.pages.pictures import PREDICTION, photo_url
from pipelines.papers.analysis.figures import interval_text, pct, signed_points
from pipelines.papers.analysis.page import Analysis, AnalysisFile, PictureStrip, TextTable, write_page
from pipelines.papers.analysis.pictures import LEGEND, marked_photos
from pipelines.papers.analysis.prompted import (
    METHODS,
    EpisodeBatch,
    analyse_batch,
    cell_masks,
    heat_url,
    open_study,
    remarks,
)
from pipelines.papers.analysis.scores import first_of_each_class
from pipelines.papers.analysis.study import Study

PIXEL, PROTOTYPE = "prototype to pixel", "prototype to prototype"
SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class AttentionLayer:
    """One layer's attention maps [E, N, L]: N tokens over the L cells of the support or of the query (`side`)."""

    name: str
    side: str
    maps: Tensor

    @property
    def weights(self) -> Tensor:
        """The mean of the maps over the tokens [E, L]."""
        return self.maps.mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class AttentionShares:
    """One attention layer over M episodes; each array is [M].

    share     the share of the attention that lies on the object
    even      the same share if the attention were spread evenly, which is the object's share of the cells
    likeness  the similarity of the tokens' maps (`token_likeness`)
    """

    name: str
    share: np.ndarray
    even: np.ndarray
    likeness: np.ndarray


def attention_layers(analysis: FcpAnalysis | VrpAnalysis) -> list[AttentionLayer]:
    """The attention on the support, then on the query step by step; the prompts are made by the last layer."""
    if isinstance(analysis, VrpAnalysis):
        return [AttentionLayer(name="prompts on the support", side="support", maps=analysis.support.cross),
                AttentionLayer(name="prompts on the query", side="query", maps=analysis.query.cross)]
    matched = bool(analysis.matching.numel())
    tokens = "query prototypes" if matched else "support prototypes"
    layers = [AttentionLayer(name="support prototypes on the support", side="support",
                             maps=analysis.support_attention[-1])]
    layers += [AttentionLayer(name=f"{tokens} on the query, step {t}", side="query", maps=maps)
               for t, maps in enumerate(analysis.query_attention, start=1)]
    if matched:
        layers.append(AttentionLayer(name="prompts on the query, through the matching", side="query",
                                     maps=analysis.matching @ analysis.query_attention[-1]))
    return layers


def share_inside(weights: Tensor, inside: Tensor) -> Tensor:
    """The share [E] of `weights` [E, L] that lies on the cells `inside` [E, h, w] bool, with L = h * w."""
    return (weights * inside.flatten(1)).sum(dim=1) / weights.sum(dim=1)


def token_likeness(maps: Tensor) -> Tensor:
    """Mean cosine similarity of the maps of two different tokens, [E, N, L] -> [E].

    It is 1 where all tokens attend to the same cells, and where N is 1.
    """
    unit, count = F.normalize(maps.float(), dim=2), maps.shape[1]
    if count == 1:
        return unit.new_ones(len(unit))
    return (unit.sum(dim=1).square().sum(dim=1) - count) / (count * (count - 1))


def measure_shares(batches: Iterable[EpisodeBatch], model: Segmenter) -> tuple[list[AttentionShares], list[int]]:
    """The attention shares of every layer, averaged over shots, and the episodes' classes [M] in the same order."""
    found: dict[str, list[Tensor]] = {}
    class_ids: list[int] = []
    for batch in batches:
        inside = object_cells(batch, model)
        class_ids += [e.class_id for e in batch.episodes]
        for one in attention_layers(batch.analysis):
            mask = inside[one.side]
            rows = (share_inside(one.weights, mask), mask.flatten(1).float().mean(dim=1), token_likeness(one.maps))
            values = torch.stack([_mean_over_shots(r, batch.analysis.pair) for r in rows])
            found.setdefault(one.name, []).append(values.cpu())
    return [AttentionShares(name=n, share=share, even=even, likeness=likeness) for n, parts in found.items()
            for share, even, likeness in [torch.cat(parts, dim=1).numpy()]], class_ids


def object_cells(batch: EpisodeBatch, model: Segmenter) -> dict[str, Tensor]:
    """The cells [E, h, w] bool that the object covers in each row's photo, by side: `support` and `query`."""
    rows = list(zip(batch.analysis.pair.tolist(), batch.analysis.shot.tolist(), strict=True))
    return {"support": cell_masks(model, [batch.samples[p].references[k].mask for p, k in rows], batch.size),
            "query": cell_masks(model, [batch.samples[p].targets[0].mask for p, _ in rows], batch.size)}


def _mean_over_shots(rows: Tensor, pair: Tensor) -> Tensor:
    """Values of rows (episode, shot) [E] -> their mean over the shots of each episode [M]; `pair` is the episode."""
    counts = torch.bincount(pair)
    return torch.bincount(pair, weights=rows.double()) / counts


def mean_interval(values: np.ndarray, choose: ChooseConfig) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `values` [M], one value an episode.

    Two arrays of the same length are resampled with the same draws.
    """
    picks = np.random.default_rng([choose.seed, 0]).integers(len(values), size=(choose.resamples, len(values)))
    return interval(values[picks].mean(axis=1))


@dataclass(frozen=True, kw_only=True)
class BundleAttention:
    """One bundle's part of the page: its name, and the attention shares in the order of `attention_layers`."""

    name: str
    study: Study
    shares: list[AttentionShares]

    @property
    def label(self) -> str:
        """The bundle's name, with what its prompts attend to."""
        return f"{self.name} ({PROTOTYPE if self.study.info.config.get('matching') else PIXEL})"

    @property
    def prompts(self) -> AttentionShares:
        """The attention shares of the prompts, which are the last layer."""
        return self.shares[-1]


def analyse_matching(recipe: Recipe, *, bundle: str, other: str = "", fold: int = 0) -> AnalysisFile:
    """Share of the attention on the object over a fold's episodes, for an FCP bundle and optionally another one.

    `other` is a bundle of FCP without matching or of VRP-SAM, whose prototypes attend to pixels. Raises `FssError`
    for bundles of other methods, and for bundles trained on a class of the fold or on one of the photos.
    """
    studies = [open_study(recipe, b, METHODS, "attention maps of prototypes") for b in (bundle, other) if b]
    for study in studies:
        episodes = study.draw_unseen(fold)
    bundles = []
    for study, name in zip(studies, _names(studies), strict=True):
        batches = analyse_batch(study.adapted, study.shards, episodes.episodes, recipe.eval, name)
        shares, class_ids = measure_shares(batches, study.adapted)
        bundles.append(BundleAttention(name=name, study=study, shares=shares))
    strips = _strips(bundles, episodes)
    classes = [studies[0].shards.classes[c].name for c in class_ids]
    return write_page(_analysis(bundles, fold, classes, episodes, strips), *studies)


def _names(studies: Sequence[Study]) -> list[str]:
    """A name for each bundle: its method, followed by its id where two bundles are of one method.

    Raises `FssError` for one bundle given twice.
    """
    infos = [s.info for s in studies]
    if len({i.bundle_id for i in infos}) < len(infos):
        raise FssError("the same bundle is given twice", where=studies[1].url,
                       hint="give --other another bundle, or leave it out")
    return [i.method if len({k.method for k in infos}) == len(infos) else f"{i.method} {i.bundle_id[:8]}"
            for i in infos]


def _strips(bundles: Sequence[BundleAttention], episodes: EpisodeList) -> list[PictureStrip]:
    """The first episode of each class: each bundle's attention maps of the first shot, and its prediction."""
    picks = first_of_each_class(episodes, SHOWN)
    shown: dict[int, PictureStrip] = {}
    for one in bundles:
        model = one.study.adapted
        for batch in analyse_batch(model, one.study.shards, picks, one.study.recipe.eval, f"{one.name}, pictures"):
            for row in (batch.analysis.shot == 0).nonzero()[:, 0].tolist():
                at = int(batch.analysis.pair[row])
                key, sample = batch.episodes[at].episode_id, batch.samples[at]
                before = shown[key].panels if key in shown else marked_photos(sample)
                shown[key] = PictureStrip(title=sample.class_name,
                                          panels=[*before, *_panels(batch, model, row, one.name)])
    return [shown[e.episode_id] for e in picks]


def _panels(batch: EpisodeBatch, model: Segmenter, row: int, name: str) -> list[tuple[str, str]]:
    at = int(batch.analysis.pair[row])
    sample, inside = batch.samples[at], object_cells(batch, model)
    listed = attention_layers(batch.analysis)
    panels = []
    for one in (listed[0], listed[-1]):
        image = (sample.references[0] if one.side == "support" else sample.targets[0]).image
        share = float(share_inside(one.weights, inside[one.side])[row])
        heat = heat_url(image, one.weights[row].view(batch.size))
        panels.append((f"{name}, {one.side}: {pct(share)} % on the object", heat))
    mask, iou = full_size_mask(batch.analysis.prediction.logits[at], sample.targets[0])
    return [*panels, (f"{name}: IoU {iou * 100:.0f}", photo_url(sample.targets[0].image, mask, PREDICTION))]


def _analysis(bundles: Sequence[BundleAttention], fold: int, classes: Sequence[str], episodes: EpisodeList,
              strips: list[PictureStrip]) -> Analysis:
    choose = bundles[0].study.recipe.choose
    rows = [[f"{one.name}: {m.name}", pct(m.share.mean()), interval_text(mean_interval(m.share, choose)),
             pct(m.even.mean()), f"{m.share.mean() / m.even.mean():.2f}", f"{m.likeness.mean():.3f}"]
            for one in bundles for m in one.shares]
    figures = {one.label: {m.name: {"share": float(m.share.mean()), "interval": mean_interval(m.share, choose),
                                    "even": float(m.even.mean()),
                                    "alike": float(m.likeness.mean())} for m in one.shares} for one in bundles}
    by_class = {n: np.array([c == n for c in classes]) for n in dict.fromkeys(classes)}
    per_class = [[n, str(int(own.sum())), pct(bundles[0].prompts.even[own].mean()),
                  *(pct(one.prompts.share[own].mean()) for one in bundles)] for n, own in by_class.items()]
    return Analysis(
        name="matching", title="Attention of the prompts",
        setting=f"fold {fold}, {episodes.shots}-shot",
        findings=[_verdict(bundles, choose), f"Mean over {len(episodes)} episodes of the novel classes. The attention "
                  "of FCP's prompts with matching is their weight on a query prototype times its weight on a cell."],
        table=TextTable(columns=["attention", "on the object, %", "95 % interval", "evenly spread, %", "ratio",
                                 "similarity of maps"], rows=rows),
        tables=[TextTable(title="Prompts' attention on the query's object, by class", rows=per_class,
                          columns=["class", "episodes", "evenly spread, %", *(one.label for one in bundles)])],
        figures={"fold": fold, "shots": episodes.shots, "episodes": len(episodes), "list_hash": episodes.sha256,
                 "attention": figures},
        strips=strips, legend=LEGEND,
        notes=["On the object: the share of the attention weights (mean over heads and tokens) on cells that the "
               "object covers; void and crowd pixels do not belong to the object. Evenly spread: the object's share of "
               "the cells. FCP masks its support attention to the support's object, so that all of it lies on the "
               "object where supports are marked by masks.",
               "Similarity of maps: the mean cosine similarity of two tokens' maps. Near 1, all tokens attend to the "
               "same cells, and the matching has nothing to choose from.",
               "The colours of a map go from its own lowest to its own highest value.",
               *(n for one in bundles for n in remarks(one.study))])


def _verdict(bundles: Sequence[BundleAttention], choose: ChooseConfig) -> str:
    first, even = bundles[0], bundles[0].prompts.even.mean()
    said = f"{first.label} puts {pct(first.prompts.share.mean())} % of its prompts' attention on the query's object"
    spread = f"Spread evenly, the attention on the object would be {pct(even)} %."
    if len(bundles) == 1:
        return f"{said}. {spread}"
    second = bundles[1]
    gap = first.prompts.share - second.prompts.share
    return (f"{said}, {second.label} puts {pct(second.prompts.share.mean())} %: a difference of "
            f"{signed_points(gap.mean())} points (95 % interval {interval_text(mean_interval(gap, choose))}). {spread}")
