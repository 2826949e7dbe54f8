"""Reads the photos of a job: files, ranges of tar files, and URLs of the web.

A photo that is not there is a failure, and the job goes on. A store or network that is away stops the job, which can be
run again: photos must not become failures for good because a disk or a line failed for a moment.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.inference.masks import PhotoFailure
from pipelines.labelling.listing import ABOUT, ImageList, Photo, read_listing
from pipelines.labelling.manifest import PLAIN, JobManifest

LOST = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError)  # errors of one photo
NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)  # likewise; all others are of the disk
MOST_TOLD = 200  # characters of a reason, which may hold a name of any length
WEB = ("http://", "https://")
WEB_ATTEMPTS = 4  # about 4 seconds: of many URLs some are always dead
WEB_SECONDS = 120  # for one photo
PERHAPS = 8  # photos that cannot be reached before any could be, which shows that the network is away


class PhotoReader:
    """Reads photos in threads. A missing or forbidden photo gives a `PhotoFailure`; a failing store raises."""

    def __init__(self, images: ImageList, *, max_bytes: int, threads: int) -> None:
        self._images, self._max, self._store = images, max_bytes, Store(images.url)
        self._web = WebPhotos(max_bytes)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")

    def read(self, rows: Sequence[int]) -> list[bytes | PhotoFailure]:
        """For each photo of `rows` (counted from 0), in order: its bytes, or why it cannot be read."""
        return list(self._pool.map(self._one, rows))

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._web.close()

    def _one(self, row: int) -> bytes | PhotoFailure:
        return self.photo(self._images.photo(row))

    def photo(self, photo: Photo) -> bytes | PhotoFailure:
        """The bytes of a photo, or why it cannot be read."""
        if photo.size > self._max:
            return PhotoFailure(reason=f"{photo.size} bytes, more than {self._max}", stage="read")
        if photo.url.startswith(WEB):
            return self._web.read(photo.url)
        store, name = (Store(photo.url), "") if photo.url else (self._store, photo.name)
        try:
            if photo.start >= 0:
                return store.read_range(name, photo.start, photo.start + photo.size)
            if photo.size < 0 and (size := store.size(name)) > self._max:
                return PhotoFailure(reason=f"{size} bytes, more than {self._max}", stage="read")
            return store.read_bytes(name)
        except FssError as error:
            of_list = photo.size < 0  # of other people's buckets too, which may be closed
            if not _is_lost(error.__cause__, any_reason=store.is_local or of_list):
                raise
            return PhotoFailure(reason=error.what[:MOST_TOLD], stage="read")


def _is_lost(error: BaseException | None, *, any_reason: bool) -> bool:
    """Whether a photo cannot be read for a reason of its own; without `any_reason` only because it is not there."""
    if not any_reason:
        return isinstance(error, FileNotFoundError)
    no_name = type(error).__name__ == "ParamValidationError"  # of S3: no bucket can have this name
    return isinstance(error, LOST) or no_name or (isinstance(error, OSError) and error.errno in NO_NAMES)


def read_photo(out: Store, manifest: JobManifest, image_id: int, name: str) -> bytes:
    """The bytes of a photo of a job, whose folder is `out`. Raises `FssError` if it cannot be read.

    `image_id` says which one of a list or tar file it is, where several may share a name.
    """
    if manifest.inputs in PLAIN:
        return Store(manifest.images_url).read_bytes(name)
    listing = read_listing(out)
    found = listing.photo(image_id - 1) if listing and 1 <= image_id <= len(listing) else None
    if listing is None or found is None or found.name != name:
        raise FssError(f"the listing of the job has no photo {name!r}", where=out.path(ABOUT))
    reader = PhotoReader(listing, max_bytes=manifest.max_bytes, threads=1)
    try:
        data = reader.photo(found)
    finally:
        reader.close()
    if isinstance(data, PhotoFailure):
        raise FssError(f"cannot be read: {data.reason}", where=name)
    return data


class _AwayError(Exception):
    """A server does not answer, or not now."""


class WebPhotos:
    """Photos of the web, in several threads. A dead URL is a failure of its photo; a network that is away raises."""

    def __init__(self, max_bytes: int) -> None:
        self._max, self._lock = max_bytes, threading.Lock()
        self._client: httpx.Client | None = None
        self._good, self._unsure = "", 0  # a URL that was read; photos that could not be reached before any was

    def read(self, url: str) -> bytes | PhotoFailure:
        """The photo at a URL, or why it cannot be read."""
        again = Retrying(stop=stop_after_attempt(WEB_ATTEMPTS), wait=wait_exponential_jitter(initial=0.5, max=8),
                         retry=retry_if_exception_type(_AwayError), reraise=True)
        try:
            found = again(self._get, url)
        except _AwayError as error:
            self._check_network(url, error)
            return PhotoFailure(reason=f"cannot be reached: {error}", stage="read")
        if isinstance(found, bytes):
            self._good = url
        return found

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _open(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(follow_redirects=True, timeout=httpx.Timeout(30, connect=5))
            return self._client

    def _get(self, url: str) -> bytes | PhotoFailure:
        began, data = time.monotonic(), bytearray()
        try:
            with self._open().stream("GET", url) as answer:
                if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
                    raise _AwayError(f"HTTP {answer.status_code}")
                if answer.status_code != 200:
                    return PhotoFailure(reason=f"HTTP {answer.status_code}", stage="read")
                for piece in answer.iter_bytes():
                    data += piece
                    if len(data) > self._max:
                        return PhotoFailure(reason=f"more than {self._max} bytes", stage="read")
                    if time.monotonic() - began > WEB_SECONDS:
                        raise _AwayError(f"it takes longer than {WEB_SECONDS} s")
        except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.UnsupportedProtocol, UnicodeError) as error:
            return PhotoFailure(reason=f"the URL cannot be used: {error}", stage="read")
        except httpx.DecodingError as error:
            return PhotoFailure(reason=f"the answer cannot be unpacked: {error}", stage="read")
        except httpx.TransportError as error:
            raise _AwayError(str(error) or type(error).__name__) from error
        return bytes(data)

    def _check_network(self, url: str, error: Exception) -> None:
        """Raises `FssError` where it is not one server that is away: a URL that was read cannot be any more."""
        if self._good:
            try:
                self._get(self._good)
            except _AwayError:
                raise FssError(f"the network is away: {error}", where=url,
                               hint="run the same command again to continue") from error
            return
        self._unsure += 1
        if self._unsure >= PERHAPS:
            raise FssError(f"none of the first {PERHAPS} photos can be reached: {error}", where=url,
                           hint="check the network and the list, and run the same command again") from error
