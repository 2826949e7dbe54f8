"""COCO-format directories: annotations/*.json and images anywhere below the root. Class ids follow category ids."""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.sources.base import (
    FetchedImage,
    ImageMasks,
    InstanceMask,
    Source,
    SourceFailure,
    SourceImage,
    digest_of,
    is_image,
    listing,
)
from pipelines.data.sources.coco_json import CocoReader, JsonRecord

_LISTS = ("images", "annotations", "categories")
_GAP = 4096  # annotations that lie closer in the file are read together


class CocoSource(Source):
    """Reads polygons, compressed and uncompressed RLE. Crowd regions stay marked as crowd.

    The index has only the place of each annotation in the file (`SourceImage.annotations`: first byte and length,
    int64), where workers read it. So the driver's memory grows with the number of annotations, not with their polygons.
    """

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        files = listing(self.store)
        self._name = cfg.annotations or _only_annotations(files, self.store.url)
        found = _Index.read(self.store, self._name)
        categories = sorted(found.categories, key=lambda c: c["id"])
        self.classes = [str(c["name"]) for c in categories]
        self._class_of = {c["id"]: i for i, c in enumerate(categories)}
        self._index(found, _Paths([f for f in files if is_image(f)], PurePosixPath(self._name).stem), files)
        self.fingerprint = digest_of(found.sha256, [(i.path, files[i.path]) for i in self.items])

    def _index(self, found: _Index, paths: _Paths, files: dict[str, int]) -> None:
        spans, stamps, known = found.spans(), found.stamps(), set()
        classes = digest_of(self._class_of)
        for number, name, size in sorted(found.images, key=lambda r: r[0]):
            known.add(number)
            path = paths.find(name)
            if path is None:
                self.failures.append(SourceFailure(name, "index", "the annotations name this image but it is missing"))
                continue
            self.items.append(SourceImage(image_id=number, file_name=name, path=path, size=size,
                                          annotations=spans.get(number, b""),
                                          stamp=digest_of(files[path], stamps.get(number, b""), classes)))
        for missing in sorted(spans.keys() - known):
            count = len(spans[missing]) // 16
            reason = f"{count} annotations name this image id but no image record has it"
            self.failures.append(SourceFailure(f"image_id {missing}", "index", reason))

    def fetch(self, item: SourceImage) -> FetchedImage:
        """The photo's bytes and its annotations as (class id, crowd, segmentation). Raises `FssError`."""
        data = self.store.read_bytes(item.path)
        return FetchedImage(data, [self._annotation(text) for text in self._texts(item.annotations)])

    def _annotation(self, text: bytes) -> tuple[int, bool, Any]:
        try:
            a = json.loads(text)
        except ValueError:  # no cause, so the error stops the build instead of failing one photo
            raise FssError("the file changed while it was read", where=self.store.path(self._name),
                           hint="run the command again") from None
        return self._class_of.get(a.get("category_id"), -1), bool(a.get("iscrowd", 0)), a.get("segmentation")

    def _texts(self, annotations: bytes) -> list[bytes]:
        spans = np.frombuffer(annotations, dtype=np.int64).reshape(-1, 2)
        starts, ends = spans[:, 0], spans.sum(axis=1)
        if not len(spans):
            return []
        cuts = np.flatnonzero(starts[1:] - ends[:-1] > _GAP) + 1
        first = starts[np.concatenate([[0], cuts])].tolist()
        last = ends[np.concatenate([cuts - 1, [len(spans) - 1]])].tolist()
        path = self.store.path(self._name)
        try:
            read = self.store.fs.cat_ranges([path] * len(first), first, last, on_error="raise")
        except OSError as error:
            raise FssError(f"the file cannot be read again: {error}", where=path) from None
        group = np.searchsorted(cuts, np.arange(len(spans)), side="right")
        return [bytes(read[g][s - first[g] : e - first[g]])
                for g, s, e in zip(group.tolist(), starts.tolist(), ends.tolist(), strict=True)]

    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """Rasterise the annotations of an image. Malformed ones are listed as problems."""
        masks = ImageMasks()
        for class_id, crowd, segmentation in fetched.payload:
            if class_id < 0:
                masks.problems.append("an annotation has a category id that is not in the categories")
                continue
            try:
                counts = rle.from_coco(segmentation, height, width)
                empty = rle.area(counts, height, width) == 0
            except (ValueError, TypeError, AttributeError) as error:
                masks.problems.append(f"{self.classes[class_id]}: {error}")
                continue
            if empty:
                masks.problems.append(f"{self.classes[class_id]}: empty mask")
            else:
                masks.instances.append(InstanceMask(class_id, counts, crowd))
        return masks


