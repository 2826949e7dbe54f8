"""The part of FCP and VRP-SAM that does not depend on how prompts are made: encoding, trained parts, mask losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models import losses
from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.clip import Clip, Features, Images, Prediction, PromptBatch
from fss_models.errors import FssError
from fss_models.prior_guided.maps import resize_aligned
from fss_models.prototype_prompts.analysis import FcpAnalysis, VrpAnalysis
from fss_models.prototype_prompts.build import ALL_PRESETS, PromptingParts, build_parts
from fss_models.prototype_prompts.levels import DinoLevels, TrunkLevels, levels_of
from fss_models.prototype_prompts.sams import PointDecoder, PromptedSam2
from fss_models.sam2_core.build import origin

LEVELS = ("mid", "high", "top")  # layer2, layer3, layer4
_DECODER = ("image_encoder.neck.", "sam_mask_decoder.", "no_mem_embed", "sam_prompt_encoder.no_mask_embed.")
_RANDOM_BUFFER = "positional_encoding_gaussian_matrix"


class PromptingConfig(Protocol):
    """The settings that both methods have."""

    @property
    def backbone(self) -> str:
        """One of `levels.BACKBONES`."""

    @property
    def backbone_weights(self) -> str:
        """Local ImageNet file of the backbone."""

    @property
    def train(self) -> str:
        """The trained part: auto, encoder or all_but_trunk."""

    @property
    def void(self) -> str:
        """How losses treat void pixels: background or ignored."""


class PromptingSegmenter(PointDecoder):
    """Base of both methods; `encode` computes SAM's embedding and three levels of class-consistent features."""

    presets: ClassVar[tuple[str, ...]] = ALL_PRESETS
    config: PromptingConfig
    encoder: nn.Module  #: the trained part, set by the method
    backbone: ImagenetBackbone | DinoLevels | None

    def __init__(
        self, *, preset: str, config: PromptingConfig, weights: str | None, parts: PromptingParts | None
    ) -> None:
        """`parts` are SAM and backbone of any size, holding their values; without them the preset's are built."""
        if parts is None:
            parts = build_parts(preset, backbone=config.backbone, backbone_weights=config.backbone_weights,
                                weights=weights)
        super().__init__(preset=preset, preprocessor=parts.preprocessor, config=config)
        self.sam = parts.sam
        self.backbone = parts.backbone
        self._parts_have = (parts.checkpoint, parts.frozen)
        if config.train == "all_but_trunk" and not isinstance(self.sam, PromptedSam2):
            raise FssError("train 'all_but_trunk' needs SAM 2", hint="take train 'encoder'")

    @abstractmethod
    def analyse(self, features: Features, prompts: PromptBatch, pairs: Tensor) -> FcpAnalysis | VrpAnalysis:
        """`memorise` and `segment`, with everything that the method computed on the way."""

    @property
    def levels(self) -> Any:
        """The source of class-consistent features: `channels` of layer2, layer3, layer4, and `top`."""
        if self.backbone is not None:
            return self.backbone
        assert isinstance(self.sam, PromptedSam2)
        return TrunkLevels(self.sam.core.sam.image_encoder.trunk)

    @property
    def trains_decoder(self) -> bool:
        """Whether SAM 2's neck and mask decoder are trained too; by default they are if there is no checkpoint."""
        auto = self.config.train == "auto" and not self._parts_have[0] and isinstance(self.sam, PromptedSam2)
        return self.config.train == "all_but_trunk" or auto

    @property
    def untrained(self) -> bool:
        """Whether SAM, or a backbone of its own, holds random values."""
        checkpoint, frozen = self._parts_have
        return not checkpoint or (self.backbone is not None and not frozen)

    @property
    def keeps_random_parts(self) -> bool:
        """Whether SAM is random and stays so, or a backbone of its own is."""
        checkpoint, frozen = self._parts_have
        return (not checkpoint and not self.trains_decoder) or (self.backbone is not None and not frozen)

    def frozen_weights(self) -> dict[str, str]:
        """Pretrained weights of trunk or backbone and shipped ones; the caller records a file that it gave itself."""
        shipped = origin(self.sam.core.sam).shipped if isinstance(self.sam, PromptedSam2) else {}
        return {**self._parts_have[1], **shipped}

    def train(self, mode: bool = True) -> Self:
        """Set the mode; SAM stays in evaluation mode, as in the released code."""
        super().train(mode)
        self.sam.train(False)
        return self

    def set_trainable(self) -> None:
        """Train the prompt encoder; with `all_but_trunk` also SAM 2's neck and the mask decoder's used parts."""
        for name, parameter in self.named_parameters():
            own = name.startswith("encoder.")
            decoder = self.trains_decoder and name.startswith(tuple(f"sam.core.sam.{p}" for p in _DECODER))
            parameter.requires_grad_(own or decoder)

    def trainable_names(self) -> set[str]:
        """Trained parameters, and the random position code that goes with a decoder trained from scratch."""
        names = super().trainable_names()
        if self.trains_decoder:
            names |= {n for n in self.state_dict() if n.endswith(_RANDOM_BUFFER)}
        return names

    def encode(self, images: Images) -> Features:
        """Maps "sam" [N, D, G, G], "mid", "high", "top" [N, C, h, w] (layer2, 3, 4), with SAM 2 also "f0" and "f1"."""
        return self.finish(self.encode_frozen(images))

    def frozen_part(self) -> Sequence[nn.Module]:
        """SAM and the backbone; if SAM 2's neck is trained, its trunk and the backbone."""
        own = [] if self.backbone is None else [self.backbone]
        if not self.trains_decoder:
            return [self.sam, *own]
        assert isinstance(self.sam, PromptedSam2)
        return [self.sam.core.sam.image_encoder.trunk, *own]

    def encode_frozen(self, images: Images) -> Features:
        """All of `encode`; where SAM 2's neck is trained, the trunk's "stage0" ... "stage3" take the place of "sam"."""
        pixels = images.pixels.to(self.device)
        maps = self.sam.look(resize_aligned(pixels, (self.sam.side, self.sam.side)))
        if self.backbone is not None:
            maps |= levels_of(self.backbone, pixels)
        if not self.trains_decoder:
            with torch.no_grad():
                maps = self._complete(maps)
        return Features(maps=maps, sizes=images.sizes)

    def finish(self, frozen: Features) -> Features:
        """Run SAM 2's neck, where it is trained."""
        return Features(maps=self._complete(frozen.maps), sizes=frozen.sizes) if self.trains_decoder else frozen

    def _complete(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        source = LEVELS if self.backbone is not None else ("stage1", "stage2", "stage3")
        return self.sam.embed(maps) | {name: maps[own] for name, own in zip(LEVELS, source, strict=True)}

    def masked_top(self, high: Tensor, masks: Tensor) -> Tensor:
        """Compute layer4 from layer3 [E, C, h, w] under masks [E, 1, h, w], without gradients."""
        with torch.no_grad():
            found: Tensor = self.levels.top(high * masks)
        return found

    def to_image(self, logits: Tensor) -> Tensor:
        """Enlarge decoder logits [E, 4G, 4G] to [E, R, R]."""
        return resize_aligned(logits[:, None], (self.side, self.side))[:, 0]

    def mask_terms(self, prediction: Prediction, clip: Clip) -> dict[str, Tensor]:
        """Losses mask (binary cross-entropy) and dice over pixels and queries, and iou where the decoder is trained.

        `prediction` has B * J rows, clip by clip.
        """
        logits, (truth, valid) = prediction.logits[:, None], self.truth(clip)
        terms = {"mask": losses.cross_entropy(logits, truth, valid), "dice": losses.dice(logits, truth, valid)}
        if self.trains_decoder:
            terms["iou"] = F.mse_loss(prediction.scores.float(), losses.mask_iou(logits, truth, valid)[:, 0])
        return terms

    def truth(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """Target masks and the pixels that count, both [B * J, 1, R, R]."""
        truth = clip.target_masks.flatten(0, 1)[:, None].to(self.device, torch.float32)
        valid = ~clip.ignore.flatten(0, 1)[:, None].to(self.device)
        return truth, torch.ones_like(valid) if self.config.void == "background" else valid
