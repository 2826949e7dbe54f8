"""LoRA (Hu et al., ICLR 2022, equation 3): a frozen projection W x becomes W x + (alpha / r) B A x, with alpha = r.

The update is added to the query-key-value projections of transformer blocks and to the pointwise convolutions of
convolution blocks. B starts at zero, so that training begins with the frozen model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from fss_models.adapters import hooks


class LowRankUpdate(nn.Module):
    """B A x for x [..., inputs] -> [..., outputs]."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the update, [..., inputs] -> [..., outputs]."""
        out: Tensor = self.b(self.a(x))
        return out


def adapt_trunk(trunk: Any, *, stages: Sequence[int], rank: int) -> None:
    """Add an update of `rank` to the projections of every block of `stages`."""
    for i in hooks.stage_blocks(trunk, stages):
        for projection in list(_projections(trunk.blocks[i])):
            inputs, outputs = _sizes(projection)
            projection.lora = LowRankUpdate(inputs, outputs, rank)
            update = projection.lora if isinstance(projection, nn.Linear) else hooks.channels_last(projection.lora)
            projection.register_forward_hook(_add(update))


def _projections(block: Any) -> Iterator[Any]:
    if hooks.has_attention(block):
        yield block.attn.qkv
        return
    for module in block.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1:
            yield module


def _sizes(projection: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    if isinstance(projection, nn.Linear):
        return projection.in_features, projection.out_features
    return projection.in_channels, projection.out_channels


def _add(update: hooks.Apply) -> Any:
    return lambda _module, args, output: output + update(args[0])
