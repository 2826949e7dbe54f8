"""Photos much larger than a model's square, cut into overlapping tiles that the model sees one by one.

A tile's logits are enlarged to its pixels and averaged with those of its neighbours, with weights that fall linearly to
the tile's border, before the threshold: a mask has no seams. Tiles go column by column from left to right. As soon as
no later tile touches a strip of the photo, its run lengths are taken, so that no map of the whole photo is in memory.

Pieces of the mask that are only in tiles without the class are dropped. The photo shows the class if one of its tiles
does; as there are many, each has to be the surer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from scipy import ndimage
from torch import Tensor

from fss_models.presence import Presence, Trust, status_of
from fss_models.run_lengths import ColumnRuns, Rle, mask_area
from fss_models.settings import TILE_OVERLAP
from fss_models.tile_owners import NO_CLAIM, RankedOwners

DOUBTFUL = 0.1  # share of the surest tile's probability below which a tile is taken to lack the class
TINY = 1e-9
NEIGHBOURS = np.ones((3, 3), dtype=bool)
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TileWindow:
    """A part of a photo, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, array: np.ndarray) -> np.ndarray:
        """The part of a photo [H, W, 3] or mask [H, W], not copied."""
        return array[self.top:self.top + self.height, self.left:self.left + self.width]


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a photo of `size` (height, width): all have one size, and neighbours share at least the overlap.

    tops, lefts     first row of each row of tiles, first column of each column of tiles
    height, width   of a tile: its side, or the photo's where that is smaller
    """

    size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    height: int
    width: int

    @staticmethod
    def of(size: Sequence[int], side: int, overlap: float = TILE_OVERLAP) -> TileGrid:
        """Tiles of `side` pixels; `overlap` is a share of the side."""
        height, width = int(size[0]), int(size[1])
        return TileGrid((height, width), _starts(height, side, overlap), _starts(width, side, overlap),
                        min(side, height), min(side, width))

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    @property
    def windows(self) -> list[TileWindow]:
        """The tiles, column by column."""
        return [TileWindow(top, left, self.height, self.width) for left in self.lefts for top in self.tops]

    @cached_property
    def shares(self) -> tuple[Tensor, Tensor]:
        """The share of each row of tiles [J, H] in a pixel's row, and of each column of tiles [K, W] in its column.

        The share of a tile in a pixel is their product; the shares of all tiles in a pixel sum to 1.
        """
        return (_shares(self.tops, self.height, self.size[0]), _shares(self.lefts, self.width, self.size[1]))


def is_tiled(size: Sequence[int], side: int) -> bool:
    """Whether a photo of (height, width) is larger than a tile; `side` 0: never."""
    return 0 < side < max(size)


def _starts(length: int, side: int, overlap: float) -> tuple[int, ...]:
    """Evenly spread over `length` pixels."""
    if length <= side:
        return (0,)
    shared = round(side * overlap)
    count = -(-(length - shared) // (side - shared))
    return tuple(round(i * (length - side) / (count - 1)) for i in range(count))


def _shares(starts: Sequence[int], side: int, length: int) -> Tensor:
    """[n, length]: weights that fall to a tile's border, divided by their sum at each pixel."""
    place = torch.arange(side, dtype=torch.float32) + 0.5
    fall = torch.minimum(place, side - place)
    weights = torch.zeros(len(starts), length)
    for row, start in enumerate(starts):
        weights[row, start:start + side] = fall
    return weights / weights.sum(dim=0)


@dataclass(frozen=True)
class TiledMask:
    """The mask of a class in a photo, with the score and the estimate of presence that its tiles give together."""

    rle: Rle
    score: float
    presence: Presence


@dataclass(frozen=True)
class _Seen:
    """What one tile says about a class; `area`: its pixels above the level, in its own logits."""

    score: float
    presence: Presence
    area: float


