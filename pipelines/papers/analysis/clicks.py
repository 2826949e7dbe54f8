"""Corrections of a target: negative clicks decoded with the memory-attended embedding, and negative references.

SANSA's appendix reports such corrections, but their code was not released. The details that the paper leaves open are
our own choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from fss_models.errors import FssError
from fss_models.sam2_core.core import take
from fss_models.sam2_core.matcher import MemoryMatcher
from pipelines.config.evaluate import EvalConfig
from pipelines.data.episodes import Episode, load_episode
from pipelines.data.schema import EpisodeSample
from pipelines.data.shardset import Shards
from pipelines.evaluation.evaluate import FeatureCache, SupportMemory, at_size, memorise_supports, scored_masks

CLICKS = (0, 1, 3, 5)
REFERENCE = "negative reference"


@dataclass(frozen=True, kw_only=True)
class ClickedTargets:
    """The predictions of E targets by number of clicks.

    logits  number of clicks -> logits [E, h, w]
    clicks  for each target its points [P, 2] (x, y), in pixels of the size at which masks are scored
    drop    for each target that got a first click: the object's logit at that pixel before and after the click
    """

    logits: dict[int, Tensor]
    clicks: list[np.ndarray]
    drop: list[tuple[float, float]]


def false_positive_centre(mask: np.ndarray, truth: np.ndarray, ignore: np.ndarray) -> tuple[int, int] | None:
    """The point (x, y) deepest inside the largest 4-connected false positive of `mask` [H, W].

    Ignored pixels do not count as false positives. Returns None if there is no false positive.
    """
    regions, count = ndimage.label(mask & ~truth & ~ignore)
    if not count:
        return None
    largest = regions == np.bincount(regions.ravel())[1:].argmax() + 1
    depth = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def decode_targets(model: MemoryMatcher, batch: SupportMemory, attended: Tensor,
                   points: Tensor | None = None) -> Tensor:
    """Logits [E, h, w] of all targets, each with P negative `points` [E, P, 2] in pixels of the model's square.

    SAM 2's rule is used: the best of three candidates for at most one click, the single mask for more clicks. A
    decoder that was trained from scratch always uses the candidates, because its single mask was never trained on
    targets.
    """
    count = 0 if points is None else points.shape[1]
    several = count <= model.core.sam.multimask_max_pt_num or not model.pretrained_parts
    labels = None if points is None else torch.zeros(points.shape[:2], dtype=torch.int32, device=points.device)
    maps = take(batch.features.maps, batch.queries)
    return model.core.decode(maps, attended, points=points, labels=labels, candidates=several).best()[0]


def attend_memory(model: MemoryMatcher, batch: SupportMemory) -> Tensor:
    """The targets' embeddings [E, C, g, g] after memory attention. All support sets must have the same size."""
    memory = batch.memory
    return model.core.attend(batch.features.maps["f2"][batch.queries], memory.tensors["features"],
                             memory.tensors["pointers"])


def click_targets(model: MemoryMatcher, batch: SupportMemory, config: EvalConfig,
                  rounds: Sequence[int] = CLICKS) -> ClickedTargets:
    """Correct each target by up to max(rounds) clicks; a target without a false positive gets no further click."""
    masks = [scored_masks(model, s.targets[0], config) for s in batch.samples]
    truths = [(truth.numpy(), ignore.numpy()) for truth, ignore in masks]
    attended = attend_memory(model, batch)
    logits = decode_targets(model, batch, attended)
    by_round, clicks, drop = {0: logits}, [np.zeros((0, 2)) for _ in truths], []
    for number in range(1, max(rounds) + 1):
        rows = _next_clicks(logits, truths, clicks, number)
        if rows:
            before, logits = logits, logits.clone()
            scale = torch.tensor([[model.side / truths[r][0].shape[1], model.side / truths[r][0].shape[0]]
                                  for r in rows])
            placed = torch.from_numpy(np.stack([clicks[r] for r in rows])).float() * scale[:, None]
            some = replace(batch, queries=batch.queries[rows])
            logits[rows] = decode_targets(model, some, attended[rows], placed.to(attended.device))
            if number == 1:
                at = [(truths[r][0].shape, clicks[r][0]) for r in rows]
                drop = [(_at(before[r], *a), _at(logits[r], *a)) for r, a in zip(rows, at, strict=True)]
        by_round[number] = logits
    return ClickedTargets(logits={n: by_round[n] for n in rounds}, clicks=clicks, drop=drop)


