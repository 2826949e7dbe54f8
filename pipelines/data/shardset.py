"""`Shards`: reading a finished shard folder. The index is in memory; image bytes are read on demand."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from fss_models.errors import FssError
from fss_models.photo_files import decode_sized
from pipelines.base.storage import Store
from pipelines.config.data import BENCHMARKS, DataConfig
from pipelines.data import rle
from pipelines.data.byte_cache import ByteCache
from pipelines.data.classes import NO_FOLD, counted_classes
from pipelines.data.parquet import GROUP_ROWS
from pipelines.data.parts import part_name
from pipelines.data.schema import SCHEMA_VERSION, ClassInfo, Manifest, Sample

CACHE_BYTES = 256_000_000
ALL_FOLDS = -1  # as a fold: every class


class Shards:
    """A finished shard folder (local or s3://). Several threads may use it. It can be pickled, without its cache.

    Raises `FssError` if the folder has no finished shards or a newer schema.
    """

    def __init__(self, url: str, *, cache_bytes: int = CACHE_BYTES) -> None:
        self.manifest = read_manifest(Store(url))
        self.store = Store(url, hashes=self.manifest.files)  # the hashes let it name a damaged file
        self._cache = ByteCache(cache_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Shards, (self.store.url,))

    @property
    def url(self) -> str:
        """URL of the shard folder."""
        return self.store.url

    @cached_property
    def classes(self) -> dict[int, ClassInfo]:
        """The classes of the dataset by id, without dropped ones."""
        return {c.class_id: c for c in self.manifest.classes}

    @property
    def class_names(self) -> dict[int, str]:
        """The names of all classes by id, also of dropped ones, which photos may show.

        Raises `FssError` for older shards, which do not record the ids of dropped classes.
        """
        dropped = self.manifest.dropped_ids
        if dropped is None and self.manifest.dropped_classes:
            raise FssError("these shards do not record the ids of their dropped classes", where=self.url,
                           hint="build them again with --force")
        return {i: c.name for i, c in self.classes.items()} | {i: name for name, i in (dropped or {}).items()}

    @property
    def folds(self) -> list[int]:
        """The folds that have a class, sorted."""
        return sorted({c.fold for c in self.manifest.classes} - {NO_FOLD})

    def fold_classes(self, fold: int) -> list[int]:
        """Ids of the novel classes of a fold, of all classes for `ALL_FOLDS`. Raises `FssError` if there are none."""
        found = [c.class_id for c in self.manifest.classes if fold in (c.fold, ALL_FOLDS)]
        if not found:
            raise FssError(f"fold {fold} has no class", where=self.url, hint=f"folds with classes: {self.folds}")
        return found

    def base_classes(self, fold: int) -> list[int]:
        """Ids of all classes except the novel ones of the fold."""
        novel = set(self.fold_classes(fold))
        return [c for c in self.classes if c not in novel]

    @cached_property
    def index(self) -> pa.Table:
        """The image table without bytes and masks (schema `INDEX`)."""
        return self.store.read_table("index.parquet")

    @cached_property
    def block_index(self) -> pa.Table:
        """One row per training block (schema `BLOCK_INDEX`)."""
        return self.store.read_table("blocks/train/index.parquet")

    @cached_property
    def failures(self) -> pa.Table:
        """The photos and annotations that could not be used, with the reason (schema `FAILURES`)."""
        return self.store.read_table("failures.parquet")

    @cached_property
    def rows(self) -> dict[int, dict[str, Any]]:
        """The rows of the index by image id."""
        return {row["image_id"]: row for row in self.index.to_pylist()}

    def images(self, split: str) -> list[dict[str, Any]]:
        """The index rows of a split (`train` or `test`), in order."""
        return [row for row in self.rows.values() if row["split"] == split]

    def photos_of(self, class_id: int, split: str) -> list[int]:
        """Image ids of the photos where a class counts (`data.min_area`, `data.min_pixels`), in order."""
        return self._photos[split].get(class_id, [])

    @cached_property
    def copies(self) -> dict[int, int]:
        """Image id of a photo -> the first photo with the same file, for every further one of the same content.

        It is empty for benchmarks, whose rules are published: some cut several photos from one file.
        """
        if DataConfig.model_validate(self.manifest.source).source.format in BENCHMARKS:
            return {}
        found = self.store.read_table("index.parquet", ["image_id", "sha256"]).to_pydict()
        first: dict[str, int] = {}
        pairs = [(i, first.setdefault(h, i)) for i, h in zip(found["image_id"], found["sha256"], strict=True)]
        return {image_id: earlier for image_id, earlier in pairs if image_id != earlier}

    def without_copies(self, image_ids: Iterable[int]) -> list[int]:
        """The ids in order, each photo once: an episode must not have a photo as support and as query."""
        first: dict[int, int] = {}
        for image_id in image_ids:
            first.setdefault(self.copies.get(image_id, image_id), image_id)
        return list(first.values())

    def tested_photos(self, class_id: int) -> list[int]:
        """Test photos of a class that drawn episodes may show: each content once, and none that a train photo has."""
        found = self.without_copies(self.photos_of(class_id, "test"))
        return [i for i in found if self.copies.get(i, i) not in self._train_contents]

    @cached_property
    def _train_contents(self) -> set[int]:
        """For the train photos, the first photo with the same content."""
        return {self.copies.get(row["image_id"], row["image_id"]) for row in self.images("train")}

    @cached_property
    def _photos(self) -> dict[str, dict[int, list[int]]]:
        cfg, found = DataConfig.model_validate(self.manifest.source), {"train": {}, "test": {}}  # type: ignore[var-annotated]
        for row in self.rows.values():
            for class_id in counted_classes(row, cfg):
                found[row["split"]].setdefault(class_id, []).append(row["image_id"])
        return found

    def photo(self, image_id: int) -> dict[str, Any]:
        """A row of the image table with its bytes (schema `IMAGES`). Only its row group is read."""
        photo: dict[str, Any] = self._cache.get(("photo", image_id), lambda: self._read_photo(self._row(image_id)))
        return photo

    def _read_photo(self, row: dict[str, Any]) -> tuple[dict[str, Any], int]:
        with self.store.open_parquet(part_name(row["part"])) as file:
            group = file.read_row_group(row["row"] // GROUP_ROWS)
        photo: dict[str, Any] = group.slice(row["row"] % GROUP_ROWS, 1).to_pylist()[0]
        return photo, len(photo["image"])

    def pixels(self, image_id: int) -> np.ndarray:
        """The decoded photo, or its crop where a part benchmark crops: [H, W, 3] uint8, shared and read-only."""
        found: np.ndarray = self._cache.get(("pixels", image_id), lambda: self._decode(self.photo(image_id)))
        return found

    def _decode(self, photo: dict[str, Any]) -> tuple[np.ndarray, int]:
        whole = decode_sized(photo["image"], photo["height"], photo["width"], limits=None,
                             where=photo["file_name"])
        (found,) = cropped(photo.get("crop"), whole)
        found.flags.writeable = False
        return found, found.nbytes

    def sample(self, image_id: int, class_id: int) -> Sample:
        """One decoded (image, class). The mask is empty if the photo lacks the class."""
        photo = self.photo(image_id)
        own = [i for a in photo["annotations"] if a["class_id"] == class_id for i in a["instances"]]
        masks = masks_of(own, photo["void_rle"], photo["height"], photo["width"])
        mask, ignore = cropped(photo.get("crop"), *masks)
        return Sample(image_id=image_id, image=self.pixels(image_id), mask=mask, ignore=ignore)

    def samples(self, image_ids: Iterable[int], class_id: int) -> list[Sample]:
        """The samples of several photos for one class, in the order of `image_ids`."""
        return [self.sample(i, class_id) for i in image_ids]

    def _row(self, image_id: int) -> dict[str, Any]:
        try:
            return self.rows[image_id]
        except KeyError:
            raise FssError(f"these shards have no photo {image_id}", where=self.url,
                           hint="use an episode list of these shards") from None


def copies_across(shards: Shards) -> list[tuple[str, str]]:
    """(train photo, test photo) for every test photo whose content a train photo has too."""
    first = {shards.copies.get(r["image_id"], r["image_id"]): r["file_name"] for r in reversed(shards.images("train"))}
    tested = ((shards.copies.get(r["image_id"], r["image_id"]), r["file_name"]) for r in shards.images("test"))
    return [(first[content], name) for content, name in tested if content in first] if shards.copies else []


def masks_of(
    instances: list[dict[str, Any]], void: bytes | None, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """(mask, ignore), both [H, W] bool.

    mask: union of the instances that are no crowd; ignore: void and crowd pixels outside of it.
    """
    mask = rle.union([i["rle"] for i in instances if not i["iscrowd"]], height, width)
    ignored = [i["rle"] for i in instances if i["iscrowd"]] + ([void] if void else [])
    return mask, rle.union(ignored, height, width) & ~mask


def cropped(crop: list[int] | None, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arrays [H, W, ...] cut to `crop` (x0, y0, x1, y1): columns x0 to x1 and rows y0 to y1. None: no cut."""
    if not crop:
        return arrays
    x0, y0, x1, y1 = crop
    return tuple(np.ascontiguousarray(a[y0:y1, x0:x1]) for a in arrays)


def read_manifest(store: Store) -> Manifest:
    """The manifest of a shard folder. Raises `FssError` if it is missing, damaged or of a newer schema."""
    if not store.exists("manifest.json"):
        begun = " (a build was begun but not finished)" if store.exists("build.json") else ""
        raise FssError(f"no finished shards here{begun}", where=store.url, hint="run `fss shards build`")
    document = store.read_json("manifest.json")
    version = document.get("schema_version") if isinstance(document, dict) else None
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise FssError(f"shards have schema {version}, this program reads up to {SCHEMA_VERSION}", where=store.url,
                       hint="update fss, or build the shards again with --force")
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise FssError(f"manifest.json is damaged: {error.errors()[0]['msg']}", where=store.url,
                       hint="build the shards again with --force") from error