class TileJoin:
    """Joins what a model gives for the tiles of one photo to one mask for each of `classes` classes.

    `level`: logits above it belong to the object. With `resolve` a pixel belongs to one class, that with the highest
    probability times score, both averaged as the logits are; a class whose mask is empty in the end takes no pixel.
    `corners`: the method's `corners_aligned`.
    """

    def __init__(self, grid: TileGrid, classes: int, level: float, trust: Trust, *, corners: bool = False,
                 resolve: bool = False) -> None:
        self.grid, self.level, self.trust, self._corners = grid, level, trust, corners
        self._owners = RankedOwners(*grid.size, classes) if resolve else None
        self._runs = [ColumnRuns(*grid.size) for _ in range(classes)]
        self._seen: list[list[_Seen]] = [[] for _ in range(classes)]
        self._logits: dict[int, list[Tensor]] = {}  # column of tiles -> [C, h, w] of each of its tiles
        self._done = 0  # columns of the photo whose run lengths are taken

    def add(self, logits: Tensor, scores: Sequence[float], presences: Sequence[Presence]) -> None:
        """The next tile: logits [C, h, w] on the CPU, and a score and an estimate for each class."""
        for seen, one, score, presence in zip(self._seen, logits, scores, presences, strict=True):
            seen.append(_Seen(score, presence, float((one > self.level).sum())))
        column, row = divmod(len(self._seen[0]) - 1, len(self.grid.tops))
        self._logits.setdefault(column, []).append(logits.float())
        if row == len(self.grid.tops) - 1:
            self._take_strip(column)

    def masks(self) -> list[TiledMask]:
        """The masks, after the last tile."""
        if not self._owners:
            return [self._mask(runs.rle(), seen) for runs, seen in zip(self._runs, self._seen, strict=True)]
        there = {number for number, seen in enumerate(self._seen) if self._presence(seen).status != "empty"}
        while True:
            taken = self._owners.masks(there)
            found = [self._mask(rle, seen) for rle, seen in zip(taken, self._seen, strict=True)]
            lost = {n for n, (rle, one) in enumerate(zip(taken, found, strict=True))
                    if mask_area(rle) and not mask_area(one.rle)}
            if not lost:
                return found
            there -= lost

    def _take_strip(self, column: int) -> None:
        """Take the run lengths up to the next column of tiles, and forget the logits that are not needed any more."""
        lefts, first = self.grid.lefts, self._done
        last = lefts[column + 1] if column + 1 < len(lefts) else self.grid.size[1]
        numbers = range(len(self._runs))
        if self._owners:
            self._owners.add((self._claim(n, first, last) for n in numbers), first_only=not self._may_be_absent)
        else:
            for number in numbers:
                self._runs[number].add((self._map(number, first, last) > self.level).numpy())
        self._done = last
        for old in [k for k in self._logits if lefts[k] + self.grid.width <= last]:
            del self._logits[old]

    def _map(self, number: int, first: int, last: int) -> Tensor:
        """The logits [H, last - first] of a class in a strip of the photo."""
        down, across = self.grid.shares
        found = torch.zeros(self.grid.size[0], last - first)
        for column, tiles in self._logits.items():
            left = self.grid.lefts[column]
            right = min(last, left + self.grid.width)
            for row, (top, tile) in enumerate(zip(self.grid.tops, tiles, strict=True)):
                whole = F.interpolate(tile[number][None, None], size=(self.grid.height, self.grid.width),
                                      mode="bilinear", align_corners=self._corners)[0, 0]
                rows = slice(top, top + self.grid.height)
                part = whole[:, max(0, first - left):right - left] * across[column, max(first, left):right]
                found[rows, max(first, left) - first:right - first] += part * down[row, rows, None]
        return found

    @property
    def _may_be_absent(self) -> bool:
        """Whether an estimate may leave a class out."""
        return self.trust.empty_below > 0 and any(one.presence.presence is not None for s in self._seen for one in s)

    def _claim(self, number: int, first: int, last: int) -> Tensor:
        """The probability times score [H, last - first] of a class in the pixels of a strip that it has."""
        logits = self._map(number, first, last)
        return torch.where(logits > self.level, logits.sigmoid() * self._weights(number, first, last), NO_CLAIM)

    def _weights(self, number: int, first: int, last: int) -> Tensor:
        """The scores [H, last - first] of a class; a tile in which it is probably absent has 0."""
        down, across = self.grid.shares
        columns = sorted(self._logits)
        shown = self._seen[number][columns[0] * len(down):(columns[-1] + 1) * len(down)]
        scores = torch.tensor([_weight(one) for one in shown]).view(len(columns), len(down))
        return down.T @ scores.T @ across[columns, first:last]

    def _mask(self, rle: Rle, seen: Sequence[_Seen]) -> TiledMask:
        tiles = [one.presence for one in seen]
        absent = absent_tiles(tiles, self.trust)
        if absent.any() and mask_area(rle):
            rle = self._without_unseen(rle, [w for w, no in zip(self.grid.windows, absent, strict=True) if not no])
        areas = [one.area for one in seen]
        scores, weights = np.array([one.score for one in seen]), np.array(areas) * ~absent
        score = np.average(scores, weights=weights) if weights.any() else scores.max()
        return TiledMask(rle, float(score), self._presence(seen))

    def _presence(self, seen: Sequence[_Seen]) -> Presence:
        return photo_presence([one.presence for one in seen], [one.area for one in seen], self.trust)

    def _without_unseen(self, rle: Rle, windows: Sequence[TileWindow]) -> Rle:
        """The mask without the connected pieces that are in none of the windows."""
        mask = coco.decode(rle).astype(bool)
        kept = np.zeros_like(mask)
        for window in windows:
            window.cut(kept)[:] = window.cut(mask)
        kept = ndimage.binary_propagation(kept, structure=NEIGHBOURS, mask=mask)
        found: Rle = coco.encode(np.asfortranarray(kept, dtype=np.uint8))
        return found