class _Paths:
    """Finds the file of an image record: a path that ends with its name, preferably in a folder that `stem` names."""

    def __init__(self, files: list[str], stem: str) -> None:
        self._stem = stem  # instances_train2017 -> the folder train2017
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for file in files:
            self._by_name[PurePosixPath(file).name].append(file)

    def find(self, name: str) -> str | None:
        clean = name.lstrip("/")
        found = [f for f in self._by_name[PurePosixPath(clean).name] if f == clean or f.endswith("/" + clean)]
        return min(found, key=self._rank) if found else None

    def _rank(self, file: str) -> tuple[bool, int, str]:
        folder = PurePosixPath(file).parent.name
        return (not (folder and folder in self._stem), file.count("/"), file)


def _only_annotations(files: dict[str, int], root: str) -> str:
    found = [f for f in files if f.startswith("annotations/") and f.endswith(".json") and f.count("/") == 1]
    if len(found) == 1:
        return found[0]
    if not found:
        raise FssError("there is no annotations/*.json", where=root, hint="set data.source.annotations")
    instances = [f for f in found if "instances" in f]
    if len(instances) == 1:
        return instances[0]
    raise FssError(f"there are {len(found)} annotation files", where=root,
                   hint=f"set data.source.annotations to one of: {', '.join(found[:5])}")


class _Index:
    """What the driver has in memory of an annotation file."""

    def __init__(self) -> None:
        self.images: list[tuple[int, str, tuple[int, int] | None]] = []  # id, file name, (height, width)
        self.categories: list[dict[str, Any]] = []
        self.sha256 = ""
        self._of, self._start, self._length = array("q"), array("q"), array("q")  # image id, first byte, bytes
        self._stamp = array("Q")

    @classmethod
    def read(cls, store: Store, name: str) -> _Index:
        """Read the index of an annotation file. Raises `FssError` if it is not a COCO file."""
        index, where = cls(), store.path(name)
        store.size(name)  # raises `FssError` if it is missing
        with store.fs.open(where, "rb") as file:
            reader = CocoReader(file, where)
            for record in reader.records():
                if record.section in _LISTS:
                    try:
                        index._add(reader, record)
                    except (KeyError, TypeError, ValueError, OverflowError) as error:
                        raise FssError(f"{record.section}: the record at byte {record.start} is not a COCO record "
                                       f"({type(error).__name__}: {error})", where=where) from error
        for key in _LISTS:
            if not reader.sections.get(key):
                raise FssError(f"the file has no list {key!r}", where=where,
                               hint="give a COCO file, with the lists images, annotations and categories")
        index.sha256 = reader.sha256
        return index

    def _add(self, reader: CocoReader, record: JsonRecord) -> None:
        if record.section == "annotations":
            self._of.append(int(record.value["image_id"]))
            self._start.append(record.start)
            self._length.append(record.end - record.start)
            self._stamp.append(reader.stamp(record))
            return
        value = reader.again(record)
        if record.section == "categories":
            self.categories.append({"id": value["id"], "name": value["name"]})
            return
        size = (int(value["height"]), int(value["width"])) if "height" in value and "width" in value else None
        self.images.append((int(value["id"]), str(value["file_name"]), size))

    def spans(self) -> Mapping[int, bytes]:
        """Image id -> (first byte, length) of each of its annotations, as int64 bytes, in the file's order."""
        return self._grouped(self._start, self._length)

    def stamps(self) -> Mapping[int, bytes]:
        """Image id -> a 64-bit hash of each of its annotations, as bytes, in the file's order."""
        return self._grouped(self._stamp)

    def _grouped(self, *columns: array[int]) -> Mapping[int, bytes]:
        """Image id -> the bytes of its rows in `columns`, 8 bytes per value."""
        if not self._of:
            return {}
        of = np.frombuffer(self._of, dtype=np.int64)
        order = np.argsort(of, kind="stable")
        table = np.stack([np.frombuffer(c, dtype=np.int64) for c in columns], 1)
        ids, first = np.unique(of[order], return_index=True)
        return {int(i): part.tobytes() for i, part in zip(ids, np.split(table[order], first[1:]), strict=True)}
