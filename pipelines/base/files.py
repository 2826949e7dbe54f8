"""All files below a local folder or S3 prefix, without junk, through linked folders too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fss_models.errors import FssError
from pipelines.base.junk import is_junk
from pipelines.base.storage import Store


def files_below(store: Store) -> dict[str, int]:
    """Relative path -> size in bytes of every file below a URL, in path order, without junk (`is_junk`).

    Linked folders are followed, because people share photos by links; a link to a folder above itself is not. A link
    to nothing is a file of 0 bytes, which cannot be read. Empty if there is no file. Raises `FssError` for a folder or
    prefix that cannot be listed.
    """
    try:
        files = store.sizes().items() if store.is_s3 else _local_files(Path(store.url), "", frozenset())
        return dict(sorted((name, size) for name, size in files if not is_junk(name)))
    except OSError as error:
        raise FssError(f"cannot be listed: {error.strerror}", where=str(error.filename or store.url)) from error


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
            elif entry.is_symlink() and not os.path.exists(entry.path):
                yield f"{prefix}{entry.name}", 0
