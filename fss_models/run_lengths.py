"""Run lengths of a mask at a photo's size, from low-resolution logits, without a full-size map.

The mask is bit for bit that of bilinear enlargement (as `torch.nn.functional.interpolate` rounds it on a CPU) and a
threshold. Bilinear enlargement is linear along each axis between neighbouring logits, so a column of the photo changes
its side only in cells whose corners lie on both sides of the threshold; there the row of the change follows from two
values. These are computed in double precision with the very weights that PyTorch uses. A pixel that lies so close to
the threshold that PyTorch's rounding decides is computed by PyTorch: rows of an enlarged map can be computed alone,
since enlarging along one axis after the other rounds as enlarging along both at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor

Rle = dict[str, Any]  # COCO's: "size" [height, width] and the compressed "counts" in bytes

SMALL = 400_000  # pixels: up to here the whole map is faster
MIN_SIDE = 128  # PyTorch rounds maps whose sides sum up to less in another way
STRIP = 256  # rows of an enlarged map in memory at a time
ROUNDING = 16 * float(np.finfo(np.float32).eps)  # relative: more than PyTorch's roundings of a pixel together


def encode_logits(logits: np.ndarray, size: tuple[int, ...], level: float, *, corners: bool = False) -> Rle:
    """The run lengths of the pixels above `level` in logits [h, w] float32, enlarged bilinearly to `size` (H, W).

    `corners`: whether corner pixels are aligned instead of pixel areas (`align_corners`).
    """
    height, width = int(size[0]), int(size[1])
    level = float(np.float32(level))
    if not is_large((height, width)) or min(logits.shape) < 2 or not np.isfinite(logits).all():
        whole = enlarge(torch.from_numpy(logits), (height, width), corners) > level
        return coco.encode(whole.numpy().T.view(np.uint8))
    changes = _Changes(logits, height, width, level, corners).find()
    if changes is None:
        return coco.encode(_by_strips(logits, height, width, level, corners))
    return _compress(changes, height, width)


class ColumnRuns:
    """Collects the run lengths of a mask [height, width] whose columns come from left to right, a few at a time."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._changes: list[np.ndarray] = []
        self._pixels, self._last = 0, False

    def add(self, columns: np.ndarray) -> None:
        """The next columns, [height, n] bool."""
        flat = columns.T.ravel()
        before = np.concatenate([[self._last], flat[:-1]])
        self._changes.append(np.flatnonzero(flat != before) + self._pixels)
        self._pixels, self._last = self._pixels + flat.size, bool(flat[-1])

    def rle(self) -> Rle:
        """The run lengths, after the last column."""
        return _compress(np.concatenate(self._changes), self.height, self.width)


def mask_area(rle: Rle) -> int:
    """The number of pixels of the mask."""
    return int(coco.area(rle))


def empty_mask(size: tuple[int, ...]) -> Rle:
    """The run lengths of a mask (H, W) without pixels."""
    return _compress(np.zeros(0, dtype=np.int64), int(size[0]), int(size[1]))


def is_large(size: tuple[int, int]) -> bool:
    """Whether a photo of (height, width) is worth the work in parts."""
    return size[0] * size[1] > SMALL and min(size) >= MIN_SIDE


def enlarge(logits: Tensor, size: tuple[int, int], corners: bool) -> Tensor:
    """Logits [h, w], enlarged and transposed to [W, H], since run lengths go along columns."""
    return _resized(logits.transpose(0, 1), (size[1], size[0]), corners)


def enlarge_columns(logits: Tensor, height: int, corners: bool) -> Tensor:
    """The first step of an enlargement: logits [h, w] -> [w, H], on their device."""
    return _resized(logits.transpose(0, 1), (logits.shape[1], height), corners)


def enlarge_rows(columns: Tensor, width: int, corners: bool) -> Tensor:
    """The second step: any rows [w, r] of the result of `enlarge_columns` -> [W, r], as the whole map has them."""
    missing = max(0, MIN_SIDE - columns.shape[1])
    padded = F.pad(columns, (0, missing))
    return _resized(padded, (width, padded.shape[1]), corners)[:, :columns.shape[1]]


