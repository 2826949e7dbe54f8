"""The sizes at which INSID3 is built: their encoders, and the constants that go with the encoder's features."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.backbones.dinov3 import Dinov3, build_dinov3
from fss_models.backbones.efficientnet import EfficientNetTrunk
from fss_models.errors import FssError
from fss_models.methods.insid3.config import Insid3Config
from fss_models.preprocess import IMAGENET, SYMMETRIC, FloorMasks
from fss_models.presets import RANDOM

STRIDE = 16


@dataclass(frozen=True, kw_only=True)
class Insid3Preset:
    """Constants of one size; the fields of `Insid3Config` replace them. `dino`: DINOv3's size, "" for nano's trunk."""

    dino: str
    side: int
    svd_components: int
    tau: float = 0.6
    merge_threshold: float = 0.2


PRESETS = {
    # random values, two blocks: for tests
    "debug": Insid3Preset(dino="debug", side=128, svd_components=4),
    # Laptops: the ImageNet trunk of the other methods' nano, whose cosines are lower than DINOv3's. tau and
    # merge_threshold: the best mean over the base classes of all folds, `benchmarks/results/*base_class_constants*`.
    # svd_components: any number from 0 to 32 is as good, since a black image tells this trunk only where the border is
    "nano": Insid3Preset(dino="", side=256, svd_components=8, tau=0.5, merge_threshold=0.02),
    # Half of the channels, as in `large`: the released code's 500 leaves nothing of the 384 of `small`
    "small": Insid3Preset(dino="small", side=512, svd_components=190),
    "base": Insid3Preset(dino="base", side=1024, svd_components=380),
    # the released code's own
    "large": Insid3Preset(dino="large", side=1024, svd_components=500),
}


class TrunkFeatures(nn.Module):
    """The stride-16 and stride-32 maps of nano's trunk, each of unit length at every pixel, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = EfficientNetTrunk()
        self.pretrained = self.trunk.pretrained
        self.width = sum(self.trunk.channel_list[:2])

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [N, C, R / 16, R / 16] of [N, 3, R, R] in [-1, 1]."""
        fine, coarse = self.trunk(pixels)[2:4]
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([F.normalize(fine, dim=1), F.normalize(coarse, dim=1)], dim=1)


def resolve(preset: str, config: Insid3Config) -> Insid3Preset:
    """The preset's constants with those of `config` in their place. Raises `FssError` for a side that does not fit."""
    names = ("side", "svd_components", "tau", "merge_threshold")
    found = replace(PRESETS[preset], **{k: v for k in names if (v := getattr(config, k)) is not None})
    if found.side < STRIDE or found.side % STRIDE:
        raise FssError(f"side is {found.side}", hint=f"give a multiple of {STRIDE}")
    return found


def build_encoder(preset: str, weights: str | None) -> Dinov3 | TrunkFeatures:
    """The frozen encoder of a preset. Raises `FssError` for weights that do not fit, or that the preset does not take.
    """
    size, file = PRESETS[preset].dino, None if weights in (None, "", RANDOM) else weights
    if file and size in ("", "debug"):
        raise FssError(f"preset {preset!r} takes no weights", where=file, hint="use small, base or large for a DINOv3")
    if not size:
        return TrunkFeatures()
    return Dinov3(width=32, blocks=2, heads=2) if size == "debug" else build_dinov3(size, file)


def preprocessor(preset: str, side: int) -> FloorMasks:
    """Square resize to `side` pixels and the normalisation of the preset's encoder."""
    mean, std = IMAGENET if PRESETS[preset].dino else SYMMETRIC
    return FloorMasks(side=side, mean=mean, std=std)
