"""Quality of FCP's pseudo masks (table 3 of its paper): mIoU, precision and recall, averaged over classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fss_models.errors import FssError

THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class PseudoMaskQuality:
    """Fractions in [0, 1]; a class without any episode counts 0."""

    miou: float
    precision: float
    recall: float


def pseudo_mask_quality(masks: Tensor, truth: Tensor, class_ids: Tensor, classes: Iterable[int]) -> PseudoMaskQuality:
    """Compare E masks, hard or in [0, 1] (cut at one half), with their truth; void pixels are not left out.

    masks, truth [E, G, G], class_ids [E] int64; counts are pooled over a class's episodes before dividing. Raises
    `FssError` if the sizes differ.
    """
    if masks.shape != truth.shape:
        raise FssError(f"masks are {tuple(masks.shape)}, truth {tuple(truth.shape)}")
    pred, true = masks.float() > THRESHOLD, truth > 0
    counts = np.stack([x.flatten(1).sum(1).cpu().numpy() for x in (pred & true, pred, true)])  # [3, E]
    ids = class_ids.cpu().numpy()
    inter, found, real = np.stack([counts[:, ids == c].sum(axis=1) for c in classes], axis=1).astype(np.float64)
    union = found + real - inter
    ratios = [float((inter / np.maximum(below, 1)).mean()) for below in (union, found, real)]
    return PseudoMaskQuality(miou=ratios[0], precision=ratios[1], recall=ratios[2])
