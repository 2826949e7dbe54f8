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

SCALE = 0.1


class AdaptFormer(nn.Module):
    """a(x) for x [..., width]."""

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
        """[..., width] -> [..., width], to be added to the block's output."""
        hidden = self.down_proj(self.adapter_layer_norm_before(x)).relu()
        up: Tensor = self.up_proj(hidden) * self.scale
        return up


def adapt_trunk(trunk: Any, *, stages: Sequence[int], factor: float, scale: float = SCALE) -> list[int]:
    """Put an adapter into every block of `stages` (0-based) and return the blocks' indices.

    Works by hooks, on a trunk whose `blocks` are flat and whose `stage_ends` hold each stage's last block. In a
    Hiera block u + MLP(norm2(u)) the adapter reads u and runs beside the MLP; a convolution block is followed by it.
    The bottleneck is floor(factor * the block's input width), at least 1.
    """
    starts = [0, *(end + 1 for end in trunk.stage_ends[:-1])]
    chosen = [i for s in stages for i in range(starts[s], trunk.stage_ends[s] + 1)]
    for i in chosen:
        block = trunk.blocks[i]
        if hasattr(block, "norm2"):
            block.adapter = AdaptFormer(block.dim_out, max(1, int(factor * block.dim)), scale)
            _beside_mlp(block)
        else:
            into = trunk.block_widths[max(i - 1, 0)]
            block.adapter = AdaptFormer(trunk.block_widths[i], max(1, int(factor * into)), scale)
            _after_convolution(block)
    return chosen


def _beside_mlp(block: Any) -> None:
    seen: list[Tensor] = []  # in the closure: no module state, no graph kept alive

    def remember(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[:] = [args[0]]

    def add(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + block.adapter(seen.pop())

    block.norm2.register_forward_pre_hook(remember)
    block.register_forward_hook(add)


def _after_convolution(block: Any) -> None:
    def add(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        last = output.permute(0, 2, 3, 1)  # the adapter works on the channel axis
        return output + block.adapter(last).permute(0, 3, 1, 2)

    block.register_forward_hook(add)
