"""Where the prompts look: the share of attention on the object, prototype to prototype and prototype to pixel (FCP).

FCP's argument for its matching: prototypes that attend pixels also gather background, prototypes that attend
prototypes of the query's foreground do not. Both are weights over the query's cells: the matching's map times the
query prototypes' own.
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
from pipelines.analysis.page import Analysis, Strip, Table, Written, between, pct, points, write_page
from pipelines.analysis.pictures import LEGEND
from pipelines.analysis.prompted import METHODS, Analysed, analysed, cell_masks, heat_url, open_study, remarks
from pipelines.analysis.scores import drawn_mask, first_of_each_class
from pipelines.analysis.study import Study
from pipelines.config import ChooseConfig, Recipe
from pipelines.data.episodes import EpisodeList
from pipelines.data.schema import EpisodeSample
from pipelines.report.pictures import PREDICTION, SUPPORT, TRUTH, photo_url

PIXEL, PROTOTYPE = "prototype to pixel", "prototype to prototype"
SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Who attends what: maps [E, N, L] of N tokens over the cells of the support or the query."""

    name: str
    side: str
    maps: Tensor

    @property
    def weights(self) -> Tensor:
        """The mean over the tokens [E, L]."""
        return self.maps.mean(dim=1)


@dataclass(frozen=True, kw_only=True)
class Mass:
    """One value an episode [M]: a reading's share of weight on the object, what it would be if spread evenly (the
    object's share of the cells), and how alike the tokens' maps are."""

    name: str
    share: np.ndarray
    even: np.ndarray
    alike: np.ndarray


def readings(found: FcpAnalysis | VrpAnalysis) -> list[Reading]:
    """Support side, query side step by step; the last is what the prompts are made of."""
    if isinstance(found, VrpAnalysis):
        return [Reading(name="prompts on the support", side="support", maps=found.support.cross),
                Reading(name="prompts on the query", side="query", maps=found.query.cross)]
    matched = bool(found.matching.numel())
    who = "query prototypes" if matched else "support prototypes"
    listed = [Reading(name="support prototypes on the support", side="support", maps=found.support_attention[-1])]
    listed += [Reading(name=f"{who} on the query, step {t}", side="query", maps=maps)
               for t, maps in enumerate(found.query_attention, start=1)]
    if matched:
        listed.append(Reading(name="prompts on the query, through the matching", side="query",
                              maps=found.matching @ found.query_attention[-1]))
    return listed


def share_inside(weights: Tensor, inside: Tensor) -> Tensor:
    """Share of weights [E, L] on cells that are inside [E, h, w] bool, L = h * w: [E]."""
    return (weights * inside.flatten(1)).sum(dim=1) / weights.sum(dim=1)


def token_likeness(maps: Tensor) -> Tensor:
    """Mean cosine of two different tokens' maps, [E, N, L] -> [E]: 1 where all look at the same cells, or N is 1."""
    unit, count = F.normalize(maps.float(), dim=2), maps.shape[1]
    if count == 1:
        return unit.new_ones(len(unit))
    return (unit.sum(dim=1).square().sum(dim=1) - count) / (count * (count - 1))


def measure(batches: Iterable[Analysed], model: Segmenter) -> tuple[list[Mass], list[int]]:
    """The mass of every reading, and the episodes' classes [M] in the same order. Shots are averaged."""
    found: dict[str, list[Tensor]] = {}
    class_ids: list[int] = []
    for batch in batches:
        inside = sides(batch, model)
        class_ids += [e.class_id for e in batch.episodes]
        for one in readings(batch.found):
            mask = inside[one.side]
            rows = (share_inside(one.weights, mask), mask.flatten(1).float().mean(dim=1), token_likeness(one.maps))
            values = torch.stack([_mean_over_shots(r, batch.found.pair) for r in rows])
            found.setdefault(one.name, []).append(values.cpu())
    return [Mass(name=n, share=share, even=even, alike=alike) for n, parts in found.items()
            for share, even, alike in [torch.cat(parts, dim=1).numpy()]], class_ids