def _resized(maps: Tensor, size: tuple[int, int], corners: bool) -> Tensor:
    return F.interpolate(maps[None, None], size=size, mode="bilinear", align_corners=corners)[0, 0]


def _compress(changes: np.ndarray, height: int, width: int) -> Rle:
    """The run lengths of a mask that changes at the sorted pixels `changes`, counted in column order."""
    edges = np.concatenate([[0], changes, [height * width]])
    return coco.frPyObjects({"counts": np.diff(edges).tolist(), "size": [height, width]}, height, width)


def _by_strips(logits: np.ndarray, height: int, width: int, level: float, corners: bool) -> np.ndarray:
    """The mask [H, W] uint8 in column order; `STRIP` rows of the enlarged map are in memory at a time."""
    columns = enlarge_columns(torch.from_numpy(logits), height, corners)
    mask = np.empty((width, height), dtype=np.uint8)
    for first in range(0, height, STRIP):
        mask[:, first:first + STRIP] = (enlarge_rows(columns[:, first:first + STRIP], width, corners) > level).numpy()
    return mask.T


@dataclass(frozen=True)
class _Axis:
    """One axis of an enlargement from n to N: place i lies between the logits `cell[i]` and `cell[i]` + 1.

    first   [n] the first place of each cell, and N: the places of cell c are first[c] to first[c + 1]
    before, after   [N] the weights of the two logits, as PyTorch rounds them
    position        [N] cell + after, which never falls
    """

    cell: np.ndarray
    first: np.ndarray
    before: np.ndarray
    after: np.ndarray
    position: np.ndarray


@lru_cache(maxsize=64)
def _axis(n: int, size: int, corners: bool) -> _Axis:
    """The weights are read from enlarged indicator rows: row r is 1 at the logits r, r + 3, r + 6 and so on."""
    rows = torch.zeros(3, n)
    rows[torch.arange(n) % 3, torch.arange(n)] = 1
    weights = _resized(rows, (3, size), corners).numpy().astype(np.float64)
    place = np.arange(size)
    ideal = place * (n - 1) / max(size - 1, 1) if corners else np.maximum((place + 0.5) * n / size - 0.5, 0)
    guess = np.floor(ideal).astype(np.int64)
    cell, found = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=bool)
    for offset in (0, -1, 1):  # rounding may have moved a place into the neighbouring cell
        tried = np.clip(guess + offset, 0, n - 2)
        fits = ~found & (weights[(tried + 2) % 3, place] == 0)
        cell, found = np.where(fits, tried, cell), found | fits
    before, after = weights[cell % 3, place], weights[(cell + 1) % 3, place]
    first = np.searchsorted(cell, np.arange(n))
    return _Axis(cell, first, before, after, np.maximum.accumulate(cell + after))


