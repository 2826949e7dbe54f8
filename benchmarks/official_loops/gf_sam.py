"""GF-SAM as its released code computes one episode: full-size masks, and loops over components and masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import connected_components
from torch import Tensor


def prepare(model: Any) -> None:
    """Nothing is computed once."""


def segment(model: Any, prepared: None, supports: Tensor, masks: Tensor, query: Tensor) -> Tensor:
    """The mask of one query."""
    looked = model.sam.look(query)
    references, target = _cells(model, supports), _cells(model, query, looked)[0]
    maps = _maps(references, masks, target)
    points = _points(maps, model.config)
    if not len(points):
        return torch.zeros(model.side, model.side, dtype=torch.bool)
    drawn = _draw(model, model.sam.embed(looked), points, maps["side"])
    return _gated(drawn, points, target, maps, model.config)


def _cells(model: Any, pixels: Tensor, looked: dict[str, Tensor] | None = None) -> Tensor:
    """Cells [N, C, g * g], every channel scaled over the photo; `looked` are SAM's maps of it, made here if need be."""
    if looked is None:
        looked = {} if hasattr(model.cells, "dino") else model.sam.look(pixels)
    cells: Tensor = model.cells(pixels, looked)
    return F.normalize(cells.flatten(2), dim=2)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    lengths = a.norm(dim=0)[:, None] * b.norm(dim=0)[None]
    found: Tensor = a.t() @ b / (lengths + 1e-7)
    return found


def _maps(references: Tensor, masks: Tensor, target: Tensor) -> dict[str, Any]:
    side = int(target.shape[1] ** 0.5)
    largest, near, far = [], [], []
    for cells, mask in zip(references, masks, strict=True):
        similarity = _cosine(cells, target)
        own, other = (F.interpolate(m[None, None], size=(side, side), mode="bilinear", align_corners=True).flatten()
                      for m in (mask, 1 - mask))
        largest.append((own[:, None] * similarity).amax(dim=0))
        near.append((own[:, None] * similarity).mean(dim=0) / (own.mean() + 1e-7))
        far.append((other[:, None] * similarity).mean(dim=0) / (other.mean() + 1e-7))
    top, near_map, far_map = (torch.stack(x).mean(dim=0) for x in (largest, near, far))
    mixed, negative = _stretch(near_map * top), _stretch(far_map)
    return {"side": side, "near": near_map, "far": far_map, "filtered": torch.where(negative <= mixed, mixed, 0.0)}


def _stretch(values: Tensor) -> Tensor:
    return (values - values.min()) / (values.max() - values.min() + 1e-6)


def _points(maps: dict[str, Any], config: Any) -> Tensor:
    """Cells of the points [n, 2] (x, y), by x, then y."""
    total = float(maps["filtered"].sum())
    count = min(max(int(total * config.point_factor), 1), config.max_points, int((maps["filtered"] > 0).sum()))
    cell = maps["filtered"].topk(count if total > 0 else 0).indices
    place = sorted((int(c) % maps["side"], int(c) // maps["side"]) for c in cell)
    return torch.tensor(place).view(-1, 2)


def _draw(model: Any, embedding: dict[str, Tensor], points: Tensor, side: int) -> Tensor:
    """Masks [n, R, R] bool, each point decoded for this pair alone."""
    pixels = (points * model.side / side).to(torch.int32)
    found = []
    for some in pixels.split(model.config.decoder_batch):
        maps = {k: v.repeat_interleave(len(some), dim=0) for k, v in embedding.items()}
        low, _ = model.sam.decode(maps, model.sam.point_prompts(some[:, None]))
        full = F.interpolate(low[:, None], size=(model.side, model.side), mode="bilinear", align_corners=False)
        found.append(full[:, 0] > 0)
    return torch.cat(found)


def _gated(drawn: Tensor, points: Tensor, target: Tensor, maps: dict[str, Any], config: Any) -> Tensor:
    side, near = maps["side"], maps["near"]
    size = (side, side)
    small = F.interpolate(drawn[:, None].float(), size=size, mode="nearest")[:, 0] > 0
    edges = small[:, points[:, 1], points[:, 0]].numpy()
    count, label = connected_components(edges, directed=True, connection="weak")
    level = near.min() + config.level * (near.max() - near.min())
    desired = near**2 - maps["far"] * level
    soft = F.interpolate(drawn[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0].flatten(1)
    scores = (soft * desired).sum(dim=1) / (soft.sum(dim=1) + 1e-6)
    positive, class_scores = _grow(soft, desired, scores, label, count)
    own = _self_consistent(drawn, points, target, label, count, config)
    labels = np.where(positive & own, 1, np.where(positive | own, 2, 0))
    if (labels == 1).any():
        return drawn[torch.from_numpy(labels == 1)].any(dim=0)
    kept = np.where(labels == 2, class_scores, 0)
    return drawn[int(kept.argmax())]


def _grow(
    soft: Tensor, desired: Tensor, scores: Tensor, label: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    positive, class_scores = np.zeros(len(soft), dtype=bool), np.zeros(len(soft))
    wanted = (desired > 0).float()
    for component in range(count):
        members = np.flatnonzero(label == component)
        covered = torch.zeros_like(desired)
        for member in members[scores[members].argsort(descending=True, stable=True).numpy()]:
            fresh = soft[member] * (1 - covered)
            gain, loss = float((wanted * fresh).sum()), float(((1 - wanted) * fresh).sum())
            if gain > loss:
                positive[member], covered = True, covered + fresh
            class_scores[members] = gain - loss
    return positive, class_scores


def _self_consistent(
    drawn: Tensor, points: Tensor, target: Tensor, label: np.ndarray, count: int, config: Any
) -> np.ndarray:
    side = int(target.shape[1] ** 0.5)
    itself, cell = _cosine(target, target), points[:, 1] * side + points[:, 0]
    rows = []
    for component in range(count):
        members = torch.from_numpy(np.flatnonzero(label == component))
        union = drawn[members].any(dim=0).float()
        share = F.interpolate(union[None, None], size=(side, side), mode="bilinear", align_corners=False).flatten()
        seen = (share @ itself / len(share)) / (share.mean() + 1e-7)
        apart = (points[:, None] - points[members][None]).float().norm(dim=2).amin(dim=1)
        rows.append(seen[cell] / torch.where(apart == 0, config.distance_floor, apart))
    own = torch.stack(rows).argmax(dim=0).numpy() == label
    for component in range(count):
        members = label == component
        if own[members].sum() < config.majority * members.sum():
            own[members] = False
    return np.asarray(own)
