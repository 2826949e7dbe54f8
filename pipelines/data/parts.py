"""Pass 1 of a build: one fixed group of images becomes one part of the image table. Runs in Ray Data's workers."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fss_models.errors import BadImage, FssError
from fss_models.photo_files import OrientedPhoto, load_oriented
from pipelines.base.storage import Store
from pipelines.config.data import DataConfig
from pipelines.data import rle
from pipelines.data.attempts import DEATHS, PartAttempts, time_limit
from pipelines.data.class_names import shown_text
from pipelines.data.parquet import GROUP_ROWS, parquet_bytes
from pipelines.data.schema import FAILURES, IMAGES, INDEX
from pipelines.data.shrink import encode_photo, shrink_masks, shrink_photo, shrunk_size
from pipelines.data.sources.base import FetchedImage, ImageMasks, InstanceMask, Source, SourceFailure, SourceImage

READERS = 4  # files that one task reads at a time
LONGEST = 500  # characters of a reason
# Errors of a mount or drive, not of one file on it
STORAGE = {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.EHOSTDOWN,
           errno.EHOSTUNREACH, errno.ECONNABORTED, errno.ECONNRESET}
Entry = tuple[SourceImage, str]  # an image and its split (train or test)


def part_name(part: int) -> str:
    """The path of part number `part` of the image table, below the shard folder."""
    return f"images/part-{part:05d}.parquet"


def exif_name(part: int) -> str:
    """The path of the counts of photos with an EXIF orientation: {"turned", "as_stored"}. It exists during a build."""
    return f"build/exif-{part:05d}.json"


@dataclass(frozen=True, kw_only=True)
class PartBuilder:
    """Reads, validates and writes one part. A finished part is left unchanged.

    The file of the part is written last. If it exists, its index and its failures exist too. Raises `FssError`, with
    nothing of the part written, if a server fails or the source's folder, mount or drive is lost.
    """

    source: Source
    cfg: DataConfig
    out: str

    def __call__(self, planned: tuple[int, Sequence[Entry]]) -> tuple[int, bytes]:
        """(number of the part, its entries) -> (number of entries, the rows of the index as Parquet bytes)."""
        part, entries = planned
        store = Store(self.out)
        index_name = f"build/index-{part:05d}.parquet"
        if store.exists(part_name(part)):
            return len(entries), store.read_bytes(index_name)
        rows, failures, exif = self._rows(entries, PartAttempts.begin(store, part))
        store.write_json(exif_name(part), exif)
        index = parquet_bytes([_index(rows, part)], INDEX)
        store.write_bytes(f"build/failures-{part:05d}.parquet", parquet_bytes([failure_table(failures)], FAILURES))
        store.write_bytes(index_name, index)
        groups = (rows[i : i + GROUP_ROWS] for i in range(0, len(rows), GROUP_ROWS))
        tables = (pa.Table.from_pylist(g, schema=IMAGES) for g in groups)
        store.write_bytes(part_name(part), parquet_bytes(tables, IMAGES))
        return len(entries), index

    def _rows(self, entries: Sequence[Entry],
              attempts: PartAttempts) -> tuple[list[dict[str, Any]], list[SourceFailure], dict[str, int]]:
        """The rows, what could not be used, and how many photos with an EXIF orientation were turned or not."""
        rows, failures, exif = [], [], {"turned": 0, "as_stored": 0}
        for (item, split), fetched in self._fetch(entries, attempts):
            if isinstance(fetched, SourceFailure):
                failures.append(fetched)
                continue
            stage = "decode"
            try:
                with time_limit(self.cfg.max_seconds):
                    photo = self._photo(item, fetched)
                    stage = "annotate"
                    row, problems = self._row(item, split, fetched, photo)
            except BadImage as error:
                failures.append(SourceFailure(item.file_name, stage, error.reason))
                continue
            rows.append(row)
            if photo.tagged:
                exif["turned" if photo.turned else "as_stored"] += 1
            failures += [SourceFailure(item.file_name, "annotate", p) for p in problems]
        attempts.done()
        return rows, failures, exif

    def _fetch(self, entries: Sequence[Entry],
               attempts: PartAttempts) -> Iterator[tuple[Entry, FetchedImage | SourceFailure]]:
        """Each photo with its files. They are read ahead, or one by one where a worker has died (`attempts`)."""
        if attempts.careful:
            reason = (f"{DEATHS} workers crashed while they read it, or took longer than {self.cfg.max_seconds} s "
                      "(data.max_seconds)")
            for place, entry in enumerate(entries):
                if not attempts.at(place):
                    yield entry, SourceFailure(entry[0].file_name, "decode", reason)
                    continue
                with self._read_limit():
                    fetched = self._fetch_one(entry[0])
                yield entry, fetched
            return
        with ThreadPoolExecutor(READERS) as pool:
            results = pool.map(self._fetch_one, [item for item, _ in entries])
            for entry in entries:
                with self._read_limit():
                    fetched = next(results)
                yield entry, fetched

    def _read_limit(self) -> AbstractContextManager[None]:
        """Limits the reading of local files, of which a drive or mount may never answer. A bucket's requests end."""
        return time_limit(self.cfg.max_seconds) if self.source.store.is_local else nullcontext()

    def _fetch_one(self, item: SourceImage) -> FetchedImage | SourceFailure:
        try:
            return self.source.fetch(item)
        except BadImage as error:
            return SourceFailure(item.file_name, "read", error.reason)
        except FssError as error:
            if _storage_is_lost(self.source.store, error):
                hint = "bring it back and run the command again, which goes on; if only this file fails, remove it"
                raise FssError(f"the source was lost while its photos were read: {error.what}", where=error.where,
                               hint=hint) from error
            if _concerns_one_file(error):
                return SourceFailure(item.file_name, "read", error.what)
            raise

    def _row(
        self, item: SourceImage, split: str, fetched: FetchedImage, photo: OrientedPhoto
    ) -> tuple[dict[str, Any], list[str]]:
        """A row of the image table, and the problems of single annotations. Raises `BadImage` for an unusable photo."""
        masks = self.source.rasterise(item, fetched, photo.image.height, photo.image.width)
        data, masks, height, width = self._shrunk(photo, fetched.data, masks)
        row = {
            "image_id": item.image_id, "file_name": item.file_name, "split": split, "image": data,
            "sha256": hashlib.sha256(data).hexdigest(), "height": height, "width": width,
            "annotations": _annotations(masks.instances, height, width), "void_rle": masks.void,
            "crop": _crop(item, height, width),
        }
        return row, masks.problems

    def _photo(self, item: SourceImage, fetched: FetchedImage) -> OrientedPhoto:
        """The photo with all pixels decoded, which proves that it can be. Raises `BadImage`."""
        size = self.source.annotated_size(item, fetched)
        return load_oriented(fetched.data, size, self.source.orientation, limits=self.cfg.limits)

    def _shrunk(self, photo: OrientedPhoto, data: bytes, masks: ImageMasks) -> tuple[bytes, ImageMasks, int, int]:
        """(image file, masks, height, width), shrunk to `data.max_side`.

        A photo within the limit keeps its bytes, unless it was turned and its size does not tell.
        """
        image = photo.image
        old = (image.height, image.width)
        new = shrunk_size(*old, self.cfg.max_side)
        if new == old:
            return data if photo.implied else encode_photo(image, data), masks, *old
        return shrink_photo(np.array(image), data, *new), shrink_masks(masks, old, new), *new


