"""Sources of cell features, all frozen: DINOv2's patch tokens, or the coarse maps of SAM 2's own trunk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.backbones.dinov2 import Dinov2, build_dinov2
from fss_models.prototype_prompts.sams import Maps

CellSource = Literal["auto", "dinov2_small", "dinov2_base", "dinov2_large", "trunk"]
SOURCES: tuple[CellSource, ...] = get_args(CellSource)


class Cells(nn.Module, ABC):
    """A source of cell features [N, C, g, g]."""

    #: whether `forward` reads the maps of `PromptedSam.look`
    looks: ClassVar[bool] = True

    @abstractmethod
    def forward(self, pixels: Tensor, looked: Maps) -> Tensor:
        """Cell features of normalised [N, 3, R, R]; `looked` are the maps that `PromptedSam.look` made of them."""


class DinoCells(Cells):
    """DINOv2's patch tokens before the final normalisation, of pixels resized to `side` (a multiple of 14)."""

    looks = False

    def __init__(self, dino: Dinov2, *, side: int, antialias: bool) -> None:
        super().__init__()
        self.dino, self.side, self.antialias = dino.requires_grad_(False).eval(), side, antialias

    def forward(self, pixels: Tensor, looked: Maps) -> Tensor:
        """Cell features, g = side / 14. `looked` is not used."""
        return self.dino(self.resized(pixels), norm=False)

    def resized(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, R, R] at the backbone's side."""
        if pixels.shape[-1] == self.side:
            return pixels
        return F.interpolate(pixels, size=(self.side, self.side), mode="bilinear", align_corners=False,
                             antialias=self.antialias)

    def train(self, mode: bool = True) -> Self:
        """Keep the backbone in evaluation mode."""
        return super().train(False)


class TrunkCells(Cells):
    """The stride-16 and stride-32 maps of SAM 2's trunk, each with unit length at every cell, joined; g = R / 16."""

    def forward(self, pixels: Tensor, looked: Maps) -> Tensor:
        """Cell features from the trunk's "stage2" and "stage3"."""
        fine, coarse = looked["stage2"], looked["stage3"]
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([F.normalize(fine, dim=1), F.normalize(coarse, dim=1)], dim=1)


def build_cells(source: str, *, side: int, antialias: bool, weights: str) -> Cells:
    """Cells of a source other than `auto`; DINOv2 holds random values without a weight file."""
    if source == "trunk":
        return TrunkCells()
    return DinoCells(build_dinov2(source.removeprefix("dinov2_"), weights or None), side=side, antialias=antialias)
