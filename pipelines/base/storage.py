"""Every place is a URL: a local path or `s3://`. One small interface with atomic writes and retries.

Credentials and endpoint come from the standard variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and
AWS_ENDPOINT_URL. Local writes go to a hidden neighbour and are renamed; an S3 object appears whole or not at all.
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
    """`join("s3://b/x", "y", "z")` -> `s3://b/x/y/z`."""
    return "/".join([url.rstrip("/"), *(p.strip("/") for p in parts if p)])


class Store:
    """Files below one URL. Paths are relative to it; an empty path is the URL itself.

    Raises `FssError` with one line for a missing place, refused credentials, an unreachable endpoint or a full disk.
    """

    def __init__(
        self, url: str, *, attempts: int | None = None, hashes: Mapping[str, str] | None = None
    ) -> None:
        if "://" in url and not url.startswith(("s3://", "file://")):
            raise FssError(f"unknown kind of place {url!r}", mend="use a local path or s3://bucket/prefix")
        self.is_s3 = url.startswith("s3://")
        self.url = url.rstrip("/") if self.is_s3 else _local(url.removeprefix("file://"))
        self.hashes = hashes or {}  # relative path -> content hash, which is told where a file is damaged
        self._attempts = attempts or int(os.environ.get("FSS_STORAGE_ATTEMPTS", str(ATTEMPTS)))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store, (self.url,))

    @cached_property
    def fs(self) -> Any:
        """The fsspec filesystem."""
        if not self.is_s3:
            return fsspec.filesystem("file")
        # Old listings would hide what another process has just written. fsspec keeps one instance for equal arguments:
        # the variables are arguments, so that changed ones are not answered by the connection of the old ones.
        return fsspec.filesystem(
            "s3", use_listings_cache=False, config_kwargs=_S3_CONFIG, endpoint_url=os.environ.get("AWS_ENDPOINT_URL"),
            key=os.environ.get("AWS_ACCESS_KEY_ID"), secret=os.environ.get("AWS_SECRET_ACCESS_KEY"),
            token=os.environ.get("AWS_SESSION_TOKEN"), client_kwargs={"region_name": _region()})

    def path(self, relative: str = "") -> str:
        """The full path or URL of a file below this place."""
        return join(self.url, relative) if relative else self.url

    def read_bytes(self, relative: str = "") -> bytes:
        """The whole file."""
        return bytes(self._try("read", relative, lambda: self.fs.cat_file(self.path(relative))))

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Write atomically: readers see the old file or the new one, never a part."""
        with self.atomic(relative) as write:
            write(data)

    @contextmanager
    def atomic(self, relative: str) -> Iterator[Callable[[bytes], None]]:
        """Yield a function that replaces the file atomically."""
        yield lambda data: self._try("write", relative, lambda: self._put(self.path(relative), data))

    def read_json(self, relative: str) -> Any:
        """The parsed JSON file; `FssError` names the file if it does not parse."""
        try:
            return json.loads(self.read_bytes(relative))
        except ValueError as error:
            raise FssError(f"is not valid JSON: {error}", where=self.path(relative)) from error

    @contextmanager
    def stream(self, relative: str) -> Iterator[BinaryIO]:
        """A file to write piece by piece, for what is too large for memory; it appears whole or not at all."""
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
        ask = out._call_s3  # every request of its own is tried again: a large file is not lost with one of its parts
        out._call_s3 = lambda *given, **named: self._try("write", relative, lambda: ask(*given, **named))
        try:
            yield out
            out.close()
            self._try("write", relative, out.commit)
        except BaseException:
            out.discard()
            raise

    def write_json(self, relative: str, value: Any) -> None:
        """Write JSON atomically, with sorted keys."""
        self.write_bytes(relative, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")

    def read_table(self, relative: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file as a table."""
        return self._try("read", relative, lambda: self._read_table(self.path(relative), columns))

    def write_table(self, relative: str, table: pa.Table, *, row_group_size: int | None = None) -> None:
        """Write a Parquet file atomically."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=row_group_size, compression="zstd")
        self.write_bytes(relative, sink.getvalue().to_pybytes())

    def open_parquet(self, relative: str) -> ParquetReader:
        """A Parquet file for reading single row groups; the caller closes it."""
        return ParquetReader(self, relative)

    def exists(self, relative: str = "") -> bool:
        """Whether a file (or anything below a prefix) is there."""
        return bool(self._try("look for", relative, lambda: self.fs.exists(self.path(relative))))

    def size(self, relative: str) -> int:
        """Bytes of a file."""
        return int(self._try("look at", relative, lambda: self.fs.info(self.path(relative))["size"]))

    def buckets(self) -> tuple[str, ...]:
        """Names of all buckets that the endpoint shows these credentials. Only for `s3://`."""
        return tuple(self._try("list", "", lambda: self.fs.ls("", detail=False)))

    def list(self, relative: str = "", *, suffix: str = "") -> Names:
        """Relative paths of all files below `relative`, sorted; empty if the place does not exist."""
        try:
            found = self._try("list", relative, lambda: self.fs.find(self.path(relative)))
        except FssError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return []
            raise
        names = (self._relative(f) for f in found)
        return sorted(n for n in names if n.endswith(suffix) and not Path(n).name.startswith(".tmp-"))

    def sizes(self, relative: str = "") -> dict[str, int]:
        """Relative paths and bytes of all files below `relative`, in one go. Raises `FssError` if there is none."""
        found = self._try("list", relative, lambda: self.fs.find(self.path(relative), detail=True))
        rows = ((self._relative(path), int(about["size"] or 0)) for path, about in found.items())
        return {n: size for n, size in rows if not Path(n).name.startswith(".tmp-")}

    def _relative(self, found: str) -> str:
        root = self.path().removeprefix("s3://").rstrip("/") + "/"
        return found.removeprefix("s3://").removeprefix(root)

    def delete(self, relative: str = "") -> None:
        """Remove a file or everything below a prefix; nothing happens if it is not there."""
        if self.exists(relative):
            self._try("delete", relative, lambda: self.fs.rm(self.path(relative), recursive=True))

    def pyarrow(self) -> tuple[pa.fs.FileSystem, str]:
        """The same place for pyarrow and Ray: (filesystem, path in it)."""
        if not self.is_s3:
            return pa.fs.LocalFileSystem(), self.url
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        scheme, _, host = endpoint.rpartition("://")
        options = {"endpoint_override": host, "scheme": scheme or "https"} if host else {}
        filesystem = PatientS3(self._attempts, {"region": _region(), **options})
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
        with self.fs.open(path, "rb") as file:
            return pq.read_table(file, columns=columns, page_checksum_verification=True)

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
                raise FssError(f"{what}: {_first_line(error)}", where=self.path(relative), mend=(
                    "build the shards again with --force" if known else "delete it and build it again")) from error
            raise _explain(error, verb, self.path(relative)) from error


class ParquetReader:
    """Row groups of one Parquet file. Where a read fails in passing, the file is opened again and the read repeated.

    Page checksums are verified where the file has them. Raises `FssError` as `Store` does.
    """

    def __init__(self, store: Store, relative: str) -> None:
        self._store, self._relative = store, relative
        self._file: pq.ParquetFile = store._try("open", relative, self._open)

    @property
    def num_row_groups(self) -> int:
        """How many row groups there are."""
        return int(self._file.num_row_groups)

    @property
    def schema_arrow(self) -> pa.Schema:
        """The schema."""
        return self._file.schema_arrow

    def read_row_group(self, group: int, columns: list[str] | None = None) -> pa.Table:
        """One row group."""
        return self._store._try("read", self._relative, lambda: self._read(group, columns))

    def read_row_groups(self, groups: Sequence[int], columns: list[str] | None = None) -> pa.Table:
        """Several, one after another; in one go and without further threads, which costs the least CPU."""
        return self._store._try("read", self._relative, lambda: self._read(groups, columns))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close(force=True)

    def _open(self) -> pq.ParquetFile:
        # No read-ahead: pyarrow asks for whole column chunks itself, and a row group is often all that is wanted.
        file = self._store.fs.open(self._store.path(self._relative), "rb", cache_type="none")
        return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=True)

    def _read(self, which: int | Sequence[int], columns: list[str] | None) -> pa.Table:
        try:
            if isinstance(which, int):
                return self._file.read_row_group(which, columns=columns)
            return self._file.read_row_groups(list(which), columns=columns, use_threads=False)
        except OSError:
            self._file = self._open()  # the next attempt starts afresh
            raise

    def __enter__(self) -> ParquetReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _local(path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise FssError(f"there is no home of {path.partition('/')[0]!r}", where=path,
                       mend=f"or is it ./{path}") from error


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


class PatientS3(pa.fs.S3FileSystem):  # type: ignore[misc]
    """pyarrow's, which forgets how often to try again when it is sent to another process: this one does not."""

    def __init__(self, attempts: int, options: dict[str, str]) -> None:
        self._made_of = (attempts, options)
        super().__init__(retry_strategy=pa.fs.AwsStandardS3RetryStrategy(max_attempts=attempts), **options)

    def __reduce__(self) -> tuple[Any, ...]:
        return (PatientS3, self._made_of)


ATTEMPTS = 12  # over a minute of waiting: a store that is away for a minute costs no run
# Connections that hang are worse than ones that fail: botocore waits a minute by default.
_S3_CONFIG = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 1}}


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _transient(error: BaseException) -> bool:
    if isinstance(error, _FINAL) or (isinstance(error, OSError) and error.errno in _SPACE):
        return False
    return not (_is_damage(error) or "credentials" in str(error).lower())


