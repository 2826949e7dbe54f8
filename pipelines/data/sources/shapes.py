"""`shapes`: a generated dataset of 20 drawn classes that needs no download. Pictures are drawn in the workers."""

from __future__ import annotations

from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.sources.base import FetchedImage, ImageMasks, InstanceMask, Source, SourceImage, digest_of
from pipelines.data.sources.drawing import draw_image
from pipelines.data.sources.glyphs import class_names

DRAWING_VERSION = 1  # raise it when the pictures change


class ShapesSource(Source):
    """Generated pictures: picture i is a pure function of (seed, i, side)."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        self.classes = class_names()
        names = (f"shape-{i:06d}.jpg" for i in range(cfg.images))
        size = (cfg.side, cfg.side)
        self.items = [SourceImage(image_id=i, file_name=n, path=n, size=size, annotations=i)
                      for i, n in enumerate(names)]
        self.fingerprint = digest_of(DRAWING_VERSION, cfg.seed, cfg.images, cfg.side)

    def fetch(self, item: SourceImage) -> FetchedImage:
        """Draw the picture and its objects."""
        drawing = draw_image(self.cfg.seed, item.annotations, self.cfg.side)
        return FetchedImage(drawing.jpeg, drawing.objects)

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mask per object: its visible part."""
        return ImageMasks(instances=[InstanceMask(c, rle.encode(m)) for c, m in fetched.payload])
