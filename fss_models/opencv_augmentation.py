"""The augmentation of PSPNet's semseg code, which PFENet, BAM, CyCTR and FSSAM took over, in numpy.

The official codes scale, rotate, blur, flip and crop with OpenCV on float pixels; its arithmetic is repeated here
(linear weights in float32, rotation on a grid of 1/32 pixel), so that the same random numbers give the same picture
without OpenCV.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from fss_models.augmentation import VOID
from fss_models.opencv_resize import linear, nearest
from fss_models.preprocess import IMAGENET

MEAN = np.array(IMAGENET[0], np.float32) * 255  # colour around a padded or rotated image
_BLUR = np.array([1, 4, 6, 4, 1], np.float32) / 16
_KEPT = 0.85  # a crop must keep this share of the object's pixels
_REDRAWS = 31
_ROTATION_BITS, _STEP_BITS = 10, 5  # OpenCV's fixed point: 1/1024 pixel per step, 1/32 pixel in the end


@dataclass(frozen=True, kw_only=True)
class SemsegAugmentation:
    """Ranges of the published training; PASCAL scales by 0.9..1.1, COCO by 0.8..1.25."""

    crop: int = 512
    scale: tuple[float, float] = (0.9, 1.1)
    degrees: tuple[float, float] = (-10.0, 10.0)

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """Augment image [H, W, 3] float32 in 0..255 and label [H, W] in {0, 1, 255}; both become crop x crop.

        Draws from `rng` in the official order; query and supports are augmented one by one.
        """
        factor = self.scale[0] + (self.scale[1] - self.scale[0]) * rng.random()
        height, width = (round(n * factor) for n in label.shape)
        image, label = (linear(image, (height, width), 1 / factor), nearest(label, (height, width), 1 / factor))
        if rng.random() < 0.5:
            angle = self.degrees[0] + (self.degrees[1] - self.degrees[0]) * rng.random()
            image, label = _rotate(image, label, angle)
        if rng.random() < 0.5:
            image = _blur(image)
        if rng.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        return self._crop(*_pad(image, label, self.crop), rng)

    def _crop(self, image: np.ndarray, label: np.ndarray, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        wanted = _KEPT * np.count_nonzero(label == 1)
        for _ in range(1 + _REDRAWS):
            y, x = (rng.randint(0, n - self.crop) for n in label.shape)
            piece = label[y:y + self.crop, x:x + self.crop]
            if np.count_nonzero(piece == 1) >= wanted:
                break
        return image[y:y + self.crop, x:x + self.crop], piece


def _rotate(image: np.ndarray, label: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotate about the centre (W/2, H/2); corners are filled with the mean colour and with void."""
    height, width = label.shape
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    inverse = np.array([[cosine, -sine], [sine, cosine]])  # output -> input, y down
    centre = np.array([width / 2, height / 2])
    shift = centre - inverse @ centre
    scale = 1 << _ROTATION_BITS
    x = np.rint(inverse[:, :1] * np.arange(width) * scale).astype(np.int64)  # [2, W]
    y = np.rint((inverse[:, 1:] * np.arange(height) + shift[:, None]) * scale).astype(np.int64)  # [2, H]
    fixed = x[:, None, :] + y[:, :, None]  # [2, H, W]
    near = (fixed + scale // 2) >> _ROTATION_BITS
    fine = (fixed + (scale >> _STEP_BITS) // 2) >> (_ROTATION_BITS - _STEP_BITS)
    whole, part = fine >> _STEP_BITS, (fine & ((1 << _STEP_BITS) - 1)).astype(np.float32) / (1 << _STEP_BITS)
    turned = sum(
        _at(image, whole[0] + i, whole[1] + j, MEAN)
        * ((part[0] if i else 1 - part[0]) * (part[1] if j else 1 - part[1]))[..., None]
        for j in (0, 1) for i in (0, 1))
    return np.asarray(turned, np.float32), _at(label, near[0], near[1], np.array(VOID, label.dtype))


def _at(picture: np.ndarray, x: np.ndarray, y: np.ndarray, outside: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = picture[y.clip(0, height - 1), x.clip(0, width - 1)]
    return np.where(inside if picture.ndim == 2 else inside[..., None], found, outside)


def _blur(image: np.ndarray) -> np.ndarray:
    """Blur with a 5 x 5 binomial; the image is mirrored at the border without repeating the border's pixels."""
    for axis in (1, 0):
        wide = np.pad(image, [(2, 2) if a == axis else (0, 0) for a in range(3)], mode="reflect")
        image = np.asarray(sum(w * wide.take(np.arange(image.shape[axis]) + i, axis) for i, w in enumerate(_BLUR)),
                           np.float32)
    return image


def _pad(image: np.ndarray, label: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad symmetrically to at least side x side; an odd pixel goes right or below."""
    (top, left), (bottom, right) = zip(*((lack // 2, lack - lack // 2) for n in label.shape
                                         for lack in (max(side - n, 0),)), strict=True)
    if not top + bottom + left + right:
        return image, label
    canvas = np.tile(MEAN, (label.shape[0] + top + bottom, label.shape[1] + left + right, 1))
    around = np.full(canvas.shape[:2], VOID, label.dtype)
    canvas[top:top + label.shape[0], left:left + label.shape[1]] = image
    around[top:top + label.shape[0], left:left + label.shape[1]] = label
    return canvas, around
