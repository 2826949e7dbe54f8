"""Supports for tiles: the side of the tiles that makes their objects large enough, and cuts around their marks.

A support is seen at the scale of the tiles: of a photo that is larger than a tile only a tile around the mark is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fss_models.clip import Prompt
from fss_models.errors import FssError
from fss_models.settings import TileSide
from fss_models.tiles import TileWindow

SMALL = 16  # pixels of the model's square: photos are tiled if the supports' objects are smaller
UNKNOWN_SIZE = "tile auto needs a mask or a box: points and scribbles do not tell how large an object is"
WANTED = 32  # pixels of the model's square that such an object then has in a tile, unless that enlarges the photo


def fitting_side(images: Sequence[np.ndarray], prompts: Sequence[Prompt], square: int) -> int | None:
    """The side of tiles that fits the objects of a support set, for a model with a square of `square` pixels.

    0 where the median object has `SMALL` pixels or more in the square without tiles; None where no mark tells a size,
    that is where there are only points and scribbles. An object's size is the root of its area;
    negative examples show none.
    """
    known = [(area ** 0.5, image.shape[0] * image.shape[1]) for image, prompt in zip(images, prompts, strict=True)
             if not prompt.negative and (area := _area(prompt))]
    if not known:
        return None
    if np.median([size * square / pixels ** 0.5 for size, pixels in known]) >= SMALL:
        return 0
    return max(square, round(float(np.median([size for size, _ in known])) * square / WANTED))


def resolve_side(tile: TileSide, images: Sequence[np.ndarray], prompts: Sequence[Prompt], square: int) -> int:
    """`tile` without auto. Raises `FssError` for auto where no mark tells the size of an object."""
    side = fitting_side(images, prompts, square) if tile == "auto" else tile
    if side is None:
        raise FssError(UNKNOWN_SIZE, hint="give the side of a tile in pixels")
    return side


def _area(prompt: Prompt) -> float:
    """The pixels of a mask or box; 0 for other marks."""
    if prompt.mask is not None:
        return float(prompt.mask.sum())
    return float((prompt.box[2:] - prompt.box[:2]).prod()) if prompt.box is not None else 0.0


def cut_supports(images: Sequence[np.ndarray], prompts: Sequence[Prompt],
                 side: int) -> tuple[list[np.ndarray], list[Prompt]]:
    """Photos larger than `side` are cut to a tile around the mark, or around what is larger than a tile of it.

    Points off the object that lie outside of the tile are left out.
    """
    found = [_cut(image, prompt, side) for image, prompt in zip(images, prompts, strict=True)]
    return [image for image, _ in found], [prompt for _, prompt in found]


def _cut(image: np.ndarray, prompt: Prompt, side: int) -> tuple[np.ndarray, Prompt]:
    place = _extent(prompt)
    if place is None or max(image.shape[:2]) <= side:
        return image, prompt
    left, top, right, bottom = place
    side = max(side, right - left, bottom - top)
    top, height = _around(top, bottom, side, image.shape[0])
    left, width = _around(left, right, side, image.shape[1])
    window = TileWindow(top, left, height, width)
    return np.ascontiguousarray(window.cut(image)), _moved(prompt, window)


def _extent(prompt: Prompt) -> tuple[int, int, int, int] | None:
    """left, top, right, bottom of what is marked, in whole pixels; None where nothing is."""
    if prompt.mask is not None:
        rows, columns = prompt.mask.nonzero(as_tuple=True)
        corners = torch.stack([columns, rows], dim=1)
        ends = corners + 1
    elif prompt.box is not None:
        corners, ends = prompt.box[None, :2], prompt.box[None, 2:]
    elif prompt.points is not None and prompt.labels is not None:
        corners = ends = prompt.points[prompt.labels == int(not prompt.negative)]
    else:
        return None
    if not len(corners):
        return None
    left, top = corners.amin(dim=0).floor().int().tolist()
    right, bottom = ends.amax(dim=0).ceil().int().tolist()
    return left, top, right, bottom


def _around(first: int, last: int, side: int, length: int) -> tuple[int, int]:
    """(start, size) of `side` pixels around `first` to `last`, within `length` pixels."""
    size = min(side, length)
    return min(max(0, (first + last - size) // 2), length - size), size


def _moved(prompt: Prompt, window: TileWindow) -> Prompt:
    """The prompt in pixels of the window."""
    offset = torch.tensor([window.left, window.top])
    if prompt.mask is not None:
        rows, columns = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
        return replace(prompt, mask=prompt.mask[rows, columns])
    if prompt.box is not None:
        return replace(prompt, box=prompt.box - offset.repeat(2))
    assert prompt.points is not None
    assert prompt.labels is not None
    points = prompt.points - offset
    inside = _inside(points, window) | (prompt.labels == int(not prompt.negative))
    return replace(prompt, points=points[inside], labels=prompt.labels[inside])


def _inside(points: Tensor, window: TileWindow) -> Tensor:
    limits = torch.tensor([window.width, window.height])
    return ((points >= 0) & (points <= limits)).all(dim=1)