class _Changes:
    """Finds the pixels, in column order, at which a mask changes between outside and inside."""

    def __init__(self, logits: np.ndarray, height: int, width: int, level: float, corners: bool) -> None:
        self.logits, self.level, self.corners = logits, level, corners
        self.values = logits.astype(np.float64)
        self.height, self.width = height, width
        self.rows, self.columns = (_axis(n, size, corners) for n, size in zip(logits.shape, (height, width),
                                                                             strict=True))

    def find(self) -> np.ndarray | None:
        """The sorted pixels. None where so many pixels lie at the level that the whole map is better."""
        column, row, doubtful = self._crossings()
        starts = self._between(np.zeros(self.width, dtype=np.int64), np.arange(self.width)) > self.level
        if doubtful.size:
            bits = self._exact_columns(doubtful)
            if bits is None:
                return None
            keep = ~np.isin(column, doubtful)
            above, which = np.nonzero(bits[1:] != bits[:-1])
            column = np.concatenate([column[keep], doubtful[which]])
            row = np.concatenate([row[keep], above + 1])
            starts[doubtful] = bits[0]
        inside = row < self.height
        column, row = column[inside], row[inside]
        ends = starts ^ (np.bincount(column, minlength=self.width) % 2 == 1)
        new = np.flatnonzero(starts != np.concatenate([[False], ends[:-1]]))
        places, times = np.unique(np.concatenate([column * self.height + row, new * self.height]), return_counts=True)
        return places[times % 2 == 1]

    def _between(self, cell_rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The values of the photo's `columns` at the logits' rows `cell_rows`."""
        axis = self.columns
        cell = axis.cell[columns]
        return (self.values[cell_rows, cell] * axis.before[columns]
                + self.values[cell_rows, cell + 1] * axis.after[columns])

    def _crossings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(column, row) of each change within a column, and the columns in which rounding may decide."""
        cell_row, column, slack = self._touched()
        top, bottom = self._between(cell_row, column), self._between(cell_row + 1, column)
        doubt = (np.abs(top - self.level) <= slack) | (np.abs(bottom - self.level) <= slack)
        crossing = (top > self.level) != (bottom > self.level)
        doubtful = column[doubt]
        cell_row, column, slack, top, bottom = (a[crossing] for a in (cell_row, column, slack, top, bottom))
        axis, inside = self.rows, bottom > self.level
        first, last = axis.first[cell_row], np.append(axis.first[1:], self.height)[cell_row]
        last = np.where(cell_row == len(axis.first) - 2, self.height, last)

        def offset(row: np.ndarray) -> np.ndarray:
            """The value at a row of each crossing, less the level; far away outside of the cell."""
            at = np.clip(row, 0, self.height - 1)
            value = top * axis.before[at] + bottom * axis.after[at] - self.level
            return np.where(row < first, np.where(inside, -np.inf, np.inf),
                            np.where(row >= last, np.where(inside, np.inf, -np.inf), value))

        row = np.searchsorted(axis.position, cell_row + (self.level - top) / (bottom - top))
        row = np.clip(row, first, last)
        row = row + ((offset(row) > 0) != inside)
        row = row - ((offset(row - 1) > 0) == inside)
        before, after = offset(row - 1), offset(row)
        wrong = ((before > 0) == inside) | ((after > 0) != inside)
        near = wrong | (np.abs(before) <= slack) | (np.abs(after) <= slack)
        return column, row, np.unique(np.concatenate([doubtful, column[near]]))

    def _touched(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(row of the cell, column of the photo, slack) for all cells that the level crosses or touches."""
        v = self.values
        corners = np.stack([v[:-1, :-1], v[:-1, 1:], v[1:, :-1], v[1:, 1:]])
        low, high = corners.min(axis=0), corners.max(axis=0)
        slack = ROUNDING * (np.maximum(np.abs(low), np.abs(high)) + abs(self.level))
        cell_row, cell = np.nonzero((low <= self.level + slack) & (high >= self.level - slack))
        bounds = np.append(self.columns.first[:-1], self.width)  # the last cell ends with the photo
        count = bounds[cell + 1] - bounds[cell]
        which = np.repeat(np.arange(len(cell)), count)
        column = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + bounds[cell][which]
        return cell_row[which], column, slack[cell_row, cell][which]

    def _exact_columns(self, columns: np.ndarray) -> np.ndarray | None:
        """The mask of some columns, [H, c] bool; None for so many pixels at the level that strips are better."""
        if len(columns) > self.width // 4:
            return None
        axis, cells = self.rows, np.arange(self.logits.shape[0])
        lines = self._between(cells[:, None], columns[None])
        values = lines[axis.cell] * axis.before[:, None] + lines[axis.cell + 1] * axis.after[:, None] - self.level
        slack = ROUNDING * (np.abs(self.values).max() + abs(self.level))
        unsure = np.abs(values) <= slack
        rows = np.flatnonzero(unsure.any(axis=1))
        if len(rows) > self.height // 4:
            return None
        bits: np.ndarray = values > 0
        if rows.size:
            narrow = enlarge_columns(torch.from_numpy(self.logits), self.height, self.corners)[:, rows.tolist()]
            exact = enlarge_rows(narrow, self.width, self.corners).numpy()[columns] > self.level
            bits[rows] = np.where(unsure[rows], exact.T, bits[rows])
        return bits
