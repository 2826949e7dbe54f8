"""The part of PFENet, BAM and CyCTR that is not theirs alone: a frozen trunk, prior masks, logits of two classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fss_models.augmentation import Augmentation
from fss_models.clip import Clip, Features, Images, Memory, Prediction
from fss_models.opencv_augmentation import SemsegAugmentation
from fss_models.optimisation import ParameterGroup
from fss_models.prior_guided.blocks import labels
from fss_models.prior_guided.maps import min_max, prior, resize_aligned
from fss_models.prior_guided.pairs import gather_shots, shot_rows
from fss_models.prior_guided.trunks import RESNETS, Trunk
from fss_models.segmenter import Segmenter

LEVELS = ("mid", "high", "top")  # layer2, layer3, layer4


class TrunkSegmenter(Segmenter):
    """Base of the methods: `encode` computes maps "mid", "high" and "top" (layer2, layer3, layer4) of the trunk.

    A method puts what it trains into `decoder`, whose tensors have the official names.
    """

    presets: ClassVar[tuple[str, ...]] = RESNETS
    corners_aligned: ClassVar[bool] = True
    decoder: nn.Module

    def __init__(self, *, preset: str, config: Any, trunk: Trunk) -> None:
        super().__init__(preset=preset, preprocessor=trunk.preprocessor, config=config)
        self.trunk = trunk
        self.backbone = trunk.backbone

    @property
    def untrained(self) -> bool:
        """Whether the trunk holds random values."""
        return not self.trunk.frozen

    @property
    def keeps_random_parts(self) -> bool:
        """Whether the trunk is random and stays so."""
        return self.untrained

    def frozen_weights(self) -> dict[str, str]:
        """The trunk's pretrained weights."""
        return dict(self.trunk.frozen)

    @classmethod
    def augmentation(cls, side: int, *, scale: tuple[float, float]) -> Augmentation | None:
        """Scale, rotation, blur, flip and crop, as PSPNet's code has them."""
        return SemsegAugmentation(crop=side, scale=scale)

    def set_trainable(self) -> None:
        """Train the decoder."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("decoder."))

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """`own_groups`, with rates times `lr_factor`."""
        own, factor = self.own_groups(), self.config.lr_factor
        if factor == 1:
            return own
        taken = {id(p) for group in own for p in group.parameters}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in taken]
        return [replace(g, factor=g.factor * factor) for g in (ParameterGroup(parameters=rest), *own)]

    def own_groups(self) -> Sequence[ParameterGroup]:
        """Trained parameters that the published training treats in another way than all others."""
        return ()

    def frozen_part(self) -> Sequence[nn.Module]:
        """The trunk."""
        return [self.backbone]

    def encode(self, images: Images) -> Features:
        """Maps "mid", "high" and "top", [N, C, h, w]: layer2, layer3 and layer4."""
        return self.encode_frozen(images)

    def encode_frozen(self, images: Images) -> Features:
        """All of `encode`."""
        with torch.no_grad():
            mid, high = self.backbone.levels(images.pixels.to(self.device))
            maps = dict(zip(LEVELS, (mid, high, self.backbone.top(high)), strict=True))
        return Features(maps=maps, sizes=images.sizes)

    def grid(self, features: Features) -> tuple[int, int]:
        """Height and width of the grid that the decoder works on."""
        return self.trunk.fused_size(features.maps["mid"], features.maps["high"])

    def fused(self, features: Features, image: Tensor, order: Sequence[str] = ("high", "mid")) -> Tensor:
        """Layer3 and layer2 (or as `order` says) of the images [E] on the decoder's grid, joined, [E, C, G, G]."""
        size = self.grid(features)
        return torch.cat([resize_aligned(features.maps[name][image], size) for name in order], dim=1)

    def masked_top(self, high: Tensor, masks: Tensor) -> Tensor:
        """Layer4 of layer3 [E, C, h, w] under masks [E, 1, R, R] that are resized, masked again; without gradients."""
        with torch.no_grad():
            top: Tensor = self.backbone.top(high * resize_aligned(masks, high.shape[-2:]))
            return top * resize_aligned(masks, top.shape[-2:])

    def shot_priors(self, memory: Memory, features: Features, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prior masks of every (pair, shot), in [0, 1] on the decoder's grid, [E, 1, G, G]; their pair and shot [E].

        The memory needs "top" [S, K, L, C] and "filled" [S, K] of `object_first`.
        """
        pair, shot = shot_rows(memory.counts.to(self.device)[pairs[:, 0]])
        sets, image = pairs[pair].unbind(1)
        own = gather_shots(memory, sets, shot)
        found = min_max(prior(own["top"], features.maps["top"][image]))
        return resize_aligned(found, self.grid(features)), pair, shot

    def to_image(self, logits: Tensor) -> Tensor:
        """Enlarge logits [E, classes, G, G] to [E, classes, R, R]."""
        return resize_aligned(logits, (self.side, self.side))

    def target_labels(self, clip: Clip) -> Tensor:
        """Labels of the targets [B * J, R, R] in {0, 1, 255}."""
        return labels(clip.target_masks, clip.ignore).to(self.device)

    def reference_labels(self, clip: Clip) -> Tensor:
        """Labels of the references [B * K, R, R] in {0, 1, 255}; those of prompts where the clip has no masks."""
        masks = clip.prompts.masks if clip.reference_masks is None else clip.reference_masks
        void = torch.zeros_like(masks, dtype=torch.bool) if clip.reference_ignore is None else clip.reference_ignore
        return labels(masks, void).to(self.device)


def predict(logits: Tensor) -> Prediction:
    """The prediction of logits [P, 2, R, R] (background, object): their difference.

    The score is the mean probability of the pixels that are taken for the object, 0 where there are none.
    """
    difference = logits[:, 1] - logits[:, 0]
    chosen = (difference > 0).to(difference)
    scores = (difference.sigmoid() * chosen).sum(dim=(1, 2)) / chosen.sum(dim=(1, 2)).clamp(min=1)
    return Prediction(logits=difference, scores=scores)


def shot_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean over the real shots of each set: [S, K, ...], zeros where padded, and counts [S] -> [S, ...]."""
    return values.sum(dim=1) / counts.to(values).view(-1, *[1] * (values.dim() - 2))
