"""Average-linkage clustering of the patches of images.

On a CPU it is SciPy's nearest-neighbour chain, image by image. Elsewhere all images are clustered at once: average
linkage is reducible (Bruynooghe 1977), so all pairs of clusters that are each other's nearest may merge at once, and
the result is that of one merge after the other. Some twenty rounds on tensors that shrink from round to round take the
place of the chain. On a CPU they need three to ten times the chain's time.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

FAR = 1e3  # distance of a cluster to itself and to those that are gone
TIE = 1e-10  # far below the spacing of float32 near 1: it only decides between equal distances


def average_linkage(features: Tensor, cut: float) -> Tensor:
    """Labels [N, L] int64 in 0 ... L - 1 of unit vectors [N, L, C]; clusters merge while they are closer than `cut`.

    The distance is 1 - cosine, averaged over the pairs of two clusters.
    """
    apart = distances(features)
    if apart.device.type != "cpu":
        return merge_rounds(apart, cut)
    below = np.nextafter(cut, -np.inf)  # SciPy also merges at the cut itself
    found = [fcluster(linkage(squareform(one, checks=False), "average"), below, "distance") - 1
             for one in apart.detach().numpy()]
    return torch.from_numpy(np.stack(found)).long()


def distances(features: Tensor) -> Tensor:
    """1 - cosine of all pairs of unit vectors [N, L, C], as [N, L, L] float64."""
    return (1 - (features @ features.mT).clamp(-1, 1)).double()


def merge_rounds(apart: Tensor, cut: float) -> Tensor:
    """The clusters of N images from their patches' distances [N, L, L] float64, as `average_linkage` returns them."""
    n, length, _ = apart.shape
    apart = (apart + TIE * _tie_breaker(length, apart.device)).diagonal_scatter(
        apart.new_full((n, length), FAR), dim1=1, dim2=2)
    labels = names = torch.arange(length, device=apart.device).expand(n, -1)
    size, alive = torch.ones_like(names, dtype=apart.dtype), torch.ones_like(names, dtype=torch.bool)
    while True:
        height, nearest = apart.min(dim=2)
        here = torch.arange(nearest.shape[1], device=nearest.device)
        mutual = (nearest.gather(1, nearest) == here) & (height < cut)
        if not bool(mutual.any()):
            return labels
        partner = torch.where(mutual, nearest, here)
        owners = names.gather(1, torch.minimum(partner, here))
        labels = labels.scatter(1, names, owners).gather(1, labels)
        alive = alive & (partner >= here)
        stay = alive.sort(dim=1, descending=True, stable=True).indices[:, : int(alive.sum(1).max())]
        apart, size = _merge(apart, size, stay, partner.gather(1, stay))
        names, alive = names.gather(1, stay), alive.gather(1, stay)
        apart = apart.masked_fill(~(alive[:, :, None] & alive[:, None]), FAR)
        apart.diagonal(dim1=1, dim2=2).fill_(FAR)


def _merge(apart: Tensor, size: Tensor, stay: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Distances and sizes of the clusters `stay` [N, M], each joined with its `partner` (itself: with none)."""
    mine, theirs = size.gather(1, stay), size.gather(1, partner) * (partner != stay)
    share = (theirs / (mine + theirs))[..., None]
    for _ in range(2):  # rows, then columns
        apart = torch.lerp(apart.take_along_dim(stay[..., None], 1), apart.take_along_dim(partner[..., None], 1), share)
        apart = apart.mT
    return apart, mine + theirs


def _tie_breaker(length: int, device: torch.device) -> Tensor:
    """Symmetric scattered values [L, L] in [0, 1), by which among equal distances many pairs are mutual."""
    i = torch.arange(length, dtype=torch.float64, device=device)
    return torch.sin((i[:, None] + 1) * (i + 1) * 12.9898).mul(43758.5453).frac().abs()
