"""Decoded images become a method's input, in one of two modes.

`published` is the very resize of the papers' code (antialiased bilinear on 8-bit pixels, as PIL does it);
`fast` is one bilinear interpolation in float. A bundle records which mode it was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fss_models.clip import Images

Mode = Literal["published", "fast"]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SYMMETRIC = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # inputs in [-1, 1], as EfficientNet-Lite wants them


@dataclass(frozen=True, kw_only=True)
class Preprocessor:
    """Square resize (the aspect ratio is not kept, as every published few-shot code does) and normalisation.

    via             square side to which images and masks are resized first (SANSA's data sets: 640 or 518); 0: none
    mask_threshold  a support mask that goes through `via` is interpolated and cut above this value
    """

    side: int
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]
    mode: Mode = "published"
    via: int = 0
    mask_threshold: float = 0.0

    @property
    def data_side(self) -> int:
        """Side in pixels at which target masks are given and losses are taken: `via`, or `side` where there is none."""
        return self.via or self.side

    def __call__(self, images: Sequence[np.ndarray], mode: Mode | None = None) -> Images:
        """Convert [H, W, 3] uint8 arrays to pixels [N, 3, side, side] float and sizes [N, 2]."""
        resize = _resize_pil if (mode or self.mode) == "published" else _resize_fast
        square = torch.stack([resize(i, self.data_side) for i in images])
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        sizes = torch.tensor([i.shape[:2] for i in images], dtype=torch.int64)
        return Images(pixels=resize_square((square - mean) / std, self.side), sizes=sizes)

    def mask(self, mask: np.ndarray) -> Tensor:
        """Resize a support mask [H, W] bool to [side, side] float in {0, 1}."""
        square = resize_mask(mask, self.data_side)
        if self.data_side == self.side:
            return square
        return (resize_square(square[None, None], self.side)[0, 0] > self.mask_threshold).float()

    def target(self, mask: np.ndarray) -> Tensor:
        """Resize a target mask [H, W] bool to [data_side, data_side] float in {0, 1}."""
        return resize_mask(mask, self.data_side)


class FloorMasks(Preprocessor):
    """Resizes masks as some released loaders do: torch's `nearest` floors the source index, where PIL's rounds it."""

    def mask(self, mask: np.ndarray) -> Tensor:
        """Resize a support mask [H, W] bool to [side, side] float in {0, 1}."""
        whole = torch.from_numpy(mask.astype(np.float32))[None, None]
        return F.interpolate(whole, size=(self.side, self.side), mode="nearest")[0, 0]

    def target(self, mask: np.ndarray) -> Tensor:
        """Resize a target mask [H, W] bool to [side, side] float in {0, 1}."""
        return self.mask(mask)


def _resize_pil(image: np.ndarray, side: int) -> Tensor:
    """Resize [H, W, 3] uint8 (or float in 0..255, which is rounded) to [3, side, side] float in [0, 1]."""
    if image.dtype != np.uint8:
        image = np.rint(image).clip(0, 255).astype(np.uint8)
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def _resize_fast(image: np.ndarray, side: int) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
    return resize_square(x, side)[0]


def resize_square(maps: Tensor, side: int) -> Tensor:
    """Resize [N, C, H, W] to [N, C, side, side], bilinear with antialias; nothing changes if the side fits already."""
    if maps.shape[-2:] == (side, side):
        return maps
    return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def resize_mask(mask: np.ndarray, side: int) -> Tensor:
    """Resize [H, W] bool to [side, side] float in {0, 1}, by nearest neighbour as the published loaders do."""
    picture = Image.fromarray(mask.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(picture)).float()
