"""The boxes that prompt SAM 3, made from masks of the object at the photo's own size."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from fss_models.errors import FssError
from fss_models.methods.sam3.config import BoxRule

PIECE = 1000  # pixels of a piece that gets a box of its own
PIECES = 8  # boxes of one mask at most


def mask_boxes(mask: np.ndarray, rule: BoxRule = "largest") -> np.ndarray:
    """Boxes [n, 4] float64 (x0 y0 x1 y1, from pixel edge to pixel edge) of a mask [H, W] bool.

    Raises `FssError` for an empty mask.
    """
    if not mask.any():
        raise FssError("the support mask is empty", hint="mark at least one pixel of the object")
    if rule == "whole":
        return _edges(mask)[None]
    pieces, count = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-areas, kind="stable") + 1
    chosen = [n for n in order if areas[n - 1] >= PIECE][:PIECES] if rule == "pieces" else []
    return np.stack([_edges(pieces == n) for n in chosen or order[:1]])


def _edges(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
