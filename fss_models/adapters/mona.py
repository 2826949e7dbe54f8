"""Mona, the multi-cognitive visual adapter (Yin et al., CVPR 2025, section 3.2).

    x' = s1 LN(x) + s2 x;  h = W_down x';  h = h + mean of depthwise 3x3, 5x5, 7x7 (h);  h = h + W_1x1 h
    out = W_up gelu(h), added to x

A transformer block gets one adapter between attention and MLP and one after the MLP, a convolution block gets one
behind it. W_up starts at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.adapters import hooks
from fss_models.adapters.adaptformer import bottleneck

KERNELS = (3, 5, 7)


class Mona(nn.Module):
    """The adapter's layers: x [N, h, w, width] -> the update that is added to x. Before training the update is zero."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scale_norm, self.scale_plain = nn.Parameter(torch.full((width,), 1e-6)), nn.Parameter(torch.ones(width))
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.filters = nn.ModuleList([nn.Conv2d(hidden, hidden, k, padding=k // 2, groups=hidden) for k in KERNELS])
        self.mix = nn.Conv2d(hidden, hidden, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the update, [N, h, w, width] -> [N, h, w, width]."""
        scaled = self.norm(x) * self.scale_norm + x * self.scale_plain
        h = self.down(scaled).permute(0, 3, 1, 2)
        h = h + torch.stack([f(h) for f in self.filters]).mean(dim=0)
        h = h + self.mix(h)
        out: Tensor = self.up(F.gelu(h).permute(0, 2, 3, 1))
        return out


def adapt_trunk(trunk: Any, *, stages: Sequence[int], factor: float) -> None:
    """Put adapters with floor(factor * input width) hidden channels into every block of `stages`."""
    for i in hooks.stage_blocks(trunk, stages):
        block, (into, out) = trunk.blocks[i], hooks.widths(trunk, i)
        count = 2 if hooks.has_attention(block) else 1
        block.mona = nn.ModuleList([Mona(out, bottleneck(factor, into)) for _ in range(count)])
        if count == 2:
            hooks.between(block, block.mona[0])
            hooks.after(block, _with_residual(block.mona[1]))
        else:
            hooks.after(block, hooks.channels_last(_with_residual(block.mona[0])))


def _with_residual(adapter: nn.Module) -> hooks.Apply:
    return lambda x: x + adapter(x)
