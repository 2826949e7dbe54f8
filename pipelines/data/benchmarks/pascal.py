"""PASCAL-5i: VOC 2012 with the masks of SBD."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from fss_models.errors import FssError
from fss_models.worker_episodes import WORKERS
from pipelines.base.storage import Store
from pipelines.config.data import SourceConfig
from pipelines.data.benchmarks.protocol import Benchmark, DrawnEpisodes, EpisodeFamily, LayoutPart, ListRequest
from pipelines.data.benchmarks.rules import bam_photos, check_fold, content_digest, shown_classes
from pipelines.data.lists.bam import bam_images
from pipelines.data.lists.hsnet import pascal_pairs
from pipelines.data.samplers.bam import by_worker, two_generators
from pipelines.data.samplers.hsnet import listed_pairs
from pipelines.data.sources.base import SourceFailure, SourceImage, digest_of
from pipelines.data.sources.voc import CLASSES, VocSource

FOLDS = 4
NAMES = dict(enumerate(CLASSES))
OPTIONS = frozenset({"lists", "shards", "split"})
CHECKED = frozenset({  # HSNet's val lists of folds 0 to 3
    "cb1a8dd812cf06b7", "8edaa17ea2b5c08e", "d82ee89cc2827359", "c87797f514b98564",
})


def fold_classes(fold: int) -> list[int]:
    """The tested classes of fold f: 5f to 5f + 4. Raises `FssError` for an unknown fold."""
    check_fold(fold, FOLDS)
    return list(range(5 * fold, 5 * fold + 5))


class PascalSource(VocSource):
    """Photos with label maps (0 = background, 255 = void). VOC's val photos are for testing, or those the lists name.

    Void pixels enter no score; in the mask of a support they are background.
    """

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        self.fold_table = [c // 5 for c in range(len(CLASSES))]
        named = _listed_split(cfg.lists) if cfg.lists else _val_file(self.store, self.items)
        known = {PurePosixPath(i.file_name).stem for i in self.items}
        for name in sorted(named.keys() - known):
            self.fail(name, "the lists name this photo but it has no mask or is missing")
        self.items = [replace(item, split=_split_of(item, named, other="" if cfg.lists else "train"))
                      for item in self.items]
        unlisted = [item.file_name for item in self.items if not item.split]
        self.failures += [SourceFailure(n, "split", "no published list names this photo") for n in unlisted]
        self.items = [item for item in self.items if item.split]
        self.fingerprint = digest_of(self.fingerprint, [(i.file_name, i.split) for i in self.items])


def _split_of(item: SourceImage, named: dict[str, str], other: str) -> str:
    return named.get(PurePosixPath(item.file_name).stem, other)


def _val_file(store: Store, items: list[SourceImage]) -> dict[str, str]:
    """The test photos that ImageSets/Segmentation/val.txt names. Raises `FssError` if that file is missing."""
    base = items[0].path.partition("JPEGImages/")[0] if items else ""
    name = f"{base}ImageSets/Segmentation/val.txt"
    if not store.exists(name):
        raise FssError("there is no ImageSets/Segmentation/val.txt, so the test photos are unknown",
                       where=store.path(base),
                       hint="unpack it from VOC 2012's trainval archive or set data.source.lists")
    return dict.fromkeys(store.read_bytes(name).decode().split(), "test")


def _listed_split(lists: str) -> dict[str, str]:
    """Photo -> split, over all folds of HSNet's or BAM's lists. Raises `FssError` if they contradict each other."""
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

def _hsnet(request: ListRequest, episodes: int, seed: int) -> DrawnEpisodes:
    """The pairs of the published list, or by rule: (photo, class) with at least 2048 pixels, by photo, then class."""
    classes = fold_classes(request.fold)
    if request.lists:
        pairs, file = pascal_pairs(request.lists, "val", request.fold)
        origin, content = f"HSNet list {file.sha256[:16]}", content_digest(pairs)
    else:
        pools, origin, content = request.pools, request.origin, ""
        pairs = sorted((name, c) for c in classes for name in pools.get(c, ()))
    draws = listed_pairs(pairs, shots=request.shots, episodes=episodes, seed=seed)
    return DrawnEpisodes(draws=draws, classes=NAMES, origin=origin, content=content)


def _bam_lists(request: ListRequest) -> tuple[list[tuple[str, list[int]]], dict[int, list[str]], str]:
    """(list of (photo, classes of the fold in its label at any size), class -> photos, origin).

    Raises `FssError` if the shards lack a photo of the list.
    """
    classes, shown = fold_classes(request.fold), shown_classes(request)
    names, pools, origin = bam_photos(request, classes)
    missing = [n for n in names if n not in shown]
    if missing:
        raise FssError(f"these shards lack {len(missing)} of the {len(names)} listed photos (first: {missing[0]})",
                       where=request.opened_shards.url,
                       hint="build the shards from all photos of the benchmark, as their labels are needed")
    return [(n, sorted(c for c in shown[n] if c in classes)) for n in names], pools, origin


def _bam(request: ListRequest, episodes: int, seed: int) -> DrawnEpisodes:
    listed, pools, origin = _bam_lists(request)
    draws = two_generators(listed, pools, shots=request.shots, episodes=episodes, seed=seed)
    return DrawnEpisodes(draws=draws, classes=NAMES, origin=origin)


def _fssam(request: ListRequest, episodes: int, seed: int) -> DrawnEpisodes:
    listed, pools, origin = _bam_lists(request)
    workers = request.workers or WORKERS
    draws = by_worker(listed, pools, shots=request.shots, episodes=episodes, seed=seed, workers=workers)
    return DrawnEpisodes(draws=draws, classes=NAMES, origin=f"{origin}, {workers} workers")


_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (VOCtrainval_11-May-2012.tar)"
_SDS = "the SegmentationClassAug (SBD/SDS) archive that HSNet's and DeepLab's READMEs link"
BENCHMARK = Benchmark(name="pascal5i", title="PASCAL-5i", source=PascalSource, homes=("VOC2012", "VOCdevkit/VOC2012"),
                      parts=(LayoutPart(what="photos", folders=("JPEGImages",), suffixes=(".jpg",), get=_VOC,
                                        count=17125), LayoutPart(what="label maps",
                                                                 folders=("SegmentationClassAug", "SegmentationClass"),
                                                                 suffixes=(".png",), get=_SDS, count=12031),
                             LayoutPart(what="list of val photos", folders=("ImageSets/Segmentation",),
                                        suffixes=("val.txt",), get=_VOC, count=1, optional=True),),
                      published={"hsnet": EpisodeFamily(draw=_hsnet, seed=0, checked=CHECKED, uses=OPTIONS),
                                 "bam": EpisodeFamily(draw=_bam, seed=321, uses=OPTIONS),
                                 "fssam": EpisodeFamily(draw=_fssam, seed=321, uses=OPTIONS | {"workers"})})
