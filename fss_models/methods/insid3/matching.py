"""INSID3's matching of a query with a support set, for P pairs at once.

Letters: P pairs, K references, C channels, L patches of an image (g x g).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_masks(masks: Tensor, grid: int) -> Tensor:
    """Masks [M, R, R] in {0, 1} as patches [M, L] in {0, 1}.

    A patch counts if bilinear resizing without antialias gives more than 0.5. A mask without such a patch has those
    that nearest resizing hits, or else the one that holds its mean position. An empty mask has none.
    """
    cell = masks.shape[-1] // grid
    fine = (F.interpolate(masks[:, None], size=(grid, grid), mode="bilinear") > 0.5).flatten(1)
    nearest = (F.interpolate(masks[:, None], size=(grid, grid), mode="nearest") > 0.5).flatten(1)
    ramp, total = torch.arange(masks.shape[-1]).to(masks), masks.sum(dim=(1, 2))
    y, x = ((masks.sum(dim=d) @ ramp / total.clamp(min=1) / cell).long().clamp(max=grid - 1) for d in (2, 1))
    middle = F.one_hot(y * grid + x, grid * grid).bool() & (total > 0)[:, None]
    found = torch.where(fine.any(dim=1, keepdim=True), fine, nearest)
    return torch.where(found.any(dim=1, keepdim=True), found, middle).to(masks)


def enlarge(patches: Tensor, size: tuple[int, int]) -> Tensor:
    """Patches [M, h, w] in {0, 1} as bool masks [M, *size]: bilinear, above 0.5."""
    return F.interpolate(patches[:, None], size=size, mode="bilinear")[:, 0] > 0.5


def prototype(features: Tensor, masks: Tensor, counts: Tensor) -> Tensor:
    """Unit vectors [S, C]: the mean over references of the mean of `features` [S, K, C, L] in their `masks` [S, K, L].
    """
    means = torch.einsum("skcl,skl->skc", features, masks) / masks.sum(dim=2, keepdim=True).clamp(min=1)
    return F.normalize(means.sum(dim=1) / counts.clamp(min=1)[:, None], dim=1)


def forward_patches(similarity: Tensor, quantile: float) -> Tensor:
    """[P, L] bool: where `similarity` to the prototype is positive; if nowhere, where it is above its `quantile`."""
    positive = similarity > 0
    highest = similarity > similarity.quantile(quantile, dim=1, keepdim=True)
    return torch.where(positive.any(dim=1, keepdim=True), positive, highest)


def nearest_references(references: Tensor, query: Tensor) -> Tensor:
    """[P, K, L] int64: for each patch of `query` [P, C, L] the most similar one of each of `references` [P, K, C, L].
    """
    return (query.mT[:, None] @ references).argmax(dim=3)


def like_negatives(references: Tensor, masks: Tensor, query: Tensor) -> Tensor:
    """[P, L] bool: where `query` [P, C, L] is more similar to a patch of `references` [P, K, C, L] that `masks`
    [P, K, L] mark by -1 than to any that they mark by 1.
    """
    similarity = query.mT[:, None] @ references
    best = [similarity.masked_fill((masks != sign)[:, :, None], -torch.inf).amax(dim=(1, 3)) for sign in (-1, 1)]
    return best[0] > best[1]


@dataclass(frozen=True, kw_only=True)
class ClusterScores:
    """What decides about clusters, at each patch the value of its own cluster, [P, L].

    cross  mean similarity of the cluster to the prototype; intra: cosine of the cluster to the seed cluster
    area   share of its patches that are candidates; 1 in the seed cluster
    seed   index of a patch in the seed cluster, [P]
    """

    cross: Tensor
    intra: Tensor
    area: Tensor
    seed: Tensor

    @property
    def combined(self) -> Tensor:
        """The product of the three."""
        return self.cross * self.intra * self.area


def score_clusters(
    similarity: Tensor, candidates: Tensor, *, labels: Tensor, clusters: Tensor, strength: Tensor
) -> ClusterScores:
    """Score the clusters of P queries, given at each patch.

    similarity, candidates   [P, L], to the prototype
    labels [P, L]            clusters; clusters [P, C, L]: unit mean of the features of a patch's cluster
    strength [P, L]          length of the mean of the debiased features of a patch's cluster
    """
    size = _sums(torch.ones_like(similarity), labels)
    cross = _sums(similarity, labels) / size
    hits = _sums(candidates.to(similarity), labels)
    rank = (cross / strength).masked_fill(hits == 0, -torch.inf)  # cosine of prototype and cluster
    seed = rank.argmax(dim=1)
    origin = clusters.take_along_dim(seed[:, None, None], dim=2)
    intra = (origin.mT @ clusters)[:, 0]
    own = labels == labels.gather(1, seed[:, None])
    return ClusterScores(cross=cross, intra=intra, area=(hits / size).masked_fill(own, 1.0), seed=seed)


def _sums(values: Tensor, labels: Tensor) -> Tensor:
    """At each patch the sum of `values` [P, L] over its cluster."""
    return torch.zeros_like(values).scatter_add(1, labels, values).gather(1, labels)


def cluster_means(features: Tensor, labels: Tensor) -> Tensor:
    """At each patch the mean of `features` [N, C, L] over its cluster; `labels` [N, L] in 0 ... L - 1."""
    places = labels[:, None].expand_as(features)
    sums = torch.zeros_like(features).scatter_add(2, places, features)
    return sums.gather(2, places) / _sums(torch.ones_like(features[:, 0]), labels)[:, None]
