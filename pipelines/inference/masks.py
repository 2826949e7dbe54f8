"""From a method's logits to run lengths at the photo's size: one copy from the device, overlaps kept or resolved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor

from fss_models.presence import UNCALIBRATED, Presence


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One object, in pixels of the upright photo: COCO's counts, bbox (x, y, width, height), area, score in [0, 1].

    Instances that a person drew have no score.
    """

    counts: str
    bbox: tuple[float, float, float, float]
    area: int
    score: float | None


@dataclass(frozen=True, kw_only=True)
class Label(Presence):
    """One mask, in pixels of the upright photo: COCO's counts, bbox (x, y, width, height), area, score in [0, 1].

    instances  one mask for each object, by falling score; None where they were not asked for
    """

    height: int
    width: int
    counts: str
    bbox: tuple[float, float, float, float]
    area: int
    score: float
    instances: tuple[Instance, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PhotoFailure:
    """The reason why a photo has no label, and the stage (read, send or decode) at which it failed."""

    reason: str
    stage: str = "decode"


Labels = tuple[Label, ...]  # the labels of one photo, one for each class


def threshold_logit(threshold: float) -> float:
    """The logit of the probability `threshold`."""
    return math.log(threshold / (1 - threshold))


def full_size(
    logits: Sequence[Tensor] | Tensor, sizes: Sequence[tuple[int, ...]], levels: Sequence[float], *, corners: bool
) -> list[np.ndarray]:
    """P logits [h, w] -> P masks [H, W] uint8 in column order, as run-length coding reads them.

    `levels` are the logits above which a pixel is True. Logits are transposed before they are enlarged on the device,
    and all masks are copied to the host at once.
    """
    flat = [(_turned(logit, size, corners) > level).to(torch.uint8).flatten()
            for logit, size, level in zip(logits, sizes, levels, strict=False)]
    return to_host(flat, sizes)


def semantic_map(logits: Sequence[Tensor], scores: Sequence[float], size: tuple[int, ...], level: float, *,
                 corners: bool) -> Tensor:
    """C classes' logits [h, w] of one photo -> [W * H] int16 on the device, column order: class + 1, 0 for none.

    A pixel belongs to the class with the highest probability times score among those whose logit is above `level`.
    A class with a negative score gets no pixel.
    """
    width, height = size[1], size[0]
    best = torch.full((width, height), -1.0, device=logits[0].device)
    owner = torch.zeros(width, height, dtype=torch.int16, device=logits[0].device)
    for number, (logit, score) in enumerate(zip(logits, scores, strict=True), 1):
        if score < 0:
            continue
        turned = _turned(logit.float(), size, corners)
        weight = turned.sigmoid() * score
        wins = (turned > level) & (weight > best)
        best, owner = torch.where(wins, weight, best), torch.where(wins, number, owner)
    return owner.flatten()


def to_host(flat: Sequence[Tensor], sizes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Copy tensors [W * H] from the device at once. Returns arrays [H, W] in column order."""
    if not flat:
        return []
    host = torch.cat(list(flat)).cpu().numpy()
    masks, start = [], 0
    for _, (height, width) in zip(flat, sizes, strict=False):
        end = start + height * width
        masks.append(host[start:end].reshape(width, height).T)
        start = end
    return masks


def make_label(mask: np.ndarray, score: float, presence: Presence = UNCALIBRATED) -> Label:
    """The label of a mask [H, W] uint8 in column order. With the status `empty` the label has no pixels."""
    if presence.status == "empty":
        mask = np.zeros_like(mask)
    elif presence.status and not mask.any():
        presence = replace(presence, status="empty")
    rle = coco.encode(mask[:, :, None])[0]
    x, y, w, h = (float(v) for v in coco.toBbox(rle))
    return Label(height=mask.shape[0], width=mask.shape[1], counts=rle["counts"].decode(), bbox=(x, y, w, h),
                 area=int(coco.area(rle)), score=score,
                 presence=presence.presence, quality=presence.quality, status=presence.status)


def _turned(logit: Tensor, size: tuple[int, ...], corners: bool) -> Tensor:
    """Logits [h, w], transposed and enlarged to [W, H]."""
    turned = logit.transpose(0, 1)[None, None]
    return F.interpolate(turned, size=(size[1], size[0]), mode="bilinear", align_corners=corners)[0, 0]
