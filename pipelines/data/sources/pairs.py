"""A folder of image/mask pairs: images/NAME.jpg with masks/CLASS/NAME.png, or masks/NAME.png for a single class."""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath

import numpy as np

from fss_models.errors import BadImage, FssError
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.decode import image_size, turned_size
from pipelines.data.sources.base import (
    FetchedImage,
    ImageMasks,
    InstanceMask,
    Source,
    SourceFailure,
    SourceImage,
    digest_of,
    hashed_id,
    is_image,
    listing,
)
from pipelines.data.sources.labels import read_mask

SINGLE = "object"  # the class of masks that are in no class folder


class PairsSource(Source):
    """Photos with one mask file per class. Class ids follow the sorted folder names."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        files = listing(self.store)
        masks = [f for f in files if f.startswith("masks/") and is_image(f)]
        images = [f for f in files if f.startswith("images/") and is_image(f)]
        if not masks or not images:
            raise FssError("there are no image files in images/ or none in masks/", where=self.store.url,
                           hint="put the photos into images/ and the masks into masks/CLASS/")
        self.classes = sorted({_class_of(m) for m in masks})
        self._index(images, masks, files)
        self.fingerprint = digest_of([(i.path, files[i.path], [(c, m, files[m]) for c, m in i.annotations])
                                      for i in self.items])

    def _index(self, images: list[str], masks: list[str], files: dict[str, int]) -> None:
        by_stem: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for mask in masks:
            by_stem[_stem(mask, skip=1 if mask.count("/") == 1 else 2)].append(
                (self.classes.index(_class_of(mask)), mask))
        for image in sorted(images):
            name, found = image.removeprefix("images/"), by_stem.pop(_stem(image, skip=1), None)
            if found is None:
                self.failures.append(SourceFailure(name, "index", "no mask has this photo's name"))
            else:
                stamp = digest_of(files[image], [(c, m, files[m]) for c, m in found])
                self.items.append(SourceImage(image_id=hashed_id(name), file_name=name, path=image, annotations=found,
                                              stamp=stamp))
        for stem in sorted(by_stem):
            self.failures.append(SourceFailure(stem, "index", f"{by_stem[stem][0][1]} has no photo of that name"))

    def fetch(self, item: SourceImage) -> FetchedImage:
        """The photo and its mask files."""
        store = self.store
        return FetchedImage(store.read_bytes(item.path), [(c, m, store.read_bytes(m)) for c, m in item.annotations])

    def annotated_size(self, item: SourceImage, fetched: FetchedImage) -> tuple[int, int] | None:
        """(height, width) as stored, or after EXIF rotation if only that size fits a mask. Raises `BadImage`."""
        stored, turned = image_size(fetched.data), turned_size(fetched.data)
        if stored == turned:
            return stored
        masks = (_or_none(data) for _, _, data in fetched.payload)
        shapes = [m.shape for m in masks if m is not None]
        return turned if turned in shapes and stored not in shapes else stored

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mask per mask file. Unreadable, empty or ill-sized ones are listed as problems."""
        masks = ImageMasks()
        for class_id, path, data in fetched.payload:
            try:
                mask = read_mask(data)
            except BadImage as error:
                masks.problems.append(f"{path}: {error.reason}")
                continue
            if mask.shape != (height, width):
                masks.problems.append(f"{path}: mask is {mask.shape[1]}x{mask.shape[0]}, its image {width}x{height}")
            elif not mask.any():
                masks.problems.append(f"{path}: empty mask")
            else:
                masks.instances.append(InstanceMask(class_id, rle.encode(mask)))
        return masks


def _or_none(data: bytes) -> np.ndarray | None:
    try:
        return read_mask(data)
    except BadImage:
        return None


def _class_of(mask: str) -> str:
    parts = PurePosixPath(mask).parts
    return parts[1] if len(parts) > 2 else SINGLE


def _stem(path: str, *, skip: int) -> str:
    """The path below `images/` or `masks/CLASS/` without its suffix."""
    return str(PurePosixPath(*PurePosixPath(path).parts[skip:]).with_suffix(""))
