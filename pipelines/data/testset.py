"""A test set directly from a directory: shards of its test photos and one fold's episode list, in a workspace.

Episodes are drawn as HSNet's loaders do, from a published list, or from the (photo, class) pairs with at least 2048
pixels, sorted by photo, then class. Void and crowd pixels enter no score. Repeating a request over the same files
returns the existing test set.
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
from pipelines.data.benchmarks.rules import check_fold, content_digest, photo_number
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
    """Which photos to test, and on which episodes.

    root: URL of the photos; lists: URL of HSNet's lists, "" for a fresh list; split: URL of a JSON file whose
    entry `key` names the test photos, "" if there is none; annotations: path below the
    root of a COCO directory's annotation file, needed if there are several.
    """

    dataset: str
    root: str
    annotations: str = ""
    lists: str = ""
    split: str = ""
    key: str = ""  # entry of the split file; "": the name of the root folder
    fold: int = 0
    shots: int = 1
    episodes: int = 1000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A test set: the configuration of its shards, its episode list and the URL of that list.

    photos: number of tested photos; dropped: classes of the fold with too few test photos -> reason; absent: number of
    photos of the published list that are not tested here.
    """

    data: DataConfig
    test_list: PublishedList
    url: str
    photos: int
    dropped: dict[str, str]
    absent: int = 0


@dataclass(frozen=True, kw_only=True)
class _DatasetKind:
    """How the directory of a dataset is read, its folds, its published lists and their sampler."""

    format: str
    layout: str
    names: Sequence[str]
    fold_rule: str
    fold_classes: Callable[[int], list[int]]
    read: Callable[[str, int], tuple[list[Pair], str]]  # pairs in the list's order, and the file's sha256
    draw: Callable[[list[Pair], TestSetRequest], list[NamedEpisode]]
    digest: Callable[[list[Pair]], str]  # in the form of `EpisodeFamily.checked`
    photo_key: Callable[[str], object]  # the same value for a photo's name in a list and in the directory


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


def _pascal_draw(pairs: list[Pair], request: TestSetRequest) -> list[NamedEpisode]:
    return listed_pairs(pairs, shots=request.shots, episodes=request.episodes, seed=request.seed)


def _coco_draw(pairs: list[Pair], request: TestSetRequest) -> list[NamedEpisode]:
    pools = _pools(pairs)
    return class_uniform(pools, sorted(pools), shots=request.shots, episodes=request.episodes, seed=request.seed)


KINDS = {
    "pascal5i": _DatasetKind(
        format="voc", names=voc.CLASSES, fold_rule="contiguous", fold_classes=pascal.fold_classes,
        layout="a VOC2012 directory (JPEGImages and SegmentationClassAug or SegmentationClass) or its parent",
        read=_pascal_list, draw=_pascal_draw, digest=content_digest, photo_key=lambda name: PurePosixPath(name).stem),
    "coco20i": _DatasetKind(
        format="coco", names=coco.CLASSES, fold_rule="interleaved", fold_classes=coco.fold_classes,
        layout="a COCO directory (annotations/*.json with the 80 categories, and the photos)",
        read=_coco_list, draw=_coco_draw, digest=lambda pairs: content_digest(sorted(_pools(pairs).items())),
        photo_key=photo_number),
}


def open_test_set(request: TestSetRequest, out: str) -> EvaluationSet:
    """Build the missing shards below the workspace `out` and draw the list.

    Raises `FssError`, before anything is written, for an unknown dataset or fold, for a directory of another layout or
    without masks, and for lists or splits that are missing or name none of its photos.
    """
    if request.dataset not in KINDS:
        raise FssError(f"no dataset {request.dataset!r} can be scored from a directory",
                       hint=f"give --dataset {' or '.join(KINDS)}, or --recipe for another benchmark")
    kind = KINDS[request.dataset]
    check_fold(request.fold, FOLDS)
    if request.annotations and kind.format != "coco":
        raise FssError(f"--dataset {request.dataset} ignores --annotations", hint="leave out --annotations")
    builder = _TestSetBuilder(request, kind, _source(kind, request), out)
    return builder.from_list() if request.lists else builder.from_rule()


