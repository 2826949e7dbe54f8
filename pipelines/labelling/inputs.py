"""What --images may be: a folder or prefix, a pattern of names, lists of URLs, or tar files with photos inside.

    photos/, s3://bucket/prefix          all photos below it
    'photos/2024-*/**/*.jpg'             those whose path fits: * and ? in a name, ** over folders, {a,b}, {00..99}
    list.parquet, list.csv               rows with the URL of a photo, and an id of yours where there is one
    'shards-{000..099}.tar', '*.tar'     photos in tar files, such as WebDataset shards; they stay packed
"""

from __future__ import annotations

import csv
import hashlib
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from fss_models.errors import FssError
from fss_models.photo_files import is_photo
from pipelines.base.files import OutOfOrderError, iter_files
from pipelines.base.filesystems import scheme_of
from pipelines.base.junk import is_junk
from pipelines.base.storage import Store, join
from pipelines.config.label import LabelConfig
from pipelines.labelling.listing import LeftOut, ListingWriter, Photo

MARK_EVERY = 1000  # files between two places at which a listing can go on
ENOUGH = 10_000  # files that are looked at, with a limit, so that what is left out can be told
TARS = 8  # tar files that are indexed at the same time
HEAD = 64 * 1024  # bytes in which the names of a CSV's columns are
TAR_BLOCK = 256 * 1024  # bytes of a request that looks for the next header; larger photos are skipped over
LISTS, TAR, PACKED = (".parquet", ".csv"), ".tar", (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
SPECIAL = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}")


@dataclass(frozen=True, kw_only=True)
class ListColumns:
    """The columns of a list of URLs: of the URL, and of the person's own ids ("": `id`, where there is one)."""

    url: str = "url"
    id: str = ""


def list_columns(config: LabelConfig) -> ListColumns:
    """The columns that a recipe names."""
    return ListColumns(url=config.url_column, id=config.id_column)


@dataclass(frozen=True)
class Inputs:
    """What --images names. kind: folder, glob, list or tar; root: what names are relative to; pattern: below it."""

    kind: str
    root: Store
    pattern: str = ""

    @property
    def prefix(self) -> str:
        """What all names that fit the pattern begin with."""
        return SPECIAL.split(self.pattern, maxsplit=1)[0]

    def files(self) -> Iterator[str]:
        """The names below the root that fit the pattern, in order. Raises `FssError` if there are none."""
        for one in expand_braces(self.pattern):
            if not SPECIAL.search(one):
                yield one
                continue
            fits = matcher(one)
            found = [n for n in _names(self.root, SPECIAL.split(one, maxsplit=1)[0]) if fits.fullmatch(n)]
            if not found:
                raise FssError("no file fits", where=self.root.path(one), hint="check the pattern of --images")
            yield from found


def read_inputs(url: str) -> Inputs:
    """What a value of --images names. Raises `FssError` if it does not exist, and for packed tar files."""
    plain, special, low = Store(url), SPECIAL.search(url), url.lower()
    if special and "://" in url and "/" not in url[url.find("://") + 3:special.start()]:
        raise FssError("a bucket's name cannot be a pattern", where=url, hint="label one bucket after the other")
    if low.endswith(PACKED):
        raise FssError("photos in a compressed tar cannot be read one by one", where=url,
                       hint="unpack it to .tar: JPEGs in it take the same space")
    if special and not plain.exists():
        cut = url.rfind("/", 0, special.start()) + 1
        root, pattern = Store(url[:cut] or "."), url[cut:]
    elif low.endswith((*LISTS, TAR)) and _is_file(plain):
        root, pattern = plain.parent, _escaped(plain.name)
    elif not plain.exists():
        raise FssError("does not exist", where=url, hint="check the path or URL of --images")
    else:
        return Inputs("folder", plain)
    return Inputs("list" if low.endswith(LISTS) else "tar" if low.endswith(TAR) else "glob", root, pattern)


def _is_file(store: Store) -> bool:
    return not store.exists() or not bool(store._try("look at", "", lambda: store.fs.isdir(store.url)))


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[{])", r"[\1]", name)


def matcher(pattern: str) -> re.Pattern[str]:
    """A pattern of names as a regular expression of whole paths."""
    return re.compile("|".join(glob_translate(one) for one in expand_braces(pattern)))


def expand_braces(pattern: str) -> list[str]:
    """The patterns that `{a,b}` and `{000..099}` stand for; numbers keep their leading zeros."""
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    first, dots, last = found[1].partition("..")
    numbers = dots and "," not in found[1]
    values = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)] if numbers else found[1].split(",")
    return [one for v in values for one in expand_braces(pattern[:found.start()] + v + pattern[found.end():])]


