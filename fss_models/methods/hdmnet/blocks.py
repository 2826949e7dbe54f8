"""The blocks of HDMNet's transformer: SegFormer's layers, and matching between query and support.

Letters: N images, L tokens of a map h x w, E width, H heads, T tokens of all support images of a pair. Tensor names are
those of the official checkpoints.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPSILON = 1e-6
SCALE_EPSILON = 1e-9  # added to the square root that scores are divided by
TEMPERATURE = 0.1  # of the cosines in matching
AREA_EPSILON = 1e-9
WIDER = 4  # width of the feed-forward layers, as a multiple of E


def to_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens [N, L, E] -> map [N, E, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, size)


def to_tokens(maps: Tensor) -> Tensor:
    """Map [N, E, h, w] -> tokens [N, L, E]."""
    return maps.flatten(2).transpose(1, 2)


class Projections(nn.Module):
    """Queries, keys, values and the output of an attention, all without bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q, self.linear_k, self.linear_v, self.linear_o = (
            nn.Linear(width, width, bias=False) for _ in range(4))

    def split(self, tokens: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, H, L, E / H] of the tokens, keys and values [N, H, T, E / H] of the source."""
        pairs = ((self.linear_q, tokens), (self.linear_k, source), (self.linear_v, source))
        q, k, v = (linear(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for linear, x in pairs)
        return q, k, v

    def join(self, read: Tensor) -> Tensor:
        """Read values [N, H, L, E / H] -> [N, L, E]."""
        found: Tensor = self.linear_o(read.transpose(1, 2).flatten(2))
        return found


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values are the map shrunk `reduction` times."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.attn = Projections(width, heads)
        self.sr = nn.Conv2d(width, width, reduction, stride=reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON) if reduction > 1 else None

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Attend within each map, [N, L, E] -> [N, L, E]."""
        source = tokens
        if self.sr is not None and self.norm is not None:
            source = self.norm(to_tokens(self.sr(to_map(tokens, size))))
        q, k, v = self.attn.split(tokens, source)
        scores = q @ k.transpose(2, 3) / (q.shape[-1] ** 0.5 + SCALE_EPSILON)
        return self.attn.join(scores.softmax(dim=3) @ v)


class MixFeedForward(nn.Module):
    """Feed-forward layers with a depthwise 3 x 3 convolution between them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        wide = WIDER * width
        self.layers = nn.Sequential(
            nn.Conv2d(width, wide, 1), nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.GELU(),
            nn.Dropout(dropout), nn.Conv2d(wide, width, 1), nn.Dropout(dropout))

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """[N, L, E] -> [N, L, E]."""
        return to_tokens(self.layers(to_map(tokens, size)))


class SelfBlock(nn.Module):
    """Self-attention and feed-forward layers, each added to its input."""

    def __init__(self, width: int, heads: int, reduction: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=NORM_EPSILON) for _ in range(2))
        self.attn = ReducedAttention(width, heads, reduction)
        self.ffn = MixFeedForward(width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """[N, L, E] -> [N, L, E]."""
        tokens = tokens + self.dropout(self.attn(self.norm1(tokens), size))
        added: Tensor = tokens + self.ffn(self.norm2(tokens), size)
        return added


class MatchingAttention(nn.Module):
    """Cosine attention that is normalised over the query's cells: every support cell distributes itself among them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Projections(width, heads)

    def forward(self, query: Tensor, support: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Query [N, L, E], support [N, T, E], mask [N, T] in {0, 1} -> read [N, L, E], correlation [N, L].

        The correlation is the mean score of a query cell with the object's support cells, 0 without any.
        """
        q, k, v = self.attn.split(query, support)
        scores = F.normalize(q, dim=3) @ F.normalize(k, dim=3).transpose(2, 3) / TEMPERATURE  # [N, H, L, T]
        object_cells = mask[:, None, None]
        weights = scores.softmax(dim=2) * object_cells
        seen = (scores * object_cells).sum(dim=3) / (object_cells.sum(dim=3) + AREA_EPSILON)
        return self.attn.join(weights @ v), seen.mean(dim=1)


class MatchingBlock(nn.Module):
    """Matching attention and feed-forward layers, each added to the query."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=NORM_EPSILON) for _ in range(2))
        self.attn = MatchingAttention(width, heads)
        self.ffn = MixFeedForward(width, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, support: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Query [N, L, E], support [N, T, E], mask [N, T] -> query [N, L, E], correlation [N, L]."""
        read, correlation = self.attn(self.norm1(query), self.norm1(support), mask)
        query = query + self.dropout(read)
        return query + self.ffn(self.norm2(query), size), correlation


class PatchEmbedding(nn.Module):
    """A convolution and a layer normalisation: the map as tokens, at half the resolution where `stride` is 2."""

    def __init__(self, width: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(width, width, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[N, E, h, w] -> tokens [N, L, E] and their grid."""
        maps = self.projection(maps)
        return self.norm(to_tokens(maps)), (int(maps.shape[2]), int(maps.shape[3]))
