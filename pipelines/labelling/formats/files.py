"""Shared by the formats: the mask of a row, and file names for photos."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipelines.data import rle
from pipelines.labelling.parts import PhotoRows


def mask_of(photo: PhotoRows, row: dict[str, Any]) -> np.ndarray:
    """The mask of a photo's row as [H, W] bool."""
    return rle.decode(row["rle"].encode(), photo.height, photo.width)


class UniqueStems:
    """Unique names for photos: the name without its suffix, unless an earlier photo has that.

    Photos come sorted, so that those with the same stem follow one another; only their names are remembered.
    """

    def __init__(self) -> None:
        self._taken: list[str] = []

    def name(self, file_name: str) -> str:
        """The unique name of a photo: `a/b` for the first of `a/b.jpg` and `a/b.png`, the whole name for the second."""
        stem = str(PurePosixPath(file_name).with_suffix(""))
        self._taken = [t for t in self._taken if file_name.startswith(f"{t}.")]
        if stem in self._taken:
            return file_name
        self._taken.append(stem)
        return stem
