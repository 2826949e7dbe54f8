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


@dataclass(frozen=True, kw_only=True)
class Presence:
    """What a calibrator says of a mask: probability that the class is there, that it is and the mask is good; status.

    The status is one of `presence`'s words, empty where the bundle has no calibrator.
    """

    presence: float | None = None
    quality: float | None = None
    status: str = ""


@dataclass(frozen=True, kw_only=True)
class Label(Presence):
    """One mask, in pixels of the upright photo: COCO's counts, box x y width height, area, score in [0, 1]."""

    height: int
    width: int
    counts: str
    bbox: tuple[float, float, float, float]
    area: int
    score: float


@dataclass(frozen=True, kw_only=True)
class PhotoFailure:
    """Why a photo has no label."""

    reason: str
    stage: str = "decode"


UNCALIBRATED = Presence()
Labels = tuple[Label, ...]  # of one photo: one a class


def level_of(threshold: float) -> float:
    """The logit of a probability."""
    return math.log(threshold / (1 - threshold))


def full_size(
    logits: Sequence[Tensor] | Tensor, sizes: Sequence[tuple[int, ...]], levels: Sequence[float], *, corners: bool
) -> list[np.ndarray]:
    """[P, h, w] logits -> masks [H, W] uint8 in column order, as run-length coding reads them.

    Each is transposed while small, enlarged on the device, and all travel to the host in one copy.
    """
    flat = [(_turned(logit, size, corners) > level).to(torch.uint8).flatten()
            for logit, size, level in zip(logits, sizes, levels, strict=False)]
    return to_host(flat, sizes)


def semantic_map(logits: Sequence[Tensor], scores: Sequence[float], size: tuple[int, ...], level: float, *,
                 corners: bool) -> Tensor:
    """C classes' logits [h, w] of one photo -> [W * H] int16 on the device, column order: class + 1, 0 where none is.

    A pixel is a class's where its logit is above `level` and its probability times the score is the highest. A class
    with a score below 0 gets none.
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
    """Tensors [W * H] -> arrays [H, W] in column order, in one copy."""
    if not flat:
        return []
    host = torch.cat(list(flat)).cpu().numpy()
    masks, start = [], 0
    for _, (height, width) in zip(flat, sizes, strict=False):
        end = start + height * width
        masks.append(host[start:end].reshape(width, height).T)
        start = end
    return masks


def make_label(mask: np.ndarray, score: float, told: Presence = UNCALIBRATED) -> Label:
    """[H, W] uint8 in column order -> its run lengths and what follows from them; an empty label has no pixels."""
    if told.status == "empty":
        mask = np.zeros_like(mask)
    elif told.status and not mask.any():
        told = replace(told, status="empty")
    rle = coco.encode(mask[:, :, None])[0]
    x, y, w, h = (float(v) for v in coco.toBbox(rle))
    return Label(height=mask.shape[0], width=mask.shape[1], counts=rle["counts"].decode(), bbox=(x, y, w, h),
                 area=int(coco.area(rle)), score=score,
                 presence=told.presence, quality=told.quality, status=told.status)


def _turned(logit: Tensor, size: tuple[int, ...], corners: bool) -> Tensor:
    """[h, w] -> [W, H]."""
    turned = logit.transpose(0, 1)[None, None]
    return F.interpolate(turned, size=(size[1], size[0]), mode="bilinear", align_corners=corners)[0, 0]
