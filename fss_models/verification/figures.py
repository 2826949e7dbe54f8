"""Errors between our tensors and stored ones, and figures that several methods' cases are compared by."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from fss_models.metrics import Counts, episode_counts, score


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """max |difference| / max |reference|; infinite where shapes differ or ours is not finite."""
    if ours.shape != reference.shape:
        return float("inf")
    difference = (ours.detach().double() - reference.double()).abs().max() if ours.numel() else torch.zeros(())
    scale = reference.double().abs().max().clamp(min=1e-12) if ours.numel() else torch.ones(())
    error = float(difference / scale)
    return error if error == error else float("inf")


def excess(ours: Tensor, reference: Tensor, rtol: float) -> float:
    """max(|difference| - rtol * |reference|), at least 0; infinite where shapes differ or ours is not finite."""
    if ours.shape != reference.shape or not bool(ours.isfinite().all()):
        return float("inf")
    over = (ours.double() - reference.double()).abs() - rtol * reference.double().abs()
    return max(0.0, float(over.max()))


def step_error(ours: Tensor, reference: Tensor, gradient: Tensor, share: float) -> float:
    """max |difference| of a parameter after a step, over the values whose |gradient| is above `share` of the largest.

    Smaller gradients are rounding noise, which Adam's first step enlarges to the size of the learning rate.
    """
    off = (ours.detach() - reference).abs()[gradient.abs() > share * gradient.abs().max()]
    return float(off.max()) if off.numel() else 0.0


def digest(x: Tensor) -> Tensor:
    """(mean, standard deviation, max |x|, sum x * linspace(-1, 1)) of a tensor, as the full-size cases store it."""
    flat = x.detach().double().flatten()
    ramp = torch.linspace(-1, 1, len(flat), dtype=torch.float64)
    return torch.stack([flat.mean(), flat.std(), flat.abs().max(), (flat * ramp).sum()])


def score_figures(
    *, pred: Tensor, truth: Tensor, ids: Tensor, classes: Iterable[int], ignore: Tensor | None = None
) -> dict[str, np.ndarray]:
    """Scores of E masks [E, H, W] bool under the names of the golden files; `ids` [E] are the episodes' classes.

    area_inter, area_union [2, E]: pixels of background and foreground; miou_percent, fb_iou_percent [].
    """
    each = [episode_counts(p, t, None if ignore is None else ignore[i])
            for i, (p, t) in enumerate(zip(pred, truth, strict=True))]
    inter, union = (np.array([e[n] for e in each], dtype=np.int64) for n in (0, 1))
    found = score(Counts(class_ids=ids.numpy(), inter=inter, union=union), [int(c) for c in classes])
    return {"area_inter": inter.T, "area_union": union.T, "miou_percent": np.array(found.miou * 100),
            "fb_iou_percent": np.array(found.fb_iou * 100)}
