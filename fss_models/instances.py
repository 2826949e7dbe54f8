"""From the mask of a class to one mask for each object.

model    the method's own instances (`Prediction.instances`)
pieces   the connected pieces of the mask, by 8 neighbours, with their holes
prompts  the points deepest inside the mask become prompts of SAM 2's mask decoder

An instance never leaves the mask. Pixels of the mask in no instance go to the one with the highest logit there; a piece
that no prompted instance touches is an instance of its own. So without duplicates and specks the union of instances is
the mask. What only duplicates of the method's own instances cover stays in the mask alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from fss_models.clip import Features, Instances, Memory, Prediction
from fss_models.errors import FssError
from fss_models.segmenter import Segmenter
from fss_models.settings import InstanceSource

DUPLICATE = 0.5  # intersection over the smaller mask above which the less certain of two instances is a duplicate
SPECK = 0.0002  # default share of a photo's pixels below which a piece is no instance
MOST, SEARCHED = 64, 512  # prompts of a mask; parts of a mask that are looked at, the deepest first
NECK = 0.7  # a part of a mask is a prompt of its own if the way to a deeper part is narrower than this share of it
OUTSIDE = 10.0  # how far the logits of an instance lie below the threshold outside the piece that it was found in
NEIGHBOURS = np.ones((3, 3), dtype=bool)
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class ObjectMask:
    """One object of a class in a photo. Of its mask only the part around the object is in memory.

    Attributes:
        score: the estimate of the mask's quality, in [0, 1]
        size: (H, W) of the upright photo
        place: (top, left) of the part around the object, in pixels of the photo
        part: [h, w] bool, the mask there; no other pixel of the photo is in it
    """

    score: float
    size: tuple[int, int]
    place: tuple[int, int]
    part: Bools

    @property
    def mask(self) -> Bools:
        """[H, W] bool, in pixels of the upright photo; a new array each time."""
        whole, (top, left) = np.zeros(self.size, dtype=bool), self.place
        whole[top:top + self.part.shape[0], left:left + self.part.shape[1]] = self.part
        return whole


@dataclass(frozen=True, kw_only=True)
class SplitRules:
    """How a mask is split.

    source  the origin of the instances
    level   the logit above which a pixel belongs to the object
    speck   share of the photo's pixels below which a piece is no instance; the largest one always is
    corners the method's `corners_aligned`
    """

    source: InstanceSource
    level: float = 0.0
    speck: float = SPECK
    corners: bool = False


def check_instances(method: type[Segmenter], source: InstanceSource) -> None:
    """Raises `FssError` if the method cannot give instances of this source."""
    if source not in get_args(InstanceSource):
        raise FssError(f"instances is {source!r}", hint=f"known: {', '.join(get_args(InstanceSource))}")
    if source != "none" and source not in method.instance_sources:
        known = ", ".join(sorted(method.instance_sources))
        raise FssError(f"method {method.method!r} has no instances from {source!r}",
                       hint=f"use one of: {known}")


@torch.inference_mode()
def add_prompted(model: Segmenter, prediction: Prediction, memory: Memory, features: Features, pairs: Tensor,
                 levels: Sequence[float | None]) -> Prediction:
    """The prediction with the instances that prompts inside its masks give; pairs whose level is None keep their own.

    `levels` [P] are the logits above which a pixel belongs to the object. Every pair is decoded by itself, so that its
    instances do not depend on the other pairs.
    """
    own = prediction.instances
    size = (model.mask_side, model.mask_side) if own is None else tuple(own.logits.shape[1:])
    windows = torch.tensor([[0, 0, *size]]).repeat(len(levels), 1)
    found = []
    for row, level in enumerate(levels):
        if level is None and own is not None:
            kept = own.of_pair(row)
            found.append((kept.logits, kept.scores))
            windows[row] = kept.window[0]
            continue
        made, scores = _prompt_pair(model, prediction.logits[row].float(), memory, features, pairs[row], level)
        if made.shape[1:] != size:
            made = _resized(made, size, corners=model.corners_aligned) if len(made) else made.new_zeros(0, *size)
        found.append((made, scores))
    pair = torch.tensor([row for row, (_, scores) in enumerate(found) for _ in range(len(scores))])
    return replace(prediction, instances=Instances(
        pair=pair.to(prediction.logits.device), scores=torch.cat([scores for _, scores in found]),
        logits=torch.cat([logits for logits, _ in found]), window=windows.to(prediction.logits.device)))


def _prompt_pair(model: Segmenter, logits: Tensor, memory: Memory, features: Features, pair: Tensor,
                 level: float | None) -> tuple[Tensor, Tensor]:
    """Logits [I, h, w] and scores [I] of the instances in the mask `logits` [h, w], from high to low, no duplicates."""
    side = model.mask_side
    inside = _resized(logits[None], (side, side), corners=model.corners_aligned)[0] > (
        math.inf if level is None else level)
    points = deepest_points(inside.cpu().numpy())
    if not len(points):
        return logits.new_zeros(0, side, side), logits.new_zeros(0)
    at = (torch.from_numpy(points).to(logits) + 0.5) * (model.side / side)
    labels = torch.ones(len(points), 1, dtype=torch.int32, device=logits.device)
    masks, ious = model.decode_points(memory, features, pair.expand(len(points), 2), at[:, None], labels)
    masks = torch.where(_own_pieces(inside, points), masks, masks.clamp(max=(level or 0.0) - OUTSIDE))
    kept = drop_duplicates(masks > (level or 0.0), ious)
    return masks[kept], ious[kept].float().clamp(0, 1)


def _own_pieces(inside: Tensor, points: npt.NDArray[np.float64]) -> Tensor:
    """For each point [n, 2] the connected piece of a mask [h, w] that it is in, [n, h, w] bool."""
    labels = ndimage.label(inside.cpu().numpy(), NEIGHBOURS)[0]
    x, y = points.astype(np.int64).T
    return torch.from_numpy(labels[None] == labels[y, x][:, None, None]).to(inside.device)


def deepest_points(mask: Bools, most: int = MOST) -> npt.NDArray[np.float64]:
    """The pixels (x, y) [n, 2] of a mask [h, w] that are deepest inside, the deepest first; each piece has one or more.

    They are local maxima of the distance to the border. One from which a way leads to a deeper one that is nowhere
    shallower than `NECK` of its own depth is left out: the mask has no neck there.
    """
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    ridges, count = ndimage.label(mask & (depth == ndimage.maximum_filter(depth, footprint=NEIGHBOURS)), NEIGHBOURS)
    if not count:
        return np.zeros((0, 2))
    tops = [_middle(ridges, number, place) for number, place in enumerate(ndimage.find_objects(ridges), 1)]
    tops.sort(key=lambda top: -depth[top])
    kept = []
    for number, top in enumerate(tops[:SEARCHED]):
        connected = ndimage.label(depth >= NECK * depth[top], NEIGHBOURS)[0]
        if all(connected[top] != connected[deeper] for deeper in tops[:number]):
            kept.append(top[::-1])
    return np.array(kept[:most], dtype=np.float64)


def _middle(ridges: Ints, number: int, place: tuple[slice, ...]) -> tuple[int, int]:
    """The pixel (y, x) of a ridge that is nearest to its centre."""
    y, x = np.nonzero(ridges[place] == number)
    near = int(((y - y.mean()) ** 2 + (x - x.mean()) ** 2).argmin())
    return int(y[near]) + place[0].start, int(x[near]) + place[1].start


def drop_duplicates(masks: Tensor, scores: Tensor, most: float = DUPLICATE) -> list[int]:
    """The instances to keep, by falling score (of equal ones the first), of masks [I, h, w] bool and scores [I].

    An instance is dropped if its intersection with a kept one is more than `most` of the smaller mask, or if it is
    empty.
    """
    order = torch.argsort(-scores.float(), stable=True).to(masks.device)
    order = order[masks.flatten(1).any(dim=1)[order]]
    return order[suppress(masks[order], most)].tolist()


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


def split_mask(mask: Bools, score: float, rules: SplitRules, found: Instances | None = None) -> list[ObjectMask]:
    """The instances in a class's mask [H, W] bool, by falling score; specks are left out.

    `found` are the instances of this one pair (`Instances.of_pair`); None or empty gives the connected pieces, which
    have the `score` of the mask.
    """
    if not mask.any():
        return []
    split: list[ObjectMask] = []
    covered = np.zeros_like(mask)
    if found is not None and len(found.scores) and rules.source != "pieces":
        split, covered = _prompted_or_own(mask, found, rules)
        if rules.source == "model" and split:
            return _without_specks(split, 1)
    least = rules.speck * mask.size
    return _without_specks(split + _pieces(mask, covered, score, least), least)


def _prompted_or_own(mask: Bools, found: Instances, rules: SplitRules) -> tuple[list[ObjectMask], Bools]:
    """The instances that a model found in a mask [H, W], and the pixels of the mask that any of them covers."""
    top, left, bottom, right = found.window[0].tolist()
    found = replace(found, logits=found.logits[:, top:bottom, left:right])
    kept = drop_duplicates(found.logits > rules.level, found.scores) if rules.source == "model" else list(
        range(len(found.scores)))
    best, owner = np.full(mask.shape, -math.inf, dtype=np.float32), np.full(mask.shape, -1, dtype=np.int32)
    for number in range(len(found.scores)):
        plane = _plane(found, number, mask.shape, rules)
        wins = plane > best
        best, owner = np.where(wins, plane, best), np.where(wins, number, owner)
    split = [_around(own, float(found.scores[number]))
             for number, own in _grown(mask, found, kept, best, owner, rules)]
    return split, mask & (best > rules.level)


def _around(mask: Bools, score: float) -> ObjectMask:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    place = tuple(slice(int(at[0]), int(at[-1]) + 1) if at.size else slice(0, 0) for at in (rows, columns))
    return _object(mask[place].copy(), place, mask.shape, score)


def _object(part: Bools, place: tuple[slice, ...], size: tuple[int, ...], score: float) -> ObjectMask:
    return ObjectMask(score=score, size=(size[0], size[1]), place=(place[0].start, place[1].start), part=part)


def _grown(mask: Bools, found: Instances, kept: Sequence[int], best: npt.NDArray[np.float32], owner: Ints,
           rules: SplitRules) -> Iterator[tuple[int, Bools]]:
    """(instance, its mask): what it covers of the mask, and those pixels that none covers where its logit is highest.

    Pieces that no instance touches are left out. Of the method's own instances only gaps that resizing leaves between
    them are closed: wider ones belonged to duplicates.
    """
    left = mask & (best <= rules.level)
    if rules.source == "model":
        left &= ~_wide(left, max(mask.shape[0] / found.logits.shape[1], mask.shape[1] / found.logits.shape[2]))
    else:
        labels, free = _free_pieces(mask, mask & ~left)
        left &= ~free[labels]
    for number in kept:
        yield number, mask & ((_plane(found, number, mask.shape, rules) > rules.level) | (left & (owner == number)))


def _wide(mask: Bools, cell: float) -> Bools:
    """The connected pieces of a mask that are somewhere more than two cells of so many pixels wide."""
    core = ndimage.binary_erosion(mask, iterations=math.ceil(cell))
    found: Bools = ndimage.binary_propagation(core, structure=NEIGHBOURS, mask=mask)
    return found


def _pieces(mask: Bools, covered: Bools, score: float, least: float) -> list[ObjectMask]:
    """The connected pieces of a mask [H, W] that have no covered pixel, and at least so many pixels or the most."""
    labels, free = _free_pieces(mask, covered)
    areas = np.bincount(labels.ravel(), minlength=len(free)) * free
    limit = max(1, min(least, areas.max()))
    return [_object(labels[place] == number, place, mask.shape, score)
            for number, place in enumerate(ndimage.find_objects(labels), 1) if areas[number] >= limit]


def _free_pieces(mask: Bools, covered: Bools) -> tuple[Ints, Bools]:
    """The numbers [H, W] of a mask's connected pieces, 0 elsewhere; for each number whether no pixel is covered."""
    labels, count = ndimage.label(mask, NEIGHBOURS)
    free = np.arange(count + 1) > 0
    free[labels[covered]] = False
    return labels, free


def _without_specks(split: list[ObjectMask], least: float) -> list[ObjectMask]:
    """The instances of at least so many pixels, by falling score; if none is large enough, the largest."""
    areas = [int(one.part.sum()) for one in split]
    limit = min(least, max(areas, default=0))
    large = [one for one, area in zip(split, areas, strict=True) if area >= max(limit, 1)]
    return sorted(large, key=lambda one: -one.score)


def _plane(found: Instances, number: int, size: tuple[int, ...], rules: SplitRules) -> npt.NDArray[np.float32]:
    """An instance's logits [h, w] at the size of the photo."""
    plane: npt.NDArray[np.float32] = _resized(found.logits[number][None].float(), size, corners=rules.corners)[
        0].cpu().numpy()
    return plane


def _resized(maps: Tensor, size: Sequence[int], *, corners: bool) -> Tensor:
    """Maps [N, h, w] at another size, bilinear."""
    return F.interpolate(maps[None], size=tuple(size), mode="bilinear", align_corners=corners)[0]
