"""The description of a benchmark: its raw layout, its source, and the families of test lists that papers use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.config.data import SourceConfig
from pipelines.data.samplers.draws import NamedEpisode
from pipelines.data.shardset import ALL_FOLDS, Shards
from pipelines.data.sources.base import Source


@dataclass(frozen=True, kw_only=True)
class LayoutPart:
    """One part of the raw layout: files below one of `folders` with one of `suffixes`.

    count: published number of files (None: unknown); get: where to download them.
    """

    what: str
    folders: tuple[str, ...]
    suffixes: tuple[str, ...]
    get: str
    count: int | None = None
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class ListRequest:
    """Which episode list to make. If `episodes` or `seed` is None, the family's own number is used.

    Photos come from published lists (`lists`), the raw data (`root`) or finished shards (`shards`), each a URL.
    """

    fold: int = 0
    shots: int = 1
    episodes: int | None = None
    seed: int | None = None
    lists: str = ""
    root: str = ""
    shards: str = ""
    workers: int | None = None  # number of loader workers of the family fssam; None: 32, as in the paper's run
    split: str = "test"  # which photos of the shards are used: test or train

    @property
    def given_options(self) -> set[str]:
        """The names of the options that were given, of those that decide where episodes come from."""
        found = {k for k in ("lists", "root", "shards") if getattr(self, k)}
        return found | ({"workers"} if self.workers else set()) | ({"split"} if self.split != "test" else set())

    @cached_property
    def opened_shards(self) -> Shards:
        """The shards of `shards`. Raises `FssError` if none are given."""
        if not self.shards:
            raise FssError("this list is drawn from finished shards", hint="build them and give --shards")
        return Shards(self.shards)

    @property
    def pools(self) -> dict[int, list[str]]:
        """Class id -> names of the photos of the shards in which it is large enough, in the order of image ids."""
        shards = self.opened_shards
        names = {i: row["file_name"] for i, row in shards.rows.items()}
        return {c: [names[i] for i in sorted(shards.photos_of(c, self.split))] for c in shards.classes}

    @property
    def origin(self) -> str:
        """The `origin` of a list whose photos were chosen by rule from the shards."""
        dataset = self.opened_shards.manifest
        return f"rule over the {self.split} photos of shards {dataset.dataset} {dataset.content_hash[:16]}"


@dataclass(frozen=True, kw_only=True)
class DrawnEpisodes:
    """Episodes by photo name, the names of their classes, and what they were drawn from.

    content: digest of the parsed content of a published list, "" for photos chosen by rule.
    """

    draws: Sequence[NamedEpisode]
    classes: Mapping[int, str]
    origin: str
    content: str = ""


@dataclass(frozen=True, kw_only=True)
class EpisodeFamily:
    """One rule by which papers draw the episodes of a benchmark.

    uses: the options of a `ListRequest` that it reads; checked: digests of the published lists from which it reproduces
    golden episodes id for id.
    """

    draw: Callable[[ListRequest, int, int], DrawnEpisodes]  # (request, number of episodes, seed)
    seed: int
    episodes: int | None = 1000  # default number; None: as many as the rule gives
    checked: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset({"shards", "split"})


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published dataset with its layout, source and families of episode lists.

    homes: names that its own folder may have below a root with several benchmarks; published: the families of episode
    lists that papers use; verified: whether layout and counts were checked against the list files or the publishers'
    code.
    """

    name: str
    title: str
    source: Callable[[SourceConfig], Source]
    homes: tuple[str, ...]
    parts: tuple[LayoutPart, ...]
    published: Mapping[str, EpisodeFamily] = field(default_factory=dict)
    verified: bool = True
    note: str = ""

    @property
    def families(self) -> dict[str, EpisodeFamily]:
        """The families of episode lists: the published ones, and `drawn`."""
        return {**self.published, "drawn": EpisodeFamily(draw=draw_fresh, seed=0)}

    def home(self, root: str) -> str:
        """URL of the benchmark's own folder: one of `homes` below `root`, else `root` itself."""
        store = Store(root)
        return next((store.path(name) for name in self.homes if store.exists(name)), store.url)


def draw_fresh(request: ListRequest, episodes: int, seed: int) -> DrawnEpisodes:
    """The family `drawn`: the project's own rule (`draw_episodes`) over shards.

    Raises `FssError` without shards, for train photos, and if no class has enough test photos.
    """
    from pipelines.data.episodes import draw_episodes

    if request.split != "test":
        raise FssError("fresh lists are drawn from test photos only", hint="leave out --split")
    shards = request.opened_shards
    listed = draw_episodes(shards, fold=request.fold, shots=request.shots, episodes=episodes, seed=seed)
    name = {i: row["file_name"] for i, row in shards.rows.items()}
    draws = [NamedEpisode(e.class_id, name[e.query], tuple(name[i] for i in e.supports)) for e in listed]
    scope = "all classes" if request.fold == ALL_FOLDS else f"fold {request.fold}"
    return DrawnEpisodes(draws=draws, classes={c: info.name for c, info in shards.classes.items()},
                         origin=f"{request.origin}, {scope}")
