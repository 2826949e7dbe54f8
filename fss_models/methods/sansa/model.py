"""SANSA: AdaptFormer adapters in SAM 2's trunk, memory attention as semantic matching."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models import losses
from fss_models.adapters.adaptformer import adapt_trunk
from fss_models.clip import Clip, Memory
from fss_models.methods.sansa.config import SansaConfig
from fss_models.registry import register_method
from fss_models.sam2_core.core import take
from fss_models.sam2_core.matcher import MemoryMatcher, append


@register_method("sansa", config=SansaConfig)
class Sansa(MemoryMatcher):
    """Prompt-and-propagate with adapted features (section 3.3; training as in section 3.4)."""

    config: SansaConfig

    def __init__(self, *, preset: str, config: SansaConfig, weights: str | None = None, sam: Any = None) -> None:
        super().__init__(preset=preset, config=config, weights=weights, sam=sam)
        adapt_trunk(self.core.sam.image_encoder.trunk, stages=config.stages, factor=config.factor)

    @property
    def trains_decoder(self) -> bool:
        """Whether neck, memory and decoder are trained beside the adapters."""
        choice = self.config.train
        return choice == "all_but_trunk" or (choice == "auto" and not self.pretrained_parts)

    def set_trainable(self) -> None:
        """The adapters; with `all_but_trunk` everything that is not the trunk's own."""
        for name, parameter in self.named_parameters():
            outside = "image_encoder.trunk." not in name
            parameter.requires_grad_(".adapter." in name or (self.trains_decoder and outside))

    def trainable_names(self) -> set[str]:
        """Trained parameters, and the random buffers (point encoding) that go with a decoder trained from scratch."""
        names = super().trainable_names()
        if self.trains_decoder:
            names |= {n for n in self.state_dict() if n.endswith("positional_encoding_gaussian_matrix")}
        return names

    def losses(self, clip: Clip) -> dict[str, Tensor]:
        """mask (focal or bce) + dice on the targets; where the decoder is trained, its IoU head too.

        Each target is written to memory with gradients before the next is read (pseudo-references, section 3.4).
        """
        b, _, j = clip.shape
        features = self.encode(clip.images)
        memory = self.memorise(features, clip.prompts)
        first = len(clip.references)
        frames = [take(features.maps, list(range(first + t, first + b * j, j))) for t in range(j)]
        logits, ious = self._targets(memory, frames)
        masks, valid = clip.target_masks, ~clip.ignore
        return self._terms(logits, ious, masks.to(logits), valid.to(logits.device))

    def _targets(self, memory: Memory, frames: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Candidate logits [B, J, M, R/4, R/4] and predicted IoUs [B, J, M]; M = 1 where the decoder is frozen."""
        found = []
        for t, maps in enumerate(frames):
            decoded = self.decode_targets(memory, maps)
            logits, iou, token = decoded.best()
            everything = self.trains_decoder
            found.append((decoded.logits, decoded.ious) if everything else (logits[:, None], iou[:, None]))
            if t + 1 < len(frames):
                memory = append(memory, self.core.remember_prediction(maps, logits, token))
        return torch.stack([f[0] for f in found], dim=1), torch.stack([f[1] for f in found], dim=1)

    def _terms(self, logits: Tensor, ious: Tensor, masks: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """A decoder trained from scratch learns all its candidates alike and how good each one is."""
        b, j, m = logits.shape[:3]
        full = F.interpolate(logits.flatten(0, 1), size=masks.shape[-2:], mode="bilinear", align_corners=False)
        full = full.view(b, j, m, *masks.shape[-2:]).transpose(1, 2).flatten(0, 1)  # [B * M, J, R, R]
        masks, valid = (x.repeat_interleave(m, dim=0) for x in (masks, valid))
        pixel = losses.focal if self.config.mask_loss == "focal" else losses.cross_entropy
        terms = {"mask": pixel(full, masks, valid), "dice": losses.dice(full, masks, valid)}
        if self.trains_decoder:
            truth = losses.mask_iou(full, masks, valid).view(b, m, j).transpose(1, 2)
            terms["iou"] = F.mse_loss(ious.float(), truth)
        return terms


