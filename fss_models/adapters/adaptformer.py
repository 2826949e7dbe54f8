"""AdaptFormer: a small bottleneck beside a block (Chen et al. 2022; SANSA, NeurIPS 2025, equation 2).

    a(x) = s * (W_up relu(W_down LN(x) + b_down) + b_up)

W_up starts at zero, so an adapted trunk starts as the frozen one. The released SANSA code adds the LayerNorm,
the biases and the constant s = 0.1 to the paper's formula; so do we.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fss_models.adapters import hooks

SCALE = 0.1


class AdaptFormer(nn.Module):
    """The adapter's layers; they compute a(x) of the module's docstring for x [..., width]."""

    def __init__(self, width: int, bottleneck: int, scale: float = SCALE) -> None:
        super().__init__()
        self.scale = scale
        self.adapter_layer_norm_before = nn.LayerNorm(width)
        self.down_proj = nn.Linear(width, bottleneck)
        self.up_proj = nn.Linear(bottleneck, width)
        nn.init.kaiming_uniform_(self.down_proj.weight, a=math.sqrt(5))
        for zero in (self.down_proj.bias, self.up_proj.weight, self.up_proj.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to the update [..., width] that is added to the block's output."""
        hidden = self.down_proj(self.adapter_layer_norm_before(x)).relu()
        up: Tensor = self.up_proj(hidden) * self.scale
        return up


def bottleneck(factor: float, width: int) -> int:
    """Number of hidden channels: floor(factor * width), at least 1."""
    return max(1, int(factor * width))


def adapt_trunk(trunk: Any, *, stages: Sequence[int], factor: float, scale: float = SCALE) -> list[int]:
    """Put an adapter into every block of `stages` (0-based) and return the blocks' indices.

    In a Hiera block u + MLP(norm2(u)) the adapter reads u and runs beside the MLP; a convolution block is followed
    by it. The bottleneck is floor(factor * the block's input width), as the released code has it.
    """
    chosen = hooks.stage_blocks(trunk, stages)
    for i in chosen:
        block, (into, out) = trunk.blocks[i], hooks.widths(trunk, i)
        block.adapter = AdaptFormer(out, bottleneck(factor, into), scale)
        if hooks.has_attention(block):
            hooks.beside(block, block.adapter)
        else:
            hooks.after(block, _with_residual(block.adapter))
    return chosen


def _with_residual(adapter: nn.Module) -> hooks.Apply:
    apply = hooks.channels_last(adapter)
    return lambda maps: maps + apply(maps)
