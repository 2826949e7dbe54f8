"""Photos over a side limit are made smaller when shards are built, their masks with them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipelines.data import rle
from pipelines.data.sources.base import ImageMasks, InstanceMask

QUALITY = 95
_PIECE = Image.Resampling.BOX  # every new pixel is the mean of the old ones that it covers


def shrunk_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """(height, width) whose longer side is at most `max_side` pixels (0: no limit), in the same proportion."""
    longer = max(height, width)
    if not max_side or longer <= max_side:
        return height, width
    return max(1, round(height * max_side / longer)), max(1, round(width * max_side / longer))


def shrink_photo(pixels: np.ndarray, data: bytes, height: int, width: int) -> bytes:
    """[H, W, 3] uint8 -> an image file of `height` x `width`: a JPEG again if `data` is one, else a PNG."""
    small, out = Image.fromarray(pixels).resize((width, height), _PIECE), io.BytesIO()
    if data.startswith(b"\xff\xd8"):
        small.save(out, "JPEG", quality=QUALITY, subsampling=0)
    else:
        small.save(out, "PNG")
    return out.getvalue()


def shrink_marks(marks: ImageMasks, old: tuple[int, int], new: tuple[int, int]) -> ImageMasks:
    """Pixels of which a mask covers at least half; objects that cover none any more are listed as problems.

    old, new: (height, width)
    """
    small = ImageMasks(void=_shrink(marks.void, old, new) if marks.void else None, problems=list(marks.problems))
    for mark in marks.instances:
        counts = _shrink(mark.rle, old, new)
        if rle.area(counts, *new):
            small.instances.append(InstanceMask(mark.class_id, counts, mark.iscrowd))
        else:
            was = rle.area(mark.rle, *old)
            small.problems.append(f"an object of class {mark.class_id} with {was} pixels vanishes at "
                                  f"{new[1]}x{new[0]} (data.max_side)")
    return small


def _shrink(counts: bytes, old: tuple[int, int], new: tuple[int, int]) -> bytes:
    mask = Image.fromarray(rle.decode(counts, *old).astype(np.uint8) * 255)
    return rle.encode(np.asarray(mask.resize((new[1], new[0]), _PIECE)) >= 128)
