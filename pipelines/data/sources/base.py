"""The interface of a source of labelled images: a cheap index on the driver, bytes and masks in the workers."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fss_models.errors import FssError
from pipelines.base.junk import is_junk
from pipelines.base.storage import Store
from pipelines.config.data import SourceConfig
from pipelines.data.decode import Orientation


@dataclass(frozen=True)
class SourceFailure:
    """One row of failures.parquet. `stage` is index, split, read, decode or annotate."""

    file_name: str
    stage: str
    reason: str


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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "items": [], "failures": []}

    @property
    def store(self) -> Store:
        """The files below the root."""
        return Store(self.cfg.root)

    @property
    def orientation(self) -> Orientation:
        """How photos with an EXIF orientation are read: by `data.source.exif`, else by the format."""
        if self.cfg.exif != "auto":
            return self.cfg.exif
        return "upright" if self.upright else "recorded"

    def fetch(self, item: SourceImage) -> FetchedImage:
        """Read the files of one image. Raises `FssError` if one cannot be read."""
        return FetchedImage(self.store.read_bytes(item.path), item.annotations)

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
    files = store.sizes().items() if store.is_s3 else _local_files(Path(store.url), "", frozenset())
    found = dict(sorted((name, size) for name, size in files if not is_junk(name)))
    if not found:
        raise FssError("no such folder, or it is empty", where=store.url, hint="check data.source.root")
    return found


def _local_files(folder: Path, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, int]]:
    """(path below the root, size in bytes) of every file. `above`: the real parent folders, whose links are skipped."""
    here = os.path.realpath(folder)
    if here in above or not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_junk(entry.name):
                continue
            if entry.is_dir():
                yield from _local_files(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
            elif entry.is_file():
                yield f"{prefix}{entry.name}", entry.stat().st_size


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


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def is_image(name: str) -> bool:
    """Whether a name looks like an image file."""
    return name.lower().endswith(IMAGE_SUFFIXES)
