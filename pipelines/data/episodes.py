"""Fixed episode lists: a test set is a list of ids with a seed and a content hash, never a draw inside a loader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from fss_models.errors import FssError
from pipelines.data.parquet import parquet_bytes, parquet_table
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
    """Episodes of one fold and shot over the test photos. `family` is the rule by which they were drawn.

    `shards_hash` is the content hash of the shards that the image ids refer to. `dropped` gives the classes of the fold
    that have too few test photos, with the reason. `published_hash` is the content hash of the list file that the
    episodes were read from, "" for a list of these shards.
    """

    fold: int
    shots: int
    seed: int
    family: str
    shards_hash: str
    episodes: tuple[Episode, ...]
    dropped: dict[str, str] = field(default_factory=dict)
    published_hash: str = ""

    @property
    def sha256(self) -> str:
        """The content hash: that of the list file if there is one, else of the image ids and of the shards' content."""
        if self.published_hash:
            return self.published_hash
        rows = [(e.fold, e.class_id, e.query, e.supports) for e in self.episodes]
        return digest_of(self.family, self.shots, self.shards_hash, rows)

    @property
    def class_ids(self) -> list[int]:
        """The ids of the tested classes, sorted."""
        return sorted({e.class_id for e in self.episodes})

    def __len__(self) -> int:
        return len(self.episodes)

    def __iter__(self) -> Iterator[Episode]:
        return iter(self.episodes)


def draw_episodes(shards: Shards, *, fold: int, shots: int, episodes: int, seed: int) -> EpisodeList:
    """Draw episodes from test photos: the class uniformly, then query and supports uniformly without repeats.

    Of photos with the same content only one is drawn, and none whose content a train photo has
    (`Shards.tested_photos`). `fold` may be `ALL_FOLDS`. A class needs more than `shots` such photos. Raises `FssError`
    if no class of the fold has that many.
    """
    pools, dropped = {}, {}
    for class_id in shards.fold_classes(fold):
        photos = shards.tested_photos(class_id)
        if len(photos) > shots:
            pools[class_id] = photos
        else:
            dropped[shards.classes[class_id].name] = f"{len(photos)} test photos, {shots + 1} are needed"
    if not pools:
        raise FssError(f"no class of fold {fold} has the {shots + 1} test photos that {shots} shots need",
                       where=shards.url, hint="lower eval.shots or hold out more photos (data.split.test_fraction)")
    rng = np.random.default_rng([seed, fold + 1, shots])
    rows = draw_from(pools, fold=fold, shots=shots, episodes=episodes, rng=rng)
    return EpisodeList(fold=fold, shots=shots, seed=seed, family="drawn", episodes=rows, dropped=dropped,
                       shards_hash=shards.manifest.content_hash)


def draw_from(pools: Mapping[int, Sequence[int]], *, fold: int, shots: int, episodes: int,
              rng: np.random.Generator) -> tuple[Episode, ...]:
    """Draw from `pools` (class id -> image ids): the class uniformly, then query and supports without repeats."""
    classes, rows = sorted(pools), []
    for number in range(episodes):
        class_id = classes[int(rng.integers(len(classes)))]
        query, *supports = (int(i) for i in rng.choice(pools[class_id], shots + 1, replace=False))
        rows.append(Episode(number, fold, class_id, query, tuple(supports)))
    return tuple(rows)


def list_name(fold: int, shots: int, episodes: int, seed: int) -> str:
    """Path of a drawn list below the shard folder."""
    scope = "all" if fold == ALL_FOLDS else f"fold{fold}"
    return f"episodes/{scope}-shot{shots}-n{episodes}-seed{seed}.parquet"


def episode_list(shards: Shards, *, fold: int, shots: int, episodes: int, seed: int) -> EpisodeList:
    """The list stored beside the shards. It is drawn and written if it is not there yet.

    Raises `FssError` if the stored list is damaged or belongs to other shards.
    """
    name = list_name(fold, shots, episodes, seed)
    if shards.store.exists(name):
        return read_episodes(shards, name)
    drawn = draw_episodes(shards, fold=fold, shots=shots, episodes=episodes, seed=seed)
    write_episodes(shards, name, drawn)
    return drawn


def join_lists(lists: Sequence[EpisodeList]) -> EpisodeList:
    """Lists of the same fold and shot as one list with new episode numbers. A single list is returned unchanged."""
    if len(lists) == 1:
        return lists[0]
    every = (e for one in lists for e in one)
    return replace(lists[0], episodes=tuple(replace(e, episode_id=i) for i, e in enumerate(every)))


def write_episodes(shards: Shards, name: str, episodes: EpisodeList) -> None:
    """Write a list below the shard folder. Fold, shot, seed, family and hashes become the file's metadata."""
    rows = [{"episode_id": e.episode_id, "fold": e.fold, "class_id": e.class_id, "query": e.query,
             "supports": list(e.supports)} for e in episodes]
    metadata = {
        "fold": str(episodes.fold), "shots": str(episodes.shots), "seed": str(episodes.seed), "family": episodes.family,
        "schema_version": str(SCHEMA_VERSION), "sha256": episodes.sha256, "shards_hash": episodes.shards_hash,
        **{f"dropped:{k}": v for k, v in episodes.dropped.items()},
    }
    shards.store.write_bytes(name, parquet_bytes([pa.Table.from_pylist(rows, schema=EPISODES)], EPISODES,
                                                 metadata=metadata))


def read_episodes(shards: Shards, name: str) -> EpisodeList:
    """Read a list below the shard folder.

    Raises `FssError` if the file is not a list, has a newer schema, does not match its content hash, or belongs to
    other shards.
    """
    where = shards.store.path(name)
    table = parquet_table(shards.store.read_bytes(name))
    facts = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    if not {"fold", "shots", "seed", "family", "sha256", "shards_hash", "schema_version"} <= facts.keys():
        raise FssError("this file is not an episode list", where=where)
    if int(facts["schema_version"]) > SCHEMA_VERSION:
        newer = f"the list has schema {facts['schema_version']}, this program reads up to {SCHEMA_VERSION}"
        raise FssError(newer, where=where, hint="update fss")
    rows = tuple(Episode(r["episode_id"], r["fold"], r["class_id"], r["query"], tuple(r["supports"]))
                 for r in table.to_pylist())
    episodes = EpisodeList(
        fold=int(facts["fold"]), shots=int(facts["shots"]), seed=int(facts["seed"]), family=facts["family"],
        shards_hash=facts["shards_hash"], episodes=rows,
        dropped={k.removeprefix("dropped:"): v for k, v in facts.items() if k.startswith("dropped:")},
    )
    if episodes.sha256 != facts["sha256"]:
        raise FssError("the list does not match its content hash", where=where,
                       hint="delete the file; the list is drawn again")
    if episodes.shards_hash != shards.manifest.content_hash:
        raise FssError("the list was drawn for other shards", where=where,
                       hint="delete the file; the list is drawn again")
    return episodes


def load_episode(shards: Shards, episode: Episode) -> EpisodeSample:
    """Decode an episode: K references and one target. Photos come through the shards' bounded cache."""
    return EpisodeSample(
        class_id=episode.class_id,
        class_name=shards.classes[episode.class_id].name,
        references=shards.samples(episode.supports, episode.class_id),
        targets=[shards.sample(episode.query, episode.class_id)],
    )
