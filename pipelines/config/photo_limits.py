"""The largest photo that is read."""

from __future__ import annotations

from pipelines.config.section import Positive, Section


class PhotoLimits(Section):
    """The largest photo that is read, checked before any pixel is decoded."""

    max_pixels: Positive = 50_000_000  # a photo with more pixels is refused
    max_bytes: Positive = 64_000_000  # a file with more bytes is refused


LIMITS = PhotoLimits()