def _source(kind: _DatasetKind, request: TestSetRequest) -> Source:
    """The directory as a source. Raises `FssError` for another layout or categories, and if no mask has a photo."""
    try:
        source = open_source(_config(kind, request))
    except FssError as error:
        hint = "give --annotations" if "annotation files" in error.what else f"give {kind.layout} as --root"
        raise FssError(error.what, where=error.where, hint=hint) from error
    if tuple(source.classes) != tuple(kind.names):
        raise FssError(f"its {len(source.classes)} categories are not those of {request.dataset}", where=request.root,
                       hint="score it with a recipe that has data.source.format=coco")
    if not source.items:
        raise FssError(f"none of its {len(source.failures)} masks has a photo", where=request.root,
                       hint=f"give {kind.layout} as --root")
    return source


def _config(kind: _DatasetKind, request: TestSetRequest) -> SourceConfig:
    home = find_benchmark(request.dataset).home(request.root)
    return SourceConfig.model_validate({"format": kind.format, "root": home, "annotations": request.annotations})


@dataclass(frozen=True)
class _TestSetBuilder:
    """Builds the test set of one request."""

    request: TestSetRequest
    kind: _DatasetKind
    source: Source
    out: str

    def from_rule(self) -> EvaluationSet:
        """Draw a fresh list over all photos that may be tested."""
        data, manifest = self._shards(self._test_photos())
        shards = Shards(Workspace(self.out).shards(data.name))
        file = {i: row["file_name"] for i, row in shards.rows.items()}
        pairs = sorted((file[i], c) for c in self.kind.fold_classes(self.request.fold)
                       for i in shards.without_copies(shards.photos_of(c, "test")))
        kept, dropped = self._testable_pairs(pairs)
        listed = self._list(self.kind.draw(kept, self.request), "drawn",
                            f"rule over {len(file)} test photos, shards {manifest.content_hash[:16]}")
        return EvaluationSet(data=data, test_list=listed, url=self._write(data, listed), photos=len(file),
                             dropped=dropped)

    def from_list(self) -> EvaluationSet:
        """Draw from the published list, without the photos that are not tested here.

        Only the photos of its episodes are read.
        """
        request, photo_key, held = self.request, self.kind.photo_key, self._test_photos()
        pairs, sha = self.kind.read(request.lists, request.fold)
        if other := {c for _, c in pairs} - set(self.kind.fold_classes(request.fold)):
            raise FssError(f"this is not a list of fold {request.fold}: it tests {self.kind.names[min(other)]}",
                           where=request.lists)
        there, absent = self._available_pairs(pairs, {photo_key(n) for n in held})
        kept, dropped = self._testable_pairs(there)
        whole = len(kept) == len(pairs)
        known = find_benchmark(request.dataset).families["hsnet"].checked
        status = "drawn" if not whole else "reproduced" if self.kind.digest(pairs) in known else "unverified"
        origin = f"HSNet list {sha[:16]}" + ("" if whole else f", {len(kept)} of its {len(pairs)} pairs")
        draws = self.kind.draw(kept, request)
        drawn = {photo_key(n) for d in draws for n in (d.query, *d.supports)}
        tested = {n for n in held if photo_key(n) in drawn}
        data, _ = self._shards(tested)
        listed = self._list(draws, status, origin)
        return EvaluationSet(data=data, test_list=listed, url=self._write(data, listed), photos=len(tested),
                             dropped=dropped, absent=absent)

    def _available_pairs(self, pairs: list[Pair], here: set[object]) -> tuple[list[Pair], int]:
        """The pairs whose photos are tested here, and the number of photos that are not.

        Raises `FssError` if photos are missing, unless a split file explains why.
        """
        there = [pair for pair in pairs if self.kind.photo_key(pair[0]) in here]
        names = {n for n, _ in pairs}
        lost = sorted(names - {n for n, _ in there})
        if lost and (not there or not self.request.split):
            raise FssError(f"{len(lost)} of the list's {len(names)} photos are not among the {len(here)} that may be "
                           f"tested of {self.request.root} (first: {lost[0]})", where=self.request.lists,
                           hint="complete the directory, or give --split without --lists to draw a fresh list")
        return there, len(lost)

    def _test_photos(self) -> set[str]:
        """File names of the photos that may be tested.

        They are the test photos of the split file if there is one, VOC's val photos for a fresh PASCAL list, else all.
        """
        request, every = self.request, {i.file_name for i in self.source.items}
        if request.split:
            split = SplitConfig(file=request.split, key=request.key or PurePosixPath(Store(request.root).url).name)
            splitter = Splitter(DataConfig(source=SourceConfig(format="voc", root=request.root), split=split))
            found = {name for name in every if splitter(name) == "test"}
            if not found:
                raise FssError(f"the test list of {split.key!r} names none of the {len(every)} photos of "
                               f"{request.root}", where=request.split, hint="give --split-key")
            return found
        if request.key:
            raise FssError("--split-key is given without --split", hint="give --split too, or leave out --split-key")
        return every if request.lists or request.dataset != "pascal5i" else _val_photos(self.source, every)

    def _testable_pairs(self, pairs: list[Pair]) -> tuple[list[Pair], dict[str, str]]:
        """The pairs of classes with more than K photos, and the other classes of the fold (name -> reason).

        Raises `FssError` if no class has enough photos.
        """
        request, needed = self.request, self.request.shots + 1
        count = {c: len(set(names)) for c, names in _pools(pairs).items()}
        dropped = {self.kind.names[c]: f"{count.get(c, 0)} test photos, {needed} are needed"
                   for c in self.kind.fold_classes(request.fold) if count.get(c, 0) < needed}
        kept = [p for p in pairs if count[p[1]] >= needed]
        if not kept:
            raise FssError(f"no class of fold {request.fold} has the {needed} test photos that {request.shots} shots "
                           "need", where=request.root, hint="lower --shot, or use more test photos")
        return kept, dropped

    def _shards(self, tested: set[str]) -> tuple[DataConfig, Manifest]:
        """Build shards of the tested photos alone, in a folder whose name is a hash of the request."""
        request = self.request
        drawn = (request.fold, request.shots, request.episodes, request.seed) if request.lists else ()
        places = [Store(u).url if u else "" for u in (request.root, request.lists, request.split)]
        name = f"{request.dataset}-{digest_of(places, request.annotations, request.key, drawn)[:12]}"
        url = Workspace(self.out).shards(name)
        data = DataConfig.model_validate({
            "name": name, "source": _config(self.kind, request),
            "split": {"file": join(url, "tested.json"), "key": ENTRY}, "folds": FOLDS,
            "fold_rule": self.kind.fold_rule, "min_images": 1, "min_area": 0.0,
            "min_pixels": 0 if request.lists else MIN_PIXELS})  # published lists have applied this bound already
        split, store = json.dumps({ENTRY: {"train": [], "test": sorted(tested)}}).encode(), Store(url)
        if not store.exists("tested.json") or store.read_bytes("tested.json") != split:
            store.write_bytes("tested.json", split)
        return data, build_shards(data, url, update=True)

    def _list(self, draws: list[NamedEpisode], status: str, origin: str) -> PublishedList:
        photo_key, request, names = self.kind.photo_key, self.request, self.kind.names
        ids = {photo_key(i.file_name): i.image_id for i in self.source.items}
        rows = tuple(ListedEpisode(d.class_id, names[d.class_id], ids[photo_key(d.query)],
                                   tuple(ids[photo_key(n)] for n in d.supports), d.query, d.supports) for d in draws)
        return PublishedList(dataset=request.dataset, family="hsnet", fold=request.fold, shots=request.shots,
                             seed=request.seed, status=status, origin=origin, episodes=rows)

    def _write(self, data: DataConfig, listed: PublishedList) -> str:
        """Write the list beside its shards and return its URL."""
        name = f"fold{listed.fold}-shot{listed.shots}-n{len(listed)}-seed{listed.seed}-{listed.sha256[:8]}.parquet"
        url = join(Workspace(self.out).shards(data.name), "episodes", name)
        write_list(url, listed)
        return url


def _val_photos(source: Source, every: set[str]) -> set[str]:
    """The photos that VOC's own val list names. Raises `FssError` if that list or one of its photos is missing."""
    base = source.items[0].path.partition("JPEGImages/")[0]
    name, store = f"{base}ImageSets/Segmentation/val.txt", source.store
    if not store.exists(name):
        raise FssError("there is no ImageSets/Segmentation/val.txt, so the test photos are unknown",
                       where=store.path(base), hint="give --lists or --split")
    named = set(store.read_bytes(name).decode().split())
    found = {n for n in every if PurePosixPath(n).stem in named}
    if len(found) < len(named):
        raise FssError(f"{len(named) - len(found)} of its {len(named)} photos have no mask or are missing",
                       where=store.path(name), hint="complete the directory, or name the test photos with --split")
    return found
