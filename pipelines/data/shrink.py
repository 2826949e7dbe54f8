"""Shrinks photos over a side limit, and their masks, when shards are built."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipelines.data import rle
from pipelines.data.sources.base import ImageMasks, InstanceMask

QUALITY = 95  # of JPEG files
_PIECE = Image.Resampling.BOX  # every new pixel is the mean of the old pixels that it covers


def shrunk_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """(height, width) whose longer side is at most `max_side` pixels (0: no limit), in the same proportion."""
    longer = max(height, width)
    if not max_side or longer <= max_side:
        return height, width
    return max(1, round(height * max_side / longer)), max(1, round(width * max_side / longer))


def shrink_photo(pixels: np.ndarray, data: bytes, height: int, width: int) -> bytes:
    """Pixels [H, W, 3] uint8 -> image file of `height` x `width`, a JPEG if the original `data` is one, else a PNG."""
    return encode_photo(Image.fromarray(pixels).resize((width, height), _PIECE), data)


def encode_photo(image: Image.Image, data: bytes) -> bytes:
    """An RGB image -> image file without EXIF, a JPEG if the original `data` is one, else a PNG."""
    plain, out = Image.fromarray(np.asarray(image)), io.BytesIO()
    if data.startswith(b"\xff\xd8"):
        plain.save(out, "JPEG", quality=QUALITY, subsampling=0)
    else:
        plain.save(out, "PNG")
    return out.getvalue()


def shrink_masks(masks: ImageMasks, old: tuple[int, int], new: tuple[int, int]) -> ImageMasks:
    """The masks at a smaller size. A new pixel belongs to a mask that covers at least half of it.

    Objects without a pixel at the new size are listed as problems. old, new: (height, width).
    """
    small = ImageMasks(void=_shrink(masks.void, old, new) if masks.void else None, problems=list(masks.problems))
    for mask in masks.instances:
        counts = _shrink(mask.rle, old, new)
        if rle.area(counts, *new):
            small.instances.append(InstanceMask(mask.class_id, counts, mask.iscrowd))
        else:
            was = rle.area(mask.rle, *old)
            small.problems.append(f"an object of class {mask.class_id} with {was} pixels vanishes at "
                                  f"{new[1]}x{new[0]} (data.max_side)")
    return small


def _shrink(counts: bytes, old: tuple[int, int], new: tuple[int, int]) -> bytes:
    mask = Image.fromarray(rle.decode(counts, *old).astype(np.uint8) * 255)
    return rle.encode(np.asarray(mask.resize((new[1], new[0]), _PIECE)) >= 128)
