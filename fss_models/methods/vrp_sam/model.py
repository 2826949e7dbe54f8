"""VRP-SAM (CVPR 2024): a marked reference becomes prompts for a frozen SAM."""

from __future__ import annotations

import torch
from torch import Tensor

from fss_models.clip import Clip, Features, Memory, Prediction, PromptBatch, PromptKind
from fss_models.methods.vrp_sam.config import VrpSamConfig
from fss_models.methods.vrp_sam.encoder import VrpEncoder
from fss_models.methods.vrp_sam.simulate import simulate_marks
from fss_models.prior_guided.maps import object_first, prior, resize_aligned
from fss_models.prior_guided.marks import grid_masks
from fss_models.prior_guided.pairs import clip_pairs, gather_shots, real_rows, row_of, scatter_rows, shot_rows
from fss_models.prototype_prompts.analysis import TokenReading, VrpAnalysis
from fss_models.prototype_prompts.build import PromptingParts
from fss_models.prototype_prompts.sams import DECODER_MAPS
from fss_models.prototype_prompts.segmenter import PromptingSegmenter
from fss_models.registry import register_method


@register_method("vrp_sam", config=VrpSamConfig)
class VrpSam(PromptingSegmenter):
    """VRP-SAM: a reference's tokens are computed once (`memorise`); the prompts of K shots are decoded together."""

    config: VrpSamConfig
    encoder: VrpEncoder

    def __init__(
        self, *, preset: str, config: VrpSamConfig, weights: str | None = None, parts: PromptingParts | None = None
    ) -> None:
        super().__init__(preset=preset, config=config, weights=weights, parts=parts)
        mid, high, _ = self.levels.channels
        self.encoder = VrpEncoder(tokens=config.tokens, channels=mid + high, width=self.sam.width,
                                  dropout=config.feature_dropout)

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Tensors tokens [S, K, N, D], prototype [S, K, D], top (masked cells of layer4) [S, K, L, C].

        filled [S, K] is the number of cells of `top` that are not zero; they come first.
        """
        return self._support(features, prompts)[0]

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Logits [P, R, R]; the score is SAM's predicted IoU."""
        return self._query(memory, features, pairs)[0]

    def analyse(self, features: Features, prompts: PromptBatch, pairs: Tensor) -> VrpAnalysis:
        """`memorise` and `segment`, with everything that was computed on the way."""
        memory, rows, support = self._support(features, prompts)
        prediction, query, guess = self._query(memory, features, pairs)
        sets = pairs[:, 0].to(self.device)
        pair, shot = shot_rows(memory.counts.to(self.device)[sets])
        own = row_of(rows, prompts.kind.shape, sets[pair], shot)
        seen = TokenReading(tokens=support.tokens[own], cross=support.cross[own], own=support.own[own])
        return VrpAnalysis(pair=pair, shot=shot, support=seen, query=query, prior=guess, prediction=prediction)

    def losses(self, clip: Clip) -> dict[str, Tensor]:
        """Losses mask (binary cross-entropy) and dice on the targets."""
        features = self.clip_features(clip)
        memory = self.memorise(features, clip.prompts)
        return self.mask_terms(self.segment(memory, features, clip_pairs(clip)), clip)

    def _support(self, features: Features, prompts: PromptBatch) -> tuple[Memory, Tensor, TokenReading]:
        """The memory, the flat indices [E] into S * K of the real references, and what the tokens read in these."""
        rows, image, masks = real_rows(prompts)
        given = prompts.kind.flatten()[rows] == PromptKind.MASK
        if self.config.prompt != "mask":
            masks = torch.where(given[:, None, None, None].to(masks.device), self._simulated(masks), masks)
        masks = masks.to(self.device)
        high = features.maps["high"][image]
        mask = grid_masks(masks, high.shape[-2:], fill=self.config.empty_mask == "fill")
        top = self.masked_top(high, mask)
        top, filled = object_first(top * resize_aligned(mask, top.shape[-2:]))
        side, prototype = self.encoder.support(self._fused(features, image), mask)
        made = {"tokens": side.tokens, "prototype": prototype, "top": top, "filled": filled}
        memory = Memory(tensors={k: scatter_rows(v, rows, prompts.kind.shape) for k, v in made.items()},
                        counts=prompts.counts)
        return memory, rows, side

    def _simulated(self, masks: Tensor) -> Tensor:
        return simulate_marks(masks[:, 0], self.config.prompt, seed=None if self.training else self.config.prompt_seed)[
            :, None]

    def _query(self, memory: Memory, features: Features, pairs: Tensor) -> tuple[Prediction, TokenReading, Tensor]:
        """Predictions of the pairs, and for each row what the tokens read and the prior [E, 1, G, G]."""
        pairs = pairs.to(self.device)
        counts = memory.counts.to(self.device)[pairs[:, 0]]
        pair, shot = shot_rows(counts)
        sets, image = pairs[pair].unbind(1)
        own = gather_shots(memory, sets, shot)
        used, of_row = image.unique(return_inverse=True)
        _, lifted = self.encoder.lift(self._fused(features, used))
        guess = prior(own["top"], features.maps["top"][image])
        guess = resize_aligned(guess, lifted.shape[-2:])
        side = self.encoder.query(lifted[of_row], own["tokens"], own["prototype"], guess)
        maps = {k: features.maps[k][pairs[:, 1]] for k in DECODER_MAPS if k in features.maps}
        low, ious = self._decode(maps, side.tokens, counts)
        return Prediction(logits=self.to_image(low), scores=ious.float().clamp(0, 1)), side, guess

    def _decode(self, maps: dict[str, Tensor], prompts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Decode pairs with the same number of shots together, since the decoder cannot leave out padding.

        maps of P images, prompts [E, N, D] shot by shot within a pair, counts [P] -> logits [P, 4G, 4G], IoU [P].
        """
        start = counts.cumsum(0) - counts
        grid, like = 4 * self.sam.grid, prompts
        logits, ious = like.new_zeros(len(counts), grid, grid, dtype=torch.float32), like.new_zeros(len(counts))
        for count in counts.unique().tolist():
            rows = (counts == count).nonzero()[:, 0]
            own = start[rows][:, None] + torch.arange(count, device=counts.device)
            some, iou = self.sam.decode({k: v[rows] for k, v in maps.items()}, prompts[own].flatten(1, 2))
            at = rows.to(like.device)
            logits, ious = logits.index_copy(0, at, some), ious.index_copy(0, at, iou.to(ious))
        return logits, ious

    def _fused(self, features: Features, image: Tensor) -> Tensor:
        """Concatenated layer2 and layer3 of the images on layer3's grid, [E, C, G, G]."""
        high = features.maps["high"][image]
        return torch.cat([resize_aligned(features.maps["mid"][image], high.shape[-2:]), high], dim=1)