def _names(store: Store, prefix: str) -> list[str]:
    try:
        return [one.path for one in iter_files(store, prefix=prefix)]
    except OutOfOrderError:
        return [one.path for one in iter_files(store, prefix=prefix, by_folder=True)]


def list_files(writer: ListingWriter, inputs: Inputs, limit: int, written: tuple[str, ...]) -> ListingWriter:
    """List the photos of a folder or pattern, without those in the folders `written`. Returns the writer to finish."""
    try:
        _list_files(writer, inputs, limit, written, by_folder=False)
    except OutOfOrderError:
        writer = writer.fresh()
        _list_files(writer, inputs, limit, written, by_folder=True)
    return writer


def _list_files(writer: ListingWriter, inputs: Inputs, limit: int, written: tuple[str, ...], *,
                by_folder: bool) -> None:
    fits = matcher(inputs.pattern) if inputs.pattern else None
    found = iter_files(inputs.root, prefix=inputs.prefix, after=writer.totals.cursor, by_folder=by_folder)
    while files := list(islice(found, MARK_EVERY)):
        for name, size, _ in files:
            if name.startswith(written) or (fits and not fits.fullmatch(name)):
                continue
            if not is_photo(name):
                writer.leave(name)
            elif not limit or writer.count < limit:
                writer.add(Photo(_checked(name, inputs.root.url), size))
        writer.mark(files[-1].path, seen=len(files))
        if limit and writer.count >= limit and writer.seen >= ENOUGH:
            return