def _next_clicks(logits: Tensor, truths: Sequence[tuple[np.ndarray, np.ndarray]], clicks: list[np.ndarray],
                 number: int) -> list[int]:
    """Add a click to each target that has had a false positive in every round; returns the rows of these targets."""
    rows = []
    for row, (one, (truth, ignore)) in enumerate(zip(logits, truths, strict=True)):
        if len(clicks[row]) < number - 1:
            continue
        centre = false_positive_centre((at_size(one, truth.shape) > 0).cpu().numpy(), truth, ignore)
        if centre is not None:
            clicks[row] = np.concatenate([clicks[row], [centre]])
            rows.append(row)
    return rows


def _at(logits: Tensor, size: tuple[int, ...], point: np.ndarray) -> float:
    return float(at_size(logits, size)[int(point[1]), int(point[0])])


def negative_photos(shards: Shards, episodes: Sequence[Episode], seed: int) -> list[int]:
    """Draw for each episode a test photo without its class that is neither its query nor one of its supports.

    Returns the photos' ids. Raises `FssError` if an episode has no such photo.
    """
    found = []
    for episode in episodes:
        used = {episode.query, *episode.supports}
        pool = [row["image_id"] for row in shards.images("test")
                if episode.class_id not in row["class_ids"] and row["image_id"] not in used]
        if not pool:
            raise FssError(f"there is no test photo without {shards.classes[episode.class_id].name!r} to use as a "
                           "negative reference", where=shards.url)
        found.append(int(np.random.default_rng([seed, episode.episode_id]).choice(pool)))
    return found


def with_negative(shards: Shards, sample: EpisodeSample, photo: int) -> EpisodeSample:
    """The episode `sample` with one more reference: the photo without the class, with an empty mask."""
    return replace(sample, references=[*sample.references, shards.sample(photo, sample.class_id)])


@dataclass(frozen=True, kw_only=True)
class CorrectedBatch:
    """The predictions of a batch of episodes with negative clicks, and with a negative reference instead."""

    clicked: ClickedTargets
    reference: Tensor  # logits [E, h, w]

    @property
    def variants(self) -> dict[str, Tensor]:
        """Name of a correction -> logits [E, h, w]."""
        return {**{click_name(n): v for n, v in self.clicked.logits.items()}, REFERENCE: self.reference}


def click_name(clicks: int) -> str:
    """The name of a correction in tables and result files."""
    return "no correction" if not clicks else f"{clicks} negative click{'s' if clicks > 1 else ''}"


@torch.inference_mode()
def correct_episodes(model: MemoryMatcher, cache: FeatureCache, shards: Shards, episodes: Sequence[Episode],
                     negatives: Sequence[int], config: EvalConfig) -> tuple[list[EpisodeSample], CorrectedBatch]:
    """Load a batch of episodes and predict it with every correction; `negatives` are the episodes' negative photos."""
    samples = [load_episode(shards, e) for e in episodes]
    clicked = click_targets(model, memorise_supports(model, cache, episodes, samples, config), config)
    more = [with_negative(shards, s, p) for s, p in zip(samples, negatives, strict=True)]
    batch = memorise_supports(model, cache, episodes, more, config)
    return samples, CorrectedBatch(clicked=clicked, reference=decode_targets(model, batch, attend_memory(model, batch)))
