"""Few-shot scores of an analysis: episodes over chosen classes, mIoU with its interval, predictions for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fss_models.clip import Features, Memory, Prompt, PromptKind
from fss_models.errors import FssError
from fss_models.metrics import Counts, MethodCounts, episode_counts, interval, resampled_scores, score
from fss_models.segmenter import Segmenter
from pipelines.config import EvalConfig, Recipe
from pipelines.data import schema
from pipelines.data.collate import mark
from pipelines.data.episodes import Episode, EpisodeList, draw_episodes
from pipelines.data.shardset import ALL_FOLDS, Shards
from pipelines.progress import Bar
from pipelines.training.evaluate import FeatureCache, at_size, score_episodes
from pipelines.training.results import table_counts


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Scores on one list, as fractions; `interval` is the bootstrap's 95 % of the mIoU."""

    miou: float
    fb_iou: float
    interval: tuple[float, float]
    per_class: dict[str, float]
    episodes: int
    list_hash: str

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def few_shot(model: Segmenter, shards: Shards, episodes: EpisodeList, recipe: Recipe, title: str) -> FewShot:
    """Score a model on a list by the recipe's protocol."""
    with Bar(title, len(episodes), unit="episodes") as bar:
        table, _ = score_episodes(model, shards, episodes, recipe.eval, told=bar.to)
    return of_counts(table_counts(table), shards, recipe, episodes)


def of_counts(counts: Counts, shards: Shards, recipe: Recipe, episodes: EpisodeList) -> FewShot:
    """Scores of episode counts over the classes of their list."""
    scores = score(counts, episodes.class_ids)
    spread = resampled_scores(MethodCounts.of([(0, [counts])]), resamples=recipe.choose.resamples,
                              seed=recipe.choose.seed)
    return FewShot(miou=scores.miou, fb_iou=scores.fb_iou, interval=interval(spread), episodes=len(counts),
                   list_hash=episodes.sha256,
                   per_class={shards.classes[c].name: v for c, v in scores.per_class.items()})


def episodes_among(shards: Shards, class_ids: Sequence[int], config: EvalConfig) -> EpisodeList:
    """A list over the given classes alone, by the rule of `draw_episodes`: that of all classes, other ones left out.

    Raises `FssError` for a recipe with a list of its own, and if no class has enough test photos.
    """
    if config.list:
        raise FssError("this analysis draws its own lists; eval.list would be ignored", mend="leave eval.list out")
    wanted = set(class_ids)
    names = {shards.classes[c].name for c in wanted}
    if not any(len(shards.photos_of(c, "test")) > config.shots for c in wanted):
        raise FssError(f"no class of {', '.join(sorted(names))} has the {config.shots + 1} test photos that "
                       f"{config.shots} shots need", where=shards.url, mend="lower eval.shots")
    kept: list[Episode] = []
    count = config.episodes
    while len(kept) < config.episodes:
        count *= 2
        drawn = draw_episodes(shards, fold=ALL_FOLDS, shots=config.shots, episodes=count, seed=config.seed)
        kept = [e for e in drawn if e.class_id in wanted]
    rows = tuple(replace(e, episode_id=i) for i, e in enumerate(kept[:config.episodes]))
    return replace(drawn, episodes=rows, dropped={n: why for n, why in drawn.dropped.items() if n in names})


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """A batch of E episodes whose supports are in memory.

    features of all its photos, memory of E support sets, queries [E]: each target's row of `features`
    """

    samples: list[schema.EpisodeSample]
    features: Features
    memory: Memory
    queries: Tensor


def remember(model: Segmenter, cache: FeatureCache, episodes: Sequence[Episode],
             samples: Sequence[schema.EpisodeSample], config: EvalConfig) -> Remembered:
    """Encode and memorise as the evaluation does; a reference without the class enters with an empty mask."""
    features, row_of = cache([s for one in samples for s in (*one.references, one.targets[0])])
    where = torch.zeros(len(samples), max(len(s.references) for s in samples), dtype=torch.int64)
    for i, one in enumerate(samples):
        where[i, :len(one.references)] = torch.tensor([row_of[r.image_id] for r in one.references])
    sets = [[_prompt(model, r, config, e.episode_id, k) for k, r in enumerate(one.references)]
            for e, one in zip(episodes, samples, strict=True)]
    prompts = model.collate(sets, features.sizes.cpu(), where).to(model.device)
    queries = torch.tensor([row_of[s.targets[0].image_id] for s in samples], device=model.device)
    return Remembered(samples=list(samples), features=features, memory=model.memorise(features, prompts),
                      queries=queries)


def _prompt(model: Segmenter, reference: schema.Sample, config: EvalConfig, episode: int, index: int) -> Prompt:
    if not reference.mask.any():
        return Prompt(kind=PromptKind.MASK, mask=torch.from_numpy(reference.mask))
    rng = np.random.default_rng([config.seed, episode, index])
    return mark(model, reference, config.prompts, rng, training=False)


@torch.inference_mode()
def predicted(model: Segmenter, episodes: Sequence[Episode], samples: Sequence[schema.EpisodeSample],
              config: EvalConfig) -> list[tuple[np.ndarray, float]]:
    """Each target's mask [H, W] bool at its original size, and its IoU."""
    held = remember(model, FeatureCache(model), episodes, samples, config)
    pairs = torch.stack([torch.arange(len(samples), device=model.device), held.queries], dim=1)
    logits = model.segment(held.memory, held.features, pairs).logits
    corners = model.corners_aligned
    return [drawn_mask(one, s.targets[0], corners=corners) for one, s in zip(logits, samples, strict=True)]


def drawn_mask(logits: Tensor, target: schema.Sample, *, corners: bool = False) -> tuple[np.ndarray, float]:
    """Logits [h, w] as a mask [H, W] bool, and its IoU; `corners` is the method's `corners_aligned`."""
    mask = (at_size(logits, target.mask.shape, corners=corners) > 0).cpu()
    return mask.numpy(), mask_iou(mask, target)


def mask_iou(mask: Tensor, target: schema.Sample) -> float:
    """IoU of a mask [H, W] bool with the target's, void and crowd left out."""
    truth, ignore = (torch.from_numpy(np.ascontiguousarray(m)) for m in (target.mask, target.ignore))
    inter, union = episode_counts(mask, truth, ignore)
    return inter[1] / max(union[1], 1)


def first_of_each_class(episodes: EpisodeList, count: int) -> list[Episode]:
    """Up to `count` episodes to show: the first of each class, in order."""
    found: dict[int, Episode] = {}
    for episode in episodes:
        found.setdefault(episode.class_id, episode)
    return [found[c] for c in sorted(found)][:count]
