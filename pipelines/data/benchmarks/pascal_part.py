"""Pascal-Part: Matcher's JSON of PASCAL-Part over VOC 2010.

Classes are OBJECT+PART pairs, folds the four super-categories. An item is one object, and the photo is cropped to its
box.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fss_models.errors import FssError
from pipelines.config.data import SourceConfig
from pipelines.data.benchmarks.protocol import Benchmark, DrawnEpisodes, EpisodeFamily, LayoutPart, ListRequest
from pipelines.data.benchmarks.readers import SegmentSource
from pipelines.data.benchmarks.rules import ROOT, index_lists, tested_classes
from pipelines.data.samplers.parts import PartObject, part_entries, pascal_part
from pipelines.data.sources.base import SourceFailure, digest_of

FOLDS = ("animals", "indoor", "person", "vehicles")
EXCLUDED_CLASS = "aeroplane+TAIL"  # Matcher's loader excludes it
ANNOTATIONS = "Annotations_Part_json_merged_part_classes"
READERS = 16  # annotation files read at a time


@dataclass(frozen=True)
class _ClassImages:
    """The train and val images of a class, in the published order."""

    fold: int
    train: list[str]
    val: list[str]


class PascalPartSource(SegmentSource):
    """The objects of all classes, including those without the part: the loaders may draw one, and then draw again.

    `test_pools`: class id -> its val images; `test_objects`: (class id, image) -> all objects of that kind in it;
    `entries`: fold -> number of its (part, image) val entries, at most 2500.
    """

    def __init__(self, cfg: SourceConfig) -> None:
        super().__init__(cfg)
        files, base = self.files, self.prefix("all_obj_part_to_image.json")
        index = self.store.read_json(f"{base}all_obj_part_to_image.json")
        pools, self.entries = _pools(index, self.store.path(f"{base}all_obj_part_to_image.json"))
        self.classes = list(pools)
        self.fold_table = [p.fold for p in pools.values()]
        self.test_pools = {i: p.val for i, p in enumerate(pools.values())}
        self.test_objects: dict[tuple[int, str], list[PartObject]] = {}
        split_of = {n: "train" for p in pools.values() for n in p.train}
        split_of |= {n: "test" for p in pools.values() for n in p.val}
        self._index(split_of, base)
        self.check_ids()
        objects = [(i.path, files[i.path], i.file_name, i.crop, i.annotations) for i in self.items]
        self.fingerprint = digest_of(pools, objects)

    def _index(self, split_of: dict[str, str], base: str) -> None:
        files = self.files
        kinds = {name.partition("+")[0] for name in self.classes}
        present = []
        for name in sorted(split_of):
            photo, notes = f"{base}JPEGImages/{name}.jpg", f"{base}{ANNOTATIONS}/{name}.json"
            if photo in files and notes in files:
                present.append((name, photo, notes))
            else:
                lost = photo if photo not in files else notes
                self.fail(f"{name}.jpg", f"{lost} is named by the index but is missing")
        with ThreadPoolExecutor(READERS) as pool:
            read = pool.map(self.store.read_json, [notes for _, _, notes in present])
            for (name, photo, _), document in zip(present, read, strict=True):
                self._objects(name, photo, document, kinds, split_of[name])

    def _objects(self, name: str, photo: str, document: dict[str, Any], kinds: set[str], split: str) -> None:
        for number, one in enumerate(document["object"]):
            kind = one["name"]
            if kind not in kinds:
                continue
            crop_name = f"{name}.jpg#{kind}.{number}"
            x0, y0, x1, y1 = (int(one["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax"))
            shown = x0 < x1 and y0 < y1
            masks = [(c, mask) for c, label in enumerate(self.classes) for part in one["parts"]
                     if label == f"{kind}+{part['name']}" for mask in part["mask"]]
            if split == "test":
                self._add_test_object(name, kind, PartObject(crop_name, shown=shown), {c for c, _ in masks})
            if shown:
                self.take(crop_name, photo, masks, split, crop=(x0, y0, x1, y1))
            else:
                self.failures.append(SourceFailure(crop_name, "annotate",
                                                   f"the object's box {(x0, y0, x1, y1)} is empty"))

    def _add_test_object(self, name: str, kind: str, one: PartObject, parts_of: set[int]) -> None:
        for class_id, label in enumerate(self.classes):
            if label.partition("+")[0] == kind:
                objects = self.test_objects.setdefault((class_id, name), [])
                objects.append(PartObject(one.name, has_part=class_id in parts_of, shown=one.shown))


def _pools(index: Any, where: str) -> tuple[dict[str, _ClassImages], dict[int, int]]:
    """(OBJECT+PART -> its images, fold -> its number of val entries), in the order of the file.

    A class needs at least one train and one val image; `EXCLUDED_CLASS` is none. Val entries are counted over all parts
    and limited to 2500. Raises `FssError` if `index` is not such a file.
    """
    pools: dict[str, _ClassImages] = {}
    entries = {}
    try:
        for fold, name in enumerate(FOLDS):
            parts = [(f"{obj}+{part}", images) for obj, about in index[name]["object"].items()
                     for part, images in about["part"].items()]
            entries[fold] = part_entries({i: images["val"] for i, (_, images) in enumerate(parts)})
            pools |= {label: _ClassImages(fold, images["train"], images["val"]) for label, images in parts
                      if images["train"] and images["val"] and label != EXCLUDED_CLASS}
    except (KeyError, TypeError, AttributeError) as error:
        raise FssError(f"this file is not the index of the four super-categories ({error})", where=where) from error
    return pools, entries


# ---- lists of test episodes ---------------------------------------------------------------------------------------

def _matcher(request: ListRequest, episodes: int, seed: int) -> DrawnEpisodes:
    """Episode idx tests class idx mod n. The default is one episode per (part, image) entry, at most 2500."""
    source = PascalPartSource(SourceConfig(format="pascal_part", root=request.root))
    classes = tested_classes(source, request.fold)
    lost = [f.file_name for f in source.failures if "missing" in f.reason]
    if lost:
        raise FssError(f"{len(lost)} images of the index are missing (first: {lost[0]})", where=request.root,
                       hint="complete the directory (see `fss data check`): the list needs all annotation files")
    draws = pascal_part(source.test_pools, classes, source.test_objects, shots=request.shots,
                        episodes=episodes or source.entries[request.fold], seed=seed)
    return index_lists(draws, source, "index")


_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/ (VOCtrainval_03-May-2010.tar)"
_JSON = "pascal.zip of Matcher's README (Google Drive)"
BENCHMARK = Benchmark(
    name="pascal_part", title="Pascal-Part", source=PascalPartSource, homes=("Pascal-Part",), verified=False,
    note="the 56 classes are from the paper, not from the JSON files",
    parts=(
        LayoutPart(what="photos", folders=("JPEGImages",), suffixes=(".jpg",), get=_VOC),
        LayoutPart(what="part annotations", folders=(ANNOTATIONS,), suffixes=(".json",), get=_JSON),
        LayoutPart(what="index", folders=("",), suffixes=("all_obj_part_to_image.json",), get=_JSON, count=1),
    ),
    published={"matcher": EpisodeFamily(draw=_matcher, seed=0, episodes=None, uses=ROOT)},
)
