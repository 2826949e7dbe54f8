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
    """A published list file: its unpacked bytes and where it was found."""

    data: bytes
    where: str

    @property
    def sha256(self) -> str:
        """sha256 of the unpacked bytes, which identifies the edition of a list."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def text(self) -> str:
        """The file as UTF-8 text. Raises `FssError` if it is not UTF-8."""
        try:
            return self.data.decode()
        except UnicodeDecodeError as error:
            raise FssError("this file is not UTF-8 text", where=self.where) from error


def find_list(root: str, *names: str) -> ListFile:
    """The first existing file of `names`, each also with .gz, below `root`. Raises `FssError` if there is none."""
    store = Store(root)
    for name in names:
        for path in (name, f"{name}.gz"):
            if store.exists(path):
                return ListFile(_unpacked(store.read_bytes(path), path, store.path(path)), store.path(path))
    raise FssError("no such list file", where=store.path(names[0]),
                   hint=f"put {' or '.join(names)}, also with .gz, below the folder of the lists")


def _unpacked(data: bytes, path: str, where: str) -> bytes:
    if not path.endswith(".gz"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise FssError(f"the gzip file is damaged: {error}", where=where) from error