def _weight(one: _Seen) -> float:
    if one.presence.status == "empty":
        return 0.0
    return one.score if one.presence.quality is None else one.presence.quality


def absent_tiles(tiles: Sequence[Presence], trust: Trust) -> Bools:
    """The tiles [n] in which a class is taken to be absent: they have the status empty, or are far less sure than the
    surest one. None without estimates, and none where `empty_below` is 0.
    """
    chances = tile_chances(tiles, trust)
    if chances is None or not trust.empty_below:
        return np.zeros(len(tiles), dtype=bool)
    found: Bools = np.array([one.status == "empty" for one in tiles]) | (chances < DOUBTFUL * chances.max())
    return found


def photo_presence(tiles: Sequence[Presence], areas: Sequence[float], trust: Trust) -> Presence:
    """The estimate for a photo from those for its tiles, which were made with `trust` as for photos of their own.

    Tiles are taken to be independent. The quality is that of the tiles with the class, weighted by their `areas` of
    mask.
    """
    chances = tile_chances(tiles, trust)
    if chances is None:
        return tiles[0]
    there = float(1 - np.prod(1 - chances))
    good = np.array([(one.quality or 0.0) / max(one.presence or 0.0, TINY) for one in tiles])
    weights = np.array(areas) * ~absent_tiles(tiles, trust)
    quality = there * float(np.average(good, weights=weights) if weights.any() else good[chances.argmax()])
    return Presence(presence=there, quality=quality, status=status_of(there, quality, trust))


def tile_chances(tiles: Sequence[Presence], trust: Trust) -> npt.NDArray[np.float64] | None:
    """The probabilities [n] that tiles show the class, which is so rare in a tile that a photo shows it with the
    estimated prevalence. None without estimates.
    """
    known = [one.presence for one in tiles if one.presence is not None]
    if not known:
        return None
    rare = 1 - (1 - trust.prevalence) ** (1 / len(tiles))
    odds = _odds(np.clip(known, TINY, 1 - TINY)) * (_odds(rare) / _odds(trust.prevalence))
    found: npt.NDArray[np.float64] = odds / (1 + odds)
    return found


def _odds(chance: Any) -> Any:
    return chance / (1 - chance)
