"""Annotations apart from their photos: a file or folder of a labelling tool, about photos that lie elsewhere.

The readers of sources find the photos by the ends of the names that annotations give them. What they read is turned to
lie on the upright photo, as labels of `fss label` do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from fss_models.errors import FssError
from fss_models.limits import LIMITS, PhotoLimits
from fss_models.photo_files import annotated_frame, is_photo, turned_size
from pipelines.base.files import files_below
from pipelines.base.storage import Store, join
from pipelines.config.data import SourceConfig
from pipelines.config.label import AnnotationFormat
from pipelines.data import rle
from pipelines.data.sources import FORMATS
from pipelines.data.sources.base import BarePhoto, FetchedImage, MissingPhoto, SourceFailure, SourceImage
from pipelines.data.sources.finder import FileFinder

HEAD = 65_536  # bytes of a JSON file by which its format is told
EXISTING = "existing"  # the stage of failures that are about annotations
YAML, NAMES = (".yaml", ".yml"), ("data.yaml", "data.yml", "dataset.yaml", "classes.txt")
SAYS_NONE = ("label_studio", "labelme", "yolo", "pairs")  # formats in which a listed photo without a mask was looked at


@dataclass(frozen=True, kw_only=True)
class PhotoAnnotations:
    """What annotations say of one upright photo of `height` x `width` pixels.

    masks: class -> the counts (`data.rle`) of each of its objects; void: counts of the pixels that are not decided,
    crowds among them, None for none; looked: whether a class without a mask is said to be absent; problems: what could
    not be read.
    """

    height: int
    width: int
    masks: Mapping[str, list[bytes]]
    void: bytes | None
    looked: bool
    problems: list[str] = field(default_factory=list)


class Annotations:
    """The annotations of photos by name. They travel to other processes with their items.

    classes: the names that the annotations use, renamed; items: name of a photo -> its record; missing: names in the
    annotations that no photo has; problems: other failures of the index; hash: changes with what they say.
    """

    def __init__(self, url: str, photos: Mapping[str, int], kind: AnnotationFormat = "auto",
                 rename: Mapping[str, str] | None = None) -> None:
        """Read the index. photos: name -> bytes of every photo; rename: a class of the annotations -> another name.

        Raises `FssError` for what is no such file or folder, and for a name in `rename` that the annotations lack.
        """
        self.format, root, name = _format_of(url, kind)
        self._photo_of: dict[str, str] = {}  # path in the source -> name of the photo; the same where it is not listed
        self.missing: list[str] = []
        self.problems: list[SourceFailure] = []
        files = self._files(root, name, photos)
        self.source = FORMATS[self.format].among(SourceConfig(format=self.format, root=root, annotations=name), files)
        self.classes = [(rename or {}).get(c, c) for c in self.source.classes]
        if unknown := (rename or {}).keys() - set(self.source.classes):
            raise FssError(f"the annotations have no class {min(unknown)!r} to rename", where=url,
                           hint=f"they have {', '.join(self.source.classes[:8])}")
        self.items = {self._photo_of.get(i.path, i.path): i for i in self.source.items}
        foreign = [n for n in self.items if n not in photos]  # LabelMe files that hold their photo
        self.missing += [f.file_name for f in self.source.failures if isinstance(f, MissingPhoto)] + [
            self.items.pop(n).file_name for n in foreign]
        self.problems += [f for f in self.source.failures if not isinstance(f, MissingPhoto | BarePhoto)]
        self.hash = self.source.fingerprint

    def _files(self, root: str, name: str, photos: Mapping[str, int]) -> dict[str, int]:
        """The files that the source sees: those of the annotations, and the photos where it expects them."""
        if self.format in ("coco", "cvat", "label_studio"):
            return {name: Store(root).size(name), **photos}
        there = files_below(Store(root))
        if self.format == "labelme":
            return {**{f: n for f, n in there.items() if not is_photo(f)}, **photos}
        if self.format == "pairs":
            self._photo_of = {f"images/{photo}": photo for photo in photos}
            kept = {f: n for f, n in there.items() if f.startswith("masks/")}
        else:
            kept = self._with_photos({f: n for f, n in there.items() if not is_photo(f)}, FileFinder(photos))
            if not self._photo_of:
                count = len(self.missing) + len(self.problems)
                raise FssError(f"none of its {count} label files has a photo", where=Store(root).url,
                               hint="labels/NAME.txt belongs to the photo NAME.jpg")
        return {**kept, **{path: photos[photo] for path, photo in self._photo_of.items()}}

    def _with_photos(self, files: dict[str, int], finder: FileFinder) -> dict[str, int]:
        """YOLO's files without the label files that have no photo, an unclear one, or that of another label file."""
        owners: dict[str, str] = {}
        for label in [f for f in files if f.endswith(".txt") and "labels" in PurePosixPath(f).parts[:-1]]:
            reason, photo = "", None
            try:
                photo, path = _photo_of_label(label, finder)
            except FssError as error:
                reason = error.what
            if photo is not None and owners.setdefault(photo, label) != label:
                reason = f"{owners[photo]} is the label file of the same photo ({photo})"
            if photo is not None and not reason:
                self._photo_of[path] = photo
                continue
            del files[label]
            if reason:
                self.problems.append(SourceFailure(label, EXISTING, reason))
            else:
                self.missing.append(label)
        return files

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_photo_of": {}, "missing": [], "problems": []}

    def read(self, item: SourceImage, data: bytes, limits: PhotoLimits = LIMITS) -> PhotoAnnotations:
        """What is said of the photo with the bytes `data`.

        Raises `BadImage` if it is unreadable or not of the recorded size, `FssError` if an annotation file is gone.
        """
        fetched = FetchedImage(data, self.source.payload(item))
        size = self.source.annotated_size(item, fetched)
        (height, width), turn = annotated_frame(data, size, self.source.orientation, limits=limits)
        found = self.source.rasterise(item, fetched, height, width)
        masks: dict[str, list[bytes]] = {}
        for one in found.instances:
            masks.setdefault(self.classes[one.class_id], []).append(_turned(one.rle, height, width, turn))
        void = [i.rle for i in found.instances if i.iscrowd] + ([found.void] if found.void else [])
        upright = turned_size(data)
        merged = rle.encode(rle.union(void, height, width)) if void else None
        return PhotoAnnotations(
            height=upright[0], width=upright[1], masks=masks,
            void=_turned(merged, height, width, turn) if merged else None, problems=found.problems,
            looked=not found.problems and (bool(item.annotations) or self.format in SAYS_NONE))