def _is_damage(error: BaseException) -> bool:
    """Whether pyarrow complains of a file's content: asking again gives the same."""
    text = str(error).lower()
    return isinstance(error, pa.ArrowInvalid) or any(w in text for w in _DAMAGE)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _log_retry(verb: str, path: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("cannot %s %s yet (attempt %d: %s)", verb, path, state.attempt_number, error)


def _explain(error: Exception, verb: str, path: str) -> FssError:
    """The one line a person can act on."""
    text = _first_line(error)
    low = f"{type(error).__name__} {text}".lower()
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "the AWS endpoint")
    if path.startswith("s3://"):
        if isinstance(error, PermissionError) or any(w in low for w in ("accesskey", "signature", "forbidden", "403")):
            return FssError(f"{endpoint} refuses the credentials", where=path,
                            mend="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if "credentials" in low:
            return FssError("no credentials", where=path, mend="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if any(w in low for w in ("connect", "endpoint", "timeout", "timed out")):
            return FssError(f"cannot reach {endpoint}", where=path, mend="check AWS_ENDPOINT_URL and that it is up")
    if isinstance(error, FileNotFoundError):
        return FssError("does not exist", where=path, mend="check the path or URL")
    if isinstance(error, OSError) and error.errno in _SPACE:
        return FssError("no space left on the device", where=path, mend="free some space and run the command again")
    return FssError(f"cannot {verb}: {text}", where=path)


def place_of(url: str) -> tuple[Store, str]:
    """The folder of a file, and its name there."""
    folder, _, name = Store(url).url.rpartition("/")
    return Store(folder or "/"), name
