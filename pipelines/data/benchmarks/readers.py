"""What the benchmarks' raw layouts have in common: label maps, one mask a file, segmentations in an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from fss_models.errors import BadImage, FssError
from pipelines.data import rle
from pipelines.data.sources.base import FetchedImage, ImageMasks, InstanceMask, Source, SourceImage
from pipelines.data.sources.labels import read_grey_mask, read_labels


def base_of(files: dict[str, int], marker: str, where: str) -> str:
    """The prefix of the folder (or file) `marker`, wherever below the root it lies: "" or ending in "/".

    Raises `FssError` if there is none.
    """
    found = {head[1:] for name in files for head, mark, _ in [f"/{name}".partition(f"/{marker}")] if mark}
    if not found:
        raise FssError(f"no {marker} here", where=where, mend="`fss data check` says what the layout is")
    best = min(found, key=lambda head: (len(head), head))
    return f"{best}/" if best else ""


class LabelMapSource(Source):
    """Photos with one label PNG each: value v is class v - 1, 0 background. One instance a class and image."""

    def fetch(self, item: SourceImage) -> FetchedImage:
        """The photo and its label map."""
        return FetchedImage(self.store.read_bytes(item.path), self.store.read_bytes(item.annotations))

    def annotated_size(self, item: SourceImage, fetched: FetchedImage) -> tuple[int, int] | None:
        """The label map's: the photo must have it."""
        try:
            height, width = read_labels(fetched.payload).shape
        except BadImage as error:
            raise BadImage(f"mask {item.annotations}: {error.reason}") from error
        return height, width

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mark a class present; no pixel is void."""
        labels, masks = read_labels(fetched.payload), ImageMasks()
        for value in (int(v) for v in np.unique(labels) if v != 0):
            if value > len(self.classes):
                masks.problems.append(f"mask value {value} is no class of {self.cfg.format}")
            else:
                masks.instances.append(InstanceMask(value - 1, rle.encode(labels == value)))
        return masks


class MaskFileSource(Source):
    """Photos with one mask file each, of one class; `SourceImage.annotations` is (class id, path of the mask)."""

    def fetch(self, item: SourceImage) -> FetchedImage:
        """The photo and its mask file."""
        class_id, path = item.annotations
        return FetchedImage(self.store.read_bytes(item.path), (class_id, self.store.read_bytes(path)))

    def annotated_size(self, item: SourceImage, fetched: FetchedImage) -> tuple[int, int] | None:
        """The mask's: the photo must have it."""
        try:
            height, width = read_grey_mask(fetched.payload[1]).shape
        except BadImage as error:
            raise BadImage(f"mask {item.annotations[1]}: {error.reason}") from error
        return height, width

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """Where the mask, as grey, is at least 128."""
        class_id, data = fetched.payload
        mask = read_grey_mask(data)
        if not mask.any():
            return ImageMasks(problems=["empty mask"])
        return ImageMasks(instances=[InstanceMask(class_id, rle.encode(mask))])


class SegmentSource(Source):
    """Photos whose segmentations (polygons or RLE) are in the index: `marks` is [(class id, segmentation)]."""

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """Rasterised as pycocotools does; those that cannot be are listed as problems."""
        masks = ImageMasks()
        for class_id, segmentation in fetched.payload:
            try:
                counts = rle.from_coco(segmentation, height, width)
                empty = rle.area(counts, height, width) == 0
            except (ValueError, TypeError, AttributeError) as error:
                masks.problems.append(f"{self.classes[class_id]}: {error}")
                continue
            if empty:
                masks.problems.append(f"{self.classes[class_id]}: empty mask")
            else:
                masks.instances.append(InstanceMask(class_id, counts))
        return masks


def unique_ids(items: Sequence[SourceImage]) -> list[SourceImage]:
    """The items. Raises `FssError` if two photos got the same number."""
    seen: dict[int, str] = {}
    for item in items:
        other = seen.setdefault(item.image_id, item.file_name)
        if other != item.file_name:
            raise FssError(f"photos {other} and {item.file_name} have the same number", mend="rename one of them")
    return list(items)


def by_stem(files: dict[str, int], folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Stem -> path of the files right below a folder, in path order."""
    found = sorted(f for f in files if f.startswith(folder) and f.lower().endswith(suffixes)
                   and "/" not in f[len(folder):])
    return {PurePosixPath(f).stem: f for f in found}
