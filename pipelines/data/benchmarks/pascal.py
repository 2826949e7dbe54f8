"""PASCAL-5i: VOC 2012 with the masks of SBD (specification datasets section 1, fssam section 9)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from fss_models.errors import FssError
from fss_models.worker_episodes import WORKERS
from pipelines.config import SourceConfig
from pipelines.data.benchmarks.protocol import (
    Ask,
    Benchmark,
    Drawn,
    Family,
    Part,
    check_fold,
    content_digest,
    draw_fresh,
    drawn_pools,
    shard_origin,
)
from pipelines.data.lists.bam import bam_classes, bam_images
from pipelines.data.lists.hsnet import pascal_pairs
from pipelines.data.samplers.bam import by_worker, two_generators
from pipelines.data.samplers.hsnet import listed_pairs
from pipelines.data.sources.base import Failure, Item, digest_of
from pipelines.data.sources.voc import CLASSES, VocSource
from pipelines.storage import Store

FOLDS = 4
NAMES = dict(enumerate(CLASSES))
FROM = frozenset({"lists", "shards", "split"})
CHECKED = frozenset({  # HSNet's val lists of folds 0 to 3
    "cb1a8dd812cf06b7", "8edaa17ea2b5c08e", "d82ee89cc2827359", "c87797f514b98564",
})


def fold_classes(fold: int) -> list[int]:
    """Fold f tests the classes 5f .. 5f + 4. Raises `FssError`."""
    check_fold(fold, FOLDS)
    return list(range(5 * fold, 5 * fold + 5))


class PascalSource(VocSource):
    """Photos with label maps, 0 = background, 255 = void; tested: VOC's val photos, or those the lists name.

    Void enters no score; in a support it is background of the mask.
    """

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        self.fold_table = [c // 5 for c in range(len(CLASSES))]
        named = _listed_split(cfg.lists) if cfg.lists else _val_file(self.store, self.items)
        known = {PurePosixPath(i.file_name).stem for i in self.items}
        for name in sorted(named.keys() - known):
            self.failures.append(Failure(name, "index", "the lists name this photo but it has no mask or is missing"))
        self.items = [replace(item, split=_split_of(item, named, other="" if cfg.lists else "train"))
                      for item in self.items]
        unlisted = [item.file_name for item in self.items if not item.split]
        self.failures += [Failure(n, "split", "no published list names this photo") for n in unlisted]
        self.items = [item for item in self.items if item.split]
        self.fingerprint = digest_of(self.fingerprint, [(i.file_name, i.split) for i in self.items])


def _split_of(item: Item, named: dict[str, str], other: str) -> str:
    return named.get(PurePosixPath(item.file_name).stem, other)


def _val_file(store: Store, items: list[Item]) -> dict[str, str]:
    """ImageSets/Segmentation/val.txt of the photos' own folder: what it names is tested. Raises `FssError`."""
    base = items[0].path.partition("JPEGImages/")[0] if items else ""
    name = f"{base}ImageSets/Segmentation/val.txt"
    if not store.exists(name):
        raise FssError("which photos are tested? there is no ImageSets/Segmentation/val.txt", where=store.path(base),
                       mend="unpack it from VOC 2012's trainval archive, or set data.source.lists")
    return dict.fromkeys(store.read_bytes(name).decode().split(), "test")


def _listed_split(lists: str) -> dict[str, str]:
    """Photo -> split over all folds of HSNet's lists, or BAM's. Raises `FssError`."""
    named: dict[str, str] = {}
    for split in ("train", "test"):
        for fold in range(FOLDS):
            for name in _listed_images(lists, split, fold):
                if named.setdefault(name, split) != split:
                    raise FssError(f"{name} is listed for training and for testing", where=lists)
    return named


def _listed_images(lists: str, split: str, fold: int) -> list[str]:
    if _is_bam(lists):
        return bam_images(lists, "train" if split == "train" else "val", fold)[0]
    return [name for name, _ in pascal_pairs(lists, "trn" if split == "train" else "val", fold)[0]]


