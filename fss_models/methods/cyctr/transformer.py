"""CyCTR's transformer: deformable self-alignment of the query and cycle-consistent cross-attention to the support.

Letters: P rows (a query with its support set), L = G * G query cells, N support cells, D width, n heads, p points.
Tensor names are the official code's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fss_models.methods.cyctr.config import CyctrConfig
from fss_models.methods.cyctr.sampling import SupportTokens

TEMPERATURE, POSITION_EPSILON = 10_000.0, 1e-6
BARRED = -10_000.0  # added to the scores of inconsistent and padded support cells
FEEDFORWARD = 3  # times the width
Drawn = Callable[[int], SupportTokens]  # layer -> support cells [P, N] that it reads


@dataclass(frozen=True, kw_only=True)
class CrossReading:
    """What a cross-attention computed: result [P, L, D], scores and weights [P, n, L, N], consistent [P, n, N]."""

    result: Tensor
    scores: Tensor
    weights: Tensor
    consistent: Tensor


class DeformableAlignment(nn.Module):
    """Each cell reads `points` cells beside it, at learned offsets (Deformable DETR, one level)."""

    def __init__(self, width: int, heads: int, points: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.sampling_offsets = nn.Linear(width, heads * points * 2)
        self.attention_weights = nn.Linear(width, heads * points)
        self.value_proj = nn.Linear(width, width, bias=False)
        self.output_proj = nn.Linear(width, width, bias=False)
        self.dropout, self.cell_dropout = nn.Dropout(dropout), nn.Dropout(dropout)
        self._set_initial_values()

    def _set_initial_values(self) -> None:
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=1)
        direction = direction / direction.abs().amax(dim=1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((direction[:, None] * steps[:, None]).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        for parameter in self.attention_weights.parameters():
            nn.init.zeros_(parameter)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, place: Tensor, padded: Tensor) -> tuple[Tensor, Tensor]:
        """Cells [P, L, D], position code [P, L, D], padded [P, G, G] bool -> result [P, L, D], locations in [0, 1].

        The locations are [P, L, n, p, 2] (x, y).
        """
        rows, count, width = x.shape
        height, breadth = padded.shape[1:]
        asked = x + place
        offsets = self.sampling_offsets(asked).view(rows, count, self.heads, self.points, 2)
        weights = self.attention_weights(asked).view(rows, count, self.heads, self.points).softmax(dim=3)
        size = torch.tensor([breadth, height], device=x.device)
        locations = self._centres(height, breadth, x)[None, :, None, None] + offsets / size
        closed = padded.flatten(1) | (self.cell_dropout(torch.ones(rows, count, device=x.device)) == 0)
        values = self.value_proj(x).masked_fill(closed[..., None], 0.0)
        maps = values.view(rows, height, breadth, self.heads, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)
        grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # [P * n, L, p, 2]
        read = F.grid_sample(maps, grid.to(maps.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)
        share = self.dropout(weights).transpose(1, 2).flatten(0, 1)[:, None]  # [P * n, 1, L, p]
        found = (read * share).sum(dim=3).view(rows, width, count).transpose(1, 2)
        return self.output_proj(found), locations

    @staticmethod
    def _centres(height: int, breadth: int, like: Tensor) -> Tensor:
        """Cell centres (x, y) in [0, 1], [L, 2]."""
        y, x = (((torch.arange(n, device=like.device) + 0.5) / n) for n in (height, breadth))
        return torch.stack([x.expand(height, -1), y[:, None].expand(-1, breadth)], dim=2).flatten(0, 1)


class CycleAttention(nn.Module):
    """Query cells read support cells, except those that do not lead back to a cell of the same kind (paper, eq. 4)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.q_fc, self.k_fc, self.v_fc, self.proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        for layer in (self.q_fc, self.k_fc, self.v_fc, self.proj):
            nn.init.xavier_uniform_(layer.weight)
        self.dropout, self.mark_dropout, self.out_dropout = (nn.Dropout(dropout) for _ in range(3))

    def forward(self, x: Tensor, support: SupportTokens) -> CrossReading:
        """Query cells [P, L, D] and drawn support cells [P, N]."""
        q, k, v = (f(t).unflatten(2, (self.heads, -1)).transpose(1, 2) for f, t in (
            (self.q_fc, x), (self.k_fc, support.keys), (self.v_fc, support.keys)))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        absent = ~support.real[:, None, None]
        consistent = self._consistent(scores.detach().masked_fill(absent, float("-inf")), support.object)
        barred = (self.mark_dropout((~consistent).to(scores)) > 0) | support.padded[:, None]
        weights = (scores + barred[:, :, None] * BARRED).masked_fill(absent, float("-inf")).softmax(dim=3)
        read = (self.dropout(weights) @ v).transpose(1, 2).flatten(2)
        return CrossReading(result=self.out_dropout(self.proj(read)), scores=scores, weights=weights,
                            consistent=consistent)

    @staticmethod
    def _consistent(scores: Tensor, is_object: Tensor) -> Tensor:
        """Whether support cells lead back to their own kind [P, n, N]: to the query cell they match best, and back."""
        best_query = scores.argmax(dim=2)  # [P, n, N]
        best_support = scores.argmax(dim=3)  # [P, n, L]
        back = best_support.gather(2, best_query)
        flags = is_object[:, None].expand_as(back)
        return flags.gather(2, back) == flags


