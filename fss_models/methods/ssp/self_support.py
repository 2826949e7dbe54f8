"""SSP's prototypes: those of the support, and those that the query's confident pixels give.

Letters: P rows (a query with its support set), C channels, G grid side, L = G * G cells. Logits have two channels,
background and object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fss_models.methods.ssp.config import SspConfig
from fss_models.prior_guided.maps import masked_mean, resize_aligned

AREA_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class SelfSupport:
    """What a query says of itself: means of its object and background pixels [P, C, 1, 1] each.

    local [P, C, G, G]: background prototypes of the query's pixels
    probability [P, 2, L]; counts [P, 2]: pixels above the thresholds of object and background
    """

    foreground: Tensor
    background: Tensor
    local: Tensor
    probability: Tensor
    counts: Tensor


@dataclass(frozen=True, kw_only=True)
class SspRound:
    """One round: what it started from, its prototypes (object [P, C, 1, 1], background [P, C, G, G]), its logits."""

    support: SelfSupport
    foreground: Tensor
    background: Tensor
    logits: Tensor


@dataclass(frozen=True, kw_only=True)
class SspDecision:
    """Logits [P, 2, G, G] from the support alone, after the first round, after the second (None without it)."""

    start: Tensor
    first: SspRound
    second: SspRound | None
    logits: Tensor


def prototypes(features: Tensor, foreground: Tensor, background: Tensor) -> Tensor:
    """Means of features [E, C, G, G] under two masks [E, 1, R, R] -> [E, 2, C], object first."""
    masks = (resize_aligned(m, features.shape[-2:]) for m in (foreground, background))
    return torch.stack([masked_mean(features, m, AREA_EPSILON) for m in masks], dim=1)


def match(features: Tensor, foreground: Tensor, background: Tensor, temperature: float) -> Tensor:
    """Logits [P, 2, G, G]: cosines of features [P, C, G, G] to prototypes [P, C, 1, 1] or maps of them."""
    near = [F.cosine_similarity(features, p, dim=1) for p in (background, foreground)]
    return torch.stack(near, dim=1) * temperature


def self_support(features: Tensor, logits: Tensor, config: SspConfig) -> SelfSupport:
    """Prototypes of the query [P, C, G, G] from its confident pixels; their choice has no gradient."""
    probability = logits.flatten(2).softmax(dim=1)
    background, foreground = probability.detach().unbind(1)
    flat = features.flatten(2)
    chosen_fg, count_fg = confident(foreground, config.foreground_threshold, config.top_pixels)
    chosen_bg, count_bg = confident(background, config.background_threshold, config.top_pixels)
    unit = flat / flat.norm(dim=1, keepdim=True)
    scores = config.local_temperature * unit.transpose(1, 2) @ unit  # [P, L, L]
    weights = scores.masked_fill(~chosen_bg[:, None], float("-inf")).softmax(dim=2)
    return SelfSupport(
        foreground=_mean(flat, chosen_fg), background=_mean(flat, chosen_bg),
        local=(flat @ weights.transpose(1, 2)).unflatten(2, features.shape[-2:]), probability=probability,
        counts=torch.stack([count_fg, count_bg], dim=1))


def confident(probability: Tensor, threshold: float, top: int) -> tuple[Tensor, Tensor]:
    """Pixels [P, L] bool above the threshold, or the `top` largest where none is; the number above it [P]."""
    above = probability > threshold
    count = above.sum(dim=1)
    largest = probability.topk(min(top, probability.shape[1]), dim=1).indices
    best = torch.zeros_like(above).scatter(1, largest, torch.ones_like(largest, dtype=torch.bool))
    return torch.where(count[:, None] > 0, above, best), count


def decide(features: Tensor, given: Tensor, config: SspConfig) -> SspDecision:
    """Query features [P, C, G, G] and the support's prototypes [P, 2, C], object first -> logits of every round."""
    fp, bp = (p[..., None, None] for p in given.unbind(1))
    start = match(features, fp, bp, config.temperature)
    first = _round(features, start, fp, config)
    if not config.refine:
        return SspDecision(start=start, first=first, second=None, logits=first.logits)
    again = _round(features, first.logits, fp, config)
    rest = 1 - config.first_weight - config.second_weight

    def mixed(support: Tensor, one: Tensor, two: Tensor) -> Tensor:
        return support * rest + one * config.first_weight + two * config.second_weight

    foreground = mixed(fp, first.foreground, again.foreground)
    background = mixed(bp, first.background, again.background)
    second = SspRound(support=again.support, foreground=foreground, background=background,
                      logits=match(features, foreground, background, config.temperature))
    logits = second.logits * config.refined_weight + first.logits * (1 - config.refined_weight)
    return SspDecision(start=start, first=first, second=second, logits=logits)


def _round(features: Tensor, logits: Tensor, fp: Tensor, config: SspConfig) -> SspRound:
    own = self_support(features, logits, config)
    foreground = fp * (1 - config.self_weight) + own.foreground * config.self_weight
    background = own.background * (1 - config.local_weight) + own.local * config.local_weight
    return SspRound(support=own, foreground=foreground, background=background,
                    logits=match(features, foreground, background, config.temperature))


def _mean(flat: Tensor, chosen: Tensor) -> Tensor:
    """Mean of [P, C, L] over the chosen cells [P, L] -> [P, C, 1, 1]."""
    weights = chosen.to(flat)
    return ((flat @ weights[..., None]) / weights.sum(dim=1)[:, None, None])[..., None]
