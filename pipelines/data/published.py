"""Test lists as files: a published list reproduced or drawn by its rule, by image id, with everything that made it.

A list belongs to a benchmark, not to one shard folder: `bind` finds its images in the shards at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.data.episodes import Episode, EpisodeList
from pipelines.data.parquet import parquet_bytes
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
    ("query_name", pa.string()),  # as the family names them
    ("support_names", pa.list_(pa.string())),
])
_FACTS = ("dataset", "family", "fold", "shots", "seed", "status", "origin")


@dataclass(frozen=True)
class ListedEpisode:
    """One row: ids and names of the query and its K supports."""

    class_id: int
    class_name: str
    query: int
    supports: tuple[int, ...]
    query_name: str
    support_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PublishedList:
    """A list of one fold and shot.

    `family`: by which loader; `status`: `reproduced` where lists of this family and fold agree with golden episodes,
    else `unverified`, or `drawn`; `origin`: from which files or shards.
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
        """The content hash: which episodes, in which order, not how they came about."""
        rows = [(e.class_id, e.query, e.supports) for e in self.episodes]
        return digest_of(self.dataset, self.fold, self.shots, rows)

    def __len__(self) -> int:
        return len(self.episodes)

    def __iter__(self) -> Iterator[ListedEpisode]:
        return iter(self.episodes)


def write_list(url: str, listed: PublishedList) -> None:
    """A Parquet file; its facts are the file's metadata."""
    rows = [{"episode_id": i, "fold": listed.fold, **e.__dict__} for i, e in enumerate(listed)]
    facts = {k: str(getattr(listed, k)) for k in (*_FACTS, "sha256")} | {"schema_version": str(SCHEMA_VERSION)}
    store, name = _place(url)
    store.write_bytes(name, parquet_bytes([pa.Table.from_pylist(rows, schema=PUBLISHED)], PUBLISHED, metadata=facts))


def read_list(url: str) -> PublishedList:
    """Raises `FssError` for a file that is no list, is of a newer schema, or is not what its hash says."""
    store, name = _place(url)
    try:
        table = pq.read_table(pa.BufferReader(store.read_bytes(name)))
    except pa.ArrowInvalid as error:
        raise FssError("is no Parquet file", where=url, mend="`fss episodes make` writes lists") from error
    facts = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    if not {*_FACTS, "sha256", "schema_version"} <= facts.keys() or set(table.column_names) != set(PUBLISHED.names):
        raise FssError("is not a published episode list", where=url, mend="`fss episodes make` writes them")
    if int(facts["schema_version"]) > SCHEMA_VERSION:
        raise FssError(f"has schema {facts['schema_version']}, this program reads up to {SCHEMA_VERSION}", where=url,
                       mend="update fss")
    rows = tuple(ListedEpisode(r["class_id"], r["class_name"], r["query"], tuple(r["supports"]), r["query_name"],
                               tuple(r["support_names"])) for r in table.to_pylist())
    listed = PublishedList(dataset=facts["dataset"], family=facts["family"], fold=int(facts["fold"]),
                           shots=int(facts["shots"]), seed=int(facts["seed"]), status=facts["status"],
                           origin=facts["origin"], episodes=rows)
    if listed.sha256 != facts["sha256"]:
        raise FssError("its content is not what its hash says", where=url, mend="make it again")
    return listed


def first_difference(one: PublishedList, two: PublishedList) -> str:
    """In words, the first row in which two lists differ; "" if they hold the same episodes in the same order."""
    for number, (a, b) in enumerate(zip(one, two, strict=False)):
        if (a.class_id, a.query, a.supports) != (b.class_id, b.query, b.supports):
            return f"episode {number}: {_told(a)} | {_told(b)}"
    if len(one) != len(two):
        return f"{len(one)} | {len(two)} episodes; the first {min(len(one), len(two))} are equal"
    if (one.dataset, one.fold, one.shots) != (two.dataset, two.fold, two.shots):
        return (f"{one.dataset} fold {one.fold} {one.shots}-shot | {two.dataset} fold {two.fold} {two.shots}-shot, "
                "with equal episodes")
    return ""


def _told(episode: ListedEpisode) -> str:
    return f"class {episode.class_id}, {episode.query_name} <- {', '.join(episode.support_names)}"


def bind(shards: Shards, listed: PublishedList, *, where: str = "") -> EpisodeList:
    """The list over the images of some shards. Its hash stays the list's own, so results on other shards compare.

    Raises `FssError` for missing images (how many, and the first) and for classes that the shards do not have under
    that name.
    """
    names: dict[int, str] = {}
    for e in listed:
        names |= {e.query: e.query_name, **dict(zip(e.supports, e.support_names, strict=True))}
    missing = [i for i in names if i not in shards.rows]
    if missing:
        raise FssError(f"{len(missing)} of the list's {len(names)} images are not in {shards.url} (first: "
                       f"{names[missing[0]]}, id {missing[0]})", where=where, mend="build the shards of all photos")
    for class_id, name in sorted({(e.class_id, e.class_name) for e in listed}):
        known = shards.classes.get(class_id)
        if known is None or known.name != name:
            has = f"has {known.name!r} there" if known else "does not have it"
            raise FssError(f"class {class_id} of the list is {name!r}; {shards.url} {has}", where=where,
                           mend="are these shards of the same benchmark, built of all its photos?")
    rows = tuple(Episode(i, listed.fold, e.class_id, e.query, e.supports) for i, e in enumerate(listed))
    return EpisodeList(fold=listed.fold, shots=listed.shots, seed=listed.seed, family=listed.family,
                       shards_hash=shards.manifest.content_hash, episodes=rows, published=listed.sha256)


def _place(url: str) -> tuple[Store, str]:
    folder, _, name = url.rpartition("/")
    if not name.endswith(".parquet"):
        raise FssError(f"an episode list is a .parquet file, not {url!r}")
    return Store(folder or ("/" if url.startswith("/") else ".")), name
