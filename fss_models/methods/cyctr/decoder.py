"""CyCTR's trained part. Tensor names are the official code's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fss_models.methods.cyctr.config import CyctrConfig
from fss_models.methods.cyctr.transformer import CyctrTransformer, Drawn
from fss_models.prior_guided.blocks import Refinement, head, merge, reduction
from fss_models.prior_guided.maps import masked_mean, resize_aligned

DICE_EPSILON = 1e-8


class CyctrDecoder(nn.Module):
    """From fused trunk features [E, C, G, G] and prior masks to logits. `width` is D.

    `addtional_proj` takes part in nothing; official checkpoints hold it.
    """

    def __init__(self, config: CyctrConfig, *, channels: int, width: int) -> None:
        super().__init__()
        drop = config.head_dropout
        self.adjust_feature_supp = reduction(channels, width, config.feature_dropout)
        self.adjust_feature_qry = reduction(channels, width, config.feature_dropout)
        self.qry_merge_feat = merge(2 * width + 1, width)
        self.supp_merge_feat = merge(2 * width, width)
        self.addtional_proj = nn.Sequential(*merge(width, width), nn.Conv2d(width, width, 1, bias=False))
        self.transformer = CyctrTransformer(config, width=width)
        self.merge_multi_lvl_reduce = merge(width, width)
        self.merge_multi_lvl_sum = Refinement(width)
        self.cls = head(width, dropout=drop)
        self.pred_supp_qry_proj = merge(width, width)
        self.supp_init_merge = merge(2 * width, width)
        self.supp_beta_conv = Refinement(width)
        self.supp_cls = head(width, dropout=drop)

    def merge_support(self, reduced: Tensor, prototype: Tensor) -> Tensor:
        """Reduced features [E, D, G, G] and their prototypes [E, D] -> [E, D, G, G]."""
        merged: Tensor = self.supp_merge_feat(_joined(reduced, prototype))
        return merged

    def forward(
        self, reduced: Tensor, prototype: Tensor, prior: Tensor, padded: Tensor, drawn: Drawn
    ) -> tuple[Tensor, Tensor]:
        """Query features [P, D, G, G], prototypes [P, D], priors [P, 1, G, G], padded [P, G, G] -> logits [P, 2, G, G].

        Also the last features [P, D, G, G].
        """
        merged = self.qry_merge_feat(torch.cat([_joined(reduced, prototype), prior], dim=1))
        read = self.transformer(merged, padded, drawn)
        last = self.merge_multi_lvl_sum(self.merge_multi_lvl_reduce(read))
        return self.cls(last), last

    def query_prototypes(self, last: Tensor, reduced: Tensor, masks: Tensor) -> Tensor:
        """Prototypes [P, D] of the query's object under its true masks [P, 1, R, R], from the last features."""
        return masked_mean(self.pred_supp_qry_proj(last) + reduced, resize_aligned(masks, last.shape[-2:]))

    def support_logits(self, reduced: Tensor, prototype: Tensor) -> Tensor:
        """Logits [E, 2, G, G] of supports [E, D, G, G] from the query's prototypes [E, D]: the auxiliary task."""
        found: Tensor = self.supp_cls(self.supp_beta_conv(self.supp_init_merge(_joined(reduced, prototype))))
        return found


def _joined(maps: Tensor, prototype: Tensor) -> Tensor:
    return torch.cat([maps, prototype[..., None, None].expand(-1, -1, *maps.shape[-2:])], dim=1)


def class_dice(logits: Tensor, label: Tensor) -> Tensor:
    """Dice losses of background and object as two sigmoids, summed, mean over images: [E, 2, R, R], labels [E, R, R].

    Void pixels (255) belong to neither, but their probabilities count.
    """
    p = logits.float().sigmoid().flatten(2)
    t = torch.stack([label == 0, label == 1], dim=1).to(p).flatten(2)
    both, squares = (p * t).sum(dim=2), (p * p + t * t).sum(dim=2)
    return (1 - 2 * both / squares.clamp(min=DICE_EPSILON)).sum(dim=1).mean()
