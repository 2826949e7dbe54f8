"""Suppression of instances that are the same object."""

from __future__ import annotations

import torch
from torch import Tensor


def suppress(masks: Tensor, limit: float) -> Tensor:
    """Greedy suppression of masks [I, h, w] bool, given from the best score to the worst; returns the rows kept [J].

    A mask is dropped if it shares more than `limit` of the smaller area (intersection over minimum) with a kept one.
    """
    flat = masks.flatten(1).float()
    area = flat.sum(dim=1)
    shared = flat @ flat.T / torch.minimum(area[:, None], area[None]).clamp(min=1)
    over = (shared > limit).tolist()
    kept: list[int] = []
    for row, others in enumerate(over):
        if not any(others[k] for k in kept):
            kept.append(row)
    return torch.tensor(kept, dtype=torch.int64, device=masks.device)
