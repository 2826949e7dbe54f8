"""GF-SAM (NeurIPS 2024): training-free segmentation by points and a graph of masks.

The similarity of DINOv2's cells places points on the target; a frozen SAM draws a mask for each alone. Masks that cover
each other's points form components, and two gates keep those that look like the object and like themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.clip import Features, Images, Memory, Prediction, PromptBatch, PromptKind
from fss_models.errors import FssError
from fss_models.methods.gf_sam.config import GfSamConfig
from fss_models.methods.gf_sam.graph import (
    Components,
    GrownMasks,
    SelfSimilarity,
    by_rank,
    compare_with_self,
    connect,
    grow,
)
from fss_models.methods.gf_sam.sampling import SampledMasks, sample_masks
from fss_models.methods.gf_sam.similarity import (
    PointSet,
    SimilarityMaps,
    cell_weights,
    choose_points,
    comparable,
    largest_similarity,
    object_first,
    pixels_of,
    prototypes,
    similarity_maps,
)
from fss_models.point_prompts.build import PUBLISHED, PointParts, build_point_parts
from fss_models.point_prompts.decoder import PromptDecoder
from fss_models.point_prompts.segmenter import PointPromptedSegmenter, with_square
from fss_models.presets import PRESETS
from fss_models.registry import register_method

NO_MASK = -10.0  # logit where no mask was drawn at all
BOTH, EITHER = 1, 2  # labels of masks that passed both gates, or one


@dataclass(frozen=True, kw_only=True)
class GfSamAnalysis:
    """Everything that `segment` computes for P pairs on the way; E masks, one after the other.

    pair, slot [E]  pair and place among its points;  low [E, q, q], ious [E]  SAM's output
    labels [E]      0: passed no gate, 1: both, 2: one;  chosen [E] bool: masks whose union is the answer
    inside [E]      mean M+ inside each chosen mask, 0 for others and for empty ones
    """

    maps: SimilarityMaps
    points: PointSet
    pair: Tensor
    slot: Tensor
    low: Tensor
    ious: Tensor
    sampled: SampledMasks
    components: Components
    desired: Tensor
    grown: GrownMasks
    itself: SelfSimilarity
    labels: Tensor
    chosen: Tensor
    inside: Tensor
    prediction: Prediction


@register_method("gf_sam", config=GfSamConfig)
class GfSam(PointPromptedSegmenter):
    """GF-SAM; `encode` computes cells and SAM's embedding, `memorise` all that depends on the references alone."""

    presets = (*PUBLISHED, *PRESETS)
    config: GfSamConfig

    def __init__(
        self, *, preset: str, config: GfSamConfig, weights: str | None = None, parts: PointParts | None = None
    ) -> None:
        """`parts` are the frozen parts of any size, holding their values; without them the preset's are built."""
        parts = parts or build_point_parts(
            preset, source=config.features, cell_side=config.dino_side, antialias=config.antialias,
            cell_weights=config.dino_weights, weights=weights)
        super().__init__(preset=preset, config=config, parts=parts)

    def encode(self, images: Images) -> Features:
        """Maps "cells" [N, C, g, g], scaled for comparison, and the decoder's: "sam", of SAM 2 "f0" and "f1"."""
        pixels = images.pixels.to(self.device)
        looked = self.sam.look(pixels)
        return Features(maps={"cells": comparable(self.cells(pixels, looked)), **self.sam.embed(looked)},
                        sizes=images.sizes)

    def encode_supports(self, images: Images) -> Features:
        """The map "cells" of `encode` alone: SAM draws masks in queries only."""
        pixels = images.pixels.to(self.device)
        looked = self.sam.look(pixels) if self.cells.looks else {}
        return Features(maps={"cells": comparable(self.cells(pixels, looked))}, sizes=images.sizes)

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Tensors cells [S, K, N, C] and weights [S, K, N] of the object, filled [S, K], prototypes [S, 2, C].

        The first `filled` cells are the object's. What a negative reference marks counts in the background's prototype,
        as one more shot. Raises `FssError` for a prompt without a mask.
        """
        if bool(((prompts.kind != PromptKind.MASK) & (prompts.kind != PromptKind.PAD)).any()):
            raise FssError("method 'gf_sam' takes mask prompts only", hint="give the support as a mask")
        cells = features.maps["cells"][prompts.image.to(self.device)]
        given = prompts.masks.to(self.device, torch.float32)
        masks, shown = with_square(given, self.config.empty_square), prompts.shown.to(self.device)
        negative = prompts.negatives.to(self.device) & given.flatten(2).any(dim=2)
        others = torch.where(negative[..., None, None], given, 1 - masks)
        weights = torch.stack([cell_weights(m.flatten(0, 1), cells.shape[-1]) for m in (masks, others)], dim=1)
        weights = weights.unflatten(0, tuple(prompts.kind.shape))  # [S, K, 2, N]
        means = prototypes(cells.flatten(3), weights, torch.stack([shown, shown | negative], dim=2))
        own, share, filled = object_first(cells.flatten(3), weights[:, :, 0] * shown[..., None])
        return Memory(tensors={"cells": own, "weights": share, "filled": filled, "prototypes": means},
                      counts=shown.sum(dim=1))

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Logits [P, R, R], the largest of the chosen masks; the score is the largest mean similarity inside a mask."""
        return self.analyse(memory, features, pairs).prediction

    def analyse(self, memory: Memory, features: Features, pairs: Tensor) -> GfSamAnalysis:
        """`segment`, with everything that was computed on the way."""
        sets, image = pairs.to(self.device).unbind(1)
        target = features.maps["cells"][image].flatten(2)
        maps = self._compare(memory, sets, target)
        points = choose_points(maps.filtered, factor=self.config.point_factor, limit=self.config.max_points)
        low, ious = self._draw(features, image, points)
        return self._judge(maps, points, target, low, ious)

    def _compare(self, memory: Memory, sets: Tensor, target: Tensor) -> SimilarityMaps:
        longest = max(1, int(memory.tensors["filled"].max())) if len(memory) else 1
        cells, weights = (memory.tensors[k][:, :, :longest][sets] for k in ("cells", "weights"))
        largest = largest_similarity(cells, weights, memory.counts.to(self.device)[sets], target,
                                     memory.tensors["filled"][sets])
        return similarity_maps(largest, memory.tensors["prototypes"][sets], target)

    def _draw(self, features: Features, image: Tensor, points: PointSet) -> tuple[Tensor, Tensor]:
        """SAM's masks [E, q, q] and predicted IoU [E] of all points; a photo's point is decoded once for all pairs."""
        rows, cells = image[:, None].expand_as(points.cell)[points.valid], points.side**2
        pixels = pixels_of(points, self.side)[points.valid]
        distinct, back = (rows * cells + points.cell[points.valid]).unique(return_inverse=True)
        of_row = torch.zeros_like(distinct).scatter_(0, back, torch.arange(len(back), device=back.device))
        prompts = self.sam.point_prompts(pixels[of_row, None])
        decoder = PromptDecoder(self.sam, {k: v for k, v in features.maps.items() if k != "cells"})
        grid, photo = 4 * decoder.grid, rows[of_row]
        logits, ious = prompts.new_zeros(len(prompts), grid, grid).float(), prompts.new_zeros(len(prompts)).float()
        for some in decoder.chunks(photo, self.config.decoder_batch):
            made = decoder.decode(photo[some], prompts[some], several=False)
            logits[some], ious[some] = decoder.masks(made)[:, 0], made.ious[:, 0].float()
        return logits[back], ious[back]

    def _judge(
        self, maps: SimilarityMaps, points: PointSet, target: Tensor, low: Tensor, ious: Tensor
    ) -> GfSamAnalysis:
        """Graph, gates and union of masks `low` [E, q, q] that were drawn for `points`."""
        pair, slot = points.valid.nonzero().unbind(1)
        sampled = sample_masks(low, side=self.side, cells=points.side)
        components = connect(sampled.nearest, points, pair, slot)
        desired = (maps.object**2 - maps.background * maps.level(self.config.level)[:, None, None]).flatten(1)
        grown = grow(sampled.soft(), desired, pair, components)
        itself = compare_with_self(sampled.union(components.row, components.total), target, points, components,
                                   floor=self.config.distance_floor, majority=self.config.majority)
        labels = torch.where(grown.positive & itself.own, BOTH, torch.where(grown.positive | itself.own, EITHER, 0))
        chosen = choose_masks(labels, grown.class_scores, points, pair, slot)
        logits, inside = self._union(low, chosen, pair, maps.object)
        scores = inside.new_zeros(len(target)).scatter_reduce(0, pair, inside, "amax").clamp(0, 1)
        return GfSamAnalysis(maps=maps, points=points, pair=pair, slot=slot, low=low, ious=ious, sampled=sampled,
                             components=components, desired=desired, grown=grown, itself=itself, labels=labels,
                             chosen=chosen, inside=inside, prediction=Prediction(logits=logits, scores=scores))

    def _union(self, low: Tensor, chosen: Tensor, pair: Tensor, similar: Tensor) -> tuple[Tensor, Tensor]:
        """Largest logits [P, R, R] of the chosen of masks `low` [E, q, q], and mean M+ [P, g, g] inside each, [E]."""
        size = (self.side, self.side)
        out = low.new_full((len(similar), *size), -torch.inf)
        inside = low.new_zeros(len(low))
        likeness = F.interpolate(similar[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        rows = chosen.nonzero()[:, 0]
        for some in (rows[turn] for turn in by_rank(inside[rows], pair[rows])):  # one mask of each pair at a time
            masks = F.interpolate(low[some][:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
            own = pair[some]
            out[own] = torch.maximum(out[own], masks)
            area = (masks > 0).to(low).flatten(1)
            inside[some] = (area * likeness[own].flatten(1)).sum(dim=1) / area.sum(dim=1).clamp(min=1)
        return torch.where(out == -torch.inf, NO_MASK, out), inside


def choose_masks(labels: Tensor, class_scores: Tensor, points: PointSet, pair: Tensor, slot: Tensor) -> Tensor:
    """The masks [E] bool whose union is the answer: those that passed both gates.

    A pair without any takes the mask with the largest class score, the first of equals; a score counts as 0 where the
    mask passed no gate.
    """
    passed = labels == BOTH
    has = torch.zeros(len(points.valid), dtype=torch.bool, device=pair.device)
    has[pair[passed]] = True
    scores = class_scores.new_full(points.valid.shape, -torch.inf)
    scores[pair, slot] = torch.where(labels == EITHER, class_scores, torch.zeros_like(class_scores))
    place = torch.arange(scores.shape[1], device=pair.device)
    best = scores == scores.amax(dim=1, keepdim=True) if scores.shape[1] else points.valid
    first = torch.where(best, place, scores.shape[1]).amin(dim=1) if scores.shape[1] else pair.new_zeros(len(scores))
    return passed | (~has[pair] & (slot == first[pair]))
