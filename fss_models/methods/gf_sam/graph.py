"""The graph of point masks, and the two gates that its components pass.

Rows: E masks of all pairs, one after the other; M components of all pairs. `pair` and `slot` [E] tell a row's pair and
its place among the pair's points. Nothing runs pair by pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fss_models.methods.gf_sam.similarity import PointSet

_EPS, _MEAN_EPS = 1e-6, 1e-7  # added to denominators in the released code
_EQUAL = 1e-6  # similarities to components with the same masks may differ by rounding; the first of equals wins


@dataclass(frozen=True, kw_only=True)
class Components:
    """Weakly connected components of the graph.

    adjacency [P, n, n] bool: mask i covers point j
    label     [P, n] int64: number of a point's component in its pair, in the order of first points
    counts    [P] int64: components of each pair
    row       [E] int64: component of each mask, counted over all pairs
    """

    adjacency: Tensor
    label: Tensor
    counts: Tensor
    row: Tensor

    @property
    def total(self) -> int:
        """M."""
        return int(self.counts.sum())


@dataclass(frozen=True, kw_only=True)
class GrownMasks:
    """Results of the positive gate: scores [E], positive [E] bool, class_scores [E]."""

    scores: Tensor
    positive: Tensor
    class_scores: Tensor


@dataclass(frozen=True, kw_only=True)
class SelfSimilarity:
    """Results of the overshooting gate.

    prototypes   [M, C] mean target cell under the union of a component's masks
    by_component [P, m, n] similarity of each point to each component, divided by its distance
    own          [E] bool after the components' votes
    """

    prototypes: Tensor
    by_component: Tensor
    own: Tensor


def connect(nearest: Tensor, points: PointSet, pair: Tensor, slot: Tensor) -> Components:
    """Components of the graph in which mask i, sampled as `nearest` [E, g, g], leads to the points it covers."""
    covered = nearest.flatten(1).gather(1, points.cell[pair]) & points.valid[pair]
    adjacency = covered.new_zeros(*points.valid.shape, points.valid.shape[1])
    adjacency[pair, slot] = covered
    joined = adjacency | adjacency.transpose(1, 2) | torch.eye(adjacency.shape[1], dtype=torch.bool,
                                                               device=adjacency.device)
    first = _first_member(joined)
    leads = (first == torch.arange(first.shape[1], device=first.device)) & points.valid
    label = (leads.cumsum(dim=1) - 1).gather(1, first)
    counts = leads.sum(dim=1)
    return Components(adjacency=adjacency, label=label, counts=counts,
                      row=(counts.cumsum(0) - counts)[pair] + label[pair, slot])


def _first_member(joined: Tensor) -> Tensor:
    """The first node [P, n] of every node's component, by propagating the least number along edges [P, n, n]."""
    pairs, nodes, _ = joined.shape
    first = torch.arange(nodes, device=joined.device).expand(pairs, nodes)
    while nodes:
        least = torch.where(joined, first[:, None, :], nodes).amin(dim=2)
        least = least.gather(1, least)
        if bool((least == first).all()):
            break
        first = least
    return first


def grow(soft: Tensor, desired: Tensor, pair: Tensor, components: Components) -> GrownMasks:
    """The positive gate: in each component, from the best mask to the worst, take what gains more than it loses.

    soft [E, N] masks on cells; desired [P, N], above 0 where a cell looks more like the object than the background.
    A mask gains the object's cells that no better one covers and loses those of the background. All components advance
    together; the class score of a component is that of its last mask, a leftover of the released code.
    """
    scores = (soft * desired[pair]).sum(dim=1) / (soft.sum(dim=1) + _EPS)
    positive = torch.zeros_like(pair, dtype=torch.bool)
    covered, last = soft.new_zeros(components.total, soft.shape[1]), soft.new_zeros(components.total)
    wanted = (desired > 0).to(soft)
    for rows in by_rank(scores, components.row):
        own = components.row[rows]
        fresh = soft[rows] * (1 - covered[own])
        gain = (wanted[pair[rows]] * fresh).sum(dim=1)
        loss = ((1 - wanted[pair[rows]]) * fresh).sum(dim=1)
        positive[rows] = gain > loss
        covered[own] += torch.where((gain > loss)[:, None], fresh, torch.zeros_like(fresh))
        last[own] = gain - loss
    return GrownMasks(scores=scores, positive=positive, class_scores=last[components.row])


def by_rank(scores: Tensor, group: Tensor) -> list[Tensor]:
    """Rows of the best of each group, then of the second best and so on; equal scores keep their order."""
    order = scores.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    sizes = group.bincount()
    start = sizes.cumsum(0) - sizes
    rank = torch.arange(len(order), device=order.device) - start[group[order]]
    by_rank = rank.argsort(stable=True)
    return list(order[by_rank].split(rank.bincount().tolist()))


def compare_with_self(
    unions: Tensor, target: Tensor, points: PointSet, components: Components, *, floor: float, majority: float,
) -> SelfSimilarity:
    """The overshooting gate: a point should look most like the masks of its own component.

    unions [M, N] are the components' masks on cells, target [P, C, N] the unit cells of each pair's photo. `floor` is
    the distance that stands for 0 cells; a component with less than a share of `majority` of such points loses all.
    """
    counts, cells = components.counts, target.shape[2]
    most = int(counts.max()) if len(counts) else 0
    owner = torch.arange(len(counts), device=target.device).repeat_interleave(counts)
    number = torch.arange(len(owner), device=target.device) - (counts.cumsum(0) - counts)[owner]
    masks = unions.new_zeros(len(counts), most, cells)
    masks[owner, number] = unions
    prototypes = (masks @ target.transpose(1, 2) / cells) / (masks.sum(dim=2, keepdim=True) / cells + _MEAN_EPS)
    at_points = target.gather(2, points.cell[:, None].expand(-1, target.shape[1], -1))  # [P, C, n]
    similarity = prototypes @ at_points / _distances(points, components, most, floor)
    rank = torch.arange(most, device=target.device)[None, :, None]
    seen = similarity.masked_fill(rank >= counts[:, None, None], -torch.inf)
    best = seen.amax(dim=1, keepdim=True) - _EQUAL if most else seen
    first = torch.where(seen >= best, rank, most).amin(dim=1) if most else points.cell
    own = (first == components.label)[points.valid]
    sizes = components.row.bincount(minlength=components.total)
    votes = components.row[own].bincount(minlength=components.total)
    return SelfSimilarity(prototypes=prototypes[owner, number], by_component=similarity,
                          own=own & (votes >= majority * sizes)[components.row])


def _distances(points: PointSet, components: Components, most: int, floor: float) -> Tensor:
    """Distance in cells [P, most, n] from every point to the nearest point of each component; 0 becomes `floor`."""
    place = points.columns_rows().float()
    apart = torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist")
    apart = apart.masked_fill(~points.valid[:, :, None], torch.inf)
    label = torch.where(points.valid, components.label, 0)
    nearest = apart.new_full((len(apart), most, apart.shape[2]), torch.inf)
    nearest.scatter_reduce_(1, label[:, :, None].expand_as(apart), apart, "amin")
    return torch.where(nearest == 0, floor, nearest)
