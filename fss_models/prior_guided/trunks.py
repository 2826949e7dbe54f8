"""The trunks of methods that compare layer2, layer3 and layer4 of an ImageNet network, by preset.

At `nano` EfficientNet-Lite0 takes the place of the published networks: its stages at strides 8, 16 and 32 are layer2,
layer3 and layer4, and the methods work on the stride-8 grid, as they do with ResNet (CyCTR, whose cost grows with the
square of the cells, on that of stride 16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from fss_models.backbones.efficientnet import CHANNELS, EfficientNetTrunk
from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.backbones.resnet import DeepStemResNet, Dilation, build_resnet
from fss_models.backbones.vgg import Vgg16
from fss_models.errors import FssError
from fss_models.opencv_resize import OpenCvPreprocessor
from fss_models.preprocess import SYMMETRIC, Preprocessor
from fss_models.presets import RANDOM
from fss_models.weight_files import file_sha256

RESNETS = ("debug", "nano", "resnet50", "resnet101")
TRUNKS = (*RESNETS, "vgg16")
LIVELY = ("debug", "nano")  # presets for short trainings, which start from He's initial values (`blocks.enliven`)
_SIDES = {"debug": 65, "nano": 256}
_WIDTHS = {"debug": 16, "nano": 64}
PUBLISHED_SIDE, PUBLISHED_WIDTH = 473, 256


class EfficientNetLevels(nn.Module):
    """EfficientNet-Lite0 as layer2 [N, 40, R/8, R/8], layer3 [N, 112, R/16, R/16], layer4 [N, 320, R/32, R/32]."""

    channels = CHANNELS[1:]

    def __init__(self, *, pretrained: bool = True) -> None:
        super().__init__()
        self.trunk = EfficientNetTrunk(pretrained=pretrained)
        self.requires_grad_(False).train(False)

    def levels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute layer2 and layer3, each [N, C, h, w], of [N, 3, R, R] in [-1, 1]."""
        return self.after_early(self.early(pixels))

    def early(self, pixels: Tensor) -> Tensor:
        """Compute the stage at stride 4 (layer1), [N, 24, R/4, R/4], of [N, 3, R, R] in [-1, 1]."""
        stem = self.trunk.act(self.trunk.conv_stem(pixels.contiguous(memory_format=torch.channels_last)))
        return self._stage(stem, 0)

    def after_early(self, early: Tensor) -> tuple[Tensor, Tensor]:
        """Compute layer2 and layer3 from the stage at stride 4."""
        mid = self._stage(early, 1)
        return mid, self._stage(mid, 2)

    def top(self, high: Tensor) -> Tensor:
        """Compute layer4 from layer3, which may be masked."""
        return self._stage(high, 3)

    def stage_blocks(self, number: int) -> Sequence[nn.Module]:
        """The blocks of stage 0 (stride 4) to 3 (stride 32)."""
        ends = [-1, *self.trunk.stage_ends]
        return list(self.trunk.blocks[ends[number] + 1 : ends[number + 1] + 1])

    def _stage(self, x: Tensor, number: int) -> Tensor:
        for block in self.stage_blocks(number):
            x = block(x)
        return x

    def train(self, mode: bool = True) -> Self:
        """Keep the trunk in evaluation mode."""
        return super().train(False)


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """A trunk and what it needs.

    backbone      layers that map pixels to layer2, layer3 and layer4
    preprocessor  resize and normalisation of its photos
    width         D, the width of the layers above it
    grid          the level whose grid these layers work on
    frozen        its pretrained weights: name -> sha256; empty: it holds random values
    """

    backbone: ImagenetBackbone | EfficientNetLevels
    preprocessor: Preprocessor
    width: int = PUBLISHED_WIDTH
    grid: Literal["mid", "high"] = "high"
    frozen: dict[str, str]

    def fused_size(self, mid: Tensor, high: Tensor) -> tuple[int, int]:
        """Height and width of the grid, from layer2 [N, C, h, w] and layer3."""
        height, width = (mid if self.grid == "mid" else high).shape[-2:]
        return int(height), int(width)


def build_trunk(
    preset: str, weights: str | None, *, side: int = 0, dilation: Dilation = "all_blocks", signed: bool = False,
    nano_grid: Literal["mid", "high"] = "mid",
) -> Trunk:
    """Build the trunk of a preset with the values of its ImageNet file `weights` (nano's come from a package).

    `side` is in pixels and replaces the preset's; 0: 473, or less at nano and debug. `dilation` and `signed` as in
    `DeepStemResNet`. `nano_grid` is the grid at nano: stride 8 (mid) or, a quarter of the cells, stride 16. Raises
    `FssError` for a file that does not fit.
    """
    side, width = side or _SIDES.get(preset, PUBLISHED_SIDE), _WIDTHS.get(preset, PUBLISHED_WIDTH)
    given = weights not in (None, "", RANDOM)
    if preset == "nano" and given:
        raise FssError("preset 'nano' has weights of its own", where=str(weights), hint="leave the weights out")
    if preset == "nano":
        levels = EfficientNetLevels()
        mean, std = SYMMETRIC
        return Trunk(backbone=levels, preprocessor=Preprocessor(side=side, mean=mean, std=std), width=width,
                     grid=nano_grid, frozen=levels.trunk.pretrained)
    backbone: ImagenetBackbone
    if preset == "vgg16":
        backbone = Vgg16()
    elif preset == "debug":
        backbone = DeepStemResNet((1, 1, 1, 1), thinner=16, dilation=dilation, signed=signed)
    else:
        backbone = build_resnet(preset, dilation=dilation, signed=signed)
    frozen = {}
    if given:
        backbone.load_file(str(weights))
        frozen[preset] = file_sha256(str(weights))
    return Trunk(backbone=backbone, preprocessor=OpenCvPreprocessor(side=side), width=width, frozen=frozen)
