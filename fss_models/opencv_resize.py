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
        square = np.stack([linear(i.astype(np.float32), (self.side, self.side)) for i in images])
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
    """Resize [H, W, C] float32 to [*size, C] as OpenCV's INTER_LINEAR; `step` is in input pixels per output pixel."""
    for axis, n in ((1, size[1]), (0, size[0])):
        at = (np.arange(n) + 0.5) * (step or image.shape[axis] / n) - 0.5
        low = np.floor(at).astype(int)
        part = (at - low).astype(np.float32)
        last = image.shape[axis] - 1
        part[(low < 0) | (low >= last)] = 0
        low = low.clip(0, last)
        shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
        first, second = image.take(low, axis), image.take((low + 1).clip(max=last), axis)
        image = first * (1 - part).reshape(shape) + second * part.reshape(shape)
    return image


def nearest(label: np.ndarray, size: tuple[int, int], step: float | None = None) -> np.ndarray:
    """Resize [H, W] to [*size] as OpenCV's INTER_NEAREST, which takes the floor of i * step."""
    rows, columns = (np.floor(np.arange(n) * (step or m / n)).astype(int).clip(max=m - 1)
                     for n, m in zip(size, label.shape, strict=True))
    return label[rows][:, columns]
