"""Sources that several benchmarks share: label maps, one mask per file, segmentations in an index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np

from fss_models.errors import BadImage, FssError
from pipelines.data import rle
from pipelines.data.benchmarks.rules import photo_number
from pipelines.data.lists.plain_pickle import read_plain
from pipelines.data.sources.base import FetchedImage, ImageMasks, InstanceMask, Source, SourceImage, digest_of
from pipelines.data.sources.labels import read_grey_mask, read_labels

T = TypeVar("T")


def base_of(files: dict[str, int], marker: str, where: str) -> str:
    """The prefix of the folder or file `marker` below the root: "" or a path that ends in "/".

    Raises `FssError` if there is no such folder or file.
    """
    found = {head[1:] for name in files for head, mark, _ in [f"/{name}".partition(f"/{marker}")] if mark}
    if not found:
        raise FssError(f"there is no {marker}", where=where, hint="see the layout with `fss data check`")
    best = min(found, key=lambda head: (len(head), head))
    return f"{best}/" if best else ""


class BenchmarkSource(Source):
    """A published dataset, whose photos are numbered by their names."""

    def prefix(self, marker: str) -> str:
        """`base_of` the files below the root."""
        return base_of(self.files, marker, self.store.url)

    def take(self, name: str, path: str, annotations: Any, split: str, **more: Any) -> None:
        """Add the photo (or the object in it) called `name` to the index; more: other fields of `SourceImage`."""
        self.items.append(SourceImage(image_id=photo_number(name), file_name=name, path=path, annotations=annotations,
                                      split=split, **more))


class LabelMapSource(BenchmarkSource):
    """Photos with one label PNG each: value v is class v - 1, 0 is background. One instance per class and image."""

    def index_folders(self, folders: Sequence[tuple[str, str, str, str]]) -> None:
        """Add every label map with its photo: (split, first part of the names, folder of photos, folder of maps)."""
        files = self.files
        for split, first, photo_folder, map_folder in folders:
            photos = by_stem(files, photo_folder, (".jpg",))
            for stem, mask in by_stem(files, map_folder, (".png",)).items():
                name = f"{first}/{stem}.jpg"
                if stem not in photos:
                    self.fail(name, "the label maps name this photo but it is missing")
                else:
                    self.take(name, photos[stem], mask, split)
        self.check_ids()
        self.fingerprint = digest_of([(i.path, files[i.path], i.annotations, files[i.annotations]) for i in self.items])

    def fetch(self, item: SourceImage) -> FetchedImage:
        """The photo and its label map."""
        return FetchedImage(self.store.read_bytes(item.path), self.store.read_bytes(item.annotations))

    def annotated_size(self, item: SourceImage, fetched: FetchedImage) -> tuple[int, int] | None:
        """The size of the label map, which the photo must have too. Raises `BadImage` for an unreadable label map."""
        try:
            height, width = read_labels(fetched.payload).shape
        except BadImage as error:
            raise BadImage(f"mask {item.annotations}: {error.reason}") from error
        return height, width

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mask per class in the label map. No pixel is void."""
        labels, masks = read_labels(fetched.payload), ImageMasks()
        for value in (int(v) for v in np.unique(labels) if v != 0):
            if value > len(self.classes):
                masks.problems.append(f"mask value {value} is no class of {self.cfg.format}")
            else:
                masks.instances.append(InstanceMask(value - 1, rle.encode(labels == value)))
        return masks


class MaskFileSource(BenchmarkSource):
    """Photos with one mask file of one class each. `SourceImage.annotations` is (class id, path of the mask)."""

    def finish(self) -> None:
        """Check the ids and make the fingerprint, once all photos are in the index."""
        self.check_ids()
        self.fingerprint = digest_of([(i.path, self.files[i.path], i.annotations, self.files[i.annotations[1]])
                                      for i in self.items])

    def fetch(self, item: SourceImage) -> FetchedImage:
        """The photo and its mask file."""
        class_id, path = item.annotations
        return FetchedImage(self.store.read_bytes(item.path), (class_id, self.store.read_bytes(path)))

    def annotated_size(self, item: SourceImage, fetched: FetchedImage) -> tuple[int, int] | None:
        """The size of the mask, which the photo must have too. Raises `BadImage` for an unreadable mask."""
        try:
            height, width = read_grey_mask(fetched.payload[1]).shape
        except BadImage as error:
            raise BadImage(f"mask {item.annotations[1]}: {error.reason}") from error
        return height, width

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mask: the pixels whose grey level in the mask file is at least 128."""
        class_id, data = fetched.payload
        mask = read_grey_mask(data)
        if not mask.any():
            return ImageMasks(problems=["empty mask"])
        return ImageMasks(instances=[InstanceMask(class_id, rle.encode(mask))])


class SegmentSource(BenchmarkSource):
    """Photos whose segmentations (polygons or RLE) are in the index.

    `SourceImage.annotations` is [(class id, segmentation)]. Workers do not get the pools of test photos and objects.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k not in ("test_pools", "test_objects")}

    def read_pickles(self, name: str, check: Callable[[Any, str], T]) -> tuple[dict[str, T], list[str]]:
        """Split (train, val) -> content of the pickle `name`, in which {} is the split, and the files' sha256.

        `check` returns the content if it is sound, else it raises `FssError` with the place that it is given.
        """
        found, digests = {}, []
        for split in ("train", "val"):
            data, where = self.store.read_bytes(name.format(split)), self.store.path(name.format(split))
            found[split] = check(read_plain(data, where=where), where)
            digests.append(hashlib.sha256(data).hexdigest())
        return found, digests

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """Rasterise the segmentations as pycocotools does. Malformed ones are listed as problems."""
        masks = ImageMasks()
        for class_id, segmentation in fetched.payload:
            masks.add_segmentation(self.classes[class_id], class_id, segmentation, height, width)
        return masks


def by_stem(files: dict[str, int], folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Name without suffix -> path, for the files directly below a folder, in path order."""
    found = sorted(f for f in files if f.startswith(folder) and f.lower().endswith(suffixes)
                   and "/" not in f[len(folder):])
    return {PurePosixPath(f).stem: f for f in found}
