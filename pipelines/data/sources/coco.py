"""COCO-format directories: annotations/*.json and images anywhere below the root. Class ids follow category ids.

Records that repeat: image records with the same id are all refused, as their annotations cannot be told apart (word for
word the same record is read once); of several records of one photo the first is read (`Source.drop_repeated`);
categories of the same name are one class. Ids of annotations are only used to name them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from fss_models.errors import FssError
from pipelines.config.data import SourceConfig
from pipelines.data.sources.base import (
    FetchedImage,
    ImageMasks,
    MissingPhoto,
    Source,
    SourceFailure,
    SourceImage,
    digest_of,
)
from pipelines.data.sources.coco_index import CocoIndex, ImageRecord, identity

_GAP = 4096  # annotations that lie closer in the file are read together


class CocoAnnotation(NamedTuple):
    """One annotation as it is in the file. class_id: -1 if the categories lack its id; category: that id as text."""

    where: str
    class_id: int
    category: str
    crowd: bool
    segmentation: Any


class CocoSource(Source):
    """Reads polygons, compressed and uncompressed RLE. Crowd regions stay marked as crowd.

    The index has only the place of each annotation in the file (`SourceImage.annotations`: first byte and length,
    int64), where workers read it. So the driver's memory grows with the number of annotations, not with their polygons.
    """

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        self._name = cfg.annotations or _only_annotations(self.files, self.store.url)
        found = CocoIndex.read(self.store, self._name)
        self.classes, self._class_of, self.failures = found.categories(self._name)
        if found.scores and not found.ours:
            what = f"{found.scores} annotations have a confidence: predictions of a model, which are read as labels"
            self.fail(self._name, what)
        self._index(found)
        self.drop_repeated()
        self.fingerprint = digest_of(found.sha256, self.photo_sizes())

    def _index(self, found: CocoIndex) -> None:
        spans, stamps = found.spans(), found.stamps()
        classes, beside = digest_of(self._class_of), str(PurePosixPath(self._name).parent)
        for record in self._single(found.images):
            try:
                file = self.photos.match(record.name, within=beside, prefer=self._names_folder_of)
            except FssError as error:
                self.fail(record.name, error.what)
                continue
            if file is None:
                reason = "the annotations name this image but it is missing"
                self.fail(record.name or f"image_id {record.number}",
                          reason if record.name else "its file_name is empty", MissingPhoto)
                continue
            stamp = digest_of(self.files[file.path], stamps.get(record.number, b""), classes)
            self.items.append(SourceImage(
                image_id=record.number, file_name=_shown(record.name, file.path), path=file.path, size=record.size,
                annotations=spans.get(record.number, b""), whole=file.whole, stamp=stamp))
        for missing in sorted(spans.keys() - {r.number for r in found.images}):
            count = len(spans[missing]) // 16
            self.fail(f"image_id {missing}", f"{count} annotations name this image id but no image record has it")

    def _single(self, records: list[ImageRecord]) -> list[ImageRecord]:
        """The records in the order of their ids. Those that share an id become failures."""
        by_number: dict[int, list[ImageRecord]] = defaultdict(list)
        for record in sorted(records, key=lambda r: r.number):
            by_number[record.number].append(record)
        single = []
        for number, same in by_number.items():
            if len(same) > 1:
                reason = f"{len(same)} image records have the same id {number}"
                alike = len(set(same)) == 1
                reason += ", word for word, and are read once" if alike else f" ({same[0].name}, {same[1].name})"
                self.failures += [SourceFailure(r.name, "index", reason) for r in (same[:1] if alike else same)]
                if not alike:
                    continue
            single.append(same[0])
        return single

    def _names_folder_of(self, file: str) -> bool:
        """Whether the annotation file's name has that of the photo's folder, as instances_train2017 has train2017."""
        folder = PurePosixPath(file).parent.name
        return bool(folder) and folder in PurePosixPath(self._name).stem

    def payload(self, item: SourceImage) -> list[CocoAnnotation]:
        """The photo's annotations. Raises `FssError` if the file has changed."""
        return [self._annotation(text) for text in self._texts(item.annotations)]

    def _annotation(self, text: bytes) -> CocoAnnotation:
        try:
            a = json.loads(text)
        except ValueError:  # no cause, so the error stops the build instead of failing one photo
            raise FssError("the file changed while it was read", where=self.store.path(self._name),
                           hint="run the command again") from None
        try:
            class_id = self._class_of.get(identity(a.get("category_id")), -1)
        except ValueError:
            class_id = -1
        crowd = a.get("iscrowd", 0)
        return CocoAnnotation(f"annotation {str(a.get('id', '?'))[:40]}", class_id, str(a.get("category_id"))[:40],
                              bool(crowd) and str(crowd).lower() not in ("0", "false"), a.get("segmentation"))

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
        """Rasterise the annotations of an image. Malformed ones are listed as problems, with id, class and reason."""
        masks = ImageMasks()
        for a in fetched.payload:
            if a.class_id < 0:
                masks.problems.append(f"{a.where}: its category id {a.category} is not in the categories")
            else:
                what = f"{a.where}: {self.classes[a.class_id]}"
                masks.add_segmentation(what, a.class_id, a.segmentation, height, width, crowd=a.crowd)
        return masks


def _shown(name: str, path: str) -> str:
    """The name of a photo in shards and splits: as its record has it, or its path where that is not a tail of it."""
    return name if f"/{path}".endswith(f"/{name.lstrip('/')}") else path


def _only_annotations(files: dict[str, int], root: str) -> str:
    found = [f for f in files if f.startswith("annotations/") and f.endswith(".json") and f.count("/") == 1]
    if len(found) == 1:
        return found[0]
    if not found:
        others = ", ".join([f for f in files if f.endswith(".json") and f.count("/") <= 1][:5])
        raise FssError("there is no annotations/*.json", where=root,
                       hint=f"set data.source.annotations to one of: {others}" if others
                       else "set data.source.annotations")
    instances = [f for f in found if "instances" in f]
    if len(instances) == 1:
        return instances[0]
    raise FssError(f"there are {len(found)} annotation files", where=root,
                   hint=f"set data.source.annotations to one of: {', '.join(found[:5])}")
