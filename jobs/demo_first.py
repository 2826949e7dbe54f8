"""The first masks of a demo, before anything is trained: the champion that ships, on a few held-out photos."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fss_models import load
from fss_models.shipped.files import CHAMPION, shipped_folder
from pipelines.data.schema import ClassInfo, Sample
from pipelines.data.shardset import Shards
from pipelines.pages.pictures import SUPPORT, picture

SUPPORTS, QUERIES, SIDE = 1, 4, 240


def champion_ships() -> bool:
    """Whether there is a shipped champion to draw first masks with."""
    return (shipped_folder() / CHAMPION / "bundle.json").is_file()


def draw_first_masks(shards: Shards, chosen: ClassInfo) -> tuple[Image.Image, list[str]]:
    """A strip of a marked train photo of the class and the masks in held-out photos; what was found, a line each."""
    given = _samples(shards, chosen, "train")[:SUPPORTS]
    queries = _samples(shards, chosen, "test")[:QUERIES]
    model = load("shipped")
    memory = model.memorise([{"image": s.image, "mask": s.mask} for s in given])
    found = list(model.predict_many(memory, [s.image for s in queries], batch=QUERIES))
    tiles = [picture(s.image, s.mask, SUPPORT, side=SIDE) for s in given]
    tiles += [picture(s.image, f.mask, side=SIDE) for s, f in zip(queries, found, strict=True)]
    lines = [f"{f.mask.mean():.1%} of the photo" + ("" if f.presence is None else f", presence {f.presence:.2f}")
             for f in found]
    return _strip(tiles), lines


def _samples(shards: Shards, chosen: ClassInfo, split: str) -> list[Sample]:
    samples = [shards.sample(i, chosen.class_id) for i in shards.photos_of(chosen.class_id, split)[:SUPPORTS + QUERIES]]
    return [s for s in samples if np.any(s.mask)]


def _strip(tiles: list[Image.Image]) -> Image.Image:
    """The tiles side by side on white."""
    gap = 8
    strip = Image.new("RGB", (sum(t.width + gap for t in tiles) - gap, max(t.height for t in tiles)), "white")
    x = 0
    for tile in tiles:
        strip.paste(tile, (x, 0))
        x += tile.width + gap
    return strip
