"""Corrections of a target: negative clicks decoded with the memory-attended embedding, and negative references.

SANSA's appendix reports them without releasing their code; what it leaves open is decided here.
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
from pipelines.data.schema import EpisodeSample, Sample
from pipelines.data.shardset import Shards
from pipelines.evaluation.evaluate import FeatureCache, at_size
from pipelines.papers.analysis.scores import SupportMemory, remember

CLICKS = (0, 1, 3, 5)
REFERENCE = "negative reference"


@dataclass(frozen=True, kw_only=True)
class ClickedTargets:
    """What E targets look like after so many clicks.

    logits [E, h, w]; clicks: each target's points [P, 2] (x, y) in pixels of the size that is scored; drop: of the
    targets that got a first click, the object's logit at that pixel before and after it
    """

    logits: dict[int, Tensor]
    clicks: list[np.ndarray]
    drop: list[tuple[float, float]]


def false_positive_centre(mask: np.ndarray, truth: np.ndarray, ignore: np.ndarray) -> tuple[int, int] | None:
    """(x, y) deepest inside the largest 4-connected region of `mask` [H, W] that is not the object; None without one.

    Ignored pixels are no mistake.
    """
    regions, count = ndimage.label(mask & ~truth & ~ignore)
    if not count:
        return None
    largest = regions == np.bincount(regions.ravel())[1:].argmax() + 1
    depth = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def answer(model: MemoryMatcher, held: SupportMemory, attended: Tensor, points: Tensor | None = None) -> Tensor:
    """Logits [E, h, w] of all targets, each with P negative `points` [E, P, 2] in pixels of the square.

    SAM 2's rule: three candidates up to one click, the single mask for more; only the candidates where the decoder
    was trained from scratch, since nothing ever trained its single mask for targets.
    """
    count = 0 if points is None else points.shape[1]
    several = count <= model.core.sam.multimask_max_pt_num or not model.pretrained_parts
    labels = None if points is None else torch.zeros(points.shape[:2], dtype=torch.int32, device=points.device)
    maps = take(held.features.maps, held.queries)
    return model.core.decode(maps, attended, points=points, labels=labels, candidates=several).best()[0]


def attend(model: MemoryMatcher, held: SupportMemory) -> Tensor:
    """The targets' embeddings [E, C, g, g] after memory attention; the sets are of equal size."""
    memory = held.memory
    return model.core.attend(held.features.maps["f2"][held.queries], memory.tensors["features"],
                             memory.tensors["pointers"])


def scored_masks(target: Sample, model: MemoryMatcher, config: EvalConfig) -> tuple[np.ndarray, np.ndarray]:
    """(truth, ignore) at the size that the protocol scores: the original, or the model's square."""
    if config.at == "original":
        return target.mask, target.ignore
    truth, ignore = (model.preprocessor.target(m).numpy().astype(bool) for m in (target.mask, target.ignore))
    return truth, ignore


def click(model: MemoryMatcher, held: SupportMemory, config: EvalConfig,
          rounds: Sequence[int] = CLICKS) -> ClickedTargets:
    """Correct each target up to max(rounds) times; one without a false positive is left as it is from then on."""
    truths = [scored_masks(s.targets[0], model, config) for s in held.samples]
    attended = attend(model, held)
    logits = answer(model, held, attended)
    kept, clicks, drop = {0: logits}, [np.zeros((0, 2)) for _ in truths], []
    for number in range(1, max(rounds) + 1):
        rows = _next_clicks(logits, truths, clicks, number)
        if rows:
            before, logits = logits, logits.clone()
            scale = torch.tensor([[model.side / truths[r][0].shape[1], model.side / truths[r][0].shape[0]]
                                  for r in rows])
            placed = torch.from_numpy(np.stack([clicks[r] for r in rows])).float() * scale[:, None]
            some = replace(held, queries=held.queries[rows])
            logits[rows] = answer(model, some, attended[rows], placed.to(attended.device))
            if number == 1:
                at = [(truths[r][0].shape, clicks[r][0]) for r in rows]
                drop = [(_at(before[r], *a), _at(logits[r], *a)) for r, a in zip(rows, at, strict=True)]
        kept[number] = logits
    return ClickedTargets(logits={n: kept[n] for n in rounds}, clicks=clicks, drop=drop)


def _next_clicks(logits: Tensor, truths: Sequence[tuple[np.ndarray, np.ndarray]], clicks: list[np.ndarray],
                 number: int) -> list[int]:
    """Add a click to each target that still has a false positive and had one in every round; returns which."""
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
    """For each episode a test photo without its class, neither query nor support. Raises `FssError` if none is."""
    found = []
    for episode in episodes:
        used = {episode.query, *episode.supports}
        pool = [row["image_id"] for row in shards.images("test")
                if episode.class_id not in row["class_ids"] and row["image_id"] not in used]
        if not pool:
            raise FssError(f"every test photo shows {shards.classes[episode.class_id].name!r}", where=shards.url)
        found.append(int(np.random.default_rng([seed, episode.episode_id]).choice(pool)))
    return found


def with_negative(shards: Shards, sample: EpisodeSample, photo: int) -> EpisodeSample:
    """The same episode with one more reference: a photo without the class, its mask empty."""
    return replace(sample, references=[*sample.references, shards.sample(photo, sample.class_id)])


@dataclass(frozen=True, kw_only=True)
class CorrectedBatch:
    """A batch of episodes, corrected by clicks and by a negative reference."""

    clicked: ClickedTargets
    reference: Tensor  # logits [E, h, w]

    @property
    def variants(self) -> dict[str, Tensor]:
        """Name -> logits."""
        return {**{click_name(n): v for n, v in self.clicked.logits.items()}, REFERENCE: self.reference}


def click_name(clicks: int) -> str:
    return "no correction" if not clicks else f"{clicks} negative click{'s' if clicks > 1 else ''}"


@torch.inference_mode()
def answer_batches(model: MemoryMatcher, cache: FeatureCache, shards: Shards, episodes: Sequence[Episode],
                   negatives: Sequence[int], config: EvalConfig) -> tuple[list[EpisodeSample], CorrectedBatch]:
    """Every variant of a batch of episodes; `negatives` are their negative photos."""
    samples = [load_episode(shards, e) for e in episodes]
    clicked = click(model, remember(model, cache, episodes, samples, config), config)
    more = [with_negative(shards, s, p) for s, p in zip(samples, negatives, strict=True)]
    held = remember(model, cache, episodes, more, config)
    return samples, CorrectedBatch(clicked=clicked, reference=answer(model, held, attend(model, held)))
