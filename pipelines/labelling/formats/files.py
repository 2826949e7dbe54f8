"""What the writers of one file a photo share: its mask, its name."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipelines.data import rle
from pipelines.labelling.parts import PhotoRows


def mask_of(photo: PhotoRows, row: dict[str, Any]) -> np.ndarray:
    """[H, W] bool."""
    return rle.decode(row["rle"].encode(), photo.height, photo.width)


class UniqueStems:
    """The names of photos without their suffix, told apart where two photos differ in nothing else.

    Photos come sorted, so those that begin with one stem and a dot follow one another: no more is remembered.
    """

    def __init__(self) -> None:
        self._taken: list[str] = []

    def name(self, file_name: str) -> str:
        """`a/b` for the first of `a/b.jpg` and `a/b.png`, the whole name for the others."""
        stem = str(PurePosixPath(file_name).with_suffix(""))
        self._taken = [t for t in self._taken if file_name.startswith(f"{t}.")]
        if stem in self._taken:
            return file_name
        self._taken.append(stem)
        return stem
