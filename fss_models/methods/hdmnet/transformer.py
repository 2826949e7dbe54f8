"""HDMNet's transformer: support and query at three resolutions, matched from coarse to fine, then decoded.

Letters: N images, P pairs, E width, L tokens of a level, T support tokens of a pair. Tensor names below
`levels`, `match`, `parse` and `head` are those of the official checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.methods.hdmnet.blocks import WIDER, MatchingBlock, PatchEmbedding, SelfBlock, to_map
from fss_models.prior_guided.maps import resize_aligned

HEADS, REDUCTIONS = (2, 4, 8), (4, 2, 1)  # of the self-attention at each level, the finest first
MATCHING_HEADS = 2
BLOCKS = 2  # a level
PRIORS = 2  # channels of the prior

Norms = Literal["frozen", "trained"]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A map's tokens at one resolution: tokens [N, L, E], their grid (h, w)."""

    tokens: Tensor
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What the transformer computes; lists have one entry a level, the finest first.

    logits        [P, 2, G, G] background and object
    attended      [P, L, E] query tokens after matching
    correlation   [P, 1, h, w] mean score with the object's support cells
    fused         [P, E, h, w] attended tokens with the prior
    decoded       [P, E, h, w]
    """

    logits: Tensor
    attended: list[Tensor]
    correlation: list[Tensor]
    fused: list[Tensor]
    decoded: list[Tensor]


class FusedConv(nn.Module):
    """3 x 3 convolution, normalisation, ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Tensor) -> Tensor:
        """[N, channels, h, w] -> [N, width, h, w]."""
        found: Tensor = self.bn(self.conv(maps)).relu()
        return found


class Transformer(nn.Module):
    """The matching network over maps [N, E, G, G]; query and support share the levels' weights."""

    def __init__(self, width: int, *, dropout: float, norms: Norms) -> None:
        super().__init__()
        self.norms = norms
        self.levels = nn.ModuleList([
            nn.ModuleList([PatchEmbedding(width, kernel=3 if i else 1, stride=2 if i else 1),
                           *(SelfBlock(width, heads, reduction, dropout) for _ in range(BLOCKS)),
                           nn.LayerNorm(width, eps=1e-6)])
            for i, (heads, reduction) in enumerate(zip(HEADS, REDUCTIONS, strict=True))])
        self.match = nn.ModuleList([
            nn.ModuleList([MatchingBlock(width, MATCHING_HEADS, dropout), FusedConv(width + PRIORS, width)])
            for _ in HEADS])
        self.parse = nn.ModuleList([nn.Sequential(*_bottleneck(width, width), nn.BatchNorm2d(width), nn.ReLU())
                                    for _ in HEADS])
        self.head = nn.Sequential(*_bottleneck(width, 2))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; with `norms` frozen the batch normalisations stay affine maps, as in the released code."""
        super().train(mode)
        if self.norms == "frozen":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.train(False)
        return self

    def describe(self, maps: Tensor) -> list[Level]:
        """The levels of maps [N, E, G, G], the finest first."""
        found: list[Level] = []
        layers: Any
        for layers in self.levels:
            embed, *blocks, norm = layers
            tokens, size = embed(maps)
            for block in blocks:
                tokens = block(tokens, size)
            tokens = norm(tokens)
            found.append(Level(tokens=tokens, size=size))
            maps = to_map(tokens, size)
        return found

    def forward(self, query: list[Level], support: list[Tensor], masks: list[Tensor], prior: Tensor) -> Matched:
        """Match the query's levels with support tokens [P, T, E] under masks [P, T]; prior [P, 2, G, G]."""
        attended, correlation, fused = [], [], []
        layers: Any
        for level, tokens, mask, layers in zip(query, support, masks, self.match, strict=True):
            block, fuse = layers
            read, seen = block(level.tokens, tokens, mask, level.size)
            attended.append(read)
            correlation.append(seen.unflatten(1, level.size)[:, None])
            fused.append(fuse(torch.cat([to_map(read, level.size), resize_aligned(prior, level.size)], dim=1)))
        decoded = self._decode(fused)
        return Matched(logits=self.head(decoded[0]), attended=attended, correlation=correlation, fused=fused,
                       decoded=decoded)

    def _decode(self, fused: list[Tensor]) -> list[Tensor]:
        """From the coarsest level to the finest; each adds its parsed sum with the coarser one."""
        decoded: list[Tensor] = []
        for parse, maps in zip(reversed(self.parse), reversed(fused), strict=True):
            if not decoded:
                decoded.append(parse(maps))
                continue
            above = F.interpolate(decoded[0], size=maps.shape[-2:], mode="bilinear", align_corners=False)
            decoded.insert(0, above + parse(maps + above))
        return decoded


def _bottleneck(width: int, out: int) -> list[Any]:
    """1 x 1, 3 x 3 and 1 x 1 convolutions with normalisations between them, and no ReLU."""
    wide = WIDER * width
    return [nn.Conv2d(width, wide, 1), nn.BatchNorm2d(wide), nn.Conv2d(wide, wide, 3, padding=1), nn.BatchNorm2d(wide),
            nn.Conv2d(wide, out, 1)]
