"""Configuration of BAM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BamConfig:
    """Settings of BAM. The defaults are the released code's.

    side             side of the square of a photo, in pixels; 0: the preset's (473; COCO-20i: 641)
    width            D, channels of the meta learner; 0: the preset's (256)
    shots            K whose weights are learnt: the released code trains a model for each K (5-shot: 5). Support sets
                     of another size weigh their shots equally
    feature_dropout  share of the channels of reduced features that are dropped in training
    head_dropout     share of the channels before the last convolution
    meta_weight      weight of the meta learner's own loss. The loss of the base learner is constant, since nothing of
                     it is trained, and left out
    lr_factor        the recipe's learning rate times this
    """

    side: int = 0
    width: int = 0
    shots: int = 1
    feature_dropout: float = 0.5
    head_dropout: float = 0.1
    meta_weight: float = 1.0
    lr_factor: float = 1.0
