"""How similar each cell of a target is to the references' object and background, and the points that follow from it.

Letters as in `fss_models.clip`; g x g cells, N = g * g of them, L cells of a reference, n points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_MEAN_EPS, _RANGE_EPS = 1e-7, 1e-6  # added to denominators in the released code
_CHUNK = 1 << 26  # similarities computed at once


@dataclass(frozen=True, kw_only=True)
class SimilarityMaps:
    """Maps of P pairs, each [P, g, g].

    largest   X+: largest weighted similarity to the object's cells, mean over shots
    object, background   M+, M-: mean similarity to the cells of either, mean over shots
    mixed, negative, filtered   Z, N~ and Y, from which points are drawn
    """

    largest: Tensor
    object: Tensor
    background: Tensor
    mixed: Tensor
    negative: Tensor
    filtered: Tensor

    def level(self, share: float) -> Tensor:
        """h [P]: the value at `share` of the way from the least value of M+ to the largest."""
        flat = self.object.flatten(1)
        return flat.amin(1) + share * (flat.amax(1) - flat.amin(1))


@dataclass(frozen=True, kw_only=True)
class PointSet:
    """Points of P pairs, padded to n: cell [P, n] (row * g + column), valid [P, n]; ordered by column, then row."""

    cell: Tensor
    valid: Tensor
    side: int

    def columns_rows(self) -> Tensor:
        """(x, y) in cells, [P, n, 2] int64."""
        return torch.stack([self.cell % self.side, self.cell // self.side], dim=2)


def comparable(cells: Tensor) -> Tensor:
    """Cells [N, C, g, g], every channel scaled to unit length over the photo, then every cell to unit length."""
    scaled = F.normalize(cells.flatten(2), dim=2).view_as(cells)
    return F.normalize(scaled, dim=1)


def cell_weights(masks: Tensor, side: int) -> Tensor:
    """Soft masks [M, N] of masks [M, R, R] at g = `side`."""
    small = F.interpolate(masks[:, None], size=(side, side), mode="bilinear", align_corners=True)
    return small.flatten(1)


def prototypes(cells: Tensor, weights: Tensor, real: Tensor) -> Tensor:
    """Mean over shots of the weighted mean cell: cells [S, K, C, N], weights [S, K, T, N], real [S, K, T] -> [S, T, C].
    """
    count = cells.shape[-1]
    sums = torch.einsum("sktn,skcn->sktc", weights, cells) / count
    each = sums / (weights.sum(dim=3, keepdim=True) / count + _MEAN_EPS)
    shots = real.to(each)[..., None]
    return (each * shots).sum(dim=1) / shots.sum(dim=1)


def object_first(cells: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort cells [S, K, C, N] and weights [S, K, N] so that cells with weight come first.

    Returns cells [S, K, N, C], zero where there is no weight, weights [S, K, N], and the number with weight [S, K].
    """
    order = (weights > 0).to(torch.uint8).sort(dim=2, descending=True, stable=True).indices
    weights = weights.gather(2, order)
    moved = cells.transpose(2, 3).gather(2, order[..., None].expand(-1, -1, -1, cells.shape[2]))
    return moved * (weights > 0)[..., None], weights, (weights > 0).sum(dim=2)


def largest_similarity(cells: Tensor, weights: Tensor, counts: Tensor, target: Tensor, filled: Tensor) -> Tensor:
    """X+ [P, N] of cells [P, K, L, C], weights [P, K, L], counts [P] shots, target [P, C, N] and filled [P, K].

    A cell without weight gives 0, as in the released code; where all N of a photo's cells have weight, none does.
    """
    found = []
    shots = torch.arange(cells.shape[1], device=cells.device)
    for rows in _chunks(len(cells), weights.shape[1:].numel() * target.shape[2]):
        seen = torch.einsum("pklc,pcn->pkln", cells[rows], target[rows]) * weights[rows][..., None]
        best = seen.amax(dim=2)
        best = torch.where((filled[rows] < target.shape[2])[..., None], best.clamp(min=0), best)
        real = shots < counts[rows][:, None]
        found.append((best * real[..., None]).sum(dim=1) / counts[rows][:, None])
    return torch.cat(found) if found else target.new_zeros(0, target.shape[2])


def similarity_maps(largest: Tensor, prototypes: Tensor, target: Tensor) -> SimilarityMaps:
    """Maps of P pairs from X+ [P, N], prototypes [P, 2, C] (object, background) and target cells [P, C, N]."""
    side = int(target.shape[2] ** 0.5)
    means = torch.einsum("ptc,pcn->ptn", prototypes, target)
    mixed, negative = _stretch(means[:, 0] * largest), _stretch(means[:, 1])
    filtered = torch.where(negative <= mixed, mixed, torch.zeros_like(mixed))
    maps = [m.unflatten(1, (side, side)) for m in (largest, means[:, 0], means[:, 1], mixed, negative, filtered)]
    return SimilarityMaps(largest=maps[0], object=maps[1], background=maps[2], mixed=maps[3], negative=maps[4],
                          filtered=maps[5])


def choose_points(filtered: Tensor, *, factor: float, limit: int) -> PointSet:
    """The cells with the largest values of Y [P, g, g]: as many as `factor` times its sum, from 1 to `limit`.

    A map of zeros gives no point.
    """
    side, flat = filtered.shape[-1], filtered.flatten(1)
    total = flat.sum(dim=1)
    wanted = (total * factor).long().clamp(max=min(limit, flat.shape[1]))
    wanted = torch.where(total > 0, wanted.clamp(min=1), torch.zeros_like(wanted))
    wanted = torch.minimum(wanted, (flat > 0).sum(dim=1))
    most = int(wanted.max()) if len(wanted) else 0
    cell = flat.topk(most, dim=1).indices
    valid = torch.arange(most, device=flat.device) < wanted[:, None]
    place = torch.where(valid, cell % side * side + cell // side, flat.shape[1])  # column by column
    order = place.argsort(dim=1)
    return PointSet(cell=cell.gather(1, order), valid=valid, side=side)


def pixels_of(points: PointSet, side: int) -> Tensor:
    """Pixels [P, n, 2] (x, y) of the points in a square of `side` pixels: a cell's first pixel, truncated."""
    return (points.columns_rows() * side / points.side).to(torch.int32)


def _stretch(values: Tensor) -> Tensor:
    """Stretch each row [P, N] to 0 ... 1."""
    least, most = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    return (values - least) / (most - least + _RANGE_EPS)


def _chunks(rows: int, each: int) -> Iterator[slice]:
    """Slices of `rows` with about `_CHUNK` values."""
    step = max(1, _CHUNK // max(each, 1))
    return (slice(first, first + step) for first in range(0, rows, step))
