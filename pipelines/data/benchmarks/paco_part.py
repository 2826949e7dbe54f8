"""PACO-Part: Matcher's pickles of PACO's object parts over COCO 2017.

An item is one object: its parts are the annotations, and the photo is cropped to its box. Training on all folds uses
all classes; in SANSA's released code fold -1 leaves out the classes of fold 3 by mistake.
"""

from __future__ import annotations

from typing import Any

from fss_models.errors import FssError
from pipelines.config.data import SourceConfig
from pipelines.data.benchmarks.protocol import Benchmark, DrawnEpisodes, EpisodeFamily, LayoutPart, ListRequest
from pipelines.data.benchmarks.readers import SegmentSource
from pipelines.data.benchmarks.rules import COCO_2017, ROOT, index_lists, tested_classes
from pipelines.data.classes import NO_FOLD
from pipelines.data.samplers.parts import PartObject, paco
from pipelines.data.sources.base import SourceFailure, digest_of

FOLDS = 4
Box = tuple[int, int, int, int]


def fold_table(classes: int) -> list[int]:
    """The fold of each of the n classes of the train pickle: fold f has the positions f + 4v, v < n // 4.

    PACO-Part has n = 448 classes, 112 per fold.
    """
    return [i % FOLDS if i < classes // FOLDS * FOLDS else NO_FOLD for i in range(classes)]


class PacoPartSource(SegmentSource):
    """Class ids follow the train pickle's categories; categories of the val pickle alone come after and are in no fold.

    `test_pools`: class id -> its val photos without repeats; `test_objects`: (class id, photo) -> the objects in the
    photo that have the part.
    """

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        base = self.prefix("paco/paco_part_val.pkl")
        read, digests = self.read_pickles(f"{base}paco/paco_part_{{}}.pkl", _sound)
        first = list(read["train"]["cid2img"])
        order = [*first, *(c for c in read["val"]["cid2img"] if c not in read["train"]["cid2img"])]
        self.classes = [f"part {c}" for c in order]
        self.fold_table = fold_table(len(first)) + [NO_FOLD] * (len(order) - len(first))
        self._ids = {c: i for i, c in enumerate(order)}
        self.test_pools: dict[int, list[str]] = {}
        self.test_objects: dict[tuple[int, str], list[PartObject]] = {}
        self._index(read["train"], "train", base)
        self._index(read["val"], "test", base)
        self.check_ids()
        self.fingerprint = digest_of(digests, self.photo_sizes())

    def _index(self, read: dict[str, Any], split: str, base: str) -> None:
        names: dict[object, str] = {}  # image id -> train2017/....jpg
        for category, entries in read["cid2img"].items():
            pool = {k: "/".join(str(v).split("/")[-2:]) for entry in entries for k, v in entry.items()}
            names |= pool
            if split == "test":
                self.test_pools[self._ids[category]] = list(dict.fromkeys(pool.values()))
        for image_id, name in sorted(names.items(), key=lambda pair: pair[1]):
            path = f"{base}coco/{name}"
            if path not in self.files:
                self.fail(name, "the pickles name this photo but it is missing")
            self._objects(name, path if path in self.files else "", read["img2anno"].get(image_id, ()), split)

    def _objects(self, name: str, path: str, annotations: Any, split: str) -> None:
        """Add the objects of a photo as items (none if `path` is "") and those of a test photo to `test_objects`."""
        objects: dict[Any, list[dict[str, Any]]] = {}
        for one in annotations:
            objects.setdefault(one["obj_ann_id"], []).append(one)
        for number, parts in enumerate(objects.values()):
            masks = [(self._ids[p["category_id"]], p["segmentation"]) for p in parts if p["category_id"] in self._ids]
            crop, crop_name = _box(parts[0]["obj_bbox"]), f"{name}#{number}"
            shown = crop[0] < crop[2] and crop[1] < crop[3]
            if split == "test":
                for class_id in dict.fromkeys(c for c, _ in masks):
                    objects_of = self.test_objects.setdefault((class_id, name), [])
                    objects_of.append(PartObject(crop_name, shown=shown))
            if shown and path:
                self.take(crop_name, path, masks, split, crop=crop)
            elif path:
                self.failures.append(SourceFailure(crop_name, "annotate", f"the object's box {crop} is empty"))


def _box(bbox: Any) -> Box:
    """(x, y, width, height) -> (x0, y0, x1, y1) in pixels, each truncated to an integer."""
    x, y, width, height = (float(v) for v in bbox)
    return int(x), int(y), int(x + width), int(y + height)


def _sound(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(value.get(k), dict) for k in ("cid2img", "img2anno")):
        raise FssError("this pickle has no dicts cid2img and img2anno", where=where)
    return value


# ---- lists of test episodes ---------------------------------------------------------------------------------------

def _matcher(request: ListRequest, episodes: int, seed: int) -> DrawnEpisodes:
    """The class is uniform among those of the fold with more than K distinct val photos."""
    source = PacoPartSource(SourceConfig(format="paco_part", root=request.root))
    classes = [c for c in tested_classes(source, request.fold) if len(source.test_pools.get(c, ())) > request.shots]
    if not classes:
        raise FssError(f"no class of fold {request.fold} has more than {request.shots} val photos",
                       hint="lower --shots")
    draws = paco(source.test_pools, classes, source.test_objects, shots=request.shots, episodes=episodes,
                 seed=seed)
    return index_lists(draws, source, "PACO pickles")


_PKL = "paco.zip of Matcher's README (Google Drive)"
BENCHMARK = Benchmark(
    name="paco_part", title="PACO-Part", source=PacoPartSource, homes=("PACO-Part",), verified=False,
    note="the 448 categories are from code and paper, not from the pickles",
    parts=(
        *COCO_2017,
        LayoutPart(what="training parts", folders=("paco",), suffixes=("paco_part_train.pkl",), get=_PKL, count=1),
        LayoutPart(what="test parts", folders=("paco",), suffixes=("paco_part_val.pkl",), get=_PKL, count=1),
    ),
    published={"matcher": EpisodeFamily(draw=_matcher, seed=0, episodes=2500, uses=ROOT)},
)
