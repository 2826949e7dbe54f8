"""A folder of kept features: raw parts, a small index a part, and about.json, written last.

    parts/<sha256 of the bytes>.bin     records one after the other
    index/<the same>.parquet            which photo each record is of, and its checksum
    about.json                          what the records are (`FeatureFolderInfo`)

A part counts once its index is there, so a build can be killed anywhere; new photos are new parts. Nothing is ever
changed in place, and builders that work at the same time at worst keep a record twice.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa
from pydantic import ValidationError

from fss_models.errors import FssError
from pipelines.base.storage import Store, join
from pipelines.data.schema import PhotoKey
from pipelines.features.about import FORMAT, FeatureFolderInfo

READERS = 16  # index files on their way at a time
INDEX = pa.schema([
    ("sha256", pa.string()),  # of the photo's file
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("mirrored", pa.bool_()),
    ("row", pa.int32()),  # of the part
    ("crc32", pa.uint32()),  # of the record
])


class RecordLocation(NamedTuple):
    """Where a record is."""

    part: str  # sha256 of the part's bytes
    row: int
    crc32: int


class RangedStore(Store):
    """A `Store` that reads pieces of files, many at a time where the place allows it."""

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """The bytes [start, end) of (relative path, start, end), in order; shorter where a file ends early."""
        paths, starts, ends = [self.path(w[0]) for w in ranges], [w[1] for w in ranges], [w[2] for w in ranges]
        first = ranges[0][0] if ranges else ""
        return list(self._try("read", first, lambda: self.fs.cat_ranges(paths, starts, ends, on_error="raise")))


class FeatureFolder:
    """The features of one frozen part in one precision, below `base`."""

    def __init__(self, base: str, about: FeatureFolderInfo) -> None:
        self.about, self.layout = about, about.layout
        self.store = RangedStore(join(base, about.name))

    @staticmethod
    def open(base: str, name: str) -> FeatureFolder:
        """A finished folder by its name. Raises `FssError` for one that was only begun, or is of a newer format."""
        store = Store(join(base, name))
        if not store.exists("about.json"):
            begun = "a build was begun here but not finished" if store.exists() else "no features of this frozen part"
            raise FssError(begun, where=store.url, mend="run `fss features build`")
        document = store.read_json("about.json")
        if document.get("format", 0) > FORMAT:
            raise FssError(f"features have format {document['format']}, this program reads {FORMAT}", where=store.url,
                           mend="update fss")
        try:
            return FeatureFolder(base, FeatureFolderInfo.model_validate(document))
        except ValidationError as error:
            raise FssError(f"about.json is damaged: {error.errors()[0]['msg']}", where=store.url,
                           mend="delete it, then run `fss features build`") from error

    @cached_property
    def locations(self) -> dict[PhotoKey, RecordLocation]:
        """Every record that can be read: parts that are missing or cut short do not count."""
        names = self.store.list("index", suffix=".parquet")
        sizes = self.store.sizes("parts") if names and self.store.exists("parts") else {}
        with ThreadPoolExecutor(READERS) as pool:
            tables = pool.map(self.store.read_table, names)
            found: dict[PhotoKey, RecordLocation] = {}
            for name, table in zip(names, tables, strict=True):
                part = name.removeprefix("index/").removesuffix(".parquet")
                if sizes.get(part_name(part)) == len(table) * self.layout.record_bytes:
                    found |= {PhotoKey(r["sha256"], r["height"], r["width"], r["mirrored"]):
                              RecordLocation(part, r["row"], r["crc32"]) for r in table.to_pylist()}
        return found

    def read(self, locations: Sequence[RecordLocation]) -> list[bytes]:
        """Records. Raises `FssError` naming the part that is damaged."""
        size = self.layout.record_bytes
        found = self.store.read_ranges([(part_name(s.part), s.row * size, (s.row + 1) * size) for s in locations])
        for location, record in zip(locations, found, strict=True):
            if len(record) != size or zlib.crc32(record) != location.crc32:
                raise damaged_part_error(self.store, location.part)
        return found

    def write(self, photos: Sequence[PhotoKey], records: Sequence[bytes]) -> None:
        """A part, then its index; a part that is there already is left as it is."""
        data = b"".join(records)
        part = hashlib.sha256(data).hexdigest()
        if not (self.store.exists(part_name(part)) and self.store.size(part_name(part)) == len(data)):
            self.store.write_bytes(part_name(part), data)
        rows = [{**p._asdict(), "row": i, "crc32": zlib.crc32(r)}
                for i, (p, r) in enumerate(zip(photos, records, strict=True))]
        self.store.write_table(f"index/{part}.parquet", pa.Table.from_pylist(rows, schema=INDEX))

    def finish(self) -> None:
        """Write about.json: the folder can be read from now on."""
        self.store.write_json("about.json", self.about.model_dump())

    def verify(self) -> int:
        """Read every part whole; how many there are. Raises `FssError` naming the first whose hash is not its name."""
        parts = sorted({s.part for s in self.locations.values()})
        for part in parts:
            if hashlib.sha256(self.store.read_bytes(part_name(part))).hexdigest() != part:
                raise damaged_part_error(self.store, part)
        return len(parts)


def part_name(part: str) -> str:
    """A part's file."""
    return f"parts/{part}.bin"


def damaged_part_error(store: Store, part: str) -> FssError:
    """The line about a part whose bytes are not what its name says."""
    return FssError(f"features part {part} is damaged", where=store.path(part_name(part)),
                    mend="delete that file and run `fss features build`")
