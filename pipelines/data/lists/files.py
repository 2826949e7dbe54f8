"""Opening a published list file: plain or gzipped, local or s3://."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass

from fss_models.errors import FssError
from pipelines.base.storage import Store


@dataclass(frozen=True)
class ListFile:
    """A file as published (unpacked), where it was found, and its sha256."""

    data: bytes
    where: str

    @property
    def sha256(self) -> str:
        """Of the unpacked bytes: which edition of a list was read."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def text(self) -> str:
        """As UTF-8. Raises `FssError`."""
        try:
            return self.data.decode()
        except UnicodeDecodeError as error:
            raise FssError("is not a text file", where=self.where) from error


def find_list(root: str, *names: str) -> ListFile:
    """The first of `names` (or the same with .gz) below `root`. Raises `FssError` naming the first if none is there."""
    store = Store(root)
    for name in names:
        for path in (name, f"{name}.gz"):
            if store.exists(path):
                return ListFile(_unpacked(store.read_bytes(path), path, store.path(path)), store.path(path))
    raise FssError("no such list file", where=store.path(names[0]),
                   mend=f"looked for {', '.join(names)}, also with .gz, below the folder of the lists")


def _unpacked(data: bytes, path: str, where: str) -> bytes:
    if not path.endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise FssError(f"is not a whole gzip file: {error}", where=where) from error