def sides(batch: Analysed, model: Segmenter) -> dict[str, Tensor]:
    """The object's cells of each row's support and query [E, h, w] bool."""
    rows = list(zip(batch.found.pair.tolist(), batch.found.shot.tolist(), strict=True))
    return {"support": cell_masks(model, [batch.samples[p].references[k].mask for p, k in rows], batch.size),
            "query": cell_masks(model, [batch.samples[p].targets[0].mask for p, _ in rows], batch.size)}


def _mean_over_shots(rows: Tensor, pair: Tensor) -> Tensor:
    """[E] -> [episodes]."""
    counts = torch.bincount(pair)
    return torch.bincount(pair, weights=rows.double()) / counts


def mean_interval(values: np.ndarray, choose: ChooseConfig) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `values` [M], one an episode; equal lengths are resampled alike."""
    picks = np.random.default_rng([choose.seed, 0]).integers(len(values), size=(choose.resamples, len(values)))
    return interval(values[picks].mean(axis=1))


@dataclass(frozen=True, kw_only=True)
class Looked:
    """One bundle's part of the page. `masses` as `readings`, hence the last is the prompts'."""

    name: str
    study: Study
    masses: list[Mass]

    @property
    def label(self) -> str:
        """The name, and what its prompts attend."""
        return f"{self.name} ({PROTOTYPE if self.study.info.config.get('matching') else PIXEL})"

    @property
    def prompts(self) -> Mass:
        """What the prompts are made of."""
        return self.masses[-1]


def analyse_matching(recipe: Recipe, *, bundle: str, other: str = "", fold: int = 0) -> Written:
    """Share of attention on the object over a fold's episodes, of FCP and, beside it, of another bundle.

    `other` is FCP without matching or VRP-SAM, whose prototypes attend pixels. Raises `FssError` for bundles of other
    methods, and for those trained on a class of the fold or on one of the photos.
    """
    studies = [open_study(recipe, b, METHODS, "attention maps of prototypes") for b in (bundle, other) if b]
    for study in studies:
        data = study.unseen(fold)
    episodes = data.episodes(recipe.eval)
    for study in studies:
        study.refuse_seen([i for e in episodes for i in (e.query, *e.supports)])
    looks = []
    for study, name in zip(studies, _names(studies), strict=True):
        batches = analysed(study.adapted, study.shards, episodes.episodes, recipe.eval, name)
        masses, class_ids = measure(batches, study.adapted)
        looks.append(Looked(name=name, study=study, masses=masses))
    strips = _strips(looks, episodes)
    classes = [studies[0].shards.classes[c].name for c in class_ids]
    return write_page(_analysis(looks, fold, classes, episodes, strips), recipe, studies[0].shards,
                      [(s.url, s.info) for s in studies])


def _names(studies: Sequence[Study]) -> list[str]:
    """The methods, with the bundles' ids where they are the same. Raises `FssError` for one bundle given twice."""
    infos = [s.info for s in studies]
    if len({i.bundle_id for i in infos}) < len(infos):
        raise FssError("is given twice", where=studies[1].url, mend="give --other another bundle, or leave it out")
    return [i.method if len({k.method for k in infos}) == len(infos) else f"{i.method} {i.bundle_id[:8]}"
            for i in infos]


def _strips(looks: Sequence[Looked], episodes: EpisodeList) -> list[Strip]:
    """The first episode of each class: where each bundle's prompts look, and what comes of it. First shot only."""
    picks = first_of_each_class(episodes, SHOWN)
    shown: dict[int, Strip] = {}
    for look in looks:
        model = look.study.adapted
        for batch in analysed(model, look.study.shards, picks, look.study.recipe.eval, f"{look.name}, pictures"):
            for row in (batch.found.shot == 0).nonzero()[:, 0].tolist():
                at = int(batch.found.pair[row])
                key, sample = batch.episodes[at].episode_id, batch.samples[at]
                before = shown[key].panels if key in shown else _given(sample)
                shown[key] = Strip(title=sample.class_name, panels=[*before, *_panels(batch, model, row, look.name)])
    return [shown[e.episode_id] for e in picks]


