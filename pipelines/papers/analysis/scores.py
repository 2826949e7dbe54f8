"""Few-shot scores for the analyses: episodes of chosen classes, mIoU with its interval, predictions for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fss_models.errors import FssError
from fss_models.metrics import Counts, MethodCounts, interval, resampled_scores, score
from fss_models.segmenter import Segmenter
from pipelines.base.progress import Bar
from pipelines.config.evaluate import EvalConfig
from pipelines.config.recipe import Recipe
from pipelines.data import schema
from pipelines.data.episodes import Episode, EpisodeList, draw_episodes
from pipelines.data.shardset import ALL_FOLDS, Shards
from pipelines.evaluation.evaluate import FeatureCache, full_size_mask, memorise_supports, score_episodes
from pipelines.evaluation.results import table_counts
from pipelines.pages.curves import interval_bars


@dataclass(frozen=True, kw_only=True)
class FewShotScores:
    """Scores on one episode list, as fractions; `interval` is the 95 % bootstrap interval of the mIoU."""

    miou: float
    fb_iou: float
    interval: tuple[float, float]
    per_class: dict[str, float]
    episodes: int
    list_hash: str


def score_few_shot(model: Segmenter, shards: Shards, episodes: EpisodeList, recipe: Recipe,
                   title: str) -> FewShotScores:
    """Score a model on an episode list by the recipe's protocol; `title` is shown with the progress."""
    with Bar(title, len(episodes), unit="episodes") as bar:
        table, _ = score_episodes(model, shards, episodes, recipe.eval, on_progress=bar.to)
    return scores_of_counts(table_counts(table), shards, recipe, episodes)


def scores_of_counts(counts: Counts, shards: Shards, recipe: Recipe, episodes: EpisodeList) -> FewShotScores:
    """Scores from the counts of each episode, over the classes of their list."""
    scores = score(counts, episodes.class_ids)
    spread = resampled_scores(MethodCounts.of([(0, [counts])]), resamples=recipe.choose.resamples,
                              seed=recipe.choose.seed)
    return FewShotScores(miou=scores.miou, fb_iou=scores.fb_iou, interval=interval(spread), episodes=len(counts),
                         list_hash=episodes.sha256,
                         per_class={shards.classes[c].name: v for c, v in scores.per_class.items()})


def interval_plot(scores: Mapping[str, FewShotScores]) -> str:
    """The mIoU of each name with its interval, as inline SVG."""
    return interval_bars([(name, s.miou * 100, s.interval[0] * 100, s.interval[1] * 100)
                          for name, s in scores.items()], "mIoU, percent, with its 95 % interval")


def draw_episodes_among(shards: Shards, class_ids: Sequence[int], config: EvalConfig) -> EpisodeList:
    """Draw a list of `config.episodes` episodes of the given classes by the rule of `draw_episodes`.

    Episodes are drawn over all classes; those of other classes are dropped. Raises `FssError` if the recipe names an
    episode list, and if none of the classes has enough test photos.
    """
    if config.list:
        raise FssError("this analysis draws its own lists; eval.list would be ignored", hint="leave eval.list out")
    chosen = set(class_ids)
    names = {shards.classes[c].name for c in chosen}
    if not any(len(shards.tested_photos(c)) > config.shots for c in chosen):
        raise FssError(f"none of the classes {', '.join(sorted(names))} has the {config.shots + 1} test photos that "
                       f"{config.shots} shots need", where=shards.url, hint="lower eval.shots")
    episodes: list[Episode] = []
    count = config.episodes
    while len(episodes) < config.episodes:
        count *= 2
        drawn = draw_episodes(shards, fold=ALL_FOLDS, shots=config.shots, episodes=count, seed=config.seed)
        episodes = [e for e in drawn if e.class_id in chosen]
    rows = tuple(replace(e, episode_id=i) for i, e in enumerate(episodes[:config.episodes]))
    return replace(drawn, episodes=rows, dropped={n: why for n, why in drawn.dropped.items() if n in names})


@torch.inference_mode()
def predict_masks(model: Segmenter, episodes: Sequence[Episode], samples: Sequence[schema.EpisodeSample],
                  config: EvalConfig) -> list[tuple[np.ndarray, float]]:
    """Predict the target of each sample: its mask [H, W] bool at the original size, and the mask's IoU."""
    batch = memorise_supports(model, FeatureCache(model), episodes, samples, config)
    logits = model.segment(batch.memory, batch.features, batch.pairs).logits
    corners = model.corners_aligned
    return [full_size_mask(one, s.targets[0], corners=corners) for one, s in zip(logits, samples, strict=True)]


def first_of_each_class(episodes: EpisodeList, count: int) -> list[Episode]:
    """The first episode of each class, in the order of class ids, `count` at most."""
    found: dict[int, Episode] = {}
    for episode in episodes:
        found.setdefault(episode.class_id, episode)
    return [found[c] for c in sorted(found)][:count]
