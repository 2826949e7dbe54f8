"""What a source of labelled images gives: a cheap index on the driver, and bytes and marks in the workers."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.config.data import SourceConfig


@dataclass(frozen=True)
class SourceFailure:
    """One row of failures.parquet. Stages: index, split, read, decode, annotate."""

    file_name: str
    stage: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One image of the index. `size` (height, width) where the source records it; the form of `annotations` is the source's own.

    `stamp`: changes when its files or its annotations do, so that a later build reads the other images no more; empty
    where only the whole source's fingerprint tells.
    """

    image_id: int
    file_name: str
    path: str  # below the source's root
    size: tuple[int, int] | None = None
    annotations: Any = None
    split: str = ""  # train | test where the source says it; empty: the recipe's hold-out decides
    crop: tuple[int, int, int, int] | None = None  # x0, y0, x1, y1: what is shown of the photo
    stamp: str = ""


@dataclass(frozen=True)
class FetchedImage:
    """The bytes of an image and what the source needs to mark it."""

    data: bytes
    payload: Any = None


@dataclass(frozen=True)
class InstanceMask:
    """One instance: its class and COCO counts."""

    class_id: int
    rle: bytes
    iscrowd: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageMasks:
    """All instances of an image, its void pixels as counts, and what was wrong with single ones."""

    instances: list[InstanceMask] = field(default_factory=list)
    void: bytes | None = None
    problems: list[str] = field(default_factory=list)


class Source(ABC):
    """Labelled images. The position of a class in `classes` is its id, stable for the same dataset.

    `fold_table` gives each class its fold where a benchmark fixes them (`NO_FOLD`: trained, never tested).

    Workers get a copy without the index, so it stays small on the wire.
    """

    def __init__(self, cfg: SourceConfig) -> None:
        self.cfg = cfg
        self.classes: list[str] = []
        self.fold_table: list[int] | None = None
        self.items: list[SourceImage] = []
        self.failures: list[SourceFailure] = []
        self.fingerprint = ""  # changes when the source does

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "items": [], "failures": []}

    @property
    def store(self) -> Store:
        """The files below the root."""
        return Store(self.cfg.root)

    def fetch(self, item: SourceImage) -> FetchedImage:
        """Read one image. Raises `FssError`."""
        return FetchedImage(self.store.read_bytes(item.path), item.annotations)

    def annotated_size(self, item: SourceImage, fetched: FetchedImage) -> tuple[int, int] | None:
        """(height, width) its annotations are for, where that is known before decoding. Raises `BadImage`."""
        return item.size

    @abstractmethod
    def rasterise(self, item: SourceImage, fetched: FetchedImage, height: int, width: int) -> ImageMasks:
        """The instances in an image of that size."""


def listing(store: Store) -> dict[str, int]:
    """Relative path -> bytes of every file below a root, in path order. Linked folders are followed (datasets often
    share their photos so). Raises `FssError` if there is none.
    """
    found = dict(sorted(store.sizes().items() if store.is_s3 else _local_files(Path(store.url), "", frozenset())))
    if not found:
        raise FssError("no such folder, or nothing in it", where=store.url, mend="check data.source.root")
    return found


def _local_files(folder: Path, prefix: str, above: frozenset[str]) -> Iterator[tuple[str, int]]:
    """(path below the root, bytes); `above`: the real folders on the way, so that a link to one of them ends."""
    here = os.path.realpath(folder)
    if here in above or not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _local_files(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
            elif entry.is_file() and not entry.name.startswith(".tmp-"):
                yield f"{prefix}{entry.name}", entry.stat().st_size


def hashed_id(name: str) -> int:
    """An image id that follows from the name alone (48 bits of its hash): adding photos moves no other."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16)


def digest_of(*parts: object) -> str:
    """A sha256 over the printed parts."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(repr(part).encode())
        hasher.update(b"\0")
    return hasher.hexdigest()


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def is_image(name: str) -> bool:
    """Whether a name looks like an image file."""
    return name.lower().endswith(IMAGE_SUFFIXES)