def _is_bam(lists: str) -> bool:
    store = Store(lists)
    return any(store.exists(f"val/data_list_{f}.txt{gz}") for f in range(FOLDS) for gz in ("", ".gz"))


# ---- lists of test episodes ---------------------------------------------------------------------------------------

def _hsnet(ask: Ask, episodes: int, seed: int) -> Drawn:
    """Pairs of the published file, or by rule: (photo, class) with 2048 pixels or more, by photo, then class."""
    classes = fold_classes(ask.fold)
    if ask.lists:
        pairs, file = pascal_pairs(ask.lists, "val", ask.fold)
        origin, content = f"HSNet list {file.sha256[:16]}", content_digest(pairs)
    else:
        pools, origin, content = drawn_pools(ask), shard_origin(ask), ""
        pairs = sorted((name, c) for c in classes for name in pools.get(c, ()))
    draws = listed_pairs(pairs, shots=ask.shots, episodes=episodes, seed=seed)
    return Drawn(draws=draws, classes=NAMES, origin=origin, content=content)


def _bam_lists(ask: Ask) -> tuple[list[tuple[str, list[int]]], dict[int, list[str]], str]:
    """((photo, the fold's classes in its label at any size), class -> photos, origin)."""
    classes, shards = fold_classes(ask.fold), ask.opened
    shown = {PurePosixPath(row["file_name"]).stem: row["class_ids"] for row in shards.rows.values()}
    if ask.lists:
        names, file = bam_images(ask.lists, "val", ask.fold)
        pools, second = bam_classes(ask.lists, "val", ask.fold)
        origin = f"BAM lists {file.sha256[:16]} {second.sha256[:16]}"
    else:
        made = drawn_pools(ask)
        pools = {c: [PurePosixPath(n).stem for n in made.get(c, ())] for c in classes}
        names, origin = sorted({n for p in pools.values() for n in p}), shard_origin(ask)
    missing = [n for n in names if n not in shown]
    if missing:
        raise FssError(f"lack {len(missing)} of the {len(names)} listed photos (first: {missing[0]})",
                       where=shards.url, mend="the labels of listed photos decide their classes: build all of them")
    return [(n, sorted(c for c in shown[n] if c in classes)) for n in names], pools, origin


def _bam(ask: Ask, episodes: int, seed: int) -> Drawn:
    listed, pools, origin = _bam_lists(ask)
    draws = two_generators(listed, pools, shots=ask.shots, episodes=episodes, seed=seed)
    return Drawn(draws=draws, classes=NAMES, origin=origin)


def _fssam(ask: Ask, episodes: int, seed: int) -> Drawn:
    listed, pools, origin = _bam_lists(ask)
    draws = by_worker(listed, pools, shots=ask.shots, episodes=episodes, seed=seed, workers=ask.workers or WORKERS)
    return Drawn(draws=draws, classes=NAMES, origin=f"{origin}, {ask.workers or WORKERS} workers")


_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (VOCtrainval_11-May-2012.tar)"
_SDS = "the SegmentationClassAug (SBD/SDS) archive that HSNet's and DeepLab's READMEs link"
BENCHMARK = Benchmark(
    name="pascal5i", title="PASCAL-5i", source=PascalSource, homes=("VOC2012", "VOCdevkit/VOC2012"),
    parts=(
        Part(what="photos", folders=("JPEGImages",), suffixes=(".jpg",), get=_VOC, count=17125),
        Part(what="label maps", folders=("SegmentationClassAug", "SegmentationClass"), suffixes=(".png",), get=_SDS,
             count=12031),
        Part(what="list of val photos", folders=("ImageSets/Segmentation",), suffixes=("val.txt",), get=_VOC, count=1,
             optional=True),
    ),
    families={
        "hsnet": Family(draw=_hsnet, seed=0, checked=CHECKED, uses=FROM),
        "bam": Family(draw=_bam, seed=321, uses=FROM),
        "fssam": Family(draw=_fssam, seed=321, uses=FROM | {"workers"}),
        "drawn": Family(draw=draw_fresh, seed=0),
    },
)
