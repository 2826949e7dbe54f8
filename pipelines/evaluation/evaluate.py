"""Scoring a bundle on a fixed episode list. Each distinct image is encoded once; episodes are segmented in batches.

A prediction is scored as is usual in the field: the logits are resized to the query's original size (bilinear), pixels
above 0 are the object, void and crowd pixels are left out. With `eval.at=square` masks are compared on the method's
square instead.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from cachetools import LRUCache
from torch import Tensor

from fss_models.clip import Features, Memory, Prompt, PromptBatch, PromptKind
from fss_models.errors import FssError
from fss_models.execution import autocast, chosen_precision
from fss_models.metrics import episode_counts
from fss_models.prompts import mask_prompt
from fss_models.segmenter import Segmenter
from pipelines.base.limits import usable_cores
from pipelines.config.evaluate import EvalConfig
from pipelines.data.collate import prompt_from_mask
from pipelines.data.episodes import Episode, EpisodeList, load_episode
from pipelines.data.schema import EpisodeSample, Sample
from pipelines.data.shardset import Shards
from pipelines.evaluation.results import EPISODE_SCORES

CACHE_BYTES = 512_000_000
OnProgress = Callable[[int], None]  # (episodes done)


class FeatureCache:
    """Features by image id, up to `limit_bytes`; the least recently used ones are dropped first."""

    def __init__(self, model: Segmenter, limit_bytes: int = CACHE_BYTES) -> None:
        self.model, self.encoded = model, 0
        self._features: LRUCache[tuple[int, bool], Features] = LRUCache(limit_bytes, getsizeof=_bytes)

    def __call__(self, samples: Sequence[Sample], *, supports: bool = False) -> tuple[Features, dict[int, int]]:
        """Features of the distinct images among `samples`, and the row of each image id.

        supports: only `memorise` is to read them
        """
        distinct, apart = {s.image_id: s for s in samples}, supports and self.model.supports_apart
        found = {i: self._features[i, apart] for i in distinct if (i, apart) in self._features}
        found |= self._encode([s for i, s in distinct.items() if i not in found], apart)
        parts = [found[i] for i in distinct]
        for image_id, part in zip(distinct, parts, strict=True):
            if _bytes(part) <= self._features.maxsize:
                self._features[image_id, apart] = part
        return Features.stack(parts), {image_id: row for row, image_id in enumerate(distinct)}

    def _encode(self, samples: list[Sample], apart: bool) -> dict[int, Features]:
        if not samples:
            return {}
        encode = self.model.encode_supports if apart else self.model.encode
        features = encode(self.model.prepare([s.image for s in samples]).to(self.model.device))
        self.encoded += len(samples)
        return {sample.image_id: Features(maps={k: v[row:row + 1].clone() for k, v in features.maps.items()},
                                          sizes=features.sizes[row:row + 1]) for row, sample in enumerate(samples)}


def _bytes(features: Features) -> int:
    return sum(v.nbytes for v in features.maps.values())


def refuse_seen_photos(seen: Sequence[str], shards: Shards, episodes: EpisodeList, where: str) -> None:
    """Raise `FssError` if training opened a photo of the list: the score would measure memory, not ability.

    `seen` are the photos that training opened (sha256, first 16 digits); `where` names the bundle.
    """
    photos = {i for e in episodes for i in (e.query, *e.supports)}
    known = set(seen)
    found = [i for i in sorted(photos) if shards.rows[i]["sha256"][:16] in known] if known else []
    if found:
        name = shards.rows[found[0]]["file_name"]
        raise FssError(f"this bundle was trained on {len(found)} of the {len(photos)} test photos (first: {name})",
                       where=where, hint="evaluate the bundle on photos that it was not trained on")


@torch.inference_mode()
def score_episodes(model: Segmenter, shards: Shards, episodes: EpisodeList, config: EvalConfig, *,
                   on_progress: OnProgress = lambda done: None) -> tuple[pa.Table, dict[str, float]]:
    """Score the episodes; returns `EPISODE_SCORES` (one row an episode) and images_encoded, seconds, images_per_s.

    `config` says how supports are marked, at which size masks are compared, and how many episodes a batch has.
    `on_progress` is called after every batch with the number of episodes done.
    """
    cache, rows, start = FeatureCache(model), [], time.perf_counter()
    ordered = sorted(episodes, key=lambda e: (e.class_id, e.episode_id))  # neighbours share photos
    images = 0
    for chunk, samples in _read_ahead(shards, ordered, config.batch):
        images += sum(len(s.references) + 1 for s in samples)
        for episode, row in zip(chunk, _score_batch(model, cache, chunk, samples, config), strict=True):
            rows.append({"episode_id": episode.episode_id, "class_id": episode.class_id, **row})
        on_progress(len(rows))
    seconds = time.perf_counter() - start
    table = pa.Table.from_pylist(sorted(rows, key=lambda r: r["episode_id"]), schema=EPISODE_SCORES)
    return table, {"images_encoded": cache.encoded, "seconds": seconds, "images_per_s": images / seconds}


def _read_ahead(shards: Shards, episodes: Sequence[Episode], batch: int
                ) -> Iterator[tuple[Sequence[Episode], list[EpisodeSample]]]:
    """The episodes of each batch with their photos, which threads decode while the batch before is scored."""
    chunks = [episodes[first:first + batch] for first in range(0, len(episodes), batch)]
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="read") as threads:
        def read(chunk: Sequence[Episode]) -> list[Future[EpisodeSample]]:
            return [threads.submit(load_episode, shards, e) for e in chunk]

        ahead = deque(read(chunk) for chunk in chunks[:2])
        for number, chunk in enumerate(chunks, 2):
            samples = [one.result() for one in ahead.popleft()]
            ahead.extend(read(following) for following in chunks[number:number + 1])
            yield chunk, samples


def _score_batch(model: Segmenter, cache: FeatureCache, episodes: Sequence[Episode], samples: list[EpisodeSample],
                 config: EvalConfig) -> Iterator[dict[str, Any]]:
    with autocast(model.device, chosen_precision(config.precision, model.device)):
        batch = memorise_supports(model, cache, episodes, samples, config)
        prediction = model.segment(batch.memory, batch.features, batch.pairs).to(model.device, torch.float32)
    for one, logits, score in zip(samples, prediction.logits, prediction.scores.tolist(), strict=True):
        yield _score_one(model, one.targets[0], logits, score, config)


@dataclass(frozen=True, kw_only=True)
class SupportMemory:
    """A batch of E episodes with the memory of their supports.

    features  of the targets at least, one row a photo
    memory    of E support sets
    queries   [E]: the row of each target in `features`
    """

    samples: list[EpisodeSample]
    features: Features
    memory: Memory
    queries: Tensor

    @property
    def pairs(self) -> Tensor:
        """[E, 2]: the support set and the target of each episode, for `Segmenter.segment`."""
        return torch.stack([torch.arange(len(self.samples), device=self.queries.device), self.queries], dim=1)


def collate_episodes(model: Segmenter, cache: FeatureCache, episodes: Sequence[Episode],
                     samples: Sequence[EpisodeSample], config: EvalConfig) -> tuple[Features, PromptBatch, Tensor]:
    """The features of a batch of E episodes' photos, the prompts of their supports, and the rows of their targets [E].
    """
    features, row_of = cache([s for one in samples for s in (*one.references, one.targets[0])])
    return features, _prompts(model, episodes, samples, features, row_of, config), _queries(model, samples, row_of)


def _prompts(model: Segmenter, episodes: Sequence[Episode], samples: Sequence[EpisodeSample], features: Features,
             row_of: Mapping[int, int], config: EvalConfig) -> PromptBatch:
    """The prompts of the episodes' supports, whose rows in `features` are `row_of`."""
    where = torch.zeros(len(samples), max(len(s.references) for s in samples), dtype=torch.int64)
    for i, one in enumerate(samples):
        where[i, :len(one.references)] = torch.tensor([row_of[r.image_id] for r in one.references])
    sets = [[draw_prompt(model, r, config, e.episode_id, k) for k, r in enumerate(one.references)]
            for e, one in zip(episodes, samples, strict=True)]
    names = [s.class_name for s in samples]
    prompts: PromptBatch = model.collate(sets, features.sizes.cpu(), where, names).to(model.device)
    return prompts


