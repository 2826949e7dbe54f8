"""The photos of a job in order, in Parquet pages of a folder, so that ten million of them need no memory.

    listing/page-000000.parquet   photos; what was left out beside them is in the file's metadata
    listing/about.json            the totals; without it the listing is unfinished, and goes on behind its last page
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from cachetools import LRUCache

from fss_models.photo_files import UNREAD_SUFFIXES
from pipelines.base.progress import say
from pipelines.base.storage import Store

FOLDER = "listing"
ABOUT = f"{FOLDER}/about.json"
PAGE = 50_000  # photos of a page; listings that are shorter are written when their job begins
IN_MEMORY = 4  # pages
MOST_ROWS = 100_000  # rows of a list that are left out and named; more are only counted
EVERY_S = 15.0  # between two lines about the progress
T = TypeVar("T")
SCHEMA = pa.schema([
    ("name", pa.string()),
    ("size", pa.int64()),  # bytes; -1: unknown
    ("url", pa.string()),  # where it is; empty: below the job's URL, under its name
    ("start", pa.int64()),  # first byte in that file; -1: it is the whole file
    ("source_id", pa.string()),  # in the person's own list; null without one
    ("version", pa.string()),  # of a watched job: what changes when the photo is written again
])


class Photo(NamedTuple):
    """One photo of a listing: a row of `SCHEMA`."""

    name: str
    size: int
    url: str = ""
    start: int = -1
    source_id: str | None = None
    version: str = ""


class LeftOut(NamedTuple):
    """A row of a list, or a file, that is not labelled. `kind` is what it is counted as."""

    name: str
    kind: str
    reason: str
    source_id: str | None = None


@dataclass
class Totals:
    """What a listing holds, apart from its photos.

    inputs: folder, glob, list or tar; cursor: where an unfinished listing goes on; seen: files or rows that were looked
    at; pages: photos of each page; unread: names of pictures whose format is not read; others: suffix -> number of the
    files that are no pictures; left: kind -> number of a list's rows that are left out; rows: the first of them, as
    `LeftOut`; source_ids: whether photos have ids of the person's own; wanted: the arguments, in JSON.
    """

    inputs: str = "folder"
    hash: str = ""
    cursor: str = ""
    seen: int = 0
    pages: list[int] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    rows: list[list[Any]] = field(default_factory=list)
    source_ids: bool = False
    wanted: str = ""


class Column(Sequence[T]):
    """One value of each photo, read page by page."""

    def __init__(self, count: int, value: Callable[[int], T]) -> None:
        self._count, self._value = count, value

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(self._count))]
        if not -self._count <= row < self._count:
            raise IndexError(row)
        return self._value(row % self._count)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"<{self._count} values>"

    __hash__ = None  # type: ignore[assignment]


class ImageList:
    """The photos of a job. The id of photo number `row` is row + 1.

    url: the URL of --images; names: relative to it, or URLs; sizes: bytes, -1 where they are unknown; hash: 16 hex
    digits of all photos, in order. Small listings travel to other processes whole, large ones by their folder.
    """

    def __init__(self, url: str, totals: Totals, pages: dict[int, pa.Table], folder: Store | None,
                 temporary: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self.url, self.totals, self._pages, self._folder, self._temporary = url, totals, pages, folder, temporary
        self.hash = totals.hash[:16]
        self._ends = list(accumulate(totals.pages))
        self._begin()

    def _begin(self) -> None:
        self._cache: LRUCache[int, pa.Table] = LRUCache(IN_MEMORY)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_lock")}
        if self._temporary is not None:  # a folder of this process
            state.update(_pages={i: self._page(i) for i in range(len(self._ends))}, _folder=None, _temporary=None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def unread(self) -> list[str]:
        """Names of pictures whose format is not read."""
        return self.totals.unread

    @property
    def names(self) -> Column[str]:
        """The names of the photos."""
        return Column(len(self), lambda row: self.photo(row).name)

    @property
    def sizes(self) -> Column[int]:
        """Their sizes in bytes."""
        return Column(len(self), lambda row: self.photo(row).size)

    def photo(self, row: int) -> Photo:
        """The photo number `row`, counted from 0."""
        page = bisect_right(self._ends, row)
        begin = self._ends[page - 1] if page else 0
        return Photo(*self._page(page).slice(row - begin, 1).to_pylist()[0].values())

    def save(self, out: Store) -> None:
        """Write the listing into a job's folder, where later commands find it."""
        if out.exists(ABOUT):
            return
        there = self._folder is not None and self._folder.url == out.url
        for page in range(len(self._ends)):
            if page in self._pages or not there:
                write_page(out, page, self._page(page))
        out.write_json(ABOUT, {"url": self.url, **asdict(self.totals)})
        self._pages, self._folder, self._temporary = {}, out, None

    def _page(self, page: int) -> pa.Table:
        if page in self._pages:
            return self._pages[page]
        with self._lock:
            if page not in self._cache:
                assert self._folder is not None
                self._cache[page] = self._folder.read_table(page_name(page))
            return self._cache[page]


def page_name(page: int) -> str:
    """The path of a page, relative to a job's folder."""
    return f"{FOLDER}/page-{page:06d}.parquet"


def read_listing(out: Store) -> ImageList | None:
    """The listing of a job's folder; None if it has none, or an unfinished one."""
    if not out.exists(ABOUT):
        return None
    about = out.read_json(ABOUT)
    return ImageList(about.pop("url"), Totals(**about), {}, out)