def _crop(item: SourceImage, height: int, width: int) -> list[int] | None:
    """The crop of the item, clipped to the photo, None without one. Raises `BadImage` if it is outside the photo."""
    if item.crop is None:
        return None
    x0, y0, x1, y1 = item.crop
    box = [max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)]
    if box[0] >= box[2] or box[1] >= box[3]:
        raise BadImage(f"the object's box {item.crop} shows nothing of its {width}x{height} photo")
    return box


def failure_table(failures: Sequence[SourceFailure]) -> pa.Table:
    """The failures as a table (schema `FAILURES`). Texts from foreign files are cut to one line that can be shown."""
    rows = [{k: shown_text(" ".join(v.split())[:LONGEST]) for k, v in f.__dict__.items()} for f in failures]
    return pa.Table.from_pylist(rows, schema=FAILURES)


def _concerns_one_file(error: FssError) -> bool:
    """Whether the error concerns only this file. Errors of a server stop the build instead."""
    cause = error.__cause__
    return isinstance(cause, FileNotFoundError | IsADirectoryError) or (
        isinstance(cause, OSError) and "://" not in error.where)


def _storage_is_lost(root: Store, error: FssError) -> bool:
    """Whether a local file cannot be read because its folder, mount or drive failed or is gone (unmounted: empty)."""
    cause = error.__cause__
    if not isinstance(cause, OSError) or "://" in error.where:
        return False
    return cause.errno in STORAGE or (root.is_local and not _has_files(root.url))


def _has_files(folder: str) -> bool:
    try:
        with os.scandir(folder) as found:
            return any(found)
    except OSError:
        return False


def _annotations(masks: Sequence[InstanceMask], height: int, width: int) -> list[dict[str, Any]]:
    """One entry per class, in the order of ids. Its area is the pixel count of the union of its non-crowd instances."""
    by_class: dict[int, list[InstanceMask]] = defaultdict(list)
    for mask in masks:
        by_class[mask.class_id].append(mask)
    return [
        {"class_id": c, "area": rle.union_area([m.rle for m in found if not m.iscrowd], height, width),
         "instances": [_instance(m, height, width) for m in found]}
        for c, found in sorted(by_class.items())
    ]


def _instance(mask: InstanceMask, height: int, width: int) -> dict[str, Any]:
    return {"rle": mask.rle, "bbox": rle.bbox(mask.rle, height, width),
            "area": float(rle.area(mask.rle, height, width)), "iscrowd": mask.iscrowd}


def _index(rows: Sequence[dict[str, Any]], part: int) -> pa.Table:
    columns = ("image_id", "file_name", "split", "height", "width", "sha256")
    return pa.Table.from_pylist([
        {**{k: row[k] for k in columns}, "bytes": len(row["image"]), "part": part, "row": number,
         "class_ids": [a["class_id"] for a in row["annotations"]],
         "class_areas": [a["area"] for a in row["annotations"]], "digest": _digest(row)}
        for number, row in enumerate(rows)
    ], schema=INDEX)


def _digest(row: dict[str, Any]) -> str:
    """A hash of the content of the row. It does not depend on Parquet or on the location of the photos."""
    masks = [(a["class_id"], [(i["rle"], i["iscrowd"]) for i in a["instances"]]) for a in row["annotations"]]
    facts = (row["image_id"], row["file_name"], row["split"], row["sha256"], row["height"], row["width"], masks,
             row["void_rle"], *([row["crop"]] if row["crop"] else []))
    return hashlib.sha256(repr(facts).encode()).hexdigest()
