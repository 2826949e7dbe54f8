"""Matcher's measures of a proposal, its filters, and the masks that are merged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.methods.matcher.config import MatcherConfig
from fss_models.methods.matcher.transport import uniform_emd

_EPS = 1e-6  # added to purity and coverage, and to a denominator, in the released code


@dataclass(frozen=True, kw_only=True)
class ProposalScores:
    """Measures of n proposals, each [n] float: emd (1 is best), purity, coverage and their total."""

    emd: Tensor
    purity: Tensor
    coverage: Tensor
    total: Tensor


def score_proposals(
    masks: Tensor, points: Tensor, similarity: np.ndarray, object_patches: np.ndarray, config: MatcherConfig, grid: int
) -> ProposalScores:
    """Score masks [n, R, R] bool of a target of grid x grid patches.

    points [m, 2] are the matched ones (x, y), similarity [L, N] that of reference and target patches, and
    object_patches [O] the object's rows in it.
    """
    area = F.interpolate(masks[:, None].float(), size=(grid, grid), mode="area").flatten(1)
    patches = area > 0
    inside = masks[:, points[:, 1], points[:, 0]].sum(dim=1)
    purity = inside / patches.sum(dim=1).clamp(min=1) + _EPS
    coverage = inside / len(points) + _EPS
    emd = _emd(patches, (1 - similarity[object_patches]) / 2)
    total = config.alpha * emd + config.beta * purity * coverage**config.exponent
    return ProposalScores(emd=emd, purity=purity, coverage=coverage, total=total)


def _emd(patches: Tensor, cost: np.ndarray) -> Tensor:
    """1 - earth mover's distance of each set of target patches [n, N] bool to the object's, by cost [O, N].

    Equal sets are solved once; an empty one counts as all patches.
    """
    distinct, back = torch.unique(patches.cpu(), dim=0, return_inverse=True)
    found = [1 - uniform_emd(cost[:, row if row.any() else ~row]) for row in distinct.numpy()]
    return torch.tensor(found, dtype=torch.float32, device=patches.device)[back.to(patches.device)]


def filter_proposals(scores: ProposalScores, config: MatcherConfig) -> Tensor:
    """Rows [m] that pass the filters by coverage, emd and purity, in that order.

    A filter keeps what reaches its setting, or the best of what is left where nothing does.
    """
    rows = torch.arange(len(scores.total), device=scores.total.device)
    limits = ((config.coverage_filter, scores.coverage), (config.emd_filter, scores.emd),
              (config.purity_filter, scores.purity))
    for limit, measure in limits:
        if limit > 0 and len(rows):
            left = measure[rows]
            rows = rows[left >= min(limit, float(left.max()))]
    return rows


def choose_proposals(total: Tensor, config: MatcherConfig, shots: int) -> Tensor:
    """Rows [m] of the totals [n] whose masks are merged, best first."""
    most = config.merge if shots == 1 else config.merge_several
    order = total.argsort(descending=True, stable=True)
    if not len(order):
        return order
    if config.score_filter:
        worse = 1 - total[order]
        near = (worse - worse.min()) / (worse.max() + _EPS) < config.score_range
        kept = (worse < config.score_limit) & near
        kept[0] = True
        return order[kept][:most]
    order = order[:most]
    if config.top_share > 0:
        order = order[total[order] / total.max() > config.top_share]
    return order
