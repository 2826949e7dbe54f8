"""The plain serial adapter (Houlsby et al., ICML 2019, section 2.1): y + W_up gelu(W_down y + b_down) + b_up.

A transformer block gets one adapter after the attention's projection and one after the MLP, a convolution block gets
one behind it. The paper starts W_up near zero; here it starts at exactly zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.adapters import hooks
from fss_models.adapters.adaptformer import bottleneck


class SerialAdapter(nn.Module):
    """The adapter's layers: y [..., width] -> the same shape. Before training they are the identity."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor) -> Tensor:
        """Apply the adapter, [..., width] -> [..., width]."""
        out: Tensor = y + self.up(F.gelu(self.down(y)))
        return out


def adapt_trunk(trunk: Any, *, stages: Sequence[int], factor: float) -> None:
    """Put serial adapters with floor(factor * input width) hidden units into every block of `stages`."""
    for i in hooks.stage_blocks(trunk, stages):
        block, (into, out) = trunk.blocks[i], hooks.widths(trunk, i)
        hidden = bottleneck(factor, into)
        block.houlsby = nn.ModuleList([SerialAdapter(out, hidden)])
        if hooks.has_attention(block):
            block.houlsby.append(SerialAdapter(out, hidden))
            hooks.after(block.attn, block.houlsby[0])
            hooks.after(block.mlp, block.houlsby[1])
        else:
            hooks.after(block, hooks.channels_last(block.houlsby[0]))
