"""Which parts of existing shards a new build can reuse: those in which no photo and no annotation changed.

`ledger.parquet` records for each part the versions of its photos and the failures among them. The version of a photo
changes with its file, its annotations, its split and the limits. It does not depend on the photo's place in the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.base.storage import Store
from pipelines.config.data import DataConfig
from pipelines.data.parts import Entry, part_name
from pipelines.data.schema import INDEX, SCHEMA_VERSION
from pipelines.data.sources.base import Source, digest_of


@dataclass(frozen=True)
class FormerBuild:
    """An earlier build: its parts (one ledger row each), its image index, and `first`, the next free part number."""

    parts: list[dict[str, Any]]
    index: pa.Table
    first: int = 0

    @classmethod
    def read(cls, store: Store) -> FormerBuild:
        """Read the former build below `store`. It has no parts if there was no build or if it wrote no ledger."""
        if not store.exists("index.parquet"):
            return cls([], INDEX.empty_table())
        if not store.exists("ledger.parquet"):
            numbers = store.read_table("index.parquet", ["part"])["part"].to_pylist()
            return cls([], INDEX.empty_table(), max(numbers, default=-1) + 1)
        parts = store.read_table("ledger.parquet").to_pylist()
        first = max((p["part"] for p in parts), default=-1) + 1
        return cls(parts, store.read_table("index.parquet").cast(INDEX), first)


@dataclass(frozen=True)
class PartPlan:
    """Which parts stay and which are written.

    kept_parts: numbers of the parts that stay; new_parts: number -> positions of its photos in the source's order.
    """

    kept_parts: set[int]
    new_parts: dict[int, list[int]]


def versions_of(entries: Sequence[Entry], source: Source, cfg: DataConfig) -> list[str]:
    """The version of each photo: a hash that changes when its row in the image table could change."""
    limits = (SCHEMA_VERSION, cfg.max_pixels, cfg.max_bytes, cfg.max_side, *reading_rules(source))
    return [
        digest_of(limits, split, item.image_id, item.file_name, item.path, item.size, item.crop,
                  item.stamp or source.fingerprint)
        for item, split in entries
    ]


def reading_rules(source: Source) -> tuple[str, ...]:
    """What else decides how photos are read: empty where older versions read them in the same way."""
    return () if source.orientation == "recorded" else (source.orientation,)


def plan_parts(versions: Sequence[str], former: FormerBuild, size: int) -> PartPlan:
    """Decide which parts to keep and which to write, with `size` photos each.

    If there are new photos, parts that are not full are written again together with them. So many small additions leave
    few small parts. New parts get numbers that no earlier part had, so readers of the old shards are not disturbed.
    """
    current = set(versions)
    kept = {p["part"]: p["versions"] for p in former.parts if p["versions"] and current.issuperset(p["versions"])}
    if current - {v for part in kept.values() for v in part}:
        kept = {number: part for number, part in kept.items() if len(part) >= size}
    covered = {v for part in kept.values() for v in part}
    left = [place for place, version in enumerate(versions) if version not in covered]
    groups = (left[i : i + size] for i in range(0, len(left), size))
    return PartPlan(set(kept), dict(enumerate(groups, former.first)))


def delete_stale_files(store: Store, parts: set[int], files: set[str]) -> None:
    """Delete the parts and blocks that earlier or unfinished builds left.

    parts: numbers of the parts to keep; files: names of the files to keep.
    """
    names = {part_name(p) for p in parts} | files
    for folder in ("images", "blocks"):
        for name in store.list(folder):
            if name not in names and name.endswith(".parquet") and not name.endswith("/index.parquet"):
                store.delete(name)
