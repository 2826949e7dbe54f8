"""The interface of a source of labelled images: a cheap index on the driver, bytes and masks in the workers."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from fss_models.errors import FssError
from fss_models.photo_files import UNREAD_SUFFIXES, Orientation, is_photo
from pipelines.base.files import files_below
from pipelines.base.filesystems import SCHEMES
from pipelines.base.storage import Store
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.class_names import shown_text
from pipelines.data.sources.finder import FileFinder

UNKNOWN = -1  # bytes of a photo that is not below the root


@dataclass(frozen=True)
class SourceFailure:
    """One row of failures.parquet. `stage` is index, split, read, decode or annotate."""

    file_name: str
    stage: str
    reason: str


class MissingPhoto(SourceFailure):
    """Annotations of a photo that is not there."""


class BarePhoto(SourceFailure):
    """A photo without annotations, where nobody may have looked at it."""


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One image of the index of a source.

    size: (height, width) if the source records it; annotations: in a form of the source's own; stamp: a hash that
    changes with the files or annotations of this image, so that a later build need not read unchanged images, "" if
    only the fingerprint of the whole source changes; whole: whether the annotations name its whole path.
    """

    image_id: int
    file_name: str
    path: str  # path below the source's root
    size: tuple[int, int] | None = None
    annotations: Any = None
    split: str = ""  # train | test if the source fixes it; "": the recipe's `data.split` decides
    crop: tuple[int, int, int, int] | None = None  # x0, y0, x1, y1 in pixels: the part of the photo that is used
    stamp: str = ""
    whole: bool = True


@dataclass(frozen=True)
class FetchedImage:
    """The bytes of an image file, and what its source needs to rasterise its masks."""

    data: bytes
    payload: Any = None


@dataclass(frozen=True)
class InstanceMask:
    """One instance: its class id, and its mask as COCO counts (`data.rle`)."""

    class_id: int
    rle: bytes
    iscrowd: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageMasks:
    """All instances of an image, its void pixels as counts (None: none), and the problems of single annotations."""

    instances: list[InstanceMask] = field(default_factory=list)
    void: bytes | None = None
    problems: list[str] = field(default_factory=list)

    def add_segmentation(self, what: str, class_id: int, segmentation: Any, height: int, width: int, *,
                         crowd: bool = False) -> None:
        """Add an instance given as in COCO files (polygons or RLE), rasterised as pycocotools does.

        What is malformed in it is listed as a problem of `what`.
        """
        pieces: list[str] = []
        try:
            counts = rle.from_coco(segmentation, height, width, pieces)
            empty = rle.area(counts, height, width) == 0
        except ValueError as error:
            self.problems.append(f"{what}: {error}")
            return
        self.problems.extend(f"{what}: {piece}" for piece in pieces)
        if empty:
            self.problems.append(f"{what}: empty mask")
        else:
            self.instances.append(InstanceMask(class_id, counts, crowd))


