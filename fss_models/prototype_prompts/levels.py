"""Where class-consistent features come from: an ImageNet backbone of its own, or the trunk that SAM 2 has anyway."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.backbones.resnet import BLOCKS, build_resnet
from fss_models.backbones.vgg import Vgg16
from fss_models.errors import FssError

Backbone = Literal["auto", "resnet50", "resnet101", "vgg16", "trunk"]
BACKBONES: tuple[Backbone, ...] = ("auto", "resnet50", "resnet101", "vgg16", "trunk")


class Top(Protocol):
    """What both sources offer: the last group of layers, to be run on masked layer3 features."""

    channels: tuple[int, int, int]

    def top(self, high: Tensor) -> Tensor:
        """layer3 [N, C, h, w] -> layer4."""
        ...


class TrunkLevels:
    """The stages of a SAM 2 trunk as layer2, layer3, layer4 (strides 8, 16, 32).

    Not a module: the trunk belongs to SAM 2 and is listed there. `trunk` has flat `blocks` and `stage_ends`.
    """

    def __init__(self, trunk: Any) -> None:
        self._trunk = trunk
        fine_to_coarse = trunk.channel_list[::-1]
        self.channels = (fine_to_coarse[1], fine_to_coarse[2], fine_to_coarse[3])

    def top(self, high: Tensor) -> Tensor:
        """Stage 3's output [N, C, h, w] through the blocks of stage 4."""
        last = self._trunk.blocks[self._trunk.stage_ends[2] + 1 :]
        channels_last = hasattr(last[0], "norm2")  # Hiera's blocks take [N, h, w, C]
        x = high.permute(0, 2, 3, 1) if channels_last else high
        for block in last:
            x = block(x)
        return x.permute(0, 3, 1, 2) if channels_last else x


def build_backbone(name: str, weights: str) -> ImagenetBackbone:
    """An ImageNet backbone, with its file loaded where one is given. Raises `FssError` for an unknown name."""
    if name not in ("vgg16", *BLOCKS):
        raise FssError(f"unknown backbone {name!r}", mend=f"known: {', '.join(BACKBONES)}")
    backbone: ImagenetBackbone = Vgg16() if name == "vgg16" else build_resnet(name)
    if weights:
        backbone.load_file(weights)
    return backbone


def levels_of(backbone: nn.Module | None, stages: tuple[Tensor, ...], pixels: Tensor) -> dict[str, Tensor]:
    """maps "mid", "high", "top": layer2, layer3, layer4 of N images, without gradients."""
    with torch.no_grad():
        if isinstance(backbone, ImagenetBackbone):
            mid, high = backbone.levels(pixels)
            return {"mid": mid, "high": high, "top": backbone.top(high)}
        return {"mid": stages[1], "high": stages[2], "top": stages[3]}
