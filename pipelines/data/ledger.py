"""What a build keeps of the shards that are there: every part none of whose photos or annotations changed.

`ledger.parquet` says of each part which versions of which photos it was made of and what was wrong with them. A photo's
version changes with its file, its annotations, its split and the limits; its place in the source is no part of it.
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
    """The parts of an earlier build: a ledger row each, the image index, and the first number that no part had."""

    parts: list[dict[str, Any]]
    index: pa.Table
    first: int = 0

    @classmethod
    def read(cls, store: Store) -> FormerBuild:
        """Nothing where there was no build, or one that kept no ledger."""
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
    """Numbers of the parts that stay; the parts to write: number -> places of their photos in the source's order."""

    kept: set[int]
    new: dict[int, list[int]]


def versions_of(entries: Sequence[Entry], source: Source, cfg: DataConfig) -> list[str]:
    """The version of each photo."""
    limits = (SCHEMA_VERSION, cfg.max_pixels, cfg.max_bytes, cfg.max_side)
    return [
        digest_of(limits, split, item.image_id, item.file_name, item.path, item.size, item.crop,
                  item.stamp or source.fingerprint)
        for item, split in entries
    ]


def plan_parts(versions: Sequence[str], former: FormerBuild, size: int) -> PartPlan:
    """Which parts to keep and which to write, `size` photos each.

    Parts that are not full are written anew together with what is added, so many small additions leave few small
    parts. New parts get numbers that no earlier part had: readers of the old shards are not disturbed by them.
    """
    current = set(versions)
    kept = {p["part"]: p["versions"] for p in former.parts if p["versions"] and current.issuperset(p["versions"])}
    if current - {v for part in kept.values() for v in part}:
        kept = {number: part for number, part in kept.items() if len(part) >= size}
    covered = {v for part in kept.values() for v in part}
    left = [place for place, version in enumerate(versions) if version not in covered]
    groups = (left[i : i + size] for i in range(0, len(left), size))
    return PartPlan(set(kept), dict(enumerate(groups, former.first)))


def sweep(store: Store, parts: set[int], files: set[str]) -> None:
    """Delete what earlier or unfinished builds left: parts and blocks that are not among these."""
    names = {part_name(p) for p in parts} | files
    for folder in ("images", "blocks"):
        for name in store.list(folder):
            if name not in names and name.endswith(".parquet") and not name.endswith("/index.parquet"):
                store.delete(name)
