"""Small pictures of photos with masks drawn over them, also as data URLs, so that a page needs no other file."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image
from scipy import ndimage

SUPPORT, TRUTH, PREDICTION = (59, 130, 246), (16, 185, 129), (249, 115, 22)  # blue, green, orange
SIDE = 240  # pixels of the longer side
OPACITY = 0.5  # share of the mask's colour inside a mask


def photo_url(image: np.ndarray, mask: np.ndarray | None = None, colour: tuple[int, int, int] = PREDICTION,
              side: int = SIDE, *, outline: np.ndarray | None = None) -> str:
    """A photo [H, W, 3] uint8 with its mask [H, W] bool tinted and outlined, as a JPEG data URL.

    The longer side of the picture has `side` pixels; `outline` as in `picture`.
    """
    buffer = io.BytesIO()
    picture(image, mask, colour, outline=outline, side=side).save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(image: np.ndarray, mask: np.ndarray | None = None, colour: tuple[int, int, int] = PREDICTION, *,
            outline: np.ndarray | None = None, side: int = SIDE) -> Image.Image:
    """A photo [H, W, 3] uint8 with its mask [H, W] bool tinted and outlined, as an image.

    The longer side has `side` pixels. The border of `outline` [H, W] bool, the true mask, is drawn in `TRUTH`'s colour.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS if scale < 1 else
                                                   Image.Resampling.BICUBIC), dtype=np.float32)
    if mask is not None:
        small = _tint(small, _sized(mask, size), colour)
    if outline is not None:
        inside = _sized(outline, size)
        small = np.where((inside & ~_eroded(inside))[..., None], np.array(TRUTH, dtype=np.float32), small)
    return Image.fromarray(small.astype(np.uint8))


def png_bytes(drawn: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    drawn.save(buffer, format="PNG")  # `optimize` takes twice as long to save 1 %
    return buffer.getvalue()


def _sized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.array(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) > 127


def _tint(image: np.ndarray, inside: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Tint the inside, draw the border in full colour, and dim the rest a little."""
    tint = np.array(colour, dtype=np.float32)
    border = inside & ~_eroded(inside)
    out = np.where(inside[..., None], image * (1 - OPACITY) + tint * OPACITY, image * 0.85)
    return np.where(border[..., None], tint, out)


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask whose neighbours at distance 2 in the four directions are inside it too."""
    reach = np.zeros((5, 5), dtype=bool)
    reach[[0, 2, 2, 2, 4], [2, 0, 2, 4, 2]] = True
    return np.asarray(ndimage.binary_erosion(mask, reach))