class ListingWriter:
    """Collects the photos of a listing; full pages leave memory, for the folder `keep` or a temporary one."""

    def __init__(self, url: str, inputs: str, keep: Store | None, wanted: dict[str, Any]) -> None:
        self.url, self.keep, self._wanted = url, keep, json.dumps(wanted, sort_keys=True)
        self.totals = Totals(inputs=inputs, wanted=self._wanted)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._digest, self._since, self._told = hashlib.sha256(), Totals(), time.monotonic()
        self._rows: list[Photo] = []

    @property
    def count(self) -> int:
        """The photos so far."""
        return sum(self.totals.pages) + len(self._rows)

    @property
    def seen(self) -> int:
        """The files or rows so far."""
        return self.totals.seen + self._since.seen

    def add(self, photo: Photo) -> None:
        """Add a photo."""
        self._rows.append(photo)
        self._hash(photo)
        if photo.source_id is not None:
            self.totals.source_ids = True

    def _hash(self, photo: Photo) -> None:
        more = f"\0{photo.url}\0{photo.start}\0{photo.source_id}" if photo.url else ""
        self._digest.update(f"{photo.name}\0{photo.size}{more}\n".encode())

    def leave(self, name: str) -> None:
        """A file that is no photo, or a picture whose format is not read."""
        if name.lower().endswith(UNREAD_SUFFIXES):
            self._since.unread.append(name)
        else:
            suffix = PurePosixPath(shown(name)).suffix.lower()
            self._since.others[suffix] = self._since.others.get(suffix, 0) + 1

    def refuse(self, row: LeftOut) -> None:
        """A row of a list that is not labelled."""
        self._since.left[row.kind] = self._since.left.get(row.kind, 0) + 1
        if sum(self.totals.left.values()) + len(self._since.rows) < MOST_ROWS:
            self._since.rows.append(list(row))

    def mark(self, cursor: str, *, seen: int = 0) -> None:
        """A place at which the listing can go on, in another process too. Full pages are written here."""
        self._since.seen += seen
        self._since.cursor = cursor
        if time.monotonic() - self._told > EVERY_S:
            self._told = time.monotonic()
            say(f"listing: {self.count:,} photos so far")
        if len(self._rows) >= PAGE:
            self._flush()

    def _flush(self) -> None:
        folder = self.keep or self._spill()
        table = page_table(self._rows)
        note = {"since": asdict(self._since), "wanted": self._wanted}
        write_page(folder, len(self.totals.pages), table.replace_schema_metadata({"fss": json.dumps(note)}))
        self.totals.pages.append(len(self._rows))
        self._rows = []
        self._merge()

    def _merge(self) -> None:
        since, self._since = self._since, Totals()
        self.totals.unread += since.unread
        self.totals.others = dict(Counter(self.totals.others) + Counter(since.others))
        self.totals.left = dict(Counter(self.totals.left) + Counter(since.left))
        self.totals.rows += since.rows
        self.totals.seen += since.seen
        self.totals.cursor = since.cursor or self.totals.cursor

    def _spill(self) -> Store:
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="fss-listing-")
        return Store(self._temporary.name)

    def resumed(self) -> ListingWriter:
        """This listing behind the pages of an unfinished one of the same photos in its folder, if there is one.

        `totals.cursor` then says where it goes on.
        """
        if self.keep is None or not self.keep.exists(page_name(0)) or self.keep.exists(ABOUT):
            return self.fresh()
        for page in range(len(self.keep.list(FOLDER, suffix=".parquet"))):
            table = self.keep.read_table(page_name(page))
            note = json.loads((table.schema.metadata or {}).get(b"fss", b"{}"))
            if note.get("wanted") != self._wanted:
                return self.fresh()
            for row in photos_of(table):
                self._hash(row)
            self.totals.source_ids |= table["source_id"].null_count < len(table)
            self.totals.pages.append(len(table))
            self._since = Totals(**note["since"])
            self._merge()
        say(f"listing: goes on behind {self.count:,} photos that were listed before")
        return self

    def fresh(self) -> ListingWriter:
        """The same listing from its beginning; pages of an unfinished one are removed."""
        if self.keep is not None and self.keep.exists(page_name(0)):
            self.keep.delete(FOLDER)
        return ListingWriter(self.url, self.totals.inputs, self.keep, json.loads(self._wanted))

    def finish(self) -> ImageList:
        """The listing. Its last page is in memory until it is saved."""
        self._merge()
        pages = {len(self.totals.pages): page_table(self._rows)} if self._rows else {}
        self.totals.pages += [len(self._rows)] if self._rows else []
        self.totals.hash = self._digest.hexdigest()
        folder = self.keep if self._temporary is None else Store(self._temporary.name)
        return ImageList(self.url, self.totals, pages, folder, self._temporary)


def shown(name: str) -> str:
    """A file's name for people and tables: bytes that are not UTF-8 are spelled out, such as `\\xe4`."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def page_table(rows: Sequence[Photo]) -> pa.Table:
    """A page of these photos."""
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def photos_of(table: pa.Table) -> Iterator[Photo]:
    """The photos of a page; pages of older versions have fewer columns."""
    return (Photo(*row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True))


def write_page(out: Store, page: int, table: pa.Table) -> None:
    """Write a page into a job's folder."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    out.write_bytes(page_name(page), sink.getvalue().to_pybytes())