def _turned(counts: bytes, height: int, width: int, turn: Image.Transpose | None) -> bytes:
    if turn is None:
        return counts
    mask = Image.fromarray(rle.decode(counts, height, width).astype(np.uint8))
    return rle.encode(np.asarray(mask.transpose(turn)).astype(bool))


def _photo_of_label(label: str, finder: FileFinder) -> tuple[str | None, str]:
    """The photo of a label file, and the path at which YOLO expects it. Raises `FssError` if several photos fit."""
    parts = list(PurePosixPath(label).with_suffix("").parts)
    place = len(parts) - 2 - parts[-2::-1].index("labels")
    photo = finder.find("/".join(parts[place + 1:]))
    suffix = os.path.splitext(photo or "")[1]
    return photo, "/".join([*parts[:place], "images", *parts[place + 1:]]) + suffix


def _format_of(url: str, kind: AnnotationFormat) -> tuple[Any, str, str]:
    """(format, folder, file below it or "") of annotations. Raises `FssError` if it cannot be told."""
    place = Store(url)
    if not place.exists():
        raise FssError("does not exist", where=url, hint="give the file or folder of annotations")
    low = url.lower().rstrip("/")
    if low.endswith((".json", ".xml", *YAML)):
        told = "cvat" if low.endswith(".xml") else "yolo" if low.endswith(YAML) else _json_format(place)
        chosen, name = told if kind == "auto" else kind, place.name
        return (chosen, place.parent.url, "" if chosen in ("labelme", "pairs") else name)
    found = place.list()
    tops = {f.partition("/")[0] for f in found}
    if kind in ("auto", "yolo") and (tops & set(NAMES) or "labels" in tops):
        return "yolo", place.url, ""
    if kind in ("auto", "pairs") and "masks" in tops:
        return "pairs", place.url, ""
    files = [f for f in found if f.removeprefix("annotations/").count("/") == 0 and f.endswith((".json", ".xml"))]
    if len(files) == 1:
        return _format_of(join(place.url, files[0]), kind)
    jsons = [f for f in found if f.endswith(".json")]
    if jsons and kind in ("auto", "labelme") and _json_format(Store(join(place.url, jsons[0]))) == "labelme":
        return "labelme", place.url, ""
    what = "the format of these annotations cannot be told" if kind == "auto" else f"no {kind} annotations here"
    raise FssError(what, where=url,
                   hint="give the file itself (.json, .xml, data.yaml), or a folder of LabelMe, YOLO or masks/")


def _json_format(place: Store) -> AnnotationFormat:
    head = place.read_range("", 0, min(HEAD, place.size(""))).decode("utf-8-sig", errors="replace").lstrip()
    if '"shapes"' in head and '"images"' not in head:
        return "labelme"
    if head.startswith("[") and '"category_id"' in head:
        raise FssError("these are predictions (a list of results), not annotations", where=place.url,
                       hint="`fss compare --predictions` scores them")
    return "label_studio" if head.startswith("[") else "coco"


def unread(annotations: Annotations, most: int) -> list[SourceFailure]:
    """The failures of the index and the names that no photo has, at most `most`."""
    lost = [SourceFailure(n, EXISTING, "the annotations name this photo, but it is not among --images")
            for n in annotations.missing[:most]]
    return [*(SourceFailure(f.file_name, EXISTING, f.reason) for f in annotations.problems), *lost][:most]
