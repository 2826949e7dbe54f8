"""Photos pasted into every cell of the canvases: then the canvas of a pair is a choice between two such pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fss_models.clip import Images
from fss_models.methods.sam3.layout import CanvasLayout, Cell
from fss_models.preprocess import SYMMETRIC, Mode, Preprocessor

_Resize = Callable[[np.ndarray, Cell], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class CanvasPreprocessor(Preprocessor):
    """Stretches a photo to each cell of each layout; what a canvas shows equals the official code's to the last bit."""

    mean: tuple[float, float, float] = SYMMETRIC[0]
    std: tuple[float, float, float] = SYMMETRIC[1]
    layouts: tuple[CanvasLayout, ...]

    def __call__(self, images: Sequence[np.ndarray], mode: Mode | None = None) -> Images:
        """Convert [H, W, 3] uint8 arrays to pixels [N, 3 * layouts, side, side] float in [-1, 1] and sizes [N, 2]."""
        resize = _stretch_pil if (mode or self.mode) == "published" else _stretch_fast
        packed = np.stack([np.concatenate([_pack(i, layout, resize) for layout in self.layouts], axis=2)
                           for i in images])
        pixels = (torch.from_numpy(packed).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        return Images(pixels=pixels, sizes=torch.tensor([i.shape[:2] for i in images], dtype=torch.int64))


def _pack(image: np.ndarray, layout: CanvasLayout, resize: _Resize) -> np.ndarray:
    """[side, side, 3] uint8: the photo in every cell."""
    canvas = np.empty((layout.side, layout.side, 3), np.uint8)
    stretched: dict[tuple[int, int], np.ndarray] = {}
    for cell in (*layout.supports, layout.query):
        size = cell.width, cell.height
        if size not in stretched:
            stretched[size] = resize(image, cell)
        canvas[cell.part] = stretched[size]
    return canvas


def _stretch_pil(image: np.ndarray, cell: Cell) -> np.ndarray:
    if image.dtype != np.uint8:
        image = np.rint(image).clip(0, 255).astype(np.uint8)
    return np.asarray(Image.fromarray(image).resize((cell.width, cell.height), Image.Resampling.BILINEAR))


def _stretch_fast(image: np.ndarray, cell: Cell) -> np.ndarray:
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    small = F.interpolate(x, size=(cell.height, cell.width), mode="bilinear", align_corners=False, antialias=True)
    return small[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
