"""The small blocks that FCP and VRP-SAM are made of.

Letters: E rows (a query with one shot), D width of prompts, N tokens, G grid side, L = G * G cells, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 4
MASK_GAIN = 10.0  # masks enter the guiding convolutions ten times as strong (released code)


class TokenAttention(nn.Module):
    """Attention block: LayerNorm(tokens + multi-head attention(tokens, key + place, value)), no feed-forward layer.

    The position code is added to keys only. Parameters are named as in torch's MultiheadAttention. The returned map is
    the mean over the heads *after* attention dropout, since the methods' losses use that one.
    """

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout: nn.Module = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, tokens: Tensor, key: Tensor, value: Tensor, *, place: Tensor | None = None, allowed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [E, N, D] attend key and value [E, L, D], place [L, D], allowed [E, L] bool -> tokens, map [E, N, L].

        Cells that are not `allowed` get weight 0; a row without any allowed cell gives NaN.
        """
        width = tokens.shape[-1]
        parts = zip(self.in_proj_weight.split(width), self.in_proj_bias.split(width), strict=True)
        sources = (tokens, key if place is None else key + place, value)
        q, k, v = (_heads(F.linear(x, w, b)) for x, (w, b) in zip(sources, parts, strict=True))
        scores = (q * (width // HEADS) ** -0.5) @ k.transpose(-1, -2)  # [E, heads, N, L]
        if allowed is not None:
            scores = scores.masked_fill(~allowed[:, None, None], float("-inf"))
        weights = self.dropout(scores.softmax(dim=-1))
        read = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        return self.norm(tokens + read), weights.mean(dim=1)


def _heads(x: Tensor) -> Tensor:
    """Split vectors into heads, [E, n, D] -> [E, heads, n, D / heads]."""
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


class ChannelReduction(nn.Module):
    """Fused backbone features [E, C, G, G] -> [E, D, G, G]: 1x1 convolution, ReLU, channel dropout."""

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 1, bias=False)
        self.dropout: nn.Module = nn.Dropout2d(dropout)

    def forward(self, fused: Tensor) -> Tensor:
        """Reduce the channels, [E, C, G, G] -> [E, D, G, G]."""
        reduced: Tensor = self.dropout(self.conv(fused).relu())
        return reduced


class GuidingLayer(nn.Module):
    """relu(conv1x1(feature | prototype | 10 * mask)): features guided by a prototype and a mask (FCP eq. 1, 3, 6, 10).

    The convolution is linear, so its part over the features (`lift`) is computed once an image and reused for every
    prototype and mask: a row costs additions instead of a convolution.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * width + 1, width, 1, bias=False)

    def lift(self, feature: Tensor) -> Tensor:
        """The part of the convolution that depends on the feature map alone, [N, D, G, G] -> [N, D, G, G]."""
        return F.conv2d(feature, self.conv.weight[:, : feature.shape[1]])

    def forward(self, lifted: Tensor, prototype: Tensor, mask: Tensor) -> Tensor:
        """Guided features [E, D, G, G] from lifted [E, D, G, G], prototype [E, D] and mask [E, 1, G, G]."""
        width = prototype.shape[1]
        share = F.linear(prototype, self.conv.weight[:, width : 2 * width, 0, 0])[..., None, None]
        return (lifted + share + self.conv.weight[:, 2 * width, 0, 0, None, None] * (MASK_GAIN * mask)).relu()