def _queries(model: Segmenter, samples: Sequence[EpisodeSample], row_of: Mapping[int, int]) -> Tensor:
    return torch.tensor([row_of[s.targets[0].image_id] for s in samples], device=model.device)


def memorise_supports(model: Segmenter, cache: FeatureCache, episodes: Sequence[Episode],
                      samples: Sequence[EpisodeSample], config: EvalConfig) -> SupportMemory:
    """Encode the photos of a batch of episodes and memorise their supports."""
    if not model.supports_apart:
        features, prompts, queries = collate_episodes(model, cache, episodes, samples, config)
        return SupportMemory(samples=list(samples), features=features, memory=model.memorise(features, prompts),
                             queries=queries)
    seen, row_of = cache([r for one in samples for r in one.references], supports=True)
    memory = model.memorise(seen, _prompts(model, episodes, samples, seen, row_of, config))
    features, row_of = cache([one.targets[0] for one in samples])
    return SupportMemory(samples=list(samples), features=features, memory=memory,
                         queries=_queries(model, samples, row_of))


def draw_prompt(model: Segmenter, reference: Sample, config: EvalConfig, episode: int, index: int) -> Prompt:
    """The prompt of an episode's reference. It is the same for all methods of a comparison with the same image side.

    A reference without the class has an empty mask, whatever the kind of prompt.
    """
    if not reference.mask.any():
        return Prompt(kind=PromptKind.MASK, mask=torch.from_numpy(reference.mask))
    rng = np.random.default_rng([config.seed, episode, index])
    return prompt_from_mask(model, reference, config.prompts, rng, training=False)


