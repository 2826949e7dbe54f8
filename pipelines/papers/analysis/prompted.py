"""What the analyses of FCP and VRP-SAM share: analysed episodes, and masks and maps on the method's grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from fss_models.errors import FssError
from fss_models.prior_guided.marks import grid_masks
from fss_models.prototype_prompts.analysis import FcpAnalysis, VrpAnalysis
from fss_models.prototype_prompts.segmenter import PromptingSegmenter
from fss_models.segmenter import Segmenter
from pipelines.base.progress import Bar
from pipelines.bundles.bundle import read_bundle_info
from pipelines.config.evaluate import EvalConfig
from pipelines.config.recipe import Recipe
from pipelines.data.episodes import Episode, load_episode
from pipelines.data.schema import EpisodeSample
from pipelines.data.shardset import Shards
from pipelines.evaluation.evaluate import FeatureCache, collate_episodes
from pipelines.pages.pictures import photo_url
from pipelines.papers.analysis.study import Study, record_cautions

METHODS = ("fcp", "vrp_sam")
HEAT = 0.6  # opacity of a map over its photo


@dataclass(frozen=True, kw_only=True)
class EpisodeBatch:
    """A batch of episodes and the method's analysis of them.

    The analysis has E rows (episode, shot): `analysis.pair` is a row's episode in the batch, `analysis.shot` its shot.
    """

    episodes: Sequence[Episode]
    samples: list[EpisodeSample]
    analysis: FcpAnalysis | VrpAnalysis

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the grid of the attention maps."""
        prior = self.analysis.conventional if isinstance(self.analysis, FcpAnalysis) else self.analysis.prior
        return prior.shape[-2], prior.shape[-1]


def open_study(recipe: Recipe, bundle: str, methods: Sequence[str], what: str) -> Study:
    """Open the study of a bundle of one of `methods`; `what` is what only these methods have, for the error line.

    Raises `FssError` for a bundle of another method.
    """
    method = read_bundle_info(bundle).method  # before any shards are built
    if method not in methods:
        raise FssError(f"method {method!r} has no {what}", where=bundle,
                       hint=f"give a bundle of {' or '.join(methods)}")
    return Study.open(recipe, bundle)


def analyse_batch(model: Segmenter, shards: Shards, episodes: Sequence[Episode], config: EvalConfig,
                  title: str) -> Iterator[EpisodeBatch]:
    """Analyse episodes in batches, class by class; supports get the same prompts as in the evaluation."""
    cache, ordered = FeatureCache(model), sorted(episodes, key=lambda e: (e.class_id, e.episode_id))
    with Bar(title, len(ordered), unit="episodes") as bar:
        for first in range(0, len(ordered), config.batch):
            chunk = ordered[first:first + config.batch]
            samples = [load_episode(shards, e) for e in chunk]
            with torch.inference_mode():
                yield EpisodeBatch(episodes=chunk, samples=samples,
                                   analysis=_analyse(model, cache, chunk, samples, config))
            bar.step(len(chunk))


def _analyse(model: Segmenter, cache: FeatureCache, episodes: Sequence[Episode], samples: Sequence[EpisodeSample],
             config: EvalConfig) -> FcpAnalysis | VrpAnalysis:
    features, prompts, queries = collate_episodes(model, cache, episodes, samples, config)
    pairs = torch.stack([torch.arange(len(samples), device=model.device), queries], dim=1)
    assert isinstance(model, PromptingSegmenter)  # `open_study`
    return model.analyse(features, prompts, pairs)


def cell_masks(model: Segmenter, masks: Sequence[np.ndarray], size: tuple[int, int], *, fill: bool = True) -> Tensor:
    """Masks [H, W] bool on the method's grid: [E, h, w] bool, on the model's device.

    With `fill`, an object that would cover no cell marks the cells that it touches.
    """
    squares = torch.stack([model.preprocessor.mask(m) for m in masks])[:, None]
    return (grid_masks(squares, size, fill=fill)[:, 0] > 0).to(model.device)


def heat_url(image: np.ndarray, weights: Tensor) -> str:
    """A map [h, w] drawn over its photo [H, W, 3] uint8, lowest value dark, highest bright, as a JPEG data URL."""
    values = weights.float().cpu().numpy()
    scaled = (values - values.min()) / max(float(values.max() - values.min()), 1e-12)
    size = (image.shape[1], image.shape[0])
    smooth = np.array(Image.fromarray(scaled.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    colours = colormaps["inferno"](smooth)[..., :3] * 255
    grey = image.mean(axis=2, keepdims=True)
    return photo_url((grey * (1 - HEAT) + colours * HEAT).astype(np.uint8))


def remarks(study: Study) -> list[str]:
    """Notes on the bundle: that it has no record of its classes, and that its SAM is not the published one."""
    if not study.adapted.untrained:
        return record_cautions(study)
    return [*record_cautions(study), f"There is no SAM checkpoint for {study.info.method} at preset "
            f"{study.info.preset}: SAM's parts are random or were trained with this bundle alone. These figures are no "
            "verdict on the method."]
