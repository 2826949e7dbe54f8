"""PFENet's trained part: reduced features, the pyramid of feature enrichment, logits.

Letters: P rows (a query with its support set), D width, C fused channels, G grid side. Tensor names are the official
code's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.methods.pfenet.config import PfenetConfig
from fss_models.prior_guided.blocks import Refinement, head, merge, reduction
from fss_models.prior_guided.maps import resize_aligned

PASCAL_GRID, PASCAL_SCALES = 60, (60.0, 30.0, 15.0, 8.0)
SHARES = (1.0, 0.5, 0.25, 0.125)


class PfenetDecoder(nn.Module):
    """Feature enrichment from coarse pools of the query, the prototype and the prior mask (paper, section 4)."""

    def __init__(self, config: PfenetConfig, *, channels: int, width: int) -> None:
        super().__init__()
        self.scales = config.scales
        count = len(config.scales) or len(SHARES)
        self.down_query = reduction(channels, width, config.feature_dropout)
        self.down_supp = reduction(channels, width, config.feature_dropout)
        self.init_merge = nn.ModuleList([merge(2 * width + 1, width) for _ in range(count)])
        self.alpha_conv = nn.ModuleList([merge(2 * width, width) for _ in range(count - 1)])
        self.beta_conv = nn.ModuleList([Refinement(width) for _ in range(count)])
        self.inner_cls = nn.ModuleList([head(width, dropout=config.head_dropout) for _ in range(count)])
        self.res1 = merge(count * width, width)
        self.res2 = Refinement(width)
        self.cls = head(width, dropout=config.head_dropout)

    def sides(self, grid: int) -> list[int]:
        """Sides of the pyramid's maps on a grid of `grid` cells a side."""
        chosen = self.scales or (PASCAL_SCALES if grid == PASCAL_GRID else SHARES)
        return [int(grid * s) if s <= 1 else int(s) for s in chosen]

    def forward(self, query: Tensor, prototype: Tensor, prior: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Reduced query features [P, D, G, G], prototypes [P, D], priors [P, 1, G, G] -> logits [P, 2, G, G].

        Also the scales' own logits [P, 2, n, n]. A scale's result reaches the next one through the whole grid.
        """
        size = query.shape[-2:]
        results: list[Tensor] = []
        logits: list[Tensor] = []
        for i, side in enumerate(self.sides(size[0])):
            pooled = F.adaptive_avg_pool2d(query, side)
            tiled = prototype[..., None, None].expand(-1, -1, side, side)
            x = self.init_merge[i](torch.cat([pooled, tiled, resize_aligned(prior, (side, side))], dim=1))
            if results:
                x = x + self.alpha_conv[i - 1](torch.cat([x, resize_aligned(results[-1], (side, side))], dim=1))
            x = self.beta_conv[i](x)
            logits.append(self.inner_cls[i](x))
            results.append(resize_aligned(x, size))
        z = self.res2(self.res1(torch.cat(results, dim=1)))
        return self.cls(z), logits
