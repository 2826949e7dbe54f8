"""INSID3: in-context segmentation with one frozen DINOv3, no decoder and no training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.clip import Features, Images, Memory, Prediction, PromptBatch, PromptKind
from fss_models.errors import FssError
from fss_models.methods.insid3 import presets
from fss_models.methods.insid3.clusters import average_linkage
from fss_models.methods.insid3.config import Insid3Config
from fss_models.methods.insid3.debias import PositionalBasis, debias, positional_basis
from fss_models.methods.insid3.matching import (
    ClusterScores,
    cluster_means,
    enlarge,
    forward_patches,
    grid_masks,
    like_negatives,
    nearest_references,
    prototype,
    score_clusters,
)
from fss_models.registry import register_method
from fss_models.segmenter import Negatives, Segmenter

CHUNK_BYTES = 256_000_000  # of the similarities between the patches of references and queries
LEAST_LOGIT = 1e-3  # so that the sign tells a mask whose score is 0


@dataclass(frozen=True, kw_only=True)
class Matching:
    """What `segment` decides by, for P pairs of L patches.

    similarity [P, L]   of the query's patches to the prototype
    votes [P, L]        number of references whose nearest patch is on the object
    candidates [P, L]   patches that both directions agree on
    scores              of the clusters
    chosen [P, L]       the predicted patches
    """

    similarity: Tensor
    votes: Tensor
    candidates: Tensor
    scores: ClusterScores
    chosen: Tensor


@register_method("insid3", config=Insid3Config)
class Insid3(Segmenter):
    """INSID3: features without position are matched with the support; whole clusters of the query are kept.

    Features and clusters of a photo are computed once (`encode`), the prototype once a support set (`memorise`).
    """

    trains = False
    presets: ClassVar[tuple[str, ...]] = tuple(presets.PRESETS)
    prompt_kinds = frozenset({PromptKind.MASK})
    config: Insid3Config

    def __init__(
        self, *, preset: str, config: Insid3Config, weights: str | None = None, encoder: Any = None
    ) -> None:
        self.constants = presets.resolve(preset, config)
        super().__init__(preset=preset, preprocessor=presets.preprocessor(preset, self.constants.side), config=config)
        self.encoder = encoder or presets.build_encoder(preset, weights)
        self.encoder.requires_grad_(False).eval()
        if not 0 <= self.constants.svd_components < self.encoder.width:
            raise FssError(f"svd_components is {self.constants.svd_components}",
                           hint=f"give less than the {self.encoder.width} channels: nothing is left beside all of them")
        self.projector: Tensor | None
        self.register_buffer("projector", None, persistent=False)  # computed by the first `encode`

    @classmethod
    def negatives(cls, config: Insid3Config) -> Negatives:
        """A patch that is more similar to what a negative example marks than to the object is no candidate."""
        return "marks"

    @property
    def untrained(self) -> bool:
        """Whether DINOv3 has no weight file."""
        return not self.frozen_weights()

    @property
    def keeps_random_parts(self) -> bool:
        """The same: nothing is ever trained."""
        return self.untrained

    def frozen_weights(self) -> dict[str, str]:
        """The encoder's weight file."""
        return dict(self.encoder.pretrained)

    def basis(self) -> PositionalBasis:
        """The positional directions, from the features of a black photo at the model's side."""
        black = self.prepare([np.zeros((presets.STRIDE, presets.STRIDE, 3), np.uint8)])
        return positional_basis(self.unit_features(black)[0], self.constants.svd_components)

    def unit_features(self, images: Images) -> Tensor:
        """The encoder's features [N, C, L], of unit length at every patch, in float32."""
        found: Tensor = self.encoder(images.pixels.to(self.device))
        return F.normalize(found.float().flatten(2), dim=1)

    def encode(self, images: Images) -> Features:
        """Maps debiased [N, C, g, g], labels [N, 1, g, g] int64 and, each patch holding its cluster's value, clusters
        [N, C, g, g] (unit mean of the features) and strength [N, 1, g, g] (length of the mean of `debiased`).
        """
        unit = self.unit_features(images)
        if self.projector is None:
            self.projector = self.basis().projector
        plain = debias(unit, self.projector)
        labels = average_linkage(unit.mT, 1 - self.constants.tau)
        found = {"debiased": plain, "labels": labels[:, None],
                 "clusters": F.normalize(cluster_means(unit, labels), dim=1),
                 "strength": cluster_means(plain, labels).norm(dim=1, keepdim=True)}
        grid = self.side // presets.STRIDE
        return Features(maps={k: v.unflatten(2, (grid, grid)) for k, v in found.items()}, sizes=images.sizes)

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Tensors references [S, K, C, L] (debiased), masks [S, K, L] in {0, 1}, prototype [S, C].

        A reference whose mask vanishes in the square marks nothing; what a negative one marks is -1 in `masks`. Raises
        `FssError` for a prompt without a mask.
        """
        for kind in prompts.kind.unique().tolist():
            if kind != PromptKind.PAD:
                self.check_kind(PromptKind(kind))
        real = (prompts.kind != PromptKind.PAD).to(self.device)
        maps = features.maps["debiased"].flatten(2)
        references = maps[prompts.image.to(maps.device)] * real[:, :, None, None].to(maps)
        masks = grid_masks(prompts.masks.flatten(0, 1).to(maps), self.side // presets.STRIDE)
        masks = masks.unflatten(0, real.shape) * real[:, :, None].to(maps)
        shown = prompts.shown.to(self.device)
        own = masks * shown[:, :, None]
        tensors = {"references": references, "masks": own - masks * ~shown[:, :, None],
                   "prototype": prototype(references, own, shown.sum(1))}
        return Memory(tensors=tensors, counts=shown.sum(1).to(prompts.counts.device))

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Logits [P, R, R]: the score on the object, minus the score off it.

        The score is the mean similarity of the chosen patches; the magnitude means nothing more, as masks are hard.
        """
        side = (self.side // presets.STRIDE,) * 2
        shots, length = memory.tensors["masks"].shape[1:]
        size = max(1, CHUNK_BYTES // (4 * shots * length * length))
        logits, scores = [], []
        for chunk in pairs.to(self.device).split(size):
            found = self.match(memory, features, chunk)
            chosen = found.chosen.float()
            whole = enlarge(chosen.unflatten(1, side), (self.side, self.side))
            score = ((found.similarity * chosen).sum(1) / chosen.sum(1).clamp(min=1)).clamp(0, 1)
            height = score.clamp(min=LEAST_LOGIT)[:, None, None]
            logits.append(torch.where(whole, height, -height))
            scores.append(score)
        return Prediction(logits=torch.cat(logits), scores=torch.cat(scores))

    def match(self, memory: Memory, features: Features, pairs: Tensor) -> Matching:
        """All that decides about the pairs [P, 2] int64 (row of `memory`, row of `features`)."""
        own, query = memory.take(pairs[:, 0]), features.take(pairs[:, 1])
        maps = {k: v.flatten(2) for k, v in query.maps.items()}
        similarity = (own.tensors["prototype"][:, None] @ maps["debiased"])[:, 0]
        nearest = nearest_references(own.tensors["references"], maps["debiased"])
        votes = own.tensors["masks"].clamp(min=0).gather(2, nearest).sum(dim=1)
        wanted = (own.counts * self.config.vote_share).ceil().clamp(min=1).to(votes)
        candidates = forward_patches(similarity, self.config.fallback_quantile) & (votes >= wanted[:, None])
        if bool((own.tensors["masks"] < 0).any()):
            candidates &= ~like_negatives(own.tensors["references"], own.tensors["masks"], maps["debiased"])
        scores = score_clusters(similarity, candidates, labels=maps["labels"][:, 0], clusters=maps["clusters"],
                                strength=maps["strength"][:, 0])
        chosen = (scores.combined > self.constants.merge_threshold) & candidates.any(dim=1, keepdim=True)
        return Matching(similarity=similarity, votes=votes, candidates=candidates, scores=scores, chosen=chosen)
