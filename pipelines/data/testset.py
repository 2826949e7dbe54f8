"""A test set straight from a directory: shards of its test photos and one fold's episode list, kept in a workspace.

Episodes are drawn as HSNet's loaders do, from a published list or from the (photo, class) pairs with 2048 pixels or
more, by photo, then class. Void and crowd pixels enter no score. The same wish over the same files is there at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from fss_models.errors import FssError
from pipelines.base.storage import Store, join
from pipelines.base.workspace import Workspace
from pipelines.config.data import DataConfig, SourceConfig, SplitConfig
from pipelines.data.benchmarks import coco, find_benchmark, pascal
from pipelines.data.benchmarks.protocol import check_fold, content_digest, photo_number
from pipelines.data.lists.hsnet import coco_images, pascal_pairs
from pipelines.data.open import open_source
from pipelines.data.published import ListedEpisode, PublishedList, write_list
from pipelines.data.samplers.draws import NamedEpisode
from pipelines.data.samplers.hsnet import class_uniform, listed_pairs
from pipelines.data.schema import Manifest
from pipelines.data.shards import build_shards
from pipelines.data.shardset import Shards
from pipelines.data.sources import voc
from pipelines.data.sources.base import Source, digest_of
from pipelines.data.split import Splitter

FOLDS, MIN_PIXELS, ENTRY = 4, 2048, "photos"
Pair = tuple[str, int]  # photo, class


@dataclass(frozen=True, kw_only=True)
class TestSetRequest:
    """What is to be tested: URLs `root` (the photos), `lists` (HSNet's) and `split` (JSON, its entry `key`), "" if not
    given. `annotations`: file below the root of a COCO directory where there are several.
    """

    dataset: str
    root: str
    annotations: str = ""
    lists: str = ""
    split: str = ""
    key: str = ""  # default the last folder of the root
    fold: int = 0
    shots: int = 1
    episodes: int = 1000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """The shards' configuration, the fold's list and where it lies.

    `photos`: how many are tested; `dropped`: classes of the fold with too few of them, and why; `absent`: photos of the
    published list that are not tested here.
    """

    data: DataConfig
    listed: PublishedList
    url: str
    photos: int
    dropped: dict[str, str]
    absent: int = 0


@dataclass(frozen=True, kw_only=True)
class _DatasetKind:
    """A dataset: how its directory is read, its folds, and its published lists and sampler."""

    format: str
    layout: str
    names: Sequence[str]
    fold_rule: str
    fold_classes: Callable[[int], list[int]]
    read: Callable[[str, int], tuple[list[Pair], str]]  # pairs in the list's order, and the file's sha256
    draw: Callable[[list[Pair], TestSetRequest], list[NamedEpisode]]
    digest: Callable[[list[Pair]], str]  # as `checked` has it
    place: Callable[[str], object]  # what names in lists and in the directory have in common


def _pascal_list(lists: str, fold: int) -> tuple[list[Pair], str]:
    pairs, file = pascal_pairs(lists, "val", fold)
    return pairs, file.sha256


def _coco_list(lists: str, fold: int) -> tuple[list[Pair], str]:
    pools, file = coco_images(lists, "val", fold)
    return [(name, c) for c, names in sorted(pools.items()) for name in names], file.sha256


def _pools(pairs: Sequence[Pair]) -> dict[int, list[str]]:
    pools: dict[int, list[str]] = {}
    for name, class_id in pairs:
        pools.setdefault(class_id, []).append(name)
    return pools


def _pascal_draw(pairs: list[Pair], wish: TestSetRequest) -> list[NamedEpisode]:
    return listed_pairs(pairs, shots=wish.shots, episodes=wish.episodes, seed=wish.seed)


def _coco_draw(pairs: list[Pair], wish: TestSetRequest) -> list[NamedEpisode]:
    pools = _pools(pairs)
    return class_uniform(pools, sorted(pools), shots=wish.shots, episodes=wish.episodes, seed=wish.seed)


KINDS = {
    "pascal5i": _DatasetKind(
        format="voc", names=voc.CLASSES, fold_rule="contiguous", fold_classes=pascal.fold_classes,
        layout="a VOC2012 directory (JPEGImages and SegmentationClassAug or SegmentationClass) or its parent",
        read=_pascal_list, draw=_pascal_draw, digest=content_digest, place=lambda name: PurePosixPath(name).stem),
    "coco20i": _DatasetKind(
        format="coco", names=coco.CLASSES, fold_rule="interleaved", fold_classes=coco.fold_classes,
        layout="a COCO directory (annotations/*.json with the 80 categories, and the photos)",
        read=_coco_list, draw=_coco_draw, digest=lambda pairs: content_digest(sorted(_pools(pairs).items())),
        place=photo_number),
}


def open_test_set(wish: TestSetRequest, out: str) -> EvaluationSet:
    """Build what is missing below the workspace `out` and draw the list.

    Raises `FssError`, before anything is written, for an unknown dataset or fold, a directory of another layout or
    without masks, lists or splits that are missing or name none of its photos.
    """
    if wish.dataset not in KINDS:
        raise FssError(f"no dataset {wish.dataset!r} can be scored from a directory",
                       mend=f"--dataset {' or '.join(KINDS)}; other benchmarks: --recipe")
    kind = KINDS[wish.dataset]
    check_fold(wish.fold, FOLDS)
    if wish.annotations and kind.format != "coco":
        raise FssError(f"--dataset {wish.dataset} ignores --annotations", mend="leave it out")
    maker = _TestSetBuilder(wish, kind, _source(kind, wish), out)
    return maker.published() if wish.lists else maker.by_rule()


def _source(kind: _DatasetKind, wish: TestSetRequest) -> Source:
    """The directory's index. Raises `FssError`."""
    try:
        source = open_source(_config(kind, wish))
    except FssError as error:
        mend = "give --annotations" if "annotation files" in error.what else f"--root is {kind.layout}"
        raise FssError(error.what, where=error.where, mend=mend) from error
    if tuple(source.classes) != tuple(kind.names):
        raise FssError(f"its {len(source.classes)} categories are not those of {wish.dataset}", where=wish.root,
                       mend="score it by a recipe with data.source.format=coco")
    if not source.items:
        raise FssError(f"none of its {len(source.failures)} masks has a photo", where=wish.root,
                       mend=f"--root is {kind.layout}")
    return source


def _config(kind: _DatasetKind, wish: TestSetRequest) -> SourceConfig:
    home = find_benchmark(wish.dataset).home(wish.root)
    return SourceConfig.model_validate({"format": kind.format, "root": home, "annotations": wish.annotations})


@dataclass(frozen=True)
class _TestSetBuilder:
    """One wish on its way to a test set."""

    wish: TestSetRequest
    kind: _DatasetKind
    source: Source
    out: str

    def by_rule(self) -> EvaluationSet:
        """A fresh list over all photos that may be tested."""
        held = self._held_out()
        data, manifest = self._shards(held)
        shards = Shards(Workspace(self.out).shards(data.name))
        file = {i: row["file_name"] for i, row in shards.rows.items()}
        pairs = sorted((file[i], c) for c in self.kind.fold_classes(self.wish.fold)
                       for i in shards.photos_of(c, "test"))
        kept, dropped = self._enough(pairs)
        listed = self._list(self.kind.draw(kept, self.wish), "drawn",
                            f"rule over {len(file)} test photos, shards {manifest.content_hash[:16]}")
        return EvaluationSet(data=data, listed=listed, url=self._write(data, listed), photos=len(file), dropped=dropped)

    def published(self) -> EvaluationSet:
        """The list of the file, less the photos that are not tested here; only photos its episodes name are read."""
        wish, place, held = self.wish, self.kind.place, self._held_out()
        pairs, sha = self.kind.read(wish.lists, wish.fold)
        if other := {c for _, c in pairs} - set(self.kind.fold_classes(wish.fold)):
            raise FssError(f"is no list of fold {wish.fold}: it tests {self.kind.names[min(other)]}", where=wish.lists)
        there, absent = self._there(pairs, {place(n) for n in held})
        kept, dropped = self._enough(there)
        whole = len(kept) == len(pairs)
        known = find_benchmark(wish.dataset).families["hsnet"].checked
        status = "drawn" if not whole else "reproduced" if self.kind.digest(pairs) in known else "unverified"
        origin = f"HSNet list {sha[:16]}" + ("" if whole else f", {len(kept)} of its {len(pairs)} pairs")
        draws = self.kind.draw(kept, wish)
        wanted = {place(n) for d in draws for n in (d.query, *d.supports)}
        tested = {n for n in held if place(n) in wanted}
        data, _ = self._shards(tested)
        listed = self._list(draws, status, origin)
        return EvaluationSet(data=data, listed=listed, url=self._write(data, listed), photos=len(tested),
                             dropped=dropped, absent=absent)

    def _there(self, pairs: list[Pair], here: set[object]) -> tuple[list[Pair], int]:
        """The pairs whose photos are tested here, and how many photos are not. Raises `FssError`."""
        there = [pair for pair in pairs if self.kind.place(pair[0]) in here]
        names = {n for n, _ in pairs}
        lost = sorted(names - {n for n, _ in there})
        if lost and (not there or not self.wish.split):
            raise FssError(f"{len(lost)} of the list's {len(names)} photos are not among the {len(here)} that may be "
                           f"tested of {self.wish.root} (first: {lost[0]})", where=self.wish.lists,
                           mend="complete the directory, or give --split and no --lists: a fresh list is drawn")
        return there, len(lost)

    def _held_out(self) -> set[str]:
        """File names of the photos that may be tested: the split's, else the list's, else VOC's val, else all."""
        wish, every = self.wish, {i.file_name for i in self.source.items}
        if wish.split:
            ask = SplitConfig(file=wish.split, key=wish.key or PurePosixPath(Store(wish.root).url).name)
            splitter = Splitter(DataConfig(source=SourceConfig(format="voc", root=wish.root), split=ask))
            found = {name for name in every if splitter(name) == "test"}
            if not found:
                raise FssError(f"the test list of {ask.key!r} names none of the {len(every)} photos of {wish.root}",
                               where=wish.split, mend="give --split-key")
            return found
        if wish.key:
            raise FssError("--split-key names an entry of --split", mend="give --split too")
        return every if wish.lists or wish.dataset != "pascal5i" else _val_photos(self.source, every)

    def _enough(self, pairs: list[Pair]) -> tuple[list[Pair], dict[str, str]]:
        """The pairs of classes with more than K photos; the fold's others with the reason. Raises `FssError`."""
        wish, needed = self.wish, self.wish.shots + 1
        count = {c: len(set(names)) for c, names in _pools(pairs).items()}
        dropped = {self.kind.names[c]: f"{count.get(c, 0)} test photos, {needed} are needed"
                   for c in self.kind.fold_classes(wish.fold) if count.get(c, 0) < needed}
        kept = [p for p in pairs if count[p[1]] >= needed]
        if not kept:
            raise FssError(f"no class of fold {wish.fold} has the {needed} test photos that {wish.shots} shots need",
                           where=wish.root, mend="lower --shot, or hold out more photos")
        return kept, dropped

    def _shards(self, tested: set[str]) -> tuple[DataConfig, Manifest]:
        """Shards of the tested photos alone, in a folder keyed by what was asked for."""
        wish = self.wish
        drawn = (wish.fold, wish.shots, wish.episodes, wish.seed) if wish.lists else ()
        places = [Store(u).url if u else "" for u in (wish.root, wish.lists, wish.split)]
        name = f"{wish.dataset}-{digest_of(places, wish.annotations, wish.key, drawn)[:12]}"
        url = Workspace(self.out).shards(name)
        data = DataConfig.model_validate({
            "name": name, "source": _config(self.kind, wish),
            "split": {"file": join(url, "tested.json"), "key": ENTRY}, "folds": FOLDS,
            "fold_rule": self.kind.fold_rule, "min_images": 1, "min_area": 0.0,
            "min_pixels": 0 if wish.lists else MIN_PIXELS})  # who made a list has counted them
        split, store = json.dumps({ENTRY: {"train": [], "test": sorted(tested)}}).encode(), Store(url)
        if not store.exists("tested.json") or store.read_bytes("tested.json") != split:
            store.write_bytes("tested.json", split)
        return data, build_shards(data, url, update=True)

    def _list(self, draws: list[NamedEpisode], status: str, origin: str) -> PublishedList:
        place, wish, names = self.kind.place, self.wish, self.kind.names
        ids = {place(i.file_name): i.image_id for i in self.source.items}
        rows = tuple(ListedEpisode(d.class_id, names[d.class_id], ids[place(d.query)],
                                   tuple(ids[place(n)] for n in d.supports), d.query, d.supports) for d in draws)
        return PublishedList(dataset=wish.dataset, family="hsnet", fold=wish.fold, shots=wish.shots, seed=wish.seed,
                             status=status, origin=origin, episodes=rows)

    def _write(self, data: DataConfig, listed: PublishedList) -> str:
        """Put the list beside its shards; its URL."""
        name = f"fold{listed.fold}-shot{listed.shots}-n{len(listed)}-seed{listed.seed}-{listed.sha256[:8]}.parquet"
        url = join(Workspace(self.out).shards(data.name), "episodes", name)
        write_list(url, listed)
        return url


def _val_photos(source: Source, every: set[str]) -> set[str]:
    """Those that VOC's own list of val photos names. Raises `FssError` if it is not there, or some of them are not."""
    base = source.items[0].path.partition("JPEGImages/")[0]
    name, store = f"{base}ImageSets/Segmentation/val.txt", source.store
    if not store.exists(name):
        raise FssError("which photos are tested? there is no ImageSets/Segmentation/val.txt", where=store.path(base),
                       mend="give --lists or --split")
    named = set(store.read_bytes(name).decode().split())
    found = {n for n in every if PurePosixPath(n).stem in named}
    if len(found) < len(named):
        raise FssError(f"{len(named) - len(found)} of its {len(named)} photos have no mask or are missing",
                       where=store.path(name), mend="complete the directory, or say what is tested with --split")
    return found
