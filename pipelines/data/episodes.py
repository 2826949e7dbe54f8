"""Fixed episode lists: a test set is a list of ids with a seed and a content hash, never a draw inside a loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fss_models.errors import FssError
from pipelines.data.parquet import parquet_bytes
from pipelines.data.schema import EPISODES, SCHEMA_VERSION, EpisodeSample
from pipelines.data.shardset import ALL_FOLDS, Shards
from pipelines.data.sources.base import digest_of


@dataclass(frozen=True)
class Episode:
    """One row of a list: image ids of the query and of its K supports."""

    episode_id: int
    fold: int
    class_id: int
    query: int
    supports: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class EpisodeList:
    """Episodes of one fold and shot over the test photos. `family` says by which rule they were made.

    `shards_hash` is the content hash of the shards whose image ids they are; `dropped` names the fold's classes that
    have too few test photos, with the reason; `published` is the hash of the list file that they were read from.
    """

    fold: int
    shots: int
    seed: int
    family: str
    shards_hash: str
    episodes: tuple[Episode, ...]
    dropped: dict[str, str] = field(default_factory=dict)
    published: str = ""

    @property
    def sha256(self) -> str:
        """The content hash: the list file's, else of the ids and of the shards they point into."""
        if self.published:
            return self.published
        rows = [(e.fold, e.class_id, e.query, e.supports) for e in self.episodes]
        return digest_of(self.family, self.shots, self.shards_hash, rows)

    @property
    def class_ids(self) -> list[int]:
        """The classes tested, sorted."""
        return sorted({e.class_id for e in self.episodes})

    def __len__(self) -> int:
        return len(self.episodes)

    def __iter__(self) -> Iterator[Episode]:
        return iter(self.episodes)


def draw_episodes(shards: Shards, *, fold: int, shots: int, episodes: int, seed: int) -> EpisodeList:
    """Draw over test photos only: class uniform, then query and supports uniform without repeats.

    `fold` may be `ALL_FOLDS`. A class needs more than `shots` test photos. Raises `FssError` if no class of the fold
    has them.
    """
    pools, dropped = {}, {}
    for class_id in shards.fold_classes(fold):
        photos = shards.photos_of(class_id, "test")
        if len(photos) > shots:
            pools[class_id] = photos
        else:
            dropped[shards.classes[class_id].name] = f"{len(photos)} test photos, {shots + 1} are needed"
    if not pools:
        raise FssError(f"no class of fold {fold} has the {shots + 1} test photos that {shots} shots need",
                       where=shards.url, mend="lower eval.shots or hold out more photos (data.split.test_fraction)")
    rng = np.random.default_rng([seed, fold + 1, shots])
    rows = draw_from(pools, fold=fold, shots=shots, episodes=episodes, rng=rng)
    return EpisodeList(fold=fold, shots=shots, seed=seed, family="drawn", episodes=rows, dropped=dropped,
                       shards_hash=shards.manifest.content_hash)


def draw_from(pools: Mapping[int, Sequence[int]], *, fold: int, shots: int, episodes: int,
              rng: np.random.Generator) -> tuple[Episode, ...]:
    """Episodes of the classes of `pools` (class id -> image ids): class uniform, then query and supports uniform."""
    classes, rows = sorted(pools), []
    for number in range(episodes):
        class_id = classes[int(rng.integers(len(classes)))]
        query, *supports = (int(i) for i in rng.choice(pools[class_id], shots + 1, replace=False))
        rows.append(Episode(number, fold, class_id, query, tuple(supports)))
    return tuple(rows)


def list_name(fold: int, shots: int, episodes: int, seed: int) -> str:
    """Where a drawn list is kept, below the shard folder."""
    scope = "all" if fold == ALL_FOLDS else f"fold{fold}"
    return f"episodes/{scope}-shot{shots}-n{episodes}-seed{seed}.parquet"


def episode_list(shards: Shards, *, fold: int, shots: int, episodes: int, seed: int) -> EpisodeList:
    """The list kept beside the shards, drawn and written if it is not there yet.

    Raises `FssError` if the kept one is damaged or belongs to other shards.
    """
    name = list_name(fold, shots, episodes, seed)
    if shards.store.exists(name):
        return read_episodes(shards, name)
    drawn = draw_episodes(shards, fold=fold, shots=shots, episodes=episodes, seed=seed)
    write_episodes(shards, name, drawn)
    return drawn


def join_lists(lists: Sequence[EpisodeList]) -> EpisodeList:
    """One list of the episodes of several of one fold and shot, numbered anew; a single one as it is."""
    if len(lists) == 1:
        return lists[0]
    every = (e for one in lists for e in one)
    return replace(lists[0], episodes=tuple(replace(e, episode_id=i) for i, e in enumerate(every)))


def write_episodes(shards: Shards, name: str, listed: EpisodeList) -> None:
    """Write a list below the shard folder; its facts are the file's metadata."""
    rows = [{"episode_id": e.episode_id, "fold": e.fold, "class_id": e.class_id, "query": e.query,
             "supports": list(e.supports)} for e in listed]
    metadata = {
        "fold": str(listed.fold), "shots": str(listed.shots), "seed": str(listed.seed), "family": listed.family,
        "schema_version": str(SCHEMA_VERSION), "sha256": listed.sha256, "shards_hash": listed.shards_hash,
        **{f"dropped:{k}": v for k, v in listed.dropped.items()},
    }
    shards.store.write_bytes(name, parquet_bytes([pa.Table.from_pylist(rows, schema=EPISODES)], EPISODES,
                                                 metadata=metadata))


def read_episodes(shards: Shards, name: str) -> EpisodeList:
    """Read a list. Raises `FssError` if its content is not what its hash says or it belongs to other shards."""
    where = shards.store.path(name)
    table = pq.read_table(pa.BufferReader(shards.store.read_bytes(name)))
    facts = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    if not {"fold", "shots", "seed", "family", "sha256", "shards_hash", "schema_version"} <= facts.keys():
        raise FssError("is not an episode list", where=where)
    if int(facts["schema_version"]) > SCHEMA_VERSION:
        newer = f"has schema {facts['schema_version']}, this program reads up to {SCHEMA_VERSION}"
        raise FssError(newer, where=where, mend="update fss")
    rows = tuple(Episode(r["episode_id"], r["fold"], r["class_id"], r["query"], tuple(r["supports"]))
                 for r in table.to_pylist())
    listed = EpisodeList(
        fold=int(facts["fold"]), shots=int(facts["shots"]), seed=int(facts["seed"]), family=facts["family"],
        shards_hash=facts["shards_hash"], episodes=rows,
        dropped={k.removeprefix("dropped:"): v for k, v in facts.items() if k.startswith("dropped:")},
    )
    if listed.sha256 != facts["sha256"]:
        raise FssError("its content is not what its hash says", where=where, mend="delete it; it is drawn again")
    if listed.shards_hash != shards.manifest.content_hash:
        raise FssError("was drawn for other shards", where=where, mend="delete it; it is drawn again")
    return listed


def load_episode(shards: Shards, episode: Episode) -> EpisodeSample:
    """The decoded clip: K references and one target. Photos come through the shards' bounded cache."""
    return EpisodeSample(
        class_id=episode.class_id,
        class_name=shards.classes[episode.class_id].name,
        references=shards.samples(episode.supports, episode.class_id),
        targets=[shards.sample(episode.query, episode.class_id)],
    )
