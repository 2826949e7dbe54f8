"""A training-free prototype on frozen trunk features: what every trained method has to beat.

Masked average pooling gives a foreground and a background prototype (Zhang et al., SG-One, 2018, section III); a
pixel belongs to the object where its cosine to the first exceeds its cosine to the second.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.clip import Features, Images, Memory, Prediction, PromptBatch, PromptKind
from fss_models.errors import FssError
from fss_models.methods.prior.config import PriorConfig
from fss_models.presets import RANDOM, find_preset, preprocessor
from fss_models.registry import register_method
from fss_models.sam2_core.build import build_sam2, origin
from fss_models.segmenter import Negatives, Segmenter


@register_method("prior", config=PriorConfig)
class Prior(Segmenter):
    """Prototypes on the trunk's stride-16 and stride-32 maps, which are normalised and joined."""

    trains = False
    prompt_kinds = frozenset({PromptKind.MASK})
    config: PriorConfig

    def __init__(self, *, preset: str, config: PriorConfig, weights: str | None = None) -> None:
        super().__init__(preset=preset, preprocessor=preprocessor(preset), config=config)
        sam = build_sam2(preset, weights=weights or RANDOM)  # shipped weights concern only the parts above the trunk
        self.trunk = sam.image_encoder.trunk.requires_grad_(False)
        self._has_weights = find_preset(preset).trunk == "efficientnet" or origin(sam).checkpoint

    @classmethod
    def negatives(cls, config: PriorConfig) -> Negatives:
        """Marked pixels of negative examples are background."""
        return "marks"

    @property
    def untrained(self) -> bool:
        """Whether the trunk is a Hiera without a checkpoint, which holds random values."""
        return not self._has_weights

    def frozen_weights(self) -> dict[str, str]:
        """The trunk's pretrained weights."""
        return dict(getattr(self.trunk, "pretrained", {}))

    def encode(self, images: Images) -> Features:
        """Map "trunk" [N, C16 + C32, R/16, R/16]: both of the trunk's maps, with unit length at every pixel, joined."""
        fine, coarse = self.trunk(images.pixels.to(self.device))[2:4]
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return Features(maps={"trunk": torch.cat([F.normalize(fine, dim=1), F.normalize(coarse, dim=1)], dim=1)},
                        sizes=images.sizes)

    def memorise(self, features: Features, prompts: PromptBatch) -> Memory:
        """Tensor prototypes [S, 2, C]: mean foreground and background feature over all pixels of the set's references.

        Of a negative reference the marked pixels are background, and the others do not count.
        Raises `FssError` for a prompt without a mask: a prototype needs pixels.
        """
        if bool(((prompts.kind != PromptKind.MASK) & (prompts.kind != PromptKind.PAD)).any()):
            raise FssError("method 'prior' takes mask prompts only", hint="give the support as a mask")
        maps = features.maps["trunk"][prompts.image]  # [S, K, C, h, w]
        cover = F.interpolate(prompts.masks.to(maps), size=maps.shape[-2:], mode="area")
        real = (prompts.kind != PromptKind.PAD)[:, :, None, None].to(maps)
        negative = prompts.negatives[:, :, None, None].to(maps.device)
        weights = torch.stack([cover.masked_fill(negative, 0) * real, torch.where(negative, cover, 1 - cover) * real],
                              dim=1)  # [S, 2, K, h, w]
        means = torch.einsum("stkhw,skchw->stc", weights, maps)
        prototypes = means / weights.sum(dim=(2, 3, 4)).clamp(min=1e-6)[..., None]
        return Memory(tensors={"prototypes": F.normalize(prototypes, dim=2)}, counts=prompts.counts)

    def segment(self, memory: Memory, features: Features, pairs: Tensor) -> Prediction:
        """Predict logits at stride 16; the score is the mean foreground probability of the predicted pixels."""
        prototypes = memory.tensors["prototypes"][pairs[:, 0]]
        maps = F.normalize(features.maps["trunk"], dim=1)[pairs[:, 1]]
        cosine = torch.einsum("pchw,ptc->pthw", maps, prototypes)
        logits = (cosine[:, 0] - cosine[:, 1]) * self.config.temperature
        chosen = (logits > 0).to(logits)
        scores = (logits.sigmoid() * chosen).sum(dim=(1, 2)) / chosen.sum(dim=(1, 2)).clamp(min=1)
        return Prediction(logits=logits, scores=scores)
