"""Configuration of PFENet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PfenetConfig:
    """Settings of PFENet. The defaults are the released code's.

    side             S, side of the square that photos are resized to, in pixels; 0: 473 (PASCAL-5i; COCO-20i has 641),
                     at nano 256
    width            D, channels above the trunk; 0: 256, at nano 64
    scales           sides of the pyramid: cells where above 1, else shares of the grid's side, rounded down. Empty: the
                     released sides, which are 60, 30, 15 and 8 on a grid of 60 cells (PASCAL-5i) and 1, 1/2, 1/4
                     and 1/8 of any other (COCO-20i)
    feature_dropout  dropout of whole channels of reduced features
    head_dropout     dropout of whole channels before logits
    aux_weight       weight of the mean loss of the scales' own logits
    backbone_bn      batch: in training the trunk's batch normalisation uses and updates the batch's statistics,
                     although its weights are frozen (released code) | frozen: it keeps ImageNet's (paper), so that
                     features can be kept | auto: batch, at nano frozen, whose normalisation is part of its convolutions
    lr_factor        the recipe's learning rate times this
    """

    side: int = 0
    width: int = 0
    scales: tuple[float, ...] = ()
    feature_dropout: float = 0.5
    head_dropout: float = 0.1
    aux_weight: float = 1.0
    backbone_bn: Literal["auto", "batch", "frozen"] = "auto"
    lr_factor: float = 1.0
