"""Rules that several benchmarks share: folds, names of photos, and lists that are drawn from an index or from BAM's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from fss_models.errors import FssError
from pipelines.data.benchmarks.protocol import DrawnEpisodes, LayoutPart, ListRequest
from pipelines.data.lists.bam import bam_classes, bam_images
from pipelines.data.samplers.draws import NamedEpisode
from pipelines.data.sources.base import Source, digest_of, hashed_id

ROOT = frozenset({"root"})  # the option of a family that draws from the index of the raw data
COCO_2017 = tuple(  # photos below coco/ of benchmarks that have their masks in pickles
    LayoutPart(what=f"{split} photos", folders=(f"coco/{split}",), suffixes=(".jpg",), count=count,
               get=f"http://images.cocodataset.org/zips/{split}.zip")
    for split, count in (("train2017", 118287), ("val2017", 5000)))


def photo_number(name: str) -> int:
    """The image id of a photo's name. `IMAGE#OBJECT` is the name of one object's crop.

    It is the trailing number of a COCO name, date and number of a VOC name, else 48 bits of a hash of the name.
    """
    image, crop, which = name.partition("#")
    stem = PurePosixPath(image).stem
    tail = stem.rsplit("_", 1)[-1] if stem.startswith("COCO_") else stem.replace("_", "")
    number = int(tail) if tail.isdigit() and len(tail) >= 9 else hashed_id(image)
    return number * 1000 + int(which.rpartition(".")[2]) if crop else number


def check_fold(fold: int, folds: int) -> None:
    """Raise `FssError` for a fold that a benchmark with `folds` folds does not have."""
    if not 0 <= fold < folds:
        raise FssError(f"there is no fold {fold}", hint=f"folds: 0 to {folds - 1}")


def content_digest(content: object) -> str:
    """16 hex digits of a hash of a published list's parsed content. The file format does not matter."""
    return digest_of(content)[:16]


def tested_classes(source: Source, fold: int) -> list[int]:
    """Ids of the classes that a fold tests, in the order of the benchmark. Raises `FssError` if there are none."""
    table = source.fold_table or []
    found = [c for c, f in enumerate(table) if f == fold]
    if not found:
        folds = sorted({f for f in table if f >= 0})
        raise FssError(f"fold {fold} has no class", hint=f"folds: {', '.join(map(str, folds)) or 'none'}")
    return found


def index_lists(draws: Sequence[NamedEpisode], source: Source, what: str) -> DrawnEpisodes:
    """Episodes that were drawn from the index of the raw data; `what` the index is made of."""
    return DrawnEpisodes(draws=draws, classes=dict(enumerate(source.classes)),
                         origin=f"{what} {source.fingerprint[:16]}")


def bam_photos(request: ListRequest, classes: Collection[int]) -> tuple[list[str], dict[int, list[str]], str]:
    """(names of the queries' photos, class -> names of its photos, origin): BAM's lists of the fold, or from shards."""
    if request.lists:
        names, file = bam_images(request.lists, "val", request.fold)
        pools, second = bam_classes(request.lists, "val", request.fold)
        return names, pools, f"BAM lists {file.sha256[:16]} {second.sha256[:16]}"
    by_class = request.pools
    pools = {c: [PurePosixPath(n).stem for n in by_class.get(c, ())] for c in classes}
    return sorted({n for p in pools.values() for n in p}), pools, request.origin


def shown_classes(request: ListRequest) -> dict[str, list[int]]:
    """Name of a photo of the shards, without its suffix -> the classes in its label at any size."""
    return {PurePosixPath(row["file_name"]).stem: row["class_ids"] for row in request.opened_shards.rows.values()}
