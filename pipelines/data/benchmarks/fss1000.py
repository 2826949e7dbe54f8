"""FSS-1000: 1000 classes of ten images, split into train, val and test classes.

Fold 0 tests the 240 test classes. Fold 1 tests the 240 val classes, for choosing a model. The other 520 classes are
only for training.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.config.data import SourceConfig
from pipelines.data.benchmarks.protocol import Benchmark, DrawnEpisodes, EpisodeFamily, LayoutPart, ListRequest
from pipelines.data.benchmarks.readers import MaskFileSource, base_of
from pipelines.data.benchmarks.rules import check_fold
from pipelines.data.classes import NO_FOLD
from pipelines.data.lists.hsnet import fss_classes
from pipelines.data.samplers.hsnet import every_image
from pipelines.data.sources.base import SourceFailure, listing

SPLITS = ("trn", "val", "test")  # in the order of the class ids: 0.., 520.., 760..
FOLD = {"trn": NO_FOLD, "val": 1, "test": 0}
IMAGES = 10  # per class
_PHOTO = re.compile(r"(?P<name>[^/]+)/(?P<number>\d+)\.jpg")


class Fss1000Source(MaskFileSource):
    """The id of a class is its rank in its sorted split file, plus the number of classes in the splits before."""

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        files = self.files
        base, lists = _places(files, cfg, self.store.url)
        named = {split: fss_classes(lists, split)[0] for split in SPLITS}
        self.classes = [name for split in SPLITS for name in named[split]]
        if len(set(self.classes)) < len(self.classes):
            raise FssError("a class is in two of the split files", where=lists)
        self.fold_table = [FOLD[split] for split in SPLITS for _ in named[split]]
        self._index({f.removeprefix(base): f for f in files if f.startswith(base)})
        self.finish()

    def _index(self, files: dict[str, str]) -> None:
        ids, table = {name: i for i, name in enumerate(self.classes)}, self.fold_table or []
        for name, path in sorted(files.items()):
            found = _PHOTO.fullmatch(name)
            if found is None:
                continue
            class_id, mask = ids.get(found["name"]), files.get(str(PurePosixPath(name).with_suffix(".png")))
            if class_id is None:
                self.failures.append(SourceFailure(name, "split", "no split file names its class"))
            elif mask is None:
                self.fail(name, "no mask has this photo's name")
            else:
                self.take(name, path, (class_id, mask), "train" if table[class_id] == NO_FOLD else "test")
        for absent in (c for c in self.classes if not any(n.startswith(f"{c}/") for n in files)):
            self.fail(absent, "a split file names this class but it has no folder")


def _places(files: dict[str, int], cfg: SourceConfig, where: str) -> tuple[str, str]:
    """(prefix of the class folders, URL of the split files), for HSNet's layout or Matcher's (data/ and splits/).

    Raises `FssError` for any other layout.
    """
    splits = next((f.removesuffix("test.txt") for f in sorted(files) if f.endswith("splits/test.txt")), None)
    if splits is None and not cfg.lists:
        raise FssError("there is no splits/test.txt, so the test classes are unknown", where=where,
                       hint="set data.source.lists to the folder of trn.txt, val.txt and test.txt")
    lists = cfg.lists or f"{where}/{splits}".rstrip("/")
    if splits is not None and any(f.startswith(f"{splits.removesuffix('splits/')}data/") for f in files):
        return f"{splits.removesuffix('splits/')}data/", lists
    photos = [m[0] for f in files if (m := re.search(r"[^/]+/\d+\.jpg$", f))]
    if not photos:
        raise FssError("there is no photo CLASS/NUMBER.jpg", where=where, hint="see the layout with `fss data check`")
    return base_of(files, photos[0], where), lists


# ---- lists of test episodes ---------------------------------------------------------------------------------------

def _hsnet(request: ListRequest, episodes: int, seed: int) -> DrawnEpisodes:
    """Every image of the test classes (fold 1: of the val classes) is a query once."""
    check_fold(request.fold, 2)
    split = "test" if request.fold == 0 else "val"
    lists = request.lists
    if not lists:
        if not request.root:
            raise FssError("the test classes are unknown", hint="give --lists or --root")
        cfg = SourceConfig(format="fss1000", root=request.root)
        lists = _places(listing(Store(request.root)), cfg, request.root)[1]
    counts = [len(fss_classes(lists, s)[0]) for s in SPLITS]
    names, file = fss_classes(lists, split)
    first = sum(counts[: SPLITS.index(split)])
    pools = {first + i: [f"{name}/{n}.jpg" for n in range(1, IMAGES + 1)] for i, name in enumerate(names)}
    draws = every_image(pools, shots=request.shots, seed=seed)
    return DrawnEpisodes(draws=draws[:episodes] if episodes else draws, classes=dict(enumerate(names, first)),
                         origin=f"HSNet list {file.sha256[:16]}")


_GET = "https://github.com/HKUSTCV/FSS-1000 (its README links the archive)"
BENCHMARK = Benchmark(name="fss1000", title="FSS-1000", source=Fss1000Source, homes=("FSS-1000",),
                      parts=(LayoutPart(what="photos", folders=("",), suffixes=(".jpg",), get=_GET, count=10000),
                             LayoutPart(what="masks", folders=("",), suffixes=(".png",), get=_GET, count=10000),
                             LayoutPart(what="split files", folders=("splits",),
                                        suffixes=("trn.txt", "val.txt", "test.txt"), count=3,
                                        get="data/splits/fss of HSNet's repository; or give --lists", optional=True),),
                      published={"hsnet": EpisodeFamily(draw=_hsnet, seed=0, episodes=None,
                                                        uses=frozenset({"lists", "root"}))})
