"""OpenCV's linear interpolation of float pixels, without antialias: the resize of several official codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fss_models.clip import Images
from fss_models.preprocess import Mode, Preprocessor


@dataclass(frozen=True, kw_only=True)
class OpenCvPreprocessor(Preprocessor):
    """Resizes 8-bit pixels to a square in float, then normalises; mode `fast` is the same for every method."""

    def __call__(self, images: Sequence[np.ndarray], mode: Mode | None = None) -> Images:
        """Convert [H, W, 3] uint8 arrays to pixels [N, 3, side, side] float and sizes [N, 2]."""
        if (mode or self.mode) != "published":
            return super().__call__(images, mode)
        square = np.stack([linear(i, (self.side, self.side)) for i in images])
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        pixels = (torch.from_numpy(square).permute(0, 3, 1, 2) / 255 - mean) / std
        return Images(pixels=pixels.contiguous(), sizes=torch.tensor([i.shape[:2] for i in images]))

    def mask(self, mask: np.ndarray) -> Tensor:
        """A support mask [H, W] bool -> [side, side] float in {0, 1}, by OpenCV's nearest neighbour."""
        return torch.from_numpy(nearest(mask, (self.side, self.side))).float()

    def target(self, mask: np.ndarray) -> Tensor:
        """A target mask [H, W] bool -> [side, side] float in {0, 1}, in the same way."""
        return self.mask(mask)


def linear(image: np.ndarray, size: tuple[int, int], step: float | None = None) -> np.ndarray:
    """Resize [H, W, C] to [*size, C] float32 as OpenCV's INTER_LINEAR; `step` is in input pixels per output pixel."""
    low, high, part = _neighbours(image.shape[0], size[0], step)
    used, place = np.unique(np.concatenate([low, high]), return_inverse=True)  # few of a large photo's rows
    narrow = _between(image[used], 1, *_neighbours(image.shape[1], size[1], step))
    return _between(narrow, 0, place[:len(low)], place[len(low):], part)


def _neighbours(m: int, n: int, step: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of n output pixels of an axis with m: the two input pixels, and the part of the second."""
    at = (np.arange(n) + 0.5) * (step or m / n) - 0.5
    low = np.floor(at).astype(int)
    part = (at - low).astype(np.float32)
    part[(low < 0) | (low >= m - 1)] = 0
    low = low.clip(0, m - 1)
    return low, (low + 1).clip(max=m - 1), part


def _between(image: np.ndarray, axis: int, low: np.ndarray, high: np.ndarray, part: np.ndarray) -> np.ndarray:
    weight = part.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    first, second = (image.take(at, axis).astype(np.float32, copy=False) for at in (low, high))
    found: np.ndarray = first * (1 - weight) + second * weight
    return found


def nearest(label: np.ndarray, size: tuple[int, int], step: float | None = None) -> np.ndarray:
    """Resize [H, W] to [*size] as OpenCV's INTER_NEAREST, which takes the floor of i * step."""
    rows, columns = (np.floor(np.arange(n) * (step or m / n)).astype(int).clip(max=m - 1)
                     for n, m in zip(size, label.shape, strict=True))
    return label[rows][:, columns]
