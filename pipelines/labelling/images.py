"""The photos of a job: all files below a URL with the suffix of a photo, sorted by name and numbered from 1."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, overload

import numpy as np
import pyarrow as pa

from fss_models.errors import FssError
from fss_models.photo_files import PHOTO_SUFFIXES, UNREAD_SUFFIXES, is_photo
from pipelines.base.files import files_below
from pipelines.base.storage import Store
from pipelines.inference.masks import PhotoFailure

UNREAD = "unread.json"
SHOWN = 6  # suffixes in a line about files that are left out
LOST = (FileNotFoundError, PermissionError, IsADirectoryError)  # errors of one photo; all others are of the disk


class Names(Sequence[str]):
    """Names in the memory of their characters, since a job may have millions; actors share one copy a machine."""

    def __init__(self, names: Iterable[str]) -> None:
        self._all = pa.array(names, pa.large_string())

    def __len__(self) -> int:
        return len(self._all)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        found: str | list[str] = self._all[at].to_pylist() if isinstance(at, slice) else self._all[at].as_py()
        return found

    def __iter__(self) -> Iterator[str]:
        return (one.as_py() for one in self._all)


@dataclass(frozen=True)
class ImageList:
    """The photos below `url`: names relative to it, and sizes in bytes. The id of `names[i]` is i + 1.

    unread: names of pictures whose format is not read; others: suffix -> number of the files that are no pictures.
    """

    url: str
    names: Sequence[str]
    sizes: Sequence[int] = field(repr=False)
    unread: list[str] = field(default_factory=list, repr=False)
    others: dict[str, int] = field(default_factory=dict, repr=False)

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
    """All photos below `url` (the first `limit`, 0: all), without junk and those in `outs`, the folders of jobs.

    Linked folders are followed. Raises `FssError` if there are none, and for a name that is not UTF-8.
    """
    store = Store(url)
    if not store.exists():
        raise FssError("does not exist", where=url, hint="check the path or URL of --images")
    written = tuple(f"{place}/" for out in outs if (place := _within(store, Store(out))))
    files = files_below(store)
    rest = [n for n in files if not is_photo(n) and not n.startswith(written)]
    found = [n for n in files if is_photo(n) and not n.startswith(written)]
    unread = [n for n in rest if n.lower().endswith(UNREAD_SUFFIXES)]
    others = _suffixes(n for n in rest if not n.lower().endswith(UNREAD_SUFFIXES))
    if not found:
        held = f", but {_counted(_suffixes(rest))}" if rest else ""
        raise FssError(f"holds no photos{held}", where=url, hint=f"names of photos end in {', '.join(PHOTO_SUFFIXES)}")
    found = found[:limit] if limit else found
    odd = next((n for n in found if not _is_utf8(n)), None)
    if odd is not None:
        raise FssError(f"the file name {odd!r} is not UTF-8", where=url, hint="rename the file")
    sizes: Any = np.fromiter((files[n] for n in found), dtype=np.int64, count=len(found))
    return ImageList(store.url, Names(found), sizes, unread, dict(others))


def left_out(images: ImageList) -> list[str]:
    """Lines for people about the files that are not labelled, by suffix; none if there are none."""
    told = [f"left out: {_counted(_suffixes(images.unread))}, which are not read: save them as JPEG or PNG"]
    others = [f"left out, as they are no photos: {_counted(Counter(images.others))}"]
    return (told if images.unread else []) + (others if images.others else [])


def keep_unread(out: Store, images: ImageList) -> None:
    """Write the rows of failures.parquet about pictures whose format is not read into a job's folder."""
    if images.unread:
        out.write_json(UNREAD, [{"file_name": n, "stage": "read", "reason": "photos of this format are not read: save "
                                 "it as JPEG or PNG"} for n in images.unread])


def _suffixes(names: Iterable[str]) -> Counter[str]:
    return Counter(PurePosixPath(n).suffix.lower() for n in names)


def _counted(suffixes: Counter[str]) -> str:
    """Such as "3 .txt, 1 .json"; of many suffixes the most frequent ones."""
    shown = [f"{n} {suffix or 'without a suffix'}" for suffix, n in suffixes.most_common(SHOWN)]
    rest = sum(suffixes.values()) - sum(n for _, n in suffixes.most_common(SHOWN))
    return ", ".join([*shown, *([f"{rest} others"] if rest else [])])


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
