"""What a benchmark is made of: its raw layout, its reader, and the families of test lists that papers use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.config.data import SourceConfig
from pipelines.data.samplers.draws import NamedEpisode
from pipelines.data.shardset import ALL_FOLDS, Shards
from pipelines.data.sources.base import Source, digest_of

ROOT = frozenset({"root"})  # a family whose lists the raw data's index decides


@dataclass(frozen=True, kw_only=True)
class LayoutPart:
    """One part of the raw layout: files below one of `folders` with one of `suffixes`.

    `count` is the published number of files (None: none is known), `get` where they come from.
    """

    what: str
    folders: tuple[str, ...]
    suffixes: tuple[str, ...]
    get: str
    count: int | None = None
    optional: bool = False


COCO_2017 = tuple(  # the photos below coco/, of benchmarks whose masks are in files of their own
    LayoutPart(what=f"{split} photos", folders=(f"coco/{split}",), suffixes=(".jpg",), count=count,
         get=f"http://images.cocodataset.org/zips/{split}.zip")
    for split, count in (("train2017", 118287), ("val2017", 5000)))


@dataclass(frozen=True, kw_only=True)
class ListRequest:
    """The list that is wanted; the family's own numbers where `episodes` or `seed` is None.

    Pools come from published lists (`lists`), the raw data (`root`) or finished shards (`shards`): URLs.
    """

    fold: int = 0
    shots: int = 1
    episodes: int | None = None
    seed: int | None = None
    lists: str = ""
    root: str = ""
    shards: str = ""
    workers: int | None = None  # fssam: loader workers, 32 in the paper's run
    split: str = "test"  # from shards: whose photos

    @property
    def given_options(self) -> set[str]:
        """The options that decide where episodes come from, as far as they were given."""
        found = {k for k in ("lists", "root", "shards") if getattr(self, k)}
        return found | ({"workers"} if self.workers else set()) | ({"split"} if self.split != "test" else set())

    @cached_property
    def opened_shards(self) -> Shards:
        """The shards. Raises `FssError` if none were given."""
        if not self.shards:
            raise FssError("this list needs finished shards", mend="build them and give --shards")
        return Shards(self.shards)


@dataclass(frozen=True, kw_only=True)
class DrawnEpisodes:
    """Episodes by name, the names of their classes, and what they were drawn from.

    `content`: the digest of a published list's parsed content, "" for pools made by rule.
    """

    draws: Sequence[NamedEpisode]
    classes: Mapping[int, str]
    origin: str
    content: str = ""


@dataclass(frozen=True, kw_only=True)
class EpisodeFamily:
    """One way in which papers draw a benchmark's episodes.

    `uses`: which options of a `ListRequest` it reads. `checked`: digests of the published lists from which it repeats
    golden episodes id for id.
    """

    draw: Callable[[ListRequest, int, int], DrawnEpisodes]  # (request, episodes, seed)
    seed: int
    episodes: int | None = 1000  # None: as many as the rule gives
    checked: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset({"shards", "split"})


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark.

    `homes`: its own folder, where several benchmarks lie below one root; `verified`: its layout and counts were checked
    against the list files or the publishers' code.
    """

    name: str
    title: str
    source: Callable[[SourceConfig], Source]
    homes: tuple[str, ...]
    parts: tuple[LayoutPart, ...]
    families: Mapping[str, EpisodeFamily] = field(default_factory=dict)
    verified: bool = True
    note: str = ""

    def home(self, root: str) -> str:
        """The benchmark's own folder: below `root`, or `root` itself."""
        store = Store(root)
        return next((store.path(name) for name in self.homes if store.exists(name)), store.url)


def photo_number(name: str) -> int:
    """The image id of a name; `IMAGE#OBJECT` names one object's crop.

    COCO's trailing number, VOC's date and number, else 48 bits of a hash of the whole name.
    """
    image, crop, which = name.partition("#")
    stem = PurePosixPath(image).stem
    tail = stem.rsplit("_", 1)[-1] if stem.startswith("COCO_") else stem.replace("_", "")
    number = int(tail) if tail.isdigit() and len(tail) >= 9 else _hashed(image)
    return number * 1000 + int(which.rpartition(".")[2]) if crop else number


def _hashed(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16)


def draw_pools(request: ListRequest) -> dict[int, list[str]]:
    """Class -> the photos of the shards in which it counts, by name, in id order."""
    shards = request.opened_shards
    names = {i: row["file_name"] for i, row in shards.rows.items()}
    return {c: [names[i] for i in sorted(shards.photos_of(c, request.split))] for c in shards.classes}


def shard_origin(request: ListRequest) -> str:
    """How a list says that its pools were made by rule from shards."""
    dataset = request.opened_shards.manifest
    return f"rule over the {request.split} photos of shards {dataset.dataset} {dataset.content_hash[:16]}"


def tested_classes(source: Source, fold: int) -> list[int]:
    """The classes of a fold in the order of the benchmark. Raises `FssError` if it has none."""
    table = source.fold_table or []
    found = [c for c, f in enumerate(table) if f == fold]
    if not found:
        folds = sorted({f for f in table if f >= 0})
        raise FssError(f"fold {fold} has no class", mend=f"folds: {', '.join(map(str, folds)) or 'none'}")
    return found


def content_digest(content: object) -> str:
    """16 digits over a published list as it was parsed, whatever file format held it."""
    return digest_of(content)[:16]


def check_fold(fold: int, folds: int) -> None:
    """Raises `FssError` for a fold that the benchmark does not have."""
    if not 0 <= fold < folds:
        raise FssError(f"there is no fold {fold}", mend=f"folds: 0 to {folds - 1}")


def draw_fresh(request: ListRequest, episodes: int, seed: int) -> DrawnEpisodes:
    """The family `drawn`: the project's own rule over shards, without repeats. Raises `FssError`."""
    from pipelines.data.episodes import draw_episodes

    if request.split != "test":
        raise FssError("fresh lists are drawn from test photos")
    shards = request.opened_shards
    listed = draw_episodes(shards, fold=request.fold, shots=request.shots, episodes=episodes, seed=seed)
    name = {i: row["file_name"] for i, row in shards.rows.items()}
    draws = [NamedEpisode(e.class_id, name[e.query], tuple(name[i] for i in e.supports)) for e in listed]
    scope = "all classes" if request.fold == ALL_FOLDS else f"fold {request.fold}"
    return DrawnEpisodes(draws=draws, classes=class_names(shards), origin=f"{shard_origin(request)}, {scope}")


def class_names(shards: Shards) -> dict[int, str]:
    """Class id -> name."""
    return {c: info.name for c, info in shards.classes.items()}
