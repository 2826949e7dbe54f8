"""COCO-format directories: annotations/*.json and images anywhere below the root. Class ids follow category ids."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any

from fss_models.errors import FssError
from pipelines.config import SourceConfig
from pipelines.data import rle
from pipelines.data.sources.base import Failure, Fetched, Item, Mark, Marks, Source, digest_of, is_image, listing


class CocoSource(Source):
    """Polygons, compressed and uncompressed RLE; crowd regions are kept as such."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        files = listing(self.store)
        name = cfg.annotations or _only_annotations(files, self.store.url)
        raw = self.store.read_bytes(name)
        document = _parse(raw, self.store.path(name))
        categories = sorted(document["categories"], key=lambda c: c["id"])
        self.classes = [str(c["name"]) for c in categories]
        self._class_of = {c["id"]: i for i, c in enumerate(categories)}
        self._index(document, _Paths([f for f in files if is_image(f)], PurePosixPath(name).stem))
        self.fingerprint = digest_of(hashlib.sha256(raw).hexdigest(), [(i.path, files[i.path]) for i in self.items])

    def _index(self, document: dict[str, Any], paths: _Paths) -> None:
        by_image: dict[int, list[tuple[int, bool, Any]]] = defaultdict(list)
        for a in document["annotations"]:
            entry = (self._class_of.get(a.get("category_id"), -1), bool(a.get("iscrowd", 0)), a.get("segmentation"))
            by_image[a["image_id"]].append(entry)
        known = set()
        for record in sorted(document["images"], key=lambda r: r["id"]):
            known.add(record["id"])
            name, path = record["file_name"], paths.find(record["file_name"])
            if path is None:
                self.failures.append(Failure(name, "index", "the annotations name this image but it is missing"))
                continue
            size = (int(record["height"]), int(record["width"])) if "height" in record and "width" in record else None
            self.items.append(Item(image_id=int(record["id"]), file_name=name, path=path, size=size,
                                   marks=by_image.get(record["id"], [])))
        for missing in sorted(by_image.keys() - known):
            reason = f"{len(by_image[missing])} annotations name this image id but no image record has it"
            self.failures.append(Failure(f"image_id {missing}", "index", reason))

    def mark(self, item: Item, fetched: Fetched, height: int, width: int) -> Marks:
        """Rasterise; instances that cannot be are listed as problems."""
        marks = Marks()
        for class_id, crowd, segmentation in fetched.payload:
            if class_id < 0:
                marks.problems.append("an annotation has a category id that is not in the categories")
                continue
            try:
                counts = rle.from_coco(segmentation, height, width)
                empty = rle.area(counts, height, width) == 0
            except (ValueError, TypeError, AttributeError) as error:
                marks.problems.append(f"{self.classes[class_id]}: {error}")
                continue
            if empty:
                marks.problems.append(f"{self.classes[class_id]}: empty mask")
            else:
                marks.instances.append(Mark(class_id, counts, crowd))
        return marks


class _Paths:
    """Finds an image record's file: the path that ends with its name, preferring the annotation file's own folder."""

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
        raise FssError("no annotations/*.json", where=root, mend="set data.source.annotations")
    instances = [f for f in found if "instances" in f]
    if len(instances) == 1:
        return instances[0]
    raise FssError(f"{len(found)} annotation files", where=root,
                   mend=f"set data.source.annotations to one of: {', '.join(found[:5])}")


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise FssError(f"is not valid JSON: {error}", where=where) from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise FssError(f"has no list {key!r}", where=where, mend="a COCO file has images, annotations, categories")
    return dict(document)
