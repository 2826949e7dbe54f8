"""Canvases: which rectangle of a square picture shows which photo (specification from FSS-SAM3's `evaluate.py`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fss_models.errors import FssError
from fss_models.methods.sam3.config import Arrangement, Orientation, Sam3Config

QUERY = -1  # the query's number in a cell map
FIVE = 5  # supports that a canvas has room for


class Cell(NamedTuple):
    """A rectangle in pixels: left, top, width, height."""

    x: int
    y: int
    width: int
    height: int

    @property
    def part(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


@dataclass(frozen=True, kw_only=True)
class CanvasLayout:
    """A square of `side` pixels, tiled by the cells of the supports, in order, and the query's."""

    side: int
    supports: tuple[Cell, ...]
    query: Cell

    def cell_map(self) -> Tensor:
        """[side, side] int64: the number of the support whose cell a pixel is in, or `QUERY`."""
        found = torch.full((self.side, self.side), QUERY)
        for number, cell in enumerate(self.supports):
            found[cell.part] = number
        return found


def pair_layout(side: int, ratio: float, orientation: Orientation = "vertical",
                query_first: bool = True) -> CanvasLayout:
    """One support, which gets the share `ratio` of the side, rounded down. Raises `FssError` for an empty cell."""
    own = _inside(math.floor(side * ratio), side, ratio)
    at, rest = (side - own if query_first else 0), side - own
    start = 0 if query_first else own
    if orientation == "vertical":
        return CanvasLayout(side=side, supports=(Cell(0, at, side, own),), query=Cell(0, start, side, rest))
    return CanvasLayout(side=side, supports=(Cell(at, 0, own, side),), query=Cell(start, 0, rest, side))


def five_layout(side: int, ratio: float, arrangement: Arrangement = "l_shape",
                rounding: Callable[[float], int] = round) -> CanvasLayout:
    """Five supports above and left of the query, or in one strip that is `ratio` of the side wide.

    Segmentation rounds the strip's width, the official detection code rounds it down (`rounding`). Raises `FssError`
    for an empty cell.
    """
    thick = _inside(rounding(side * ratio), side, ratio)
    rest = side - thick
    if arrangement == "vertical_strip":
        cells = tuple(Cell(0, y, thick, h) for y, h in _shares(0, side, FIVE))
        return CanvasLayout(side=side, supports=cells, query=Cell(thick, 0, rest, side))
    if arrangement == "horizontal_strip":
        cells = tuple(Cell(x, 0, w, thick) for x, w in _shares(0, side, FIVE))
        return CanvasLayout(side=side, supports=cells, query=Cell(0, thick, side, rest))
    above = [Cell(x, 0, w, thick) for x, w in _shares(0, side, 3)]
    left = [Cell(0, y, thick, h) for y, h in _shares(thick, rest, 2)]
    return CanvasLayout(side=side, supports=(*above, *left), query=Cell(thick, thick, rest, rest))


def layouts_of(config: Sam3Config, side: int) -> tuple[CanvasLayout, ...]:
    """The layouts that a configuration uses: for one support, for several, or both in this order."""
    pair = pair_layout(side, config.pair_ratio, config.orientation, config.query_first)
    five = five_layout(side, config.five_ratio, config.arrangement)
    return {"pair": (pair,), "five": (five,), "auto": (pair, five)}[config.layout]


def place_boxes(shares: Tensor, cells: Tensor, side: int) -> Tensor:
    """Move boxes [S, K, n, 4] (x0 y0 x1 y1, shares of photos) into cells [S, K, 4] (x y w h in pixels of the canvas).

    Returns them as cx cy w h, shares of the canvas.
    """
    cell = cells[:, :, None].to(shares)
    corners = (shares * cell[..., [2, 3, 2, 3]] + cell[..., [0, 1, 0, 1]]) / side
    return torch.cat([(corners[..., :2] + corners[..., 2:]) / 2, corners[..., 2:] - corners[..., :2]], dim=-1)


def _shares(start: int, length: int, count: int) -> list[tuple[int, int]]:
    """Cut `length` pixels from `start` on into `count` parts (start, length); the last one gets the remainder."""
    each = length // count
    return [(start + i * each, each if i < count - 1 else length - i * each) for i in range(count)]


def _inside(pixels: int, side: int, ratio: float) -> int:
    if not 0 < pixels < side:
        raise FssError(f"a ratio of {ratio} leaves no room on the canvas", hint="give a share between 0 and 1")
    return pixels
