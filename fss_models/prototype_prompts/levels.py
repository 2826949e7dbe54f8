"""Sources of class-consistent features: an ImageNet backbone, DINOv2, or the trunk that SAM 2 has anyway."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from fss_models.backbones.dinov2 import Dinov2, build_dinov2
from fss_models.backbones.imagenet import ImagenetBackbone
from fss_models.backbones.resnet import build_resnet
from fss_models.backbones.vgg import Vgg16
from fss_models.errors import FssError
from fss_models.prior_guided.maps import cells, resize_aligned

Backbone = Literal["auto", "resnet50", "resnet101", "vgg16", "dinov2_small", "dinov2_base", "dinov2_large", "trunk"]
BACKBONES: tuple[Backbone, ...] = get_args(Backbone)
_CUTS = (12 / 24, 21 / 24)  # shares of DINOv2's blocks after which layer2 and layer3 end


class DinoLevels(nn.Module):
    """DINOv2's blocks in groups that end after 8, 12, 21 and 24 of 24, as VRP-SAM's author
    described them (issue 12 of its repository).

    Images are resized to the nearest multiple of 14. Neither paper nor issues say how layer4, which runs on masked
    layer3 features, treats the class token: here it is left out, for query and support alike.
    """

    def __init__(self, dino: Dinov2) -> None:
        super().__init__()
        self.dino = dino.requires_grad_(False).eval()
        depth = len(dino.vit.blocks)
        self._ends = [int(depth * cut) for cut in _CUTS]
        self.channels = (dino.width,) * 3

    def levels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute layer2 and layer3, each [N, C, h, h], of ImageNet-normalised [N, 3, R, R]."""
        side = round(pixels.shape[-1] / self.dino.patch) * self.dino.patch
        patches = self.dino.vit.patch_embed.proj(resize_aligned(pixels, (side, side)))
        h, w = patches.shape[-2:]
        tokens = torch.cat([self.dino.vit.cls_token.expand(len(pixels), -1, -1), cells(patches)], dim=1)
        tokens = self.dino.vit.blocks[: self._ends[0]](tokens + self.dino.positions(h, w))
        further = self.dino.vit.blocks[self._ends[0] : self._ends[1]](tokens)
        mid, high = (x[:, 1:].transpose(1, 2).unflatten(2, (h, w)) for x in (tokens, further))
        return mid, high

    def top(self, high: Tensor) -> Tensor:
        """Compute layer4 from layer3 [N, C, h, w], which may be masked."""
        found: Tensor = self.dino.vit.blocks[self._ends[1] :](cells(high))
        return found.transpose(1, 2).unflatten(2, high.shape[-2:])

    def train(self, mode: bool = True) -> Self:
        """Keep the backbone in evaluation mode."""
        return super().train(False)


class TrunkLevels:
    """The stages of a SAM 2 trunk as layer2, layer3, layer4 (strides 8, 16, 32).

    This is no module, since the trunk belongs to SAM 2. `trunk` has flat `blocks` and `stage_ends`.
    """

    def __init__(self, trunk: Any) -> None:
        self._trunk = trunk
        fine_to_coarse = trunk.channel_list[::-1]
        self.channels = (fine_to_coarse[1], fine_to_coarse[2], fine_to_coarse[3])

    def top(self, high: Tensor) -> Tensor:
        """Run the blocks of stage 4 on stage 3's output [N, C, h, w]."""
        last = self._trunk.blocks[self._trunk.stage_ends[2] + 1 :]
        channels_last = hasattr(last[0], "norm2")  # Hiera's blocks take [N, h, w, C]
        x = high.permute(0, 2, 3, 1) if channels_last else high
        for block in last:
            x = block(x)
        return x.permute(0, 3, 1, 2) if channels_last else x


def build_backbone(name: str, weights: str) -> ImagenetBackbone | DinoLevels:
    """A frozen backbone, with its file loaded where one is given. Raises `FssError` for an unknown name."""
    if name not in BACKBONES or name in ("auto", "trunk"):
        raise FssError(f"unknown backbone {name!r}", hint=f"known: {', '.join(BACKBONES)}")
    if name.startswith("dinov2_"):
        return DinoLevels(build_dinov2(name.removeprefix("dinov2_"), weights or None))
    backbone: ImagenetBackbone = Vgg16() if name == "vgg16" else build_resnet(name)
    if weights:
        backbone.load_file(weights)
    return backbone


def levels_of(backbone: ImagenetBackbone | DinoLevels, pixels: Tensor) -> dict[str, Tensor]:
    """Maps "mid", "high" and "top" of N images, which are layer2, layer3 and layer4, without gradients."""
    with torch.no_grad():
        mid, high = backbone.levels(pixels)
        return {"mid": mid, "high": high, "top": backbone.top(high)}
