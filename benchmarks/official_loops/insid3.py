"""INSID3 as its released code computes one episode: scikit-learn's clustering, and loops over shots and clusters."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def prepare(model: Any) -> Tensor:
    """The positional projector, which the released code computes once."""
    projector: Tensor = model.basis().projector
    return projector


def segment(model: Any, prepared: Tensor, supports: Tensor, masks: Tensor, query: Tensor) -> Tensor:
    """The mask of one query."""
    references, target = (F.normalize(model.encoder(x).float(), dim=1) for x in (supports, query))
    grid = target.shape[-1]
    plain = [_debias(x.flatten(1), prepared) for x in (*references, target[0])]
    inside = [_grid_mask(mask, grid) for mask in masks]
    means = [d[:, m].mean(dim=1) for d, m in zip(plain, inside, strict=False)]
    found = F.normalize(torch.stack(means).mean(dim=0), dim=0)
    similarity = found @ plain[-1]
    forward = similarity > 0
    if not bool(forward.any()):
        forward = similarity > similarity.quantile(model.config.fallback_quantile)
    votes = torch.zeros_like(similarity)
    for reference, mask in zip(plain, inside, strict=False):
        votes += mask[(reference.T @ plain[-1]).argmax(dim=0)].float()
    candidates = forward & (votes >= math.ceil(len(supports) * model.config.vote_share))
    chosen = _clusters(model, target[0].flatten(1), plain[-1], found, similarity, candidates)
    return F.interpolate(chosen.view(1, 1, grid, grid).float(), size=query.shape[-2:], mode="bilinear")[0, 0] > 0.5


def _debias(unit: Tensor, projector: Tensor) -> Tensor:
    return F.normalize(unit - projector @ unit, dim=0)


def _grid_mask(mask: Tensor, grid: int) -> Tensor:
    """[L] bool: the patches of an ordinary mask."""
    return (F.interpolate(mask[None, None], size=(grid, grid), mode="bilinear") > 0.5).flatten()


def _clusters(model: Any, unit: Tensor, plain: Tensor, prototype: Tensor, similarity: Tensor,
              candidates: Tensor) -> Tensor:
    """[L] bool: the clusters that are kept."""
    from sklearn.cluster import AgglomerativeClustering

    chosen = torch.zeros_like(candidates)
    if not bool(candidates.any()):
        return chosen
    apart = 1 - (unit.T @ unit).clamp(-1, 1)
    search = AgglomerativeClustering(n_clusters=None, metric="precomputed", linkage="average",
                                     distance_threshold=1 - model.constants.tau)
    labels = torch.from_numpy(search.fit_predict(apart.numpy()))
    parts = [labels == label for label in range(int(labels.max()) + 1)]
    means = [F.normalize(unit[:, part].mean(dim=1), dim=0) for part in parts]
    matched = [i for i, part in enumerate(parts) if bool(candidates[part].any())]
    likeness = [float(prototype @ F.normalize(plain[:, parts[i]].mean(dim=1), dim=0)) for i in matched]
    seed = matched[max(range(len(matched)), key=likeness.__getitem__)]
    for i, part in enumerate(parts):
        area = 1.0 if i == seed else float(candidates[part].float().mean())
        if float(similarity[part].mean()) * float(means[seed] @ means[i]) * area > model.constants.merge_threshold:
            chosen |= part
    return chosen
