"""One-to-one matches of patches in both directions, and the prompts that are drawn from the matched points."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import ClusterError, kmeans2
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fss_models.methods.matcher.config import MatcherConfig


@dataclass(frozen=True, kw_only=True)
class PatchMatches:
    """Matches of one pair, in the order of reference patches.

    reverse [F]  reverse partner of every forward match
    target, reference [M]  the patches of the matches that are kept, similarity [M] theirs
    negative [Q]  target patches whose way back ends on a negative example, the most similar to the object first
    """

    reverse: np.ndarray
    target: np.ndarray
    reference: np.ndarray
    similarity: np.ndarray
    negative: np.ndarray


def match_patches(similarity: np.ndarray, object_patches: np.ndarray, *, crowded: int,
                  negatives: int = 0) -> PatchMatches:
    """Match patches by similarity [L, N] (references of all shots, target); `object_patches` [O] are the object's rows.

    Forward: the object's patches against all of the target. Backward: the patches found against all references. A match
    stays if the way back ends on the object; if none does, all stay. Of more than `crowded` the better half stays.
    The last `negatives` rows of L are of negative examples: where none ends on the object, all stay that end on none
    of these.
    """
    rows, target = linear_sum_assignment(similarity[object_patches], maximize=True)
    reference = object_patches[rows]
    reverse = linear_sum_assignment(similarity[:, target].T, maximize=True)[1]
    rejected = reverse >= len(similarity) - negatives
    stays = np.isin(reverse, object_patches)
    stays = stays if stays.any() else ~rejected
    kept = np.flatnonzero(stays) if stays.any() else np.arange(len(target))
    strength = similarity[reference[kept], target[kept]]
    wrong = np.flatnonzero(rejected) if stays.any() else kept[:0]
    wrong = wrong[np.argsort(-similarity[reference[wrong], target[wrong]], kind="stable")]
    if len(kept) > crowded:
        best = np.sort(np.argsort(-strength, kind="stable")[: len(kept) // 2])
        kept, strength = kept[best], strength[best]
    return PatchMatches(reverse=reverse, target=target[kept], reference=reference[kept], similarity=strength,
                        negative=target[wrong])


def patch_points(patches: np.ndarray, grid: int, patch: int) -> Tensor:
    """The distinct patches' middle pixels [n, 2] int64 (x, y), patches in ascending order."""
    distinct = torch.from_numpy(np.unique(patches))
    return torch.stack([distinct % grid, distinct // grid], dim=1) * patch + patch // 2


def base_points(points: Tensor, config: MatcherConfig) -> Tensor:
    """The points [m, 2] that prompts are drawn from: all [n, 2], or the truncated centres of their clusters."""
    if config.base_points == "all":
        return points
    count, rng = min(config.centres, len(points)), np.random.default_rng(config.seed)
    while True:
        try:
            found, _ = kmeans2(points.double().numpy(), count, iter=config.centre_steps, minit="++", missing="raise",
                               rng=rng)
        except ClusterError:  # a cluster came out empty: draw the first centres anew
            continue
        return torch.from_numpy(found).long()


def draw_samples(points: Tensor, config: MatcherConfig) -> list[Tensor]:
    """Prompts by growing size: for r points [draws, r, 2], all on the object."""
    draw = random.Random(config.seed)
    low, high = (min(size, len(points)) for size in config.sample_sizes)
    found = []
    for size in range(low, high + 1):
        if len(points) > config.all_of:
            picks = [draw.sample(range(len(points)), size) for _ in range(config.draws)]
        else:
            picks = [list(c) for c in itertools.combinations(range(len(points)), size)]
        found.append(points[torch.tensor(picks)])
    return found
