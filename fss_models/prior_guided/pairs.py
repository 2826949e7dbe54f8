"""Rows of (pair, shot): how support sets with different numbers of shots are batched without padding.

Letters: S support sets, K shots, P pairs of a support set and an image, E real references or (pair, shot) rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fss_models.clip import Clip, Memory, PromptBatch, PromptKind
from fss_models.prior_guided.marks import mark_masks


def real_rows(prompts: PromptBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The E references that are not padding: flat index [E] into S * K, image [E], masks [E, 1, R, R]."""
    rows = (prompts.kind != PromptKind.PAD).flatten().nonzero()[:, 0]
    return rows, prompts.image.flatten()[rows], mark_masks(prompts).flatten(0, 1)[rows, None]


def scatter_rows(values: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """Spread values of the real references [E, ...] to [S, K, ...], with zeros where padded."""
    full = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
    return full.index_copy(0, rows.to(values.device), values).unflatten(0, tuple(shape))


def row_of(rows: Tensor, shape: torch.Size, sets: Tensor, shot: Tensor) -> Tensor:
    """Index [M] into the E real references of `shot` [M] of set `sets` [M]; `rows` [E] are their flat indices."""
    flat = sets.to(rows.device) * shape[1] + shot.to(rows.device)
    return torch.searchsorted(rows, flat)


def shot_rows(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Pair and shot [E] of every row, pair by pair, from the number of shots [P] of each pair."""
    pair = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    start = (counts.cumsum(0) - counts)[pair]
    return pair, torch.arange(len(pair), device=counts.device) - start


def gather_shots(memory: Memory, sets: Tensor, shot: Tensor) -> dict[str, Tensor]:
    """The memory's tensors for `shot` [E] of set `sets` [E]; "top" without the cells that are zero in all sets."""
    longest = int(memory.tensors["filled"].max()) + 1
    return {k: (v[:, :, :longest] if k == "top" else v)[sets, shot] for k, v in memory.tensors.items()}


def clip_pairs(clip: Clip) -> Tensor:
    """Pairs [B * J, 2] of each target and its own clip's support set; targets are rows of `clip.images`."""
    b, k, j = clip.shape
    targets = torch.arange(b * j)
    return torch.stack([targets // j, b * k + targets], dim=1)


def mean_over_shots(values: Tensor, pair: Tensor, pairs: int) -> Tensor:
    """Mean over the shots of each pair, [E, ...] -> [P, ...]."""
    where = pair.to(values.device)
    total = values.new_zeros(pairs, *values.shape[1:]).index_add(0, where, values)
    counts = torch.bincount(where, minlength=pairs).to(values)
    return total / counts.view(-1, *[1] * (values.dim() - 1))