class FeedForward(nn.Module):
    """x + two linear layers without bias."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(width, FEEDFORWARD * width, bias=False), nn.ReLU(), nn.Dropout(dropout)),
            nn.Linear(FEEDFORWARD * width, width, bias=False))
        self.dropout = nn.Dropout(dropout)
        for layer in self.layers.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add the layers' result to x [P, L, D]."""
        found: Tensor = x + self.dropout(self.layers(x))
        return found


class CyctrTransformer(nn.Module):
    """Layers of self-alignment and cross-attention, each followed by a feed-forward layer; norms come last."""

    def __init__(self, config: CyctrConfig, *, width: int) -> None:
        super().__init__()
        heads, drop, count = 12 if width % 12 == 0 else 8, config.transformer_dropout, config.layers
        self.level_embed = nn.Parameter(torch.empty(1, width))
        nn.init.xavier_uniform_(self.level_embed)
        self.qry_self_layers = nn.ModuleList(
            [DeformableAlignment(width, heads, config.points, drop) for _ in range(count)])
        self.cross_layers = nn.ModuleList([CycleAttention(width, heads, drop) for _ in range(count)])
        self.ffns = nn.ModuleList([FeedForward(width, drop) for _ in range(2 * count)])
        self.layer_norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(4 * count)])
        self.dropout = nn.Dropout(drop)

    def forward(self, query: Tensor, padded: Tensor, drawn: Drawn) -> Tensor:
        """Query features [P, D, G, G], padded [P, G, G] bool -> [P, D, G, G]."""
        x, place = query.flatten(2).transpose(1, 2), self.place(padded, query.shape[1])
        for layer, (align, cross) in enumerate(zip(self.qry_self_layers, self.cross_layers, strict=True)):
            norms = self.layer_norms[4 * layer : 4 * layer + 4]
            x = norms[0](x + self.dropout(align(x, place, padded)[0]))
            x = norms[1](self.ffns[2 * layer](x))
            x = norms[2](x + cross(x, drawn(layer)).result)
            x = norms[3](self.ffns[2 * layer + 1](x))
        return x.transpose(1, 2).unflatten(2, query.shape[2:])

    def place(self, padded: Tensor, width: int) -> Tensor:
        """DETR's sine code of cells, counted without padded ones, and the level's vector: [P, G, G] -> [P, L, D]."""
        there = (~padded).float()
        power = 2 * (torch.arange(width // 2, device=padded.device) // 2) / (width // 2)
        codes = []
        for axis in (1, 2):
            at = there.cumsum(axis)
            at = at / (at.narrow(axis, -1 + at.shape[axis], 1) + POSITION_EPSILON) * (2 * math.pi)
            angle = at[..., None] / TEMPERATURE**power
            codes.append(torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=4).flatten(3))
        return torch.cat(codes, dim=3).flatten(1, 2) + self.level_embed
