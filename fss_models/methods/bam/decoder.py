"""BAM's meta learner (section 3.3): what is trained beside the base learner. Tensor names are the official codes'.

Letters: E rows (a query with a shot), P pairs, D width, G grid side, K shots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fss_models.base_learner.ensemble import Ensemble, ShotWeights
from fss_models.methods.bam.config import BamConfig
from fss_models.prior_guided.blocks import Refinement, head, merge, reduction

DILATIONS = (6, 12, 18)  # of the 3 x 3 convolutions, in cells


class Aspp(nn.Module):
    """Five views of a map beside each other, [N, D, G, G] -> [N, 5D, G, G]: its mean, 1 x 1, and three dilated ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1),
                 *(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in DILATIONS)]
        for i, conv in enumerate(convs):
            nn.init.kaiming_normal_(conv.weight)
            self.add_module(f"layer6_{i}", nn.Sequential(conv, nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        """The mean's view is the same in every cell."""
        first, *others = self.children()
        return torch.cat([first(x.mean(dim=(2, 3), keepdim=True)).expand_as(x), *(layer(x) for layer in others)], dim=1)


@dataclass(frozen=True, kw_only=True)
class MetaPrediction:
    """Maps [P, C, G, G] of the meta learner: merged (D), aspp (5D), refined (D), logits (background and object)."""

    merged: Tensor
    aspp: Tensor
    refined: Tensor
    logits: Tensor


class BamDecoder(nn.Module):
    """The trained layers, over `channels` of layer3 and layer2 together."""

    def __init__(self, config: BamConfig, *, channels: int, width: int) -> None:
        super().__init__()
        self.down_query, self.down_supp = (reduction(channels, width, config.feature_dropout) for _ in range(2))
        self.init_merge = merge(2 * width + 1, width)
        self.ASPP_meta = Aspp(width)
        self.res1_meta = merge(5 * width, width)
        self.res2_meta = Refinement(width)
        self.cls_meta = head(width, dropout=config.head_dropout)
        self.ensemble = Ensemble()
        self.shot_weights = ShotWeights(config.shots) if config.shots > 1 else None

    def forward(self, query: Tensor, prototype: Tensor, prior: Tensor) -> MetaPrediction:
        """Query features [P, D, G, G], prototype [P, D] and prior mask [P, 1, G, G] -> the object."""
        tiled = prototype[..., None, None].expand_as(query)
        merged = self.init_merge(torch.cat([query, tiled, prior], dim=1))
        views = self.ASPP_meta(merged)
        refined = self.res2_meta(self.res1_meta(views))
        return MetaPrediction(merged=merged, aspp=views, refined=refined, logits=self.cls_meta(refined))
