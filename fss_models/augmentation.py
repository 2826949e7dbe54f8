"""What a method may publish as its training-time augmentation: one photo and its label changed together."""

from __future__ import annotations

import random
from typing import Protocol

import numpy as np

VOID = 255  # the label of pixels that count as neither object nor background


class Augmentation(Protocol):
    """Changes one photo; a method gives its own with `Segmenter.augmentation`."""

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """Augment image [H, W, 3] float32 in 0..255 and label [H, W] in {0, 1, VOID}; both get the method's size."""
        ...
