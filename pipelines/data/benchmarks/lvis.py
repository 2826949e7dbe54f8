"""LVIS-92i: Matcher's pickles of LVIS v1 over COCO 2017.

Matcher's loader takes folds by position among the val categories with more than K images, so the folds depend on the
number of shots (`data.source.shots`). Labels are federated: unannotated instances count as background.
"""

from __future__ import annotations

from typing import Any

from fss_models.errors import FssError
from pipelines.config.data import SourceConfig
from pipelines.data.benchmarks.protocol import Benchmark, DrawnEpisodes, EpisodeFamily, LayoutPart, ListRequest
from pipelines.data.benchmarks.readers import SegmentSource
from pipelines.data.benchmarks.rules import COCO_2017, ROOT, index_lists, tested_classes
from pipelines.data.classes import NO_FOLD
from pipelines.data.samplers.hsnet import class_cycled
from pipelines.data.sources.base import digest_of

FOLDS = 10
Categories = dict[Any, dict[str, Any]]  # category id -> photo -> {"annotations": [{"segmentation"}]}


def fold_table(images: list[int], shots: int) -> list[int]:
    """The fold of each val category, from its number of images, as in Matcher's loader.

    Of the n categories with more than `shots` images, fold f has those at the positions f + 10v, v < n // 10.
    """
    kept = [i for i, count in enumerate(images) if count > shots]
    table = [NO_FOLD] * len(images)
    for place in range(len(kept) // FOLDS * FOLDS):
        table[kept[place]] = place % FOLDS
    return table


class LvisSource(SegmentSource):
    """Class ids follow the order of the val pickle's categories; categories of the train pickle alone come after them.

    `test_pools`: class id -> its val photos in the order of the pickle.
    """

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        base = self.prefix("lvis_val.pkl")
        read, digests = self.read_pickles(f"{base}lvis_{{}}.pkl", _categories)
        order = [*read["val"], *(c for c in read["train"] if c not in read["val"])]
        self.classes = [f"category {c}" for c in order]
        counts = [len(read["val"].get(c, ())) for c in order]
        self.fold_table = fold_table(counts, cfg.shots)
        ids = {c: i for i, c in enumerate(order)}
        self.test_pools = {ids[c]: list(photos) for c, photos in read["val"].items()}
        for split in ("train", "val"):
            self._index(read[split], ids, "test" if split == "val" else "train", base)
        self.check_ids()
        self.fingerprint = digest_of(digests, cfg.shots, self.photo_sizes())

    def _index(self, categories: Categories, ids: dict[Any, int], split: str, base: str) -> None:
        annotations: dict[str, list[tuple[int, Any]]] = {}
        for category, photos in categories.items():
            for name, about in photos.items():
                found = [(ids[category], a["segmentation"]) for a in about["annotations"]]
                annotations.setdefault(name, []).extend(found)
        for name in sorted(annotations):
            path = f"{base}coco/{name}"
            if path not in self.files:
                self.fail(name, "the pickles name this photo but it is missing")
            else:
                self.take(name, path, annotations[name], split)


def _categories(value: Any, where: str) -> Categories:
    good = isinstance(value, dict) and all(
        isinstance(photos, dict) and all(isinstance(p, dict) and isinstance(p.get("annotations"), list)
                                         for p in photos.values()) for photos in value.values())
    if not good:
        raise FssError("this pickle is not a dict {category: {photo: {annotations: [...]}}}", where=where)
    return value  # type: ignore[no-any-return]


# ---- lists of test episodes ---------------------------------------------------------------------------------------

def _matcher(request: ListRequest, episodes: int, seed: int) -> DrawnEpisodes:
    """Episode idx tests class idx mod n; with 92 classes that is 25 episodes each. The folds depend on the shots."""
    source = LvisSource(SourceConfig(format="lvis92i", root=request.root, shots=request.shots))
    classes = tested_classes(source, request.fold)
    draws = class_cycled(source.test_pools, classes, shots=request.shots, episodes=episodes, seed=seed)
    return index_lists(draws, source, "LVIS pickles")


_PKL = "lvis.zip of Matcher's README (Google Drive)"
BENCHMARK = Benchmark(
    name="lvis92i", title="LVIS-92i", source=LvisSource, homes=("LVIS",), verified=False,
    note="the numbers of categories are from code and paper, not from the pickles",
    parts=(
        *COCO_2017,
        LayoutPart(what="training categories", folders=("",), suffixes=("lvis_train.pkl",), get=_PKL, count=1),
        LayoutPart(what="test categories", folders=("",), suffixes=("lvis_val.pkl",), get=_PKL, count=1),
    ),
    published={"matcher": EpisodeFamily(draw=_matcher, seed=0, episodes=2300, uses=ROOT)},
)
