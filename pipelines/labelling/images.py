"""The photos of a job: all files below a URL with the suffix of a photo, sorted by name and numbered from 1."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.inference.masks import PhotoFailure

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
LOST = (FileNotFoundError, PermissionError, IsADirectoryError)  # errors of one photo; all others are of the disk


@dataclass(frozen=True)
class ImageList:
    """The photos below `url`: names relative to it, and sizes in bytes. The id of `names[i]` is i + 1."""

    url: str
    names: list[str]
    sizes: list[int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def hash(self) -> str:
        """16 hex digits: the hash of the names and sizes, in order."""
        digest = hashlib.sha256()
        for name, size in zip(self.names, self.sizes, strict=True):
            digest.update(f"{name}\0{size}\n".encode())
        return digest.hexdigest()[:16]


def list_images(url: str, limit: int = 0, *, outs: Sequence[str] = ()) -> ImageList:
    """All photos below `url` (the first `limit`, 0: all), without those in `outs`, the folders of jobs.

    Raises `FssError` if there are none, and for a name that is not UTF-8.
    """
    store = Store(url)
    if not store.exists():
        raise FssError("does not exist", where=url, hint="check the path or URL of --images")
    written = tuple(f"{place}/" for out in outs if (place := _within(store, Store(out))))
    found = sorted((n, s) for n, s in store.sizes().items()
                   if n.lower().endswith(SUFFIXES) and not _hidden(n) and not n.startswith(written))
    if not found:
        raise FssError("holds no photos", where=url, hint=f"names of photos end in {', '.join(SUFFIXES)}")
    found = found[:limit] if limit else found
    odd = next((n for n, _ in found if not _is_utf8(n)), None)
    if odd is not None:
        raise FssError(f"the file name {odd!r} is not UTF-8", where=url, hint="rename the file")
    return ImageList(store.url, [n for n, _ in found], [s for _, s in found])


def check_out(url: str, out: str) -> None:
    """Raises `FssError` if `out` is the folder of the photos, where outputs would be taken for photos."""
    if _within(Store(url), Store(out)) == ".":
        raise FssError("is the folder of --images", where=out, hint="choose another --out; a folder below it is fine")


def _within(outer: Store, inner: Store) -> str:
    """The path of `inner` relative to `outer`; "." if they are the same, "" if `inner` is not below `outer`."""
    here, there = (PurePosixPath(s.url if s.is_s3 else os.path.realpath(s.url)) for s in (outer, inner))
    return str(there.relative_to(here)) if there.is_relative_to(here) else ""


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


class PhotoReader:
    """Reads photos in threads. A missing or forbidden photo gives a `PhotoFailure`; a failing store raises."""

    def __init__(self, images: ImageList, *, max_bytes: int, threads: int) -> None:
        self._images, self._max, self._store = images, max_bytes, Store(images.url)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")

    def read(self, rows: Sequence[int]) -> list[bytes | PhotoFailure]:
        """For each photo of `rows` (counted from 0), in order: its bytes, or why it cannot be read."""
        return list(self._pool.map(self._one, rows))

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, row: int) -> bytes | PhotoFailure:
        if self._images.sizes[row] > self._max:
            return PhotoFailure(reason=f"{self._images.sizes[row]} bytes, more than {self._max}", stage="read")
        try:
            return self._store.read_bytes(self._images.names[row])
        except FssError as error:
            if isinstance(error.__cause__, FileNotFoundError if self._store.is_s3 else LOST):
                return PhotoFailure(reason=error.what, stage="read")
            raise
