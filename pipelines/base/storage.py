"""Files at a URL, which is a local path or `s3://`: one small interface with atomic writes and retries.

Credentials and endpoint come from the standard variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and
AWS_ENDPOINT_URL. A local file is written under a hidden name, then renamed; an S3 object appears whole or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from fss_models.errors import FssError

log = logging.getLogger(__name__)
T = TypeVar("T")
Names = list[str]
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError, FssError)
_SPACE = (28, 122)  # ENOSPC, EDQUOT
_DAMAGE = ("page integrity", "deserialize thrift", "end of stream", "decompress", "corrupt",
           "could not open parquet")  # in pyarrow's words


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
        if "://" in url and not url.startswith(("s3://", "file://")):
            raise FssError(f"unsupported URL {url!r}", hint="use a local path or s3://bucket/prefix")
        self.is_s3 = url.startswith("s3://")
        self.url = url.rstrip("/") if self.is_s3 else _local(url.removeprefix("file://"))
        self.hashes = hashes or {}  # relative path -> content hash, for the error line about a damaged file
        self._attempts = attempts or int(os.environ.get("FSS_STORAGE_ATTEMPTS", str(ATTEMPTS)))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store, (self.url,))

    @cached_property
    def fs(self) -> Any:
        """The fsspec filesystem of this URL."""
        if not self.is_s3:
            return fsspec.filesystem("file")
        # Cached listings would hide what another process has just written. fsspec reuses an instance for equal
        # arguments: the variables are passed as arguments, so that changed variables give a new connection.
        return fsspec.filesystem(
            "s3", use_listings_cache=False, config_kwargs=_S3_CONFIG, endpoint_url=os.environ.get("AWS_ENDPOINT_URL"),
            key=os.environ.get("AWS_ACCESS_KEY_ID"), secret=os.environ.get("AWS_SECRET_ACCESS_KEY"),
            token=os.environ.get("AWS_SESSION_TOKEN"), client_kwargs={"region_name": _region()})

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
        return Store("s3://" if folder == "s3:/" else folder or "/")

    def read_bytes(self, relative: str = "") -> bytes:
        """Content of a file."""
        return bytes(self._try("read", relative, lambda: self.fs.cat_file(self.path(relative))))

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
            with self._stream_s3(relative) if self.is_s3 else _stream_local(Path(self.path(relative))) as out:
                yield out
        except FssError:
            raise
        except OSError as error:
            raise _explain(error, "write", self.path(relative)) from error

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

    def _relative(self, found: str) -> str:
        root = self.path().removeprefix("s3://").rstrip("/") + "/"
        return found.removeprefix("s3://").removeprefix(root)

    def delete(self, relative: str = "") -> None:
        """Remove a file, or everything below a prefix; does nothing if there is none."""
        if self.exists(relative):
            self._try("delete", relative, lambda: self.fs.rm(self.path(relative), recursive=True))

    def pyarrow(self) -> tuple[pa.fs.FileSystem, str]:
        """This URL for pyarrow and Ray: (filesystem, path in it)."""
        if not self.is_s3:
            return pa.fs.LocalFileSystem(), self.url
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        scheme, _, host = endpoint.rpartition("://")
        options = {"endpoint_override": host, "scheme": scheme or "https"} if host else {}
        filesystem = RetryingS3(self._attempts, {"region": _region(), **options})
        return filesystem, self.url.removeprefix("s3://")

    def _put(self, path: str, data: bytes) -> None:
        if self.is_s3:
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
            return pq.read_table(file, columns=columns, page_checksum_verification=True, use_threads=not self.is_s3)

    def _open_parquet(self, path: str, **cache: Any) -> Any:
        """A file for pyarrow, whose threads may still hold it when the interpreter ends.

        A file object of Python's then aborts or hangs the process (apache/arrow#34314), so local files are Arrow's own.
        `cache`: of a file on S3.
        """
        return self.fs.open(path, "rb", **cache) if self.is_s3 else pa.OSFile(path)

    def _try(self, verb: str, relative: str, call: Callable[[], T]) -> T:
        retrying = Retrying(
            stop=stop_after_attempt(self._attempts if self.is_s3 else 1),
            wait=wait_exponential_jitter(initial=0.2, max=10),
            retry=retry_if_exception(_transient),
            before_sleep=lambda state: _log_retry(verb, self.path(relative), state),
            reraise=True,
        )
        try:
            return retrying(call)
        except FssError:
            raise
        except Exception as error:
            if _is_damage(error):
                known = self.hashes.get(relative, "")[:16]
                what = f"is not a readable Parquet file{f' any more (content hash {known})' if known else ''}"
                raise FssError(f"{what}: {_first_line(error)}", where=self.path(relative), hint=(
                    "build the shards again with --force" if known else "delete it and build it again")) from error
            raise _explain(error, verb, self.path(relative)) from error


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


class RetryingS3(pa.fs.S3FileSystem):  # type: ignore[misc]
    """pyarrow's S3 filesystem with `attempts` tries; unlike pyarrow's own, it keeps that number when it is pickled."""

    def __init__(self, attempts: int, options: dict[str, str]) -> None:
        self._arguments = (attempts, options)
        super().__init__(retry_strategy=pa.fs.AwsStandardS3RetryStrategy(max_attempts=attempts), **options)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RetryingS3, self._arguments)


ATTEMPTS = 12  # over a minute of waiting in all: a store that is away for a minute fails no run
# A connection that hangs is worse than one that fails: botocore waits a minute by default.
_S3_CONFIG = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 1}}


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _transient(error: BaseException) -> bool:
    if isinstance(error, _FINAL) or (isinstance(error, OSError) and error.errno in _SPACE):
        return False
    return not (_is_damage(error) or "credentials" in str(error).lower())


def _is_damage(error: BaseException) -> bool:
    """Whether pyarrow reports damaged content, which another try would not change."""
    text = str(error).lower()
    return isinstance(error, pa.ArrowInvalid) or any(w in text for w in _DAMAGE)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _log_retry(verb: str, path: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("cannot %s %s yet (attempt %d: %s)", verb, path, state.attempt_number, error)


def _explain(error: Exception, verb: str, path: str) -> FssError:
    """The `FssError` for an error of a filesystem, with the cause and what to do."""
    text = _first_line(error)
    low = f"{type(error).__name__} {text}".lower()
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "the AWS endpoint")
    if path.startswith("s3://"):
        if isinstance(error, PermissionError) or any(w in low for w in ("accesskey", "signature", "forbidden", "403")):
            return FssError(f"{endpoint} refuses the credentials", where=path,
                            hint="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if "credentials" in low:
            return FssError("there are no credentials", where=path,
                            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if any(w in low for w in ("connect", "endpoint", "timeout", "timed out")):
            return FssError(f"cannot reach {endpoint}", where=path,
                            hint="check AWS_ENDPOINT_URL, and that the server runs")
    if isinstance(error, FileNotFoundError):
        return FssError("does not exist", where=path, hint="check the path or URL")
    if isinstance(error, OSError) and error.errno in _SPACE:
        return FssError("no space left on the device", where=path, hint="free some space and run the command again")
    return FssError(f"cannot {verb}: {text}", where=path)
