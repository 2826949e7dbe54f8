"""Configuration of HDMNet."""

from __future__ import annotations

from dataclasses import dataclass

from fss_models.base_learner.ensemble import Order
from fss_models.methods.hdmnet.transformer import Norms


@dataclass(frozen=True, kw_only=True)
class HdmnetConfig:
    """Settings of HDMNet. The defaults are the released code's.

    side             side of the square of a photo, in pixels; 0: the preset's (473; COCO-20i: 633)
    width            D, channels of reduced features; 0: the preset's (256)
    embed            E, channels of the transformer; a multiple of 8; 0: a quarter of D (64)
    shots            K whose weights are made for: the released code trains a model for each K (5-shot: 5). Support
                     sets of another size weigh their shots equally
    kshot_order      official: the weights of the shots stay sorted by difference and random, as in the released code |
                     restored: they are put back into the order of the shots, and trained, as in BAM
    decoder_bn       frozen: the transformer's batch normalisations are affine maps (released code) | trained
    feature_dropout  share of the channels of reduced features that are dropped in training
    dropout          of the transformer's layers
    meta_weight      weight of the meta learner's own loss. The loss of the base learner is constant, since nothing of
                     it is trained, and left out
    distil_weight    weight of the loss by which each correlation map learns from the next coarser one
    lr_factor        the recipe's learning rate times this
    """

    side: int = 0
    width: int = 0
    embed: int = 0
    shots: int = 1
    kshot_order: Order = "official"
    decoder_bn: Norms = "frozen"
    feature_dropout: float = 0.5
    dropout: float = 0.1
    meta_weight: float = 1.0
    distil_weight: float = 1.0
    lr_factor: float = 1.0
