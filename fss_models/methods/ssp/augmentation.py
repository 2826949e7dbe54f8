"""SSP's augmentation: a random crop of the photo, padded with black right and below, and a horizontal flip."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from fss_models.augmentation import VOID


@dataclass(frozen=True, kw_only=True)
class CropAndFlip:
    """Crops to `crop` x `crop` pixels. Photos are not scaled."""

    crop: int

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """Augment image [H, W, 3] float32 in 0..255 and label [H, W] in {0, 1, 255}."""
        lack = [(0, max(self.crop - n, 0)) for n in label.shape]
        image, label = np.pad(image, [*lack, (0, 0)]), np.pad(label, lack, constant_values=VOID)
        y, x = (rng.randint(0, n - self.crop) for n in label.shape)
        image, label = (a[y : y + self.crop, x : x + self.crop] for a in (image, label))
        return (image[:, ::-1], label[:, ::-1]) if rng.random() < 0.5 else (image, label)