def _checked(name: str, where: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise FssError(f"the file name {name!r} is not UTF-8", where=where, hint="rename the file") from None
    return name


# ---- lists of URLs -----------------------------------------------------------------------------------------------


def list_rows(writer: ListingWriter, inputs: Inputs, columns: ListColumns, limit: int) -> None:
    """List the photos of tables. A URL that comes again is listed once, with the first id.

    Raises `FssError` for a table that cannot be read or lacks the column.
    """
    seen = np.empty(0, dtype=np.uint64)  # 8 bytes a URL: the hashes of those that were listed, sorted
    for name in inputs.files():
        table = inputs.root.path(name)
        base = Store(table).parent
        for urls, ids in read_columns(table, columns):
            given = [(url or "").strip() for url in urls]
            whole = [_whole(text, base) for text in given]
            new, seen = _unseen(np.array([_hash(url) for url in whole], dtype=np.uint64), seen)
            for place, (text, url, source_id) in enumerate(zip(given, whole, ids, strict=True)):
                if limit and writer.count >= limit:
                    writer.mark("", seen=place)
                    return
                _list_row(writer, name_of(text), url, source_id, bool(new[place]))
            writer.mark("", seen=len(whole))


def _unseen(hashes: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which hashes [N] come for the first time, and the sorted hashes that were seen by now."""
    first = np.zeros(len(hashes), dtype=bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    at = np.searchsorted(seen, hashes)
    known = np.append(seen, np.uint64(0))[at] == hashes
    new = first & ~(known & (at < len(seen)))
    return new, np.sort(np.concatenate([seen, hashes[new]]), kind="stable")


def _list_row(writer: ListingWriter, name: str, url: str, source_id: str | None, is_new: bool) -> None:
    if not url:
        writer.refuse(LeftOut("", "have no URL", "the row has no URL", source_id))
    elif not is_new:
        writer.refuse(LeftOut(name, "repeat a URL", "the URL is in an earlier row", source_id))
    elif reason := _unusable(url):
        writer.refuse(LeftOut(name, "have a URL that cannot be read", reason, source_id))
    else:
        writer.add(Photo(name, -1, url, -1, source_id))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _whole(text: str, base: Store) -> str:
    """The whole URL of a row, which may be relative to its table."""
    return text if not text or "://" in text or (text.startswith("/") and base.is_local) else join(base.url, text)


def _unusable(url: str) -> str:
    if url.startswith(("http://", "https://")):
        return ""
    try:
        scheme_of(url)
    except FssError as error:
        return error.what
    return ""


def name_of(url: str) -> str:
    """The name of a photo by its URL: without what follows a `?`, which may be a secret, and without dots."""
    scheme, mark, path = url.partition("://") if "://" in url else ("", "", url)
    if scheme.startswith("http"):
        path = re.split(r"[?#]", path)[0]
    return scheme + mark + "/".join(part for part in path.split("/") if part not in ("", ".", ".."))


def read_columns(url: str, columns: ListColumns) -> Iterator[tuple[list[str | None], list[str | None]]]:
    """(URLs, ids) of a Parquet or CSV table, in batches. Raises `FssError` as `list_rows` does."""
    store = Store(url)
    try:
        with store._open_parquet(store.url) as file:
            read = _parquet_batches if url.lower().endswith(".parquet") else _csv_batches
            for batch in read(file, url, columns):
                own = batch.column(1).to_pylist() if batch.num_columns > 1 else [None] * batch.num_rows
                yield batch.column(0).to_pylist(), own
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0]
        missing = isinstance(error, FileNotFoundError)
        raise FssError("does not exist" if missing else f"the list cannot be read: {line}", where=url,
                       hint="check the path or URL of --images" if missing else "write it again") from error


def _parquet_batches(file: Any, url: str, columns: ListColumns) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file) as table:
        wanted = _present(table.schema_arrow.names, url, columns)
        for batch in table.iter_batches(columns=wanted):
            yield pa.RecordBatch.from_arrays([batch.column(n).cast(pa.string()) for n in wanted], names=wanted)


def _csv_batches(file: Any, url: str, columns: ListColumns) -> Iterator[pa.RecordBatch]:
    head = bytes(file.read(HEAD)).partition(b"\n")[0].decode("utf-8-sig")
    wanted = _present(next(csv.reader([head]), []), url, columns)
    file.seek(0)
    options = pa.csv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()),
                                    strings_can_be_null=True, null_values=[""])
    with pa.csv.open_csv(file, convert_options=options) as reader:
        yield from reader


def _present(names: Sequence[str], url: str, columns: ListColumns) -> list[str]:
    """The columns to read. Raises `FssError` for one that is missing."""
    for key, name in (("url_column", columns.url), ("id_column", columns.id)):
        if name and name not in names:
            shown = ", ".join(names[:8]) or "none"
            raise FssError(f"the list has no column {name!r}; its columns are {shown}", where=url,
                           hint=f"name the column with --set label.{key}=NAME")
    own = columns.id or ("id" if "id" in names and columns.url != "id" else "")
    return [columns.url, *([own] if own else [])]


# ---- tar files ---------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """A file in a tar: its path there, its bytes, and where they begin."""

    name: str
    size: int
    start: int


def list_tars(writer: ListingWriter, inputs: Inputs, limit: int) -> None:
    """List the photos in tar files, in the order of the files and of what is in them."""
    names = islice(inputs.files(), int(writer.totals.cursor or 0), None)
    done = int(writer.totals.cursor or 0)
    with ThreadPoolExecutor(TARS, thread_name_prefix="tar") as pool:
        while some := list(islice(names, TARS)):
            for name, members in zip(some, pool.map(lambda n: read_members(inputs.root.path(n)), some), strict=True):
                url = inputs.root.path(name)
                for member, wanted in members:
                    path = f"{name}/{member.name}"
                    if not wanted:
                        writer.leave(path)
                    elif not limit or writer.count < limit:
                        writer.add(Photo(_checked(path, url), member.size, url, member.start))
                done += 1
                writer.mark(str(done), seen=len(members))
            if limit and writer.count >= limit:
                return


def read_members(url: str) -> list[tuple[Member, bool]]:
    """The plain files of a tar, without junk, and whether each is a photo to label.

    Of a WebDataset sample, whose files share what is before the first dot, it is `1.jpg` but not `1.mask.png`. Only
    headers are wanted: the file is read in blocks, and photos larger than a block are skipped over. Raises `FssError`
    for a file that is no tar, or is cut off.
    """
    store = Store(url)
    return list(_of_samples(store._try("read", "", lambda: _members(store))))


def _members(store: Store) -> list[Member]:
    found = []
    try:
        with _open_tar(store) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for one in tar:
                parts = [p for p in one.name.split("/") if p not in ("", ".", "..")]
                if one.isreg() and not one.issparse() and parts and not is_junk("/".join(parts)):
                    found.append(Member("/".join(parts), one.size, one.offset_data))
                vars(tar)["members"] = []  # else all headers stay in memory
    except tarfile.TarError as error:
        raise FssError(f"is not a readable tar file: {error}", where=store.url, hint="write it again") from error
    return found


def _open_tar(store: Store) -> Any:
    if store.is_local:
        return open(store.url, "rb")
    return store.fs.open(store.url, "rb", block_size=TAR_BLOCK, cache_type="readahead")


def _of_samples(members: Iterable[Member]) -> Iterator[tuple[Member, bool]]:
    for stem, group in groupby(members, lambda m: _sample(m.name)):
        own = list(group)
        photos = [m for m in own if is_photo(m.name)]
        short = [m for m in photos if m.name.count(".", len(stem)) == 1] or photos
        yield from ((m, m in short) for m in own)


def _sample(name: str) -> str:
    """The path of a sample in a tar: all before the first dot of the file's name."""
    return name[:name.find(".", name.rfind("/") + 1)]
