"""Which photos a job labels: everything under a URL with the suffix of a photo, sorted, numbered from 1."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fss_models.errors import FssError
from pipelines.serving.masks import Failure
from pipelines.storage import Store

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageList:
    """Names relative to the URL and sizes in bytes. The id of `names[i]` is i + 1."""

    url: str
    names: list[str]
    sizes: list[int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def hash(self) -> str:
        """Changes with any name, size or order."""
        digest = hashlib.sha256()
        for name, size in zip(self.names, self.sizes, strict=True):
            digest.update(f"{name}\0{size}\n".encode())
        return digest.hexdigest()[:16]


def list_images(url: str, limit: int = 0) -> ImageList:
    """All photos under `url` (the first `limit`, if given). Raises `FssError` if there are none."""
    store = Store(url)
    if not store.exists():
        raise FssError("does not exist", where=url, mend="check the path or URL of --images")
    found = sorted((n, s) for n, s in store.sizes().items() if n.lower().endswith(SUFFIXES) and not _hidden(n))
    if not found:
        raise FssError("holds no photos", where=url, mend=f"their names end in {', '.join(SUFFIXES)}")
    found = found[:limit] if limit else found
    return ImageList(store.url, [n for n, _ in found], [s for _, s in found])


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


class Reader:
    """Reads photos by threads. A photo that has gone is a `Failure`; a store that cannot be reached is an error."""

    def __init__(self, images: ImageList, *, max_bytes: int, threads: int) -> None:
        self._images, self._max, self._store = images, max_bytes, Store(images.url)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")

    def read(self, rows: Sequence[int]) -> list[bytes | Failure]:
        """The bytes of the photos `rows` (counted from 0), in order."""
        return list(self._pool.map(self._one, rows))

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, row: int) -> bytes | Failure:
        if self._images.sizes[row] > self._max:
            return Failure(reason=f"{self._images.sizes[row]} bytes, more than {self._max}", stage="read")
        try:
            return self._store.read_bytes(self._images.names[row])
        except FssError as error:
            lost = FileNotFoundError if self._store.is_s3 else OSError
            if isinstance(error.__cause__, lost):
                return Failure(reason=error.what, stage="read")
            raise
