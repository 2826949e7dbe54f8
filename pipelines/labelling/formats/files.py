"""Shared by the formats: the mask of a row, and file names for photos."""

from __future__ import annotations

from itertools import chain, count
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipelines.data import rle
from pipelines.labelling.parts import PhotoRows


def mask_of(photo: PhotoRows, row: dict[str, Any]) -> np.ndarray:
    """The mask of a photo's row as [H, W] bool."""
    return rle.decode(row["rle"].encode(), photo.height, photo.width)


def by_model(row: dict[str, Any]) -> bool:
    """Whether a model made the mask, as far as the job tells: one that keeps annotations names theirs and people's."""
    return row.get("origin") in (None, "model")


class UniqueStems:
    """Unique names for photos: the name without its suffix, unless an earlier photo has that.

    ordered: photos come sorted, so that those with the same stem follow one another; only their names are remembered.
    Photos of a list or of tar files come in any order.
    """

    def __init__(self, *, ordered: bool = True) -> None:
        self._taken: list[str] = []
        self._all: set[str] | None = None if ordered else set()

    def name(self, file_name: str) -> str:
        """The unique name of a photo: `a/b` for the first of `a/b.jpg` and `a/b.png`, the whole name for the second."""
        stem = str(PurePosixPath(file_name).with_suffix(""))
        if self._all is not None:
            more = (f"{file_name}-{number}" for number in count(2))
            name = next(n for n in chain((stem, file_name), more) if n not in self._all)
            self._all.add(name)
            return name
        self._taken = [t for t in self._taken if file_name.startswith(f"{t}.")]
        if stem in self._taken:
            return file_name
        self._taken.append(stem)
        return stem
