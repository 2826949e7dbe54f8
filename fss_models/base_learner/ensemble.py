"""How BAM joins a meta learner's and a base learner's predictions (section 3.4), which HDMNet took over.

Letters: P pairs of a support set and an image, K shots, C channels of layer2, G grid side, n base classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

COSINE_EPSILON = 1e-7
HIDDEN = 2  # width between the two layers that weigh the shots
Order = Literal["restored", "official"]


def gram(maps: Tensor) -> Tensor:
    """Cosines between the channels of maps [N, C, h, w], [N, C, C]: what an image looks like, wherever it is."""
    flat = maps.flatten(2)
    length = flat.norm(dim=2)
    return flat @ flat.transpose(1, 2) / (length[:, :, None] * length[:, None, :] + COSINE_EPSILON)


def scene_difference(query: Tensor, support: Tensor) -> Tensor:
    """The adjustment factor psi [E] in [0, 1] of Gram matrices [E, C, C] (the released code divides by C)."""
    return (query - support).flatten(1).norm(dim=1) / query.shape[1]


class ShotWeights(nn.Module):
    """Weights of K shots from their differences to the query, learnt for exactly `shots` of them.

    The layers see the differences from small to large. `official` leaves the weights in that order, as HDMNet's
    released code does; `restored` puts them back into the order of the shots.
    """

    def __init__(self, shots: int, order: Order = "restored") -> None:
        super().__init__()
        self.shots, self.order = shots, order
        self.mix = nn.Sequential(nn.Conv2d(shots, HIDDEN, 1), nn.ReLU(), nn.Conv2d(HIDDEN, shots, 1))

    def forward(self, psi: Tensor, counts: Tensor) -> Tensor:
        """Weights [P, K] that sum to 1 over the first `counts` [P] shots; psi [P, K].

        Pairs with another number of shots than the learnt one weigh them equally.
        """
        found = equal_weights(counts, psi.shape[1])
        rows = counts == self.shots
        if not bool(rows.any()):
            return found
        ordered, index = psi[rows, : self.shots].sort(dim=1)
        mixed = self.mix(ordered[..., None, None]).flatten(1)
        if self.order == "restored":
            mixed = mixed.gather(1, index.argsort(dim=1))
        found[rows, : self.shots] = mixed.softmax(dim=1)
        return found


def equal_weights(counts: Tensor, width: int) -> Tensor:
    """Weights [P, width]: 1 / count for the first `counts` [P] shots, else 0."""
    real = torch.arange(width, device=counts.device) < counts[:, None]
    return real / counts[:, None].float()


@dataclass(frozen=True, kw_only=True)
class JoinedPrediction:
    """Both learners' predictions joined, on the grid.

    final      [P, 2, G, G] background and object: sums of probabilities, of which the larger one decides
    base_map   [P, 1, G, G] probability of any base class
    meta_bg, meta_fg, merged_bg   [P, 1, G, G] adjusted meta prediction, and its background with the base map
    """

    final: Tensor
    base_map: Tensor
    meta_bg: Tensor
    meta_fg: Tensor
    merged_bg: Tensor


class Ensemble(nn.Module):
    """Two 1 x 1 convolutions that start as the identity of their first input."""

    def __init__(self) -> None:
        super().__init__()
        self.adjust, self.merge = (nn.Conv2d(2, 1, 1, bias=False) for _ in range(2))
        for conv in (self.adjust, self.merge):
            conv.weight.data = torch.tensor([1.0, 0.0]).view_as(conv.weight)

    def forward(self, meta: Tensor, base: Tensor, psi: Tensor, own: Tensor | None = None) -> JoinedPrediction:
        """Join meta logits [P, 2, G, G] and base logits [P, 1 + n, G, G], adjusted by psi [P].

        own [P] int64: the base class (from 0) that the episode is about, which in training is no background; -1: none.
        """
        mu, beta = meta.softmax(dim=1), base.softmax(dim=1)[:, 1:]
        if own is not None:
            others = torch.arange(beta.shape[1], device=beta.device) != own.to(beta.device)[:, None]
            beta = beta * others[..., None, None]
        base_map = beta.sum(dim=1, keepdim=True)
        tiled = psi[:, None, None, None].expand_as(base_map)
        bg, fg = (self.adjust(torch.cat([mu[:, i : i + 1], tiled], dim=1)) for i in (0, 1))
        merged = self.merge(torch.cat([bg, base_map], dim=1))
        return JoinedPrediction(final=torch.cat([merged, fg], dim=1), base_map=base_map, meta_bg=bg, meta_fg=fg,
                                merged_bg=merged)
