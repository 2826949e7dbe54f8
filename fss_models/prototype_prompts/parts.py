"""The small blocks that FCP and VRP-SAM are made of.

Letters: E rows (a query with one shot), D width of prompts, N tokens, G grid side, L = G * G cells, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 4
MASK_GAIN = 10.0  # masks enter the guiding convolutions ten times as strong (released code)
AREA_EPSILON = 5e-4  # added to the number of cells a masked mean divides by
COSINE_EPSILON = 1e-7


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


def cells(maps: Tensor) -> Tensor:
    """Flatten maps [E, D, G, G] to the sequence [E, L, D] that attention reads."""
    return maps.flatten(2).transpose(1, 2)


def masked_mean(maps: Tensor, mask: Tensor) -> Tensor:
    """Prototype [E, C] of maps [E, C, G, G] under mask [E, 1, G, G]; zero for an empty mask."""
    return (maps * mask).flatten(2).sum(dim=2) / (mask.flatten(2).sum(dim=2) + AREA_EPSILON)


def resize_aligned(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize [E, C, h, w] to [E, C, *size], bilinear with aligned corners; nothing changes if the sizes agree."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def object_first(top: Tensor) -> tuple[Tensor, Tensor]:
    """Order the cells of masked support features [E, C, h, w] as [E, h * w, C], zeros last, and count the others [E].

    The maximum in `prior` does not depend on the order, and can then leave out the zeros at the end.
    """
    flat = cells(top)
    zero = (flat == 0).all(dim=2)
    order = zero.to(torch.uint8).argsort(dim=1, stable=True)
    return flat.gather(1, order[..., None].expand_as(flat)), (~zero).sum(dim=1)


def prior(support: Tensor, query: Tensor) -> Tensor:
    """Conventional pseudo mask (FCP eq. 5): the highest cosine of each query cell to any support cell.

    support [E, l, C] masked cells, query [E, C, h, w] -> [E, 1, h, w]. Background support cells are zeros and give
    cosine 0 (one of them stands for all). The mask is not min-max normalised, unlike PFENet's and BAM's.
    """
    flat = query.flatten(2)
    lengths = support.norm(dim=2)[:, :, None] * flat.norm(dim=1)[:, None]
    cosine = (support @ flat) / (lengths + COSINE_EPSILON)
    return cosine.amax(dim=1).unflatten(1, query.shape[-2:])[:, None]
