"""Photo bytes become a model's input; the pixels of photos that are being decoded are bounded in bytes and time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch

from fss_models.clip import Images
from fss_models.limits import PhotoLimits
from fss_models.photo_files import decode_image, decode_reduced, image_size
from fss_models.preprocess import Mode
from fss_models.segmenter import Segmenter
from fss_models.tiles import TileWindow
from pipelines.inference.decode_limit import DecodeLimit
from pipelines.inference.stages import DECODING_BYTES, ByteBudget


def resize_mode(pixels: np.ndarray, side: int) -> Mode:
    """The quicker resize to a square of `side` of a photo [H, W, 3] that is prepared `fast`.

    The float resize loses where it has to shrink: rounding to 8 bits, as published, costs less (`photo_stages`).
    """
    return "fast" if pixels.shape[0] * pixels.shape[1] <= side * side else "published"


class PhotoPreparer:
    """Decodes and resizes photos for a model, in any number of threads. See `Labeler` for the limits."""

    def __init__(self, model: Segmenter, limits: PhotoLimits, max_seconds: float, mode: Mode) -> None:
        self.model, self.limits, self.mode = model, limits, mode
        self._decode_limit = DecodeLimit(max_seconds)
        self._bytes = ByteBudget(DECODING_BYTES)

    def whole(self, data: bytes) -> Images:
        """Decode and resize a photo; its full-size pixels exist only during this call. Raises `BadImage`."""
        if self.mode != "fast":
            with self._decoding(data):
                return self.model.prepare([self._decoded(data)], self.mode)
        with self._decoding(data):
            with self._decode_limit():
                pixels, size = decode_reduced(data, 2 * self.model.side, limits=self.limits)
            ready = self.model.prepare([pixels], resize_mode(pixels, self.model.side))
            return replace(ready, sizes=torch.tensor([size]))

    def pixels(self, data: bytes) -> np.ndarray:
        """A photo at its full size in every mode, [H, W, 3] uint8, upright. Raises `BadImage`."""
        with self._decoding(data):
            return self._decoded(data)

    def tile(self, pixels: np.ndarray, window: TileWindow) -> Images:
        """Resize a tile of a photo."""
        return self.model.prepare([window.cut(pixels)], self.mode)

    def stacked(self, prepared: list[Images], width: int) -> Images:
        """The photos of a batch, padded with black ones to `width`."""
        pixels = torch.cat([i.pixels for i in prepared])
        sizes = torch.cat([i.sizes for i in prepared])
        missing = width - len(prepared)
        if missing:
            pixels = torch.cat([pixels, pixels.new_zeros(missing, *pixels.shape[1:])])
            sizes = torch.cat([sizes, sizes.new_full((missing, 2), self.model.side)])
        return Images(pixels=pixels, sizes=sizes)

    def _decoded(self, data: bytes) -> np.ndarray:
        with self._decode_limit():
            return decode_image(data, limits=self.limits, exif=True)

    def _decoding(self, data: bytes) -> AbstractContextManager[None]:
        """Holds the bytes that decoding a photo takes."""
        with self._decode_limit():
            height, width = image_size(data)
        return self._bytes.hold(min(height * width, self.limits.max_pixels) * 6)  # decoded, and copied to an array
