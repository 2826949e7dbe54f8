"""Photos of any size for benchmarks of stages: JPEG bytes, real where real photos are at hand, and a marked support."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.datasets import coco_root
from benchmarks.episodes import centred_disc
from fss_models.marks import rle_json
from fss_models.photo_files import image_size, is_photo
from pipelines.inference.supports import Support, SupportSet


def sized_photos(config: dict[str, Any], folder: Path, size: tuple[int, int], count: int) -> tuple[list[bytes], str]:
    """`count` JPEGs of (width, height) `size`, and a description. Real photos are enlarged or reduced to that size."""
    root, what = coco_root(config, folder)
    files = sorted(p for p in Path(root).rglob("*") if is_photo(p.name))
    found = []
    for number in range(count):
        with Image.open(files[number * len(files) // count]) as photo:
            out = io.BytesIO()
            photo.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=88)
            found.append(out.getvalue())
    return found, f"{what}, resized to {size[0]} x {size[1]}"


def smooth_photo(rng: np.random.Generator, width: int, height: int, cell: int) -> bytes:
    """A JPEG of smooth noise, one draw every `cell` pixels; with cells of 16 it has about as many bytes as a photo."""
    coarse = rng.integers(0, 256, (height // cell, width // cell, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def disc_supports(photos: list[bytes], shots: int) -> SupportSet:
    """A support set of the first photos with a disc marked in the middle of each."""
    marks = [{"mask": rle_json(centred_disc(*image_size(data)))} for data in photos[:shots]]
    return SupportSet("disc", tuple(Support(data, mark) for data, mark in zip(photos, marks, strict=False)))
