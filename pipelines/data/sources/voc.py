"""VOC-format directories: JPEGImages and SegmentationClass(Aug) label PNGs, 0 = background, 255 = void.

Photos that differ only in their suffix and share a mask are failures (`finder.ambiguous`).
The values 1 to 20 are VOC's classes. With a `labelmap.txt` beside the folders the classes are its own (`voc_labels`).
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath

import numpy as np

from fss_models.errors import BadImage, FssError
from fss_models.photo_files import is_photo
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.sources.base import (
    FetchedImage,
    ImageMasks,
    InstanceMask,
    Source,
    SourceImage,
    digest_of,
    hashed_id,
)
from pipelines.data.sources.finder import ambiguous
from pipelines.data.sources.labels import read_labels
from pipelines.data.sources.voc_labels import BACKGROUND, VOID, LabelMap, read_class_labels, read_label_map

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
LABEL_MAP = "labelmap.txt"


class VocSource(Source):
    """One instance per class and image, because VOC's class masks do not separate objects."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        files, base = self.files, _base(self.files, self.store.url)
        self.classes, self._labels = list(CLASSES), self._label_map(base)
        if self._labels:
            self.classes = self._labels.classes
        self._index(base, _masks_folder(files, base, self.store.url))
        self.fingerprint = digest_of([(i.path, files[i.path], i.annotations, files[i.annotations]) for i in self.items],
                                     *([self._labels] if self._labels else []))

    def _label_map(self, base: str) -> LabelMap | None:
        """The dataset's own classes, None for VOC's. Raises `FssError` for a file that is no label map."""
        name = next((n for n in (f"{base}{LABEL_MAP}", LABEL_MAP) if n in self.files), "")
        if not name or self.cfg.format != "voc":  # a benchmark has VOC's classes
            return None
        labels = read_label_map(self.store.read_bytes(name), self.store.path(name))
        for words in labels.merged:
            self.fail(name, words)
        return labels

    def _index(self, base: str, folder: str) -> None:
        files, photos = self.files, defaultdict[str, list[str]](list)
        for file in files:
            if file.startswith(f"{base}JPEGImages/") and is_photo(file):
                photos[_stem(file, f"{base}JPEGImages/")].append(file)
        rules = [self._labels] if self._labels else []
        for mask in (f for f in files if f.startswith(folder) and f.lower().endswith(".png")):
            stem, plain = _stem(mask, folder), PurePosixPath(mask).stem
            found = photos.get(stem) or photos.get(plain, [])
            if not found:
                self.fail(f"{plain}.jpg", "the masks name this image but it is missing")
                continue
            if len(found) > 1:
                for photo in found:
                    self.fail(photo, ambiguous(found, f"the mask {mask}"))
                continue
            path, name = found[0], found[0].removeprefix(f"{base}JPEGImages/")
            self.items.append(SourceImage(image_id=_number(name), file_name=name, path=path, annotations=mask,
                                          stamp=digest_of(files[path], files[mask], *rules)))
        self.check_ids()

    def fetch(self, item: SourceImage) -> FetchedImage:
        """The photo and its mask file."""
        store = self.store
        return FetchedImage(store.read_bytes(item.path), store.read_bytes(item.annotations))

    def annotated_size(self, item: SourceImage, fetched: FetchedImage) -> tuple[int, int] | None:
        """The size of the mask, which the photo must have too. Raises `BadImage` for an unreadable mask."""
        try:
            data, own = fetched.payload, self._labels
            height, width = (read_class_labels(data, own).ids if own else read_labels(data)).shape
        except BadImage as error:
            raise BadImage(f"mask {item.annotations}: {error.reason}") from error
        return height, width

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """One mask per class in the label file, and the void pixels."""
        if self._labels:
            return _of_label_map(fetched.payload, self._labels)
        labels = read_labels(fetched.payload)
        masks = ImageMasks(void=rle.encode(labels == VOID) if (labels == VOID).any() else None)
        for value in (int(v) for v in np.unique(labels) if v not in (0, VOID)):
            if value > len(CLASSES):
                masks.problems.append(f"mask value {value} is no VOC class")
            else:
                masks.instances.append(InstanceMask(value - 1, rle.encode(labels == value)))
        return masks


def _of_label_map(data: bytes, labels: LabelMap) -> ImageMasks:
    ids, void, problems = read_class_labels(data, labels)
    masks = ImageMasks(void=rle.encode(void) if void.any() else None, problems=problems)
    for class_id in (int(v) for v in np.unique(ids) if v != BACKGROUND):
        masks.instances.append(InstanceMask(class_id, rle.encode(ids == class_id)))
    return masks


def _stem(path: str, folder: str) -> str:
    """The path below a folder without its suffix."""
    return str(PurePosixPath(path.removeprefix(folder)).with_suffix(""))


def _base(files: dict[str, int], root: str) -> str:
    """The prefix of the folder that has JPEGImages: "", VOC2012/ or VOCdevkit/VOC2012/. Raises `FssError`."""
    for name in files:
        head, found, _ = f"/{name}".partition("/JPEGImages/")
        if found:
            return f"{head[1:]}/" if head else ""
    raise FssError("there is no JPEGImages folder", where=root,
                   hint="set data.source.root to the folder that has JPEGImages")


def _masks_folder(files: dict[str, int], base: str, root: str) -> str:
    for name in ("SegmentationClassAug", "SegmentationClass"):
        if any(f.startswith(f"{base}{name}/") for f in files):
            return f"{base}{name}/"
    raise FssError("there is no SegmentationClass or SegmentationClassAug folder", where=root)


def _number(name: str) -> int:
    """The image id of a photo: 2007_000032.jpg -> 2007000032, for other names 48 bits of a hash."""
    digits = str(PurePosixPath(name).with_suffix("")).replace("_", "")
    return int(digits) if digits.isdigit() else hashed_id(name)
