"""`shapes`: a generated dataset of 20 drawn classes that needs no download. Pictures are drawn in the workers."""

from __future__ import annotations

from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.sources.base import Fetched, Item, Mark, Marks, Source, digest_of
from pipelines.data.sources.drawing import draw
from pipelines.data.sources.glyphs import class_names

DRAWING_VERSION = 1  # raise it when the pictures change


class ShapesSource(Source):
    """Picture i is a pure function of (seed, i, side)."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        self.classes = class_names()
        names = (f"shape-{i:06d}.jpg" for i in range(cfg.images))
        size = (cfg.side, cfg.side)
        self.items = [Item(image_id=i, file_name=n, path=n, size=size, marks=i) for i, n in enumerate(names)]
        self.fingerprint = digest_of(DRAWING_VERSION, cfg.seed, cfg.images, cfg.side)

    def fetch(self, item: Item) -> Fetched:
        """Draw it."""
        drawing = draw(self.cfg.seed, item.marks, self.cfg.side)
        return Fetched(drawing.jpeg, drawing.objects)

    def mark(self, item: Item, fetched: Fetched, height: int, width: int) -> Marks:
        """The visible part of every object."""
        return Marks(instances=[Mark(c, rle.encode(m)) for c, m in fetched.payload])
