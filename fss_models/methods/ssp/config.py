"""Configuration of SSP."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SspConfig:
    """Settings of SSP. The defaults are the released code's.

    side                  S, side of the square that photos are resized to, in pixels; 0: 473, the released training
                          crop; at nano 256
    refine                a second round of self-support, as in the released training; its HSNet-protocol test has one
    temperature           logits are cosines times this
    foreground_threshold  probability above which a query pixel supports the object
    background_threshold  probability above which it supports the background
    top_pixels            number of pixels that do so where none is above its threshold
    local_temperature     cosines between query pixels are multiplied by this before the softmax over the background
    self_weight           share of the query's own object prototype beside the support's
    local_weight          share of the local background prototypes beside the query's global one
    first_weight, second_weight   refinement: shares of the first and the second round's prototypes beside the support's
    refined_weight        refinement: share of the second round's logits beside the first's
    support_weight        weight of the loss of supports on themselves
    lr_factor             the recipe's learning rate times this
    """

    side: int = 0
    refine: bool = True
    temperature: float = 10.0
    foreground_threshold: float = 0.7
    background_threshold: float = 0.6
    top_pixels: int = 12
    local_temperature: float = 2.0
    self_weight: float = 0.5
    local_weight: float = 0.7
    first_weight: float = 0.2
    second_weight: float = 0.3
    refined_weight: float = 0.7
    support_weight: float = 0.2
    lr_factor: float = 1.0
