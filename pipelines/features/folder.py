"""A folder of kept features: raw parts, a small index per part, and about.json, which is written last.

    parts/<sha256 of the bytes>.bin     records one after the other
    index/<the same sha256>.parquet     the photo of each record, and its checksum
    about.json                          the description of the records (`FeatureFolderInfo`)

A part without its index is ignored, so a build can be killed at any moment. New photos become new parts. No file is
changed in place, and concurrent builders at worst write a record twice.
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

READERS = 16  # index files that are read at a time
INDEX = pa.schema([
    ("sha256", pa.string()),  # sha256 of the photo's file
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("mirrored", pa.bool_()),
    ("row", pa.int32()),  # number of the record within the part
    ("crc32", pa.uint32()),  # checksum of the record
])


class RecordLocation(NamedTuple):
    """The place of a record, and its checksum."""

    part: str  # sha256 of the part's bytes
    row: int
    crc32: int


class RangedStore(Store):
    """A `Store` that reads byte ranges of files, many at a time if the storage supports it."""

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """The bytes [start, end) of each (relative path, start, end), in order; fewer if a file ends early."""
        paths, starts, ends = [self.path(w[0]) for w in ranges], [w[1] for w in ranges], [w[2] for w in ranges]
        first = ranges[0][0] if ranges else ""
        return list(self._try("read", first, lambda: self.fs.cat_ranges(paths, starts, ends, on_error="raise")))


class FeatureFolder:
    """A folder below `base` with the features of one frozen part in one precision."""

    def __init__(self, base: str, about: FeatureFolderInfo) -> None:
        self.about, self.layout = about, about.layout
        self.store = RangedStore(join(base, about.name))

    @staticmethod
    def open(base: str, name: str) -> FeatureFolder:
        """Open a folder by its name. Raises `FssError` if it is missing, unfinished, damaged or of a newer format."""
        store = Store(join(base, name))
        if not store.exists("about.json"):
            state = "a build was begun here but not finished" if store.exists() else "no features of this frozen part"
            raise FssError(state, where=store.url, hint="run `fss features build`")
        document = store.read_json("about.json")
        if document.get("format", 0) > FORMAT:
            raise FssError(f"features have format {document['format']}, this program reads up to {FORMAT}",
                           where=store.url, hint="update fss")
        try:
            return FeatureFolder(base, FeatureFolderInfo.model_validate(document))
        except ValidationError as error:
            raise FssError(f"about.json is damaged: {error.errors()[0]['msg']}", where=store.url,
                           hint="delete about.json and run `fss features build`") from error

    @cached_property
    def locations(self) -> dict[PhotoKey, RecordLocation]:
        """The place of every readable record. Parts that are missing or truncated do not count."""
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
        """Read records. Raises `FssError` with the name of the first damaged part."""
        size = self.layout.record_bytes
        found = self.store.read_ranges([(part_name(s.part), s.row * size, (s.row + 1) * size) for s in locations])
        for location, record in zip(locations, found, strict=True):
            if len(record) != size or zlib.crc32(record) != location.crc32:
                raise damaged_part_error(self.store, location.part)
        return found

    def write(self, photos: Sequence[PhotoKey], records: Sequence[bytes]) -> None:
        """Write a part, then its index. A complete part with the same content is not written again."""
        data = b"".join(records)
        part = hashlib.sha256(data).hexdigest()
        if not (self.store.exists(part_name(part)) and self.store.size(part_name(part)) == len(data)):
            self.store.write_bytes(part_name(part), data)
        rows = [{**p._asdict(), "row": i, "crc32": zlib.crc32(r)}
                for i, (p, r) in enumerate(zip(photos, records, strict=True))]
        self.store.write_table(f"index/{part}.parquet", pa.Table.from_pylist(rows, schema=INDEX))

    def finish(self) -> None:
        """Write about.json, which makes the folder readable."""
        self.store.write_json("about.json", self.about.model_dump())

    def verify(self) -> int:
        """Read every part and compare its hash with its name. Returns the number of parts.

        Raises `FssError` with the name of the first damaged part.
        """
        parts = sorted({s.part for s in self.locations.values()})
        for part in parts:
            if hashlib.sha256(self.store.read_bytes(part_name(part))).hexdigest() != part:
                raise damaged_part_error(self.store, part)
        return len(parts)


def part_name(part: str) -> str:
    """The path of a part's file below the folder."""
    return f"parts/{part}.bin"


def damaged_part_error(store: Store, part: str) -> FssError:
    """The error for a part whose bytes do not match the hash in its name."""
    return FssError(f"features part {part} is damaged", where=store.path(part_name(part)),
                    hint="delete that file and run `fss features build`")
