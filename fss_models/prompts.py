"""Prompts of any kind, gathered into one tensor batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fss_models.clip import Prompt, PromptBatch, PromptKind
from fss_models.errors import FssError
from fss_models.preprocess import resize_mask


def mask_prompt(mask: np.ndarray) -> Prompt:
    """A reference marked by its mask [H, W]. Raises `FssError` if the mask is empty."""
    if not mask.any():
        raise FssError("the support mask is empty", hint="mark at least one pixel of the object")
    return Prompt(kind=PromptKind.MASK, mask=torch.from_numpy(mask.astype(bool)))


def collate(
    sets: Sequence[Sequence[Prompt]], sizes: Tensor, side: int, image: Tensor | None = None,
    resize: Callable[[np.ndarray], Tensor] | None = None,
) -> PromptBatch:
    """Gather S sets of up to K prompts into a `PromptBatch`.

    sizes [N, 2] are the original (height, width) of the images; `image` [S, K] is the index of each prompt's image
    (default: the sets' images follow one another); `resize` brings a mask [H, W] to [side, side] (default: nearest).
    `Segmenter.collate` calls this with the method's own resize. Negative prompts are moved to the end of their set.
    Raises `FssError` if a mask's size is not its image's.
    """
    s, k = len(sets), max(len(one) for one in sets)
    where = _consecutive(sets, k) if image is None else image
    negative = any(p.negative for one in sets for p in one)
    if negative:
        sets, where = _negatives_last(sets, where)
    bring = resize or (lambda mask: resize_mask(mask, side))
    flat = [[_scaled(p, sizes[where[i, j]], side, bring) for j, p in enumerate(one)] for i, one in enumerate(sets)]
    width = max([1] + [len(points) for one in flat for _, points, _ in one])
    batch = PromptBatch(
        image=where,
        kind=torch.full((s, k), int(PromptKind.PAD), dtype=torch.int64),
        masks=torch.zeros(s, k, side, side),
        points=torch.zeros(s, k, width, 2),
        labels=torch.full((s, k, width), -1, dtype=torch.int32),
        negative=torch.zeros(s, k, dtype=torch.bool) if negative else None,
    )
    for i, one in enumerate(flat):
        for j, (mask, points, labels) in enumerate(one):
            batch.kind[i, j] = int(sets[i][j].kind)
            if batch.negative is not None:
                batch.negative[i, j] = sets[i][j].negative
            if mask is not None:
                batch.masks[i, j] = mask
            batch.points[i, j, : len(points)] = points
            batch.labels[i, j, : len(points)] = labels
    return batch


def _consecutive(sets: Sequence[Sequence[Prompt]], k: int) -> Tensor:
    index, start = torch.zeros(len(sets), k, dtype=torch.int64), 0
    for i, one in enumerate(sets):
        index[i, : len(one)] = torch.arange(start, start + len(one))
        start += len(one)
    return index


def _negatives_last(sets: Sequence[Sequence[Prompt]], image: Tensor) -> tuple[list[list[Prompt]], Tensor]:
    """The sets, and the rows `image` [S, K] of their images, with negative prompts at the end of each set."""
    moved, image = [], image.clone()
    for row, one in enumerate(sets):
        order = sorted(range(len(one)), key=lambda j: one[j].negative)
        moved.append([one[j] for j in order])
        image[row, :len(one)] = image[row, order]
    return moved, image


def _scaled(
    prompt: Prompt, size: Tensor, side: int, resize: Callable[[np.ndarray], Tensor]
) -> tuple[Tensor | None, Tensor, Tensor]:
    height, width = int(size[0]), int(size[1])
    if prompt.kind == PromptKind.MASK:
        assert prompt.mask is not None
        if tuple(prompt.mask.shape) != (height, width):
            raise FssError(f"mask is {tuple(prompt.mask.shape)}, its image {(height, width)} (height, width)")
        return resize(prompt.mask.numpy()), torch.zeros(0, 2), torch.zeros(0, dtype=torch.int32)
    scale = torch.tensor([side / width, side / height])
    if prompt.kind == PromptKind.BOX:
        assert prompt.box is not None
        return None, prompt.box.float().view(2, 2) * scale, torch.tensor([2, 3], dtype=torch.int32)
    assert prompt.points is not None
    labels = prompt.labels if prompt.labels is not None else torch.full((len(prompt.points),), not prompt.negative)
    return None, prompt.points.float() * scale, labels.to(torch.int32)
