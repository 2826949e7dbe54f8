"""SANSA: AdaptFormer adapters in SAM 2's trunk, memory attention as semantic matching."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models import losses
from fss_models.adapters import tuning
from fss_models.clip import Clip, Memory, PromptKind
from fss_models.errors import FssError
from fss_models.methods.sansa.config import SansaConfig
from fss_models.registry import register_method
from fss_models.sam2_core.core import MemoryRules, take
from fss_models.sam2_core.matcher import MemoryMatcher, append


@register_method("sansa", config=SansaConfig)
class Sansa(MemoryMatcher):
    """SANSA: references are prompted and their masks propagated to the targets, on adapted features."""

    config: SansaConfig

    def __init__(self, *, preset: str, config: SansaConfig, weights: str | None = None, sam: Any = None) -> None:
        rules = MemoryRules(exact_masks=config.memory_mask == "exact",
                            all_conditioning=config.references == "all_conditioning")
        super().__init__(preset=preset, config=config, weights=weights, sam=sam, rules=rules)
        self.preprocessor = replace(self.preprocessor, via=config.data_side, mask_threshold=config.mask_threshold)
        tuning.attach(config.tuning, self.core.sam.image_encoder.trunk, stages=config.stages, factor=config.factor,
                      rank=config.rank)

    @property
    def trains_rest(self) -> bool:
        """Whether neck, memory and decoder are trained beside what `tuning` names."""
        return self.config.rest == "trained" or (self.config.rest == "auto" and not self.pretrained_parts)

    @property
    def keeps_random_parts(self) -> bool:
        """Whether neck, memory and decoder are random and stay so."""
        return not self.pretrained_parts and not self.trains_rest

    def set_trainable(self) -> None:
        """Train what `tuning` names and, if `rest` asks for it, everything outside the trunk."""
        for name, parameter in self.named_parameters():
            rest = self.trains_rest and tuning.TRUNK not in name
            parameter.requires_grad_(rest or tuning.tunes(self.config.tuning, name))

    def train(self, mode: bool = True) -> Sansa:
        """Set the training mode; memory attention keeps dropout off if the configuration says so."""
        super().train(mode)
        if not self.config.memory_dropout:
            self.core.sam.memory_attention.eval()
        return self

    def trainable_names(self) -> set[str]:
        """Trained parameters, and the random buffers (point encoding) that go with parts trained from scratch."""
        names = super().trainable_names()
        if self.trains_rest:
            names |= {n for n in self.state_dict() if n.endswith("positional_encoding_gaussian_matrix")}
        return names

    def losses(self, clip: Clip, *, skip: int | None = None) -> dict[str, Tensor]:
        """Losses mask (focal or bce) and dice, and iou, for the IoU head, where the decoder is trained from scratch.

        Each target is written to memory with gradients before the next is read (the paper's pseudo-references). The
        first `skip` frames of a clip enter no loss (default: the configuration's `supervise` decides). Clips whose
        logits are not numbers are left out, as in the released code. Raises `FssError` if references are to be
        supervised and the clip lacks their masks.
        """
        logits, ious = self.predict(clip)
        references = clip.shape[1]
        first = self._unsupervised(clip) if skip is None else skip
        masks, valid = clip.target_masks, ~clip.ignore
        if first < references:
            if clip.reference_masks is None or clip.reference_ignore is None:
                raise FssError("references are supervised, but the clip has no masks of them",
                               hint="set the method's config supervise: targets")
            masks = torch.cat([clip.reference_masks[:, first:], masks], dim=1)
            valid = torch.cat([~clip.reference_ignore[:, first:], valid], dim=1)
        return self._terms(logits[:, first:], ious, masks.to(logits), valid.to(logits.device))

    def predict(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Low-resolution logits of all frames [B, K + J, M, R/4, R/4] and the targets' predicted IoUs [B, J, M].

        M is 3 candidates where the decoder is trained from scratch (a reference has one, repeated), else the best.
        """
        b, k, j = clip.shape
        features = self.clip_features(clip)
        entries, seen = self.remember(features, clip.prompts)
        memory = self.as_memory(entries, clip.prompts)
        first = len(clip.references)
        frames = [take(features.maps, list(range(first + t, first + b * j, j))) for t in range(j)]
        logits, ious = self._targets(memory, frames)
        references = seen.view(b, k, 1, *seen.shape[-2:]).expand(-1, -1, logits.shape[2], -1, -1)
        return torch.cat([references, logits], dim=1), ious

    def _targets(self, memory: Memory, frames: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        found = []
        for t, maps in enumerate(frames):
            decoded = self.decode_targets(memory, maps, predicted=t)
            logits, iou, token = decoded.best()
            found.append((decoded.logits, decoded.ious) if self.trains_rest else (logits[:, None], iou[:, None]))
            if t + 1 < len(frames):
                memory = append(memory, self.core.remember_prediction(maps, logits, token))
        return torch.stack([f[0] for f in found], dim=1), torch.stack([f[1] for f in found], dim=1)

    def _unsupervised(self, clip: Clip) -> int:
        """Number of first frames of a clip that enter no loss."""
        auto, references = self.config.supervise == "auto", clip.shape[1]
        if self.config.supervise == "targets" or (auto and clip.reference_masks is None):
            return references
        return int(auto and bool((clip.prompts.kind <= PromptKind.MASK).all()))

    def _terms(self, logits: Tensor, ious: Tensor, masks: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Losses of decoded frames; a decoder trained from scratch learns all candidates alike, and their quality."""
        usable = ~logits.isnan().flatten(1).any(dim=1)
        logits, ious, masks, valid = (x[usable] for x in (logits, ious, masks, valid))
        b, frames, m = logits.shape[:3]
        full = F.interpolate(logits.flatten(0, 1), size=masks.shape[-2:], mode="bilinear", align_corners=False)
        full = full.view(b, frames, m, *masks.shape[-2:]).transpose(1, 2).flatten(0, 1)  # [B * M, frames, D, D]
        masks, valid = (x.repeat_interleave(m, dim=0) for x in (masks, valid))
        pixel = losses.focal if self.config.mask_loss == "focal" else losses.cross_entropy
        terms = {"mask": pixel(full, masks, valid), "dice": losses.dice(full, masks, valid)}
        if self.trains_rest:
            truth = losses.mask_iou(full, masks, valid).view(b, m, frames).transpose(1, 2)
            terms["iou"] = F.mse_loss(ious.float(), truth[:, frames - ious.shape[1]:])
        return terms