def _score_one(model: Segmenter, target: Sample, logits: Tensor, score: float, config: EvalConfig) -> dict[str, Any]:
    truth, ignore = scored_masks(model, target, config)
    pred = at_size(logits, truth.shape, corners=model.corners_aligned) > 0
    inter, union = episode_counts(pred.cpu(), truth, ignore)
    return {"inter_bg": inter[0], "inter_fg": inter[1], "union_bg": union[0], "union_fg": union[1],
            "iou": inter[1] / max(union[1], 1), "score": score}


def scored_masks(model: Segmenter, target: Sample, config: EvalConfig) -> tuple[Tensor, Tensor]:
    """`true_masks` at the size at which the protocol scores: the original size or the model's square."""
    if config.at == "original":
        return true_masks(target)
    return model.preprocessor.target(target.mask).bool(), model.preprocessor.target(target.ignore).bool()


def true_masks(target: Sample) -> tuple[Tensor, Tensor]:
    """The mask of a target and its void and crowd pixels, each [H, W] bool."""
    return torch.from_numpy(np.ascontiguousarray(target.mask)), torch.from_numpy(np.ascontiguousarray(target.ignore))


def mask_iou(mask: Tensor, target: Sample) -> float:
    """IoU of a mask [H, W] bool with the target's mask, without void and crowd pixels."""
    inter, union = episode_counts(mask, *true_masks(target))
    return inter[1] / max(union[1], 1)


def full_size_mask(logits: Tensor, target: Sample, *, corners: bool = False) -> tuple[np.ndarray, float]:
    """Logits [h, w] as a mask [H, W] bool at the target's size, and its IoU; `corners`: the method's `corners_aligned`.
    """
    mask = (at_size(logits, target.mask.shape, corners=corners) > 0).cpu()
    return mask.numpy(), mask_iou(mask, target)


def at_size(logits: Tensor, size: tuple[int, ...], *, corners: bool = False) -> Tensor:
    """Logits [h, w] resized to `size`, bilinear, as the protocol does. `corners` is the method's `corners_aligned`."""
    return F.interpolate(logits[None, None].float(), size=tuple(size), mode="bilinear", align_corners=corners)[0, 0]


def memorise_references(model: Segmenter, sample: EpisodeSample, prompts: Sequence[Prompt] = ()) -> Memory:
    """The memory of one episode's references, marked by `prompts`, by default by their masks."""
    support = model.encode_supports(model.prepare([r.image for r in sample.references]).to(model.device))
    given = list(prompts) or [mask_prompt(r.mask) for r in sample.references]
    marks = model.collate([given], support.sizes.cpu(), names=[sample.class_name])
    return model.memorise(support, marks.to(model.device))


@torch.inference_mode()
def measure_query_seconds(model: Segmenter, samples: Sequence[EpisodeSample], *, repeats: int = 3) -> list[float]:
    """Seconds of each query from decoded image to mask at its original size; the supports are memorised beforehand."""
    found = []
    for one in samples:
        memory = memorise_references(model, one)
        found += [_one_query(model, memory, one.targets[0]) for _ in range(repeats)]
    return found[1:]  # the first call also initialises libraries


def _one_query(model: Segmenter, memory: Any, target: Sample) -> float:
    _wait(model.device)
    start = time.perf_counter()
    features = model.encode(model.prepare([target.image]).to(model.device))
    prediction = model.segment(memory, features, torch.zeros(1, 2, dtype=torch.int64, device=model.device))
    (at_size(prediction.logits[0], target.mask.shape, corners=model.corners_aligned) > 0).cpu()
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
