"""Files at a URL, which is a local path, `s3://`, `gs://` or `az://`: one interface with atomic writes and retries.

`filesystems` says how credentials are found. A local file is written under a hidden name, then renamed; an object in a
bucket appears whole or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from fss_models.errors import FssError
from pipelines.base.filesystems import open_filesystem, pyarrow_filesystem, scheme_of
from pipelines.base.storage_errors import explain, first_line, is_damage, is_transient

log = logging.getLogger(__name__)
T = TypeVar("T")
Names = list[str]


def join(url: str, *parts: str) -> str:
    """A URL with parts appended: `join("s3://b/x", "y", "z")` is `s3://b/x/y/z`."""
    return "/".join([url.rstrip("/"), *(p.strip("/") for p in parts if p)])


def json_bytes(value: Any) -> bytes:
    """A JSON file's content, with sorted keys."""
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


class Store:
    """Files below one URL, or one file. Paths are relative to the URL; an empty path is the URL itself.

    Methods raise `FssError` with one line for a missing file, refused credentials, an unreachable endpoint or a full
    disk.
    """

    def __init__(
        self, url: str, *, attempts: int | None = None, hashes: Mapping[str, str] | None = None
    ) -> None:
        self.scheme = scheme_of(url)  # "": local
        self.url = url.rstrip("/") if self.scheme else _local(url.removeprefix("file://"))
        self.hashes = hashes or {}  # relative path -> content hash, for the error line about a damaged file
        self._attempts = attempts or int(os.environ.get("FSS_STORAGE_ATTEMPTS", str(ATTEMPTS)))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store, (self.url,))

    @cached_property
    def fs(self) -> Any:
        """The fsspec filesystem of this URL."""
        return open_filesystem(self.scheme, self.url)

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine, or mounted here."""
        return not self.scheme

    @property
    def is_s3(self) -> bool:
        """Whether the files are in a bucket with S3's protocol."""
        return self.scheme == "s3"

    def path(self, relative: str = "") -> str:
        """The full path or URL of a file below this URL."""
        return join(self.url, relative) if relative else self.url

    @property
    def name(self) -> str:
        """The last part of the URL: the name of a file, of a folder, or of a bucket."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Store:
        """The folder that this URL is in."""
        folder = self.url.rpartition("/")[0]
        return Store(f"{folder}/" if folder.endswith(":/") else folder or "/")

    def read_bytes(self, relative: str = "") -> bytes:
        """Content of a file."""
        return bytes(self._try("read", relative, lambda: self.fs.cat_file(self.path(relative))))

    def read_range(self, relative: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` (not included) of a file."""
        return bytes(self._try("read", relative, lambda: self.fs.cat_file(self.path(relative), start, end)))

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Write a file atomically: readers see the old file or the new one, never a part."""
        with self.atomic(relative) as write:
            write(data)

    @contextmanager
    def atomic(self, relative: str) -> Iterator[Callable[[bytes], None]]:
        """Yield a function that replaces the file atomically."""
        yield lambda data: self._try("write", relative, lambda: self._put(self.path(relative), data))

    def read_json(self, relative: str = "") -> Any:
        """The parsed JSON file. Raises `FssError` naming the file if it is not valid JSON."""
        try:
            return json.loads(self.read_bytes(relative))
        except ValueError as error:
            raise FssError(f"is not valid JSON: {error}", where=self.path(relative)) from error

    @contextmanager
    def stream(self, relative: str) -> Iterator[BinaryIO]:
        """Open a file for writing piece by piece, when it is too large for memory; it appears whole or not at all."""
        try:
            with self._stream_of(relative) as out:
                yield out
        except FssError:
            raise
        except OSError as error:
            raise explain(error, "write", self.path(relative)) from error

    def _stream_of(self, relative: str) -> AbstractContextManager[BinaryIO]:
        if self.is_local:
            return _stream_local(Path(self.path(relative)))
        return self._stream_s3(relative) if self.is_s3 else self._stream_upload(relative)

    @contextmanager
    def _stream_upload(self, relative: str) -> Iterator[BinaryIO]:
        """Collect the file on this machine's disk and send it whole: closing a file half-way would publish it."""
        with tempfile.NamedTemporaryFile(prefix="fss-upload-") as file:
            yield cast(BinaryIO, file)
            file.flush()
            self._try("write", relative, lambda: self.fs.put_file(file.name, self.path(relative)))

    @contextmanager
    def _stream_s3(self, relative: str) -> Iterator[BinaryIO]:
        out = self._try("open", relative, lambda: self.fs.open(self.path(relative), "wb", autocommit=False))
        call = out._call_s3  # each request is retried by itself: a large file is not lost with one of its parts
        out._call_s3 = lambda *args, **named: self._try("write", relative, lambda: call(*args, **named))
        try:
            yield out
            out.close()
            self._try("write", relative, out.commit)
        except BaseException:
            out.discard()
            raise

    def write_json(self, relative: str, value: Any) -> None:
        """Write JSON atomically, with sorted keys."""
        self.write_bytes(relative, json_bytes(value))

    def read_table(self, relative: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file as a table, with all columns or those in `columns`."""
        return self._try("read", relative, lambda: self._read_table(self.path(relative), columns))

    def write_table(self, relative: str, table: pa.Table, *, row_group_size: int | None = None) -> None:
        """Write a Parquet file atomically."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=row_group_size, compression="zstd")
        self.write_bytes(relative, sink.getvalue().to_pybytes())

    def open_parquet(self, relative: str) -> ParquetReader:
        """Open a Parquet file for reading single row groups; the caller closes it."""
        return ParquetReader(self, relative)

    def exists(self, relative: str = "") -> bool:
        """Whether a file exists, or anything below a prefix."""
        return bool(self._try("look for", relative, lambda: self.fs.exists(self.path(relative))))

    def size(self, relative: str) -> int:
        """Size of a file in bytes."""
        return int(self._try("look at", relative, lambda: self.fs.info(self.path(relative))["size"]))

    def buckets(self) -> tuple[str, ...]:
        """Names of all buckets that these credentials may list at the endpoint. Only for the URL `s3://`."""
        return tuple(self._try("list", "", lambda: self.fs.ls("", detail=False)))

    def list(self, relative: str = "", *, suffix: str = "") -> Names:
        """Relative paths of all files below `relative`, sorted; empty if there are none."""
        try:
            found = self._try("list", relative, lambda: self.fs.find(self.path(relative)))
        except FssError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        names = (self._relative(f) for f in found)
        return sorted(n for n in names if n.endswith(suffix) and not Path(n).name.startswith(".tmp-"))

    def sizes(self, relative: str = "") -> dict[str, int]:
        """Relative path -> bytes of all files below `relative`, in one listing. Raises `FssError` if there is none."""
        found = self._try("list", relative, lambda: self.fs.find(self.path(relative), detail=True))
        rows = ((self._relative(path), int(about["size"] or 0)) for path, about in found.items())
        return {n: size for n, size in rows if not Path(n).name.startswith(".tmp-")}

    @property
    def _root(self) -> str:
        """The URL as the filesystem writes it."""
        return str(self.fs._strip_protocol(self.url))

    def _relative(self, found: str) -> str:
        return str(self.fs._strip_protocol(found)).removeprefix(self._root.rstrip("/") + "/")

    def delete(self, relative: str = "") -> None:
        """Remove a file, or everything below a prefix; does nothing if there is none."""
        if self.exists(relative):
            self._try("delete", relative, lambda: self.fs.rm(self.path(relative), recursive=True))

    def pyarrow(self) -> tuple[pa.fs.FileSystem, str]:
        """This URL for pyarrow and Ray: (filesystem, path in it)."""
        filesystem = pyarrow_filesystem(self.scheme, self.url, self.fs, self._attempts)
        return filesystem, self.url if self.is_local else self._root

    def _put(self, path: str, data: bytes) -> None:
        if not self.is_local:
            self.fs.pipe_file(path, data)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        hidden = target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")
        try:
            with hidden.open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            hidden.replace(target)
        except BaseException:
            with suppress(OSError):
                hidden.unlink()
            raise

    def _read_table(self, path: str, columns: Names | None) -> pa.Table:
        with self._open_parquet(path) as file:
            return pq.read_table(file, columns=columns, page_checksum_verification=True, use_threads=self.is_local)

    def _open_parquet(self, path: str, **cache: Any) -> Any:
        """A file for pyarrow, whose threads may still hold it when the interpreter ends.

        A file object of Python's then aborts or hangs the process (apache/arrow#34314), so local files are Arrow's own.
        `cache`: of a file on S3.
        """
        return pa.OSFile(path) if self.is_local else self.fs.open(path, "rb", **cache)

    def _try(self, verb: str, relative: str, call: Callable[[], T]) -> T:
        retrying = Retrying(
            stop=stop_after_attempt(1 if self.is_local else self._attempts),
            wait=wait_exponential_jitter(initial=0.2, max=10),
            retry=retry_if_exception(is_transient),
            before_sleep=lambda state: _log_retry(verb, self.path(relative), state),
            reraise=True,
        )
        try:
            return retrying(call)
        except FssError:
            raise
        except Exception as error:
            if is_damage(error):
                known = self.hashes.get(relative, "")[:16]
                what = f"is not a readable Parquet file{f' any more (content hash {known})' if known else ''}"
                raise FssError(f"{what}: {first_line(error)}", where=self.path(relative), hint=(
                    "build the shards again with --force" if known else "delete it and build it again")) from error
            raise explain(error, verb, self.path(relative)) from error


class ParquetReader:
    """Row groups of one Parquet file. After a transient failure the file is opened again and the read is repeated.

    Page checksums are verified where the file has them. Raises `FssError` as `Store` does.
    """

    def __init__(self, store: Store, relative: str) -> None:
        self._store, self._relative = store, relative
        self._file: pq.ParquetFile = store._try("open", relative, self._open)

    @property
    def num_row_groups(self) -> int:
        """Number of row groups of the file."""
        return int(self._file.num_row_groups)

    @property
    def schema_arrow(self) -> pa.Schema:
        """Arrow schema of the file."""
        return self._file.schema_arrow

    def read_row_group(self, group: int, columns: list[str] | None = None) -> pa.Table:
        """Row group number `group`, with all columns or those in `columns`."""
        return self._store._try("read", self._relative, lambda: self._read(group, columns))

    def read_row_groups(self, groups: Sequence[int], columns: list[str] | None = None) -> pa.Table:
        """Several row groups as one table, in the order of `groups`; read in this thread, which costs the least CPU."""
        return self._store._try("read", self._relative, lambda: self._read(groups, columns))

    def close(self) -> None:
        """Close the file."""
        self._file.close(force=True)

    def _open(self) -> pq.ParquetFile:
        # No read-ahead: pyarrow requests whole column chunks, and often only one row group is read.
        file = self._store._open_parquet(self._store.path(self._relative), cache_type="none")
        return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=True)

    def _read(self, which: int | Sequence[int], columns: list[str] | None) -> pa.Table:
        try:
            if isinstance(which, int):
                return self._file.read_row_group(which, columns=columns)
            return self._file.read_row_groups(list(which), columns=columns, use_threads=False)
        except OSError:
            self._file = self._open()  # for the next attempt
            raise

    def __enter__(self) -> ParquetReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _local(path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise FssError(f"{path.partition('/')[0]!r} has no home folder", where=path,
                       hint=f"for a file of this name, write ./{path}") from error


@contextmanager
def _stream_local(target: Path) -> Iterator[BinaryIO]:
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        with hidden.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        hidden.replace(target)
    finally:
        hidden.unlink(missing_ok=True)


ATTEMPTS = 12  # over a minute of waiting in all: a store that is away for a minute fails no run


def _log_retry(verb: str, path: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("cannot %s %s yet (attempt %d: %s)", verb, path, state.attempt_number, error)
