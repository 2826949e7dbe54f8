"""FCP (AAAI 2025): prompts for a frozen SAM from prototypes that cover the foreground of support and query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.clip import Clip, Features, Memory, Prediction, PromptBatch
from fss_models.errors import FssError
from fss_models.methods.fcp import losses as terms
from fss_models.methods.fcp.config import FcpConfig
from fss_models.methods.fcp.encoder import FcpEncoder, QuerySide, SupportSide
from fss_models.prior_guided.maps import object_first, prior, resize_aligned
from fss_models.prior_guided.marks import grid_masks
from fss_models.prior_guided.pairs import (
    clip_pairs,
    gather_shots,
    mean_over_shots,
    real_rows,
    row_of,
    scatter_rows,
    shot_rows,
)
from fss_models.prototype_prompts.analysis import FcpAnalysis
from fss_models.prototype_prompts.build import PromptingParts
from fss_models.prototype_prompts.sams import DECODER_MAPS
from fss_models.prototype_prompts.segmenter import PromptingSegmenter
from fss_models.registry import register_method


@dataclass(frozen=True, kw_only=True)
class _QueryRows:
    """The query side of every (pair, shot), one row each."""

    pair: Tensor
    shot: Tensor
    side: QuerySide
    prior: Tensor
    logits: Tensor  # [E, R, R]
    ious: Tensor
    prediction: Prediction


@register_method("fcp", config=FcpConfig)
class Fcp(PromptingSegmenter):
    """FCP: support prototypes are computed once (`memorise`); K shots are decoded separately, their logits averaged."""

    config: FcpConfig
    encoder: FcpEncoder

    def __init__(
        self, *, preset: str, config: FcpConfig, weights: str | None = None, parts: PromptingParts | None = None
    ) -> None:
        super().__init__(preset=preset, config=config, weights=weights, parts=parts)
        mid, high, _ = self.levels.channels
        self.encoder = FcpEncoder(config, channels=mid + high, width=self.sam.width)

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Tensors tokens [S, K, N, D], res and sam (prototypes) [S, K, D], top (masked cells of layer4) [S, K, L, C].

        filled [S, K] is the number of cells of `top` that are not zero; they come first.
        """
        return self._support(features, prompts)[0]

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Logits [P, R, R] and scores (SAM's predicted IoU), both averaged over the shots."""
        return self._query(memory, features, pairs).prediction

    def analyse(self, features: Features, prompts: PromptBatch, pairs: Tensor) -> FcpAnalysis:
        """`memorise` and `segment`, with everything that was computed on the way."""
        memory, rows, support = self._support(features, prompts)
        found = self._query(memory, features, pairs)
        own = row_of(rows, prompts.kind.shape, pairs.to(self.device)[found.pair, 0], found.shot)
        return FcpAnalysis(
            pair=found.pair, shot=found.shot, support_attention=[a[own] for a in support.attention],
            query_attention=found.side.attention, matching=found.side.matching, conventional=found.prior,
            attention_masks=found.side.masks, prompts=found.side.prompts, shot_logits=found.logits,
            prediction=found.prediction)

    def losses(self, clip: Clip) -> dict[str, Tensor]:
        """Losses mask and dice on the targets, guide on the attention masks, ortho on all attention maps."""
        features = self.clip_features(clip)
        memory, _, support = self._support(features, clip.prompts)
        found = self._query(memory, features, clip_pairs(clip))
        named = self.mask_terms(found.prediction, clip)
        truth, valid = self.truth(clip)
        if self.config.dice_mode == "paper":
            named["dice"] = terms.squared_dice(found.prediction.logits[:, None].sigmoid(), truth, valid)
        for name in ("mask", "dice"):
            named[name] = named[name] * self.config.prompt_weight
        small, kept = (F.interpolate(x.float(), size=found.prior.shape[-2:])[found.pair] for x in (truth, valid))
        guide = terms.guide_loss if self.config.guide_mode == "released" else terms.paper_guide_loss
        ortho = terms.ortho_loss if self.config.ortho_mode == "released" else terms.paper_ortho_loss
        named["guide"] = self.config.guide_weight * guide(found.side.masks, small, kept > 0)
        named["ortho"] = self.config.ortho_weight * ortho(support.attention, found.side.attention)
        return named

    def _support(self, features: Features, prompts: PromptBatch) -> tuple[Memory, Tensor, SupportSide]:
        """The memory, the flat indices [E] into S * K of the real references, and the encoder's output for these."""
        rows, image, masks = real_rows(prompts)
        masks = masks.to(self.device)
        first = prompts.image[:, :1].expand_as(prompts.image).flatten()[rows]
        sam = features.maps["sam"][first if self.config.kshot_support_sam == "first" else image]
        mask = self._grid_masks(masks, self._grid)
        high = features.maps["high"][image]
        small = self._grid_masks(masks, high.shape[-2:])
        top = resize_aligned(self.masked_top(high, small), self._grid) * mask
        side = self.encoder.support(self._fused(features, image), sam, mask)
        top, filled = object_first(top)
        made = {"tokens": side.tokens, "top": top, "filled": filled} | side.prototypes
        memory = Memory(tensors={k: scatter_rows(v, rows, prompts.kind.shape) for k, v in made.items()},
                        counts=prompts.counts)
        return memory, rows, side

    def _query(self, memory: Memory, features: Features, pairs: Tensor) -> _QueryRows:
        pairs = pairs.to(self.device)
        pair, shot = shot_rows(memory.counts.to(self.device)[pairs[:, 0]])
        sets, image = pairs[pair].unbind(1)
        own = gather_shots(memory, sets, shot)
        used, of_row = image.unique(return_inverse=True)
        _, lifted = self.encoder.lift(self._fused(features, used), features.maps["sam"][used])
        guess = prior(own["top"], resize_aligned(features.maps["top"][image], self._grid))
        side = self.encoder.query({k: v[of_row] for k, v in lifted.items()}, own["tokens"],
                                  {k: own[k] for k in ("res", "sam") if k in own}, guess)
        maps = {k: features.maps[k][image] for k in DECODER_MAPS if k in features.maps}
        low, ious = self.sam.decode(maps, side.prompts)
        logits = self.to_image(low)
        prediction = Prediction(logits=mean_over_shots(logits, pair, len(pairs)),
                                scores=mean_over_shots(ious.float(), pair, len(pairs)).clamp(0, 1))
        return _QueryRows(pair=pair, shot=shot, side=side, prior=guess, logits=logits, ious=ious, prediction=prediction)

    @property
    def _grid(self) -> tuple[int, int]:
        return self.sam.grid, self.sam.grid

    def _fused(self, features: Features, image: Tensor) -> Tensor:
        """Concatenated layer3 and layer2 of the images on SAM's grid, [E, C, G, G]."""
        return torch.cat([resize_aligned(features.maps[n][image], self._grid) for n in ("high", "mid")], dim=1)

    def _grid_masks(self, masks: Tensor, size: Sequence[int]) -> Tensor:
        small = grid_masks(masks, size, fill=self.config.empty_mask == "fill")
        if self.config.empty_mask == "error" and not bool(small.flatten(1).any(dim=1).all()):
            raise FssError("a support mask is empty on the grid", hint="mark a larger object, or set empty_mask: fill")
        return small
