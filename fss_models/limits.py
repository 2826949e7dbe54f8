"""The largest photo that is read."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveInt


class PhotoLimits(BaseModel):
    """The largest photo that is read, checked before any pixel is decoded."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    max_pixels: PositiveInt = 50_000_000  # a photo with more pixels is refused
    max_bytes: PositiveInt = 64_000_000  # a file with more bytes is refused


LIMITS = PhotoLimits()