def _given(sample: EpisodeSample) -> list[tuple[str, str]]:
    """Support and query as they are marked in the data."""
    reference, target = sample.references[0], sample.targets[0]
    return [("support", photo_url(reference.image, reference.mask, SUPPORT)),
            ("query, truth", photo_url(target.image, target.mask, TRUTH))]


def _panels(batch: Analysed, model: Segmenter, row: int, name: str) -> list[tuple[str, str]]:
    at = int(batch.found.pair[row])
    sample, inside = batch.samples[at], sides(batch, model)
    listed = readings(batch.found)
    panels = []
    for one in (listed[0], listed[-1]):
        image = (sample.references[0] if one.side == "support" else sample.targets[0]).image
        share = float(share_inside(one.weights, inside[one.side])[row])
        heat = heat_url(image, one.weights[row].view(batch.size))
        panels.append((f"{name}, {one.side}: {pct(share)} % on it", heat))
    mask, iou = drawn_mask(batch.found.prediction.logits[at], sample.targets[0])
    return [*panels, (f"{name}: IoU {iou * 100:.0f}", photo_url(sample.targets[0].image, mask, PREDICTION))]


def _analysis(looks: Sequence[Looked], fold: int, classes: Sequence[str], episodes: EpisodeList,
              strips: list[Strip]) -> Analysis:
    choose = looks[0].study.recipe.choose
    rows = [[f"{look.name}: {m.name}", pct(m.share.mean()), between(mean_interval(m.share, choose)),
             pct(m.even.mean()), f"{m.share.mean() / m.even.mean():.2f}", f"{m.alike.mean():.3f}"]
            for look in looks for m in look.masses]
    figures = {look.label: {m.name: {"share": float(m.share.mean()), "interval": mean_interval(m.share, choose),
                                     "even": float(m.even.mean()), "alike": float(m.alike.mean())}
                            for m in look.masses} for look in looks}
    by_class = {n: np.array([c == n for c in classes]) for n in dict.fromkeys(classes)}
    per_class = [[n, str(int(own.sum())), pct(looks[0].prompts.even[own].mean()),
                  *(pct(look.prompts.share[own].mean()) for look in looks)] for n, own in by_class.items()]
    return Analysis(
        name="matching", title="Where the prompts look",
        setting=f"fold {fold}, {episodes.shots}-shot",
        said=[_verdict(looks, choose), f"Mean over {len(episodes)} episodes with the novel classes. Prompts "
              "of FCP with matching look through it: their weight on a query prototype times its weight on a cell."],
        table=Table(columns=["attention", "on the object, %", "95 % interval", "evenly spread", "ratio", "alike"],
                    rows=rows),
        tables=[Table(title="Prompts' attention on the query's object, by class", rows=per_class,
                      columns=["class", "episodes", "evenly spread", *(look.label for look in looks)])],
        figures={"fold": fold, "shots": episodes.shots, "episodes": len(episodes), "list_hash": episodes.sha256,
                 "attention": figures},
        strips=strips, legend=LEGEND,
        notes=["Share of the attention weights (mean over heads and tokens) on cells that the object covers; void and "
               "crowd are not the object. Evenly spread: the object's share of the cells. FCP's support attention is "
               "masked to the support's object, hence all of it is on it where supports are marked by masks.",
               "Alike: mean cosine of two tokens' maps. Near 1 all tokens look at the same cells, and a matching has "
               "nothing to choose from.",
               "A map's colours go from its own lowest to its own highest value.",
               *(n for look in looks for n in remarks(look.study))])


def _verdict(looks: Sequence[Looked], choose: ChooseConfig) -> str:
    first, even = looks[0], looks[0].prompts.even.mean()
    said = f"{first.label} puts {pct(first.prompts.share.mean())} % of its prompts' attention on the query's object"
    if len(looks) == 1:
        return f"{said}; spread evenly it would be {pct(even)} %."
    second = looks[1]
    gap = first.prompts.share - second.prompts.share
    return (f"{said}, {second.label} {pct(second.prompts.share.mean())} %: {points(gap.mean())} points (95 % interval "
            f"{between(mean_interval(gap, choose))}); spread evenly it would be {pct(even)} %.")
