"""The plain serial adapter (Houlsby et al., ICML 2019, section 2.1): y + W_up gelu(W_down y + b_down) + b_up.

In a transformer block one follows the attention's projection and one the MLP; a convolution block is followed by one.
Near-zero starts, as the paper prescribes, are exact zeros of W_up here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.adapters import hooks
from fss_models.adapters.adaptformer import bottleneck


class SerialAdapter(nn.Module):
    """y [..., width] -> the same shape, the identity at the start."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
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
