"""All files below a local folder or a bucket's prefix, as a stream in path order, through linked folders too.

Object stores are listed page by page, so that the memory does not grow with their number. Junk (`is_junk`) is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fss_models.errors import FssError
from pipelines.base.junk import is_junk
from pipelines.base.storage import Store

_AZURE_PAGE = 5000
_VERSIONS = ("ETag", "etag", "LastModified", "last_modified", "mtime")  # of a folder's entries, by filesystem


class File(NamedTuple):
    """A file: its path below the root, its size in bytes, and what changes when it is written again.

    version: an object's ETag, a local file's time of change in nanoseconds; "" where the store tells neither
    """

    path: str
    size: int
    version: str = ""


class OutOfOrderError(Exception):
    """The store does not list its objects by name, as some do that keep folders: list it folder by folder."""


def files_below(store: Store) -> dict[str, int]:
    """Relative path -> size in bytes of every file below a URL, in path order, without junk (`is_junk`).

    Linked folders are followed, because people share photos by links; a link to a folder above itself is not. A link
    to nothing is a file of 0 bytes, which cannot be read. Empty if there is no file. Raises `FssError` for a folder or
    prefix that cannot be listed.
    """
    try:
        return {one.path: one.size for one in iter_files(store)}
    except OutOfOrderError:
        return {one.path: one.size for one in iter_files(store, by_folder=True)}


def iter_files(store: Store, *, prefix: str = "", after: str = "", by_folder: bool = False) -> Iterator[File]:
    """The files of `files_below` in path order, one page or folder in memory at a time.

    prefix: only paths that begin with it; after: only paths behind it; by_folder: for stores that raise
    `OutOfOrderError` otherwise. Raises `FssError` as `files_below` does.
    """
    span = _Span(prefix, after)
    try:
        if store.is_local:
            yield from _local_files(Path(store.url), "", frozenset(), span)
        elif by_folder or store.scheme not in _PAGES:
            yield from _by_folder(store, "", span)
        else:
            yield from _flat(store, span)
    except OSError as error:
        raise FssError(f"cannot be listed: {error.strerror}", where=str(error.filename or store.url)) from error


@dataclass(frozen=True)
class _Span:
    """The paths that are wanted: those with a prefix, behind another path."""

    prefix: str
    after: str

    def __contains__(self, path: str) -> bool:
        return path.startswith(self.prefix) and path > self.after and not is_junk(path)

    def enters(self, folder: str) -> bool:
        """Whether any path below a folder, which ends in a slash, may be wanted."""
        fits = folder.startswith(self.prefix) or self.prefix.startswith(folder)
        return fits and (folder > self.after or self.after.startswith(folder))


def _local_files(folder: Path, prefix: str, above: frozenset[str], span: _Span) -> Iterator[File]:
    """The files of a folder. `above`: the real parent folders, whose links are skipped."""
    here = os.path.realpath(folder)
    if here in above or not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        found = sorted((f"{prefix}{e.name}/" if e.is_dir() else f"{prefix}{e.name}", e) for e in entries
                       if not is_junk(e.name))
    for path, entry in found:
        if path.endswith("/"):
            if span.enters(path):
                yield from _local_files(Path(entry.path), path, above | {here}, span)
        elif path not in span:
            continue
        elif entry.is_file():
            about = entry.stat()
            yield File(path, about.st_size, str(about.st_mtime_ns))
        elif entry.is_symlink() and not os.path.exists(entry.path):
            yield File(path, 0)  # to nothing


def _by_folder(store: Store, folder: str, span: _Span) -> Iterator[File]:
    try:
        listed = store._try("list", folder, lambda: store.fs.ls(store.path(folder), detail=True))
    except FssError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return
        raise
    found, here = [], f"{store._root}/{folder}".rstrip("/")
    for one in listed:
        name = str(one["name"]).rstrip("/")
        if name != here and not is_junk(path := store._relative(name)):
            version = next((str(one[k]) for k in _VERSIONS if one.get(k)), "")
            found.append(File(f"{path}/" if one["type"] == "directory" else path, int(one["size"] or 0), version))
    for file in sorted(found):
        if file.path.endswith("/"):
            if span.enters(file.path):
                yield from _by_folder(store, file.path, span)
        elif file.path in span:
            yield file


def _flat(store: Store, span: _Span) -> Iterator[File]:
    """The objects of a bucket, page by page. Raises `OutOfOrderError` unless they come in the order of their paths."""
    bucket, _, folder = store._root.partition("/")
    base = f"{folder}/" if folder else ""
    last = ""
    for page in _PAGES[store.scheme](store, bucket, base, span):
        for one in page:
            path = one.path.removeprefix(base)
            if path < last:
                raise OutOfOrderError
            last = path
            if path in span and not path.endswith("/"):
                yield one._replace(path=path)


def _s3_pages(store: Store, bucket: str, base: str, span: _Span) -> Iterator[Iterable[File]]:
    begin: dict[str, str] = {"StartAfter": base + span.after} if span.after else {}
    while True:
        page = store._try("list", "", partial(
            store.fs.call_s3, "list_objects_v2", Bucket=bucket, Prefix=base + span.prefix, **begin))
        yield [File(one["Key"], int(one["Size"]), str(one.get("ETag", ""))) for one in page.get("Contents", [])]
        if not page.get("IsTruncated"):
            return
        begin = {"ContinuationToken": page["NextContinuationToken"]}


def _google_pages(store: Store, bucket: str, base: str, span: _Span) -> Iterator[Iterable[File]]:
    more: dict[str, str] = {"startOffset": base + span.after} if span.after else {}
    while True:
        page = store._try("list", "", partial(
            store.fs.call, "GET", "b/{}/o", bucket, prefix=base + span.prefix, json_out=True,
            fields="items(name,size,etag),nextPageToken", **more))
        yield [File(one["name"], int(one["size"]), str(one.get("etag", ""))) for one in page.get("items", [])]
        if not page.get("nextPageToken"):
            return
        more = {**more, "pageToken": page["nextPageToken"]}


def _azure_pages(store: Store, bucket: str, base: str, span: _Span) -> Iterator[Iterable[File]]:
    from fsspec.asyn import sync

    async def page_at(token: str | None) -> tuple[list[File], str | None]:
        async with store.fs.service_client.get_container_client(bucket) as container:
            pages: Any = container.list_blobs(name_starts_with=base + span.prefix, results_per_page=_AZURE_PAGE)
            pages = pages.by_page(continuation_token=token)
            async for page in pages:
                files = [File(one.name, int(one.size), str(one.etag or "")) async for one in page]
                return files, pages.continuation_token
        return [], None

    token: str | None = None
    while True:
        page, token = store._try("list", "", partial(sync, store.fs.loop, page_at, token))
        yield page
        if not token:
            return


_PAGES = {"s3": _s3_pages, "gs": _google_pages, "az": _azure_pages}
