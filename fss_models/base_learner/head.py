"""PSPNet's head: pyramid pooling over the last map, then a classifier (Zhao et al., CVPR 2017).

Tensor names are those of the official checkpoints: `ppm.features.0.1.weight`, `cls.0.weight`, ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.errors import FssError

BINS = (1, 2, 3, 6)  # sides of the pooled grids
WIDTH = 512  # channels before the classifier
DROPOUT = 0.1  # share of the channels that are dropped before the classifier
CLASSIFIER = "cls.4."  # the last layer, whose size depends on the fold's number of base classes


class PyramidPooling(nn.Module):
    """A map beside its own means over coarse grids, [N, C, h, w] -> [N, 2C, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        small = channels // len(BINS)
        self.features = nn.ModuleList([
            nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Conv2d(channels, small, 1, bias=False), nn.BatchNorm2d(small),
                          nn.ReLU()) for side in BINS])

    def forward(self, top: Tensor) -> Tensor:
        """Join the map [N, C, h, w] and its pooled maps, bilinear with aligned corners."""
        pooled = [F.interpolate(pool(top), size=top.shape[-2:], mode="bilinear", align_corners=True)
                  for pool in self.features]
        return torch.cat([top, *pooled], dim=1)


class PspHead(nn.Module):
    """The head over a map of C `channels`; `classes` are the base classes, without background."""

    def __init__(self, channels: int, classes: int, *, width: int = WIDTH) -> None:
        super().__init__()
        self.ppm = PyramidPooling(channels)
        self.cls = nn.Sequential(
            nn.Conv2d(2 * channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Dropout2d(DROPOUT), nn.Conv2d(width, classes + 1, 1))

    @property
    def classes(self) -> int:
        """Number of base classes n, without background."""
        return int(self._last.out_channels) - 1

    @property
    def _last(self) -> Any:
        return self.cls[4]

    def describe(self, top: Tensor) -> Tensor:
        """Features [N, width, h, w] before the classifier's ReLU, which may be negative, of layer4 [N, C, h, w]."""
        found: Tensor = self.cls[:2](self.ppm(top))
        return found

    def classify(self, described: Tensor) -> Tensor:
        """Logits [N, 1 + n, h, w], background first, of `describe`'s result."""
        found: Tensor = self.cls[2:](described)
        return found

    def forward(self, top: Tensor) -> Tensor:
        """Logits [N, 1 + n, h, w], background first, of layer4 [N, C, h, w]."""
        return self.classify(self.describe(top))

    def fit_classifier(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Give the classifier as many outputs as `state` has, whose names begin with `prefix`.

        A name that is missing or not of a classifier changes nothing: the strict loading that follows reports it.
        """
        weight, last = state.get(f"{prefix}{CLASSIFIER}weight"), self._last
        if weight is None or weight.dim() != 4 or tuple(weight.shape[1:]) != tuple(last.weight.shape[1:]):
            return
        if len(weight) < 2:
            raise FssError(f"{prefix}{CLASSIFIER}weight has {len(weight)} classes", hint="2 are needed at least")
        if len(weight) != last.out_channels:
            new = nn.Conv2d(last.in_channels, len(weight), 1, device=last.weight.device)
            self.cls[4] = new.requires_grad_(last.weight.requires_grad)
