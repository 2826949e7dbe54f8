"""Test lists as files: a published list, reproduced or drawn by its rule, with image ids and its origin.

A list belongs to a benchmark, not to one shard folder. `bind` finds its images in given shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.data.episodes import Episode, EpisodeList
from pipelines.data.parquet import parquet_bytes, parquet_table
from pipelines.data.schema import SCHEMA_VERSION
from pipelines.data.shardset import Shards
from pipelines.data.sources.base import digest_of

PUBLISHED = pa.schema([
    ("episode_id", pa.int64()),
    ("fold", pa.int32()),
    ("class_id", pa.int32()),
    ("class_name", pa.string()),
    ("query", pa.int64()),  # image ids, as in shards of the benchmark
    ("supports", pa.list_(pa.int64())),
    ("query_name", pa.string()),  # the names in the lists of the family
    ("support_names", pa.list_(pa.string())),
])
_FACTS = ("dataset", "family", "fold", "shots", "seed", "status", "origin")


@dataclass(frozen=True)
class ListedEpisode:
    """One row of a list: the class, and the ids and names of the query and its K supports."""

    class_id: int
    class_name: str
    query: int
    supports: tuple[int, ...]
    query_name: str
    support_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PublishedList:
    """A test list of one fold and shot.

    family: whose loader draws such a list; status: `reproduced` if lists of this family and fold agree with golden
    episodes, `unverified` if none were compared, `drawn` if the list is this project's own; origin: the files or shards
    that the list was made from.
    """

    dataset: str
    family: str
    fold: int
    shots: int
    seed: int
    status: str
    origin: str
    episodes: tuple[ListedEpisode, ...]

    @property
    def sha256(self) -> str:
        """The content hash, over the episodes and their order. Family, seed, status and origin do not enter."""
        rows = [(e.class_id, e.query, e.supports) for e in self.episodes]
        return digest_of(self.dataset, self.fold, self.shots, rows)

    def __len__(self) -> int:
        return len(self.episodes)

    def __iter__(self) -> Iterator[ListedEpisode]:
        return iter(self.episodes)


def write_list(url: str, test_list: PublishedList) -> None:
    """Write a list as a Parquet file. Everything but the episodes becomes the file's metadata."""
    rows = [{"episode_id": i, "fold": test_list.fold, **e.__dict__} for i, e in enumerate(test_list)]
    facts = {k: str(getattr(test_list, k)) for k in (*_FACTS, "sha256")} | {"schema_version": str(SCHEMA_VERSION)}
    _file(url).write_bytes("", parquet_bytes([pa.Table.from_pylist(rows, schema=PUBLISHED)], PUBLISHED, metadata=facts))


def read_list(url: str) -> PublishedList:
    """Read a list. Raises `FssError` if it is not a list, has a newer schema, or does not match its content hash."""
    content = _file(url).read_bytes()
    try:
        table = parquet_table(content)
    except pa.ArrowInvalid as error:
        raise FssError("this is not a Parquet file", where=url, hint="make a list with `fss episodes make`") from error
    facts = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    if not {*_FACTS, "sha256", "schema_version"} <= facts.keys() or set(table.column_names) != set(PUBLISHED.names):
        raise FssError("this is not a published episode list", where=url, hint="make a list with `fss episodes make`")
    if int(facts["schema_version"]) > SCHEMA_VERSION:
        raise FssError(f"the list has schema {facts['schema_version']}, this program reads up to {SCHEMA_VERSION}",
                       where=url, hint="update fss")
    rows = tuple(ListedEpisode(r["class_id"], r["class_name"], r["query"], tuple(r["supports"]), r["query_name"],
                               tuple(r["support_names"])) for r in table.to_pylist())
    test_list = PublishedList(dataset=facts["dataset"], family=facts["family"], fold=int(facts["fold"]),
                              shots=int(facts["shots"]), seed=int(facts["seed"]), status=facts["status"],
                              origin=facts["origin"], episodes=rows)
    if test_list.sha256 != facts["sha256"]:
        raise FssError("the list does not match its content hash", where=url, hint="make it again")
    return test_list


def first_difference(one: PublishedList, two: PublishedList) -> str:
    """A line about the first difference of two lists, "" if they have the same episodes in the same order."""
    for number, (a, b) in enumerate(zip(one, two, strict=False)):
        if (a.class_id, a.query, a.supports) != (b.class_id, b.query, b.supports):
            return f"episode {number}: {_describe(a)} | {_describe(b)}"
    if len(one) != len(two):
        return f"{len(one)} | {len(two)} episodes; the first {min(len(one), len(two))} are equal"
    if (one.dataset, one.fold, one.shots) != (two.dataset, two.fold, two.shots):
        return (f"{one.dataset} fold {one.fold} {one.shots}-shot | {two.dataset} fold {two.fold} {two.shots}-shot, "
                "with equal episodes")
    return ""


def _describe(episode: ListedEpisode) -> str:
    return f"class {episode.class_id}, {episode.query_name} <- {', '.join(episode.support_names)}"


def bind(shards: Shards, test_list: PublishedList, *, where: str = "") -> EpisodeList:
    """The list as episodes over the images of `shards`.

    The content hash stays that of the list, so results on different shards can be compared. Raises `FssError` for
    missing images (their number and the first one) and for classes that have another name in the shards.
    """
    names: dict[int, str] = {}
    for e in test_list:
        names |= {e.query: e.query_name, **dict(zip(e.supports, e.support_names, strict=True))}
    missing = [i for i in names if i not in shards.rows]
    if missing:
        raise FssError(f"{len(missing)} of the list's {len(names)} images are not in {shards.url} (first: "
                       f"{names[missing[0]]}, id {missing[0]})", where=where,
                       hint="build the shards from all photos of the benchmark")
    for class_id, name in sorted({(e.class_id, e.class_name) for e in test_list}):
        known = shards.classes.get(class_id)
        if known is None or known.name != name:
            has = f"has {known.name!r} there" if known else "has no such class"
            raise FssError(f"class {class_id} of the list is {name!r}; {shards.url} {has}", where=where,
                           hint="give shards of the same benchmark, built from all its photos")
    rows = tuple(Episode(i, test_list.fold, e.class_id, e.query, e.supports) for i, e in enumerate(test_list))
    return EpisodeList(fold=test_list.fold, shots=test_list.shots, seed=test_list.seed, family=test_list.family,
                       shards_hash=shards.manifest.content_hash, episodes=rows, published_hash=test_list.sha256)


def _file(url: str) -> Store:
    if not url.endswith(".parquet"):
        raise FssError(f"an episode list is a .parquet file, not {url!r}")
    return Store(url)