class Source(ABC):
    """Labelled images.

    classes: names; the position of a class is its id, which is stable for the same dataset; fold_table: the fold of
    each class if a benchmark fixes it (`NO_FOLD`: trained, never tested); fingerprint: a hash that changes with the
    source.
    upright: whether this format's tools show photos by their EXIF orientation (`decode.Orientation`).
    Workers get a pickled copy without the index, so it stays small.
    """

    upright = False

    def __init__(self, cfg: SourceConfig) -> None:
        self.cfg = cfg
        self.classes: list[str] = []
        self.fold_table: list[int] | None = None
        self.items: list[SourceImage] = []
        self.failures: list[SourceFailure] = []
        self.fingerprint = ""

    @classmethod
    def among(cls, cfg: SourceConfig, files: Mapping[str, int]) -> Self:
        """The source with `files` (path -> bytes) instead of those below the root, where photos are elsewhere.

        It has no bytes of photos: `payload` and `rasterise` work, `fetch` does not.
        """
        source = cls.__new__(cls)
        source.files = dict(files)
        cls.__init__(source, cfg)
        return source

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.__dict__.items() if k not in ("files", "photos")}
        return {**kept, "items": [], "failures": []}

    @property
    def store(self) -> Store:
        """The files below the root."""
        return Store(self.cfg.root)

    @cached_property
    def files(self) -> dict[str, int]:
        """Path -> bytes of every file below the root, on the driver. Raises `FssError` if there is none.

        Files whose names are not UTF-8, as old archives have them, are failures: no table could name them.
        """
        found = listing(self.store)
        for name in [n for n in found if shown_text(n) != n]:
            del found[name]
            self.fail(shown_text(name), "the name of this file is not UTF-8: rename it")
        return found

    @cached_property
    def photos(self) -> FileFinder:
        """Finds the photos among `files` by the names that annotations give them."""
        return FileFinder(f for f in self.files if is_photo(f))

    def photo_sizes(self) -> list[tuple[str, int]]:
        """(path, bytes) of the photos of the index, by which a change of one is noticed."""
        return [(i.path, self.files[i.path]) for i in self.items]

    def check_ids(self) -> None:
        """Raise `FssError` if two photos of the index have the same image id."""
        seen: dict[int, str] = {}
        for item in self.items:
            other = seen.setdefault(item.image_id, item.file_name)
            if other != item.file_name:
                raise FssError(f"photos {other} and {item.file_name} have the same image id", hint="rename one of them")

    def drop_repeated(self) -> None:
        """Keep one record of every photo: the first that names its whole path, else the first.

        The others become failures, as either could be right. One that only ends like the photo is told to be missing.
        """
        best: dict[str, SourceImage] = {}
        for item in self.items:
            if item.path not in best or (item.whole and not best[item.path].whole):
                best[item.path] = item
        for item in self.items:
            other = best[item.path]
            if item is other:
                continue
            reason = f"another record has this photo already ({other.file_name})"
            if other.whole and not item.whole:
                reason = f"this photo is missing; {other.path} only ends like it, and another record names that in full"
            self.fail(item.file_name, reason)
        self.items = [item for item in self.items if best[item.path] is item]

    def fail(self, name: str, reason: str, kind: type[SourceFailure] = SourceFailure) -> None:
        """List a photo or an annotation file of this name as a failure of the index."""
        self.failures.append(kind(name, "index", reason))

    def add(self, path: str, annotations: Any, *facts: object, name: str = "", **more: Any) -> None:
        """Add the photo at `path` to the index, called `name` (default: its path).

        facts: what changes with its annotations, where these do not say it; more: other fields of `SourceImage`.
        """
        name = name or path
        self.items.append(SourceImage(image_id=hashed_id(name), file_name=name, path=path, annotations=annotations,
                                      stamp=digest_of(self.files[path], *(facts or (annotations,))), **more))

    @property
    def orientation(self) -> Orientation:
        """How photos with an EXIF orientation are read: by `data.source.exif`, else by the format."""
        if self.cfg.exif != "auto":
            return self.cfg.exif
        return "upright" if self.upright else "recorded"

    def fetch(self, item: SourceImage) -> FetchedImage:
        """Read the files of one image. Raises `FssError` if one cannot be read."""
        return FetchedImage(self.read_photo(item.path), self.payload(item))

    def payload(self, item: SourceImage) -> Any:
        """What `rasterise` needs beside the photo. Raises `FssError` if a file cannot be read."""
        return item.annotations

    def read_photo(self, path: str) -> bytes:
        """The bytes of a photo below the root, or at a URL of a bucket. Raises `FssError` if it cannot be read."""
        return Store(path).read_bytes() if in_bucket(path) else self.store.read_bytes(path)

    def annotated_size(self, item: SourceImage, fetched: FetchedImage) -> tuple[int, int] | None:
        """(height, width) that the annotations refer to, None if it is unknown before decoding. Raises `BadImage`."""
        return item.size

    @abstractmethod
    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """The masks of an image of `height` x `width` pixels."""


def listing(store: Store) -> dict[str, int]:
    """Relative path -> size in bytes of every file below a root, in path order, without junk (`is_junk`).

    Linked folders are followed, because datasets often share photos by links. Raises `FssError` if there is no file.
    """
    found = files_below(store)
    if not found:
        raise FssError("no such folder, or it is empty", where=store.url, hint="check data.source.root")
    return found


def hashed_id(name: str) -> int:
    """An image id that depends on the name alone: 48 bits of its hash. Adding photos does not change other ids."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16)


def digest_of(*parts: object) -> str:
    """The sha256 over the `repr` of the parts, in hex."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(repr(part).encode())
        hasher.update(b"\0")
    return hasher.hexdigest()


def unread_pictures(store: Store) -> list[SourceFailure]:
    """A failure for each picture below a root whose format is not read, such as a camera's raw file."""
    return [SourceFailure(name, "index", "photos of this format are not read: save it as JPEG or PNG")
            for name in files_below(store) if name.lower().endswith(UNREAD_SUFFIXES)]


def in_bucket(name: str) -> bool:
    """Whether the name of a photo is its URL in a bucket. Other URLs are not read: annotations may come from anyone."""
    scheme, mark, _ = name.partition("://")
    return bool(mark) and scheme in SCHEMES and scheme != "memory"
