"""The schemas of all Parquet files of shards. A change to one of them raises SCHEMA_VERSION."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 2  # 2: images have a crop; version 1 can still be read

INSTANCE = pa.struct([
    ("rle", pa.binary()),  # COCO's compressed counts; the size is the image's (height, width)
    ("bbox", pa.list_(pa.float32(), 4)),  # x, y, width, height
    ("area", pa.float32()),
    ("iscrowd", pa.bool_()),
])
ANNOTATION = pa.struct([("class_id", pa.int32()), ("area", pa.int64()), ("instances", pa.list_(INSTANCE))])

IMAGES = pa.schema([  # images/part-*.parquet: every readable image once
    ("image_id", pa.int64()),
    ("file_name", pa.string()),
    ("split", pa.string()),  # train | test
    ("image", pa.large_binary()),  # the original bytes
    ("sha256", pa.string()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("annotations", pa.list_(ANNOTATION)),
    ("void_rle", pa.binary()),  # pixels that enter no loss and no score; null if none
    ("crop", pa.list_(pa.int32())),  # x0, y0, x1, y1 in pixels where a part benchmark crops the photo, else null
])

BLOCKS = pa.schema([  # blocks/<split>/class-*.parquet: one row group = one block = up to block_size annotations
    ("annotation_id", pa.int64()),  # a hash of image and class
    ("class_id", pa.int32()),
    ("image_id", pa.int64()),
    ("image", pa.large_binary()),
    ("instances", pa.list_(INSTANCE)),
    ("void_rle", pa.binary()),
    ("crop", pa.list_(pa.int32())),  # as in the image table (not a fixed-size list: Arrow cannot read null ones)
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("image_class_ids", pa.list_(pa.int32())),  # all classes in the photo, for the published filters
    ("image_class_areas", pa.list_(pa.int64())),
])

INDEX = pa.schema([  # index.parquet: the image table without bytes and masks, and where each row is
    ("image_id", pa.int64()),
    ("file_name", pa.string()),
    ("split", pa.string()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("bytes", pa.int64()),  # size of the image file
    ("part", pa.int32()),  # images/part-<part>.parquet
    ("row", pa.int32()),  # row within that part
    ("class_ids", pa.list_(pa.int32())),  # all classes in the photo, also dropped ones
    ("class_areas", pa.list_(pa.int64())),  # pixels of each class; 0 where only a crowd region shows it
    ("sha256", pa.string()),
    ("digest", pa.string()),  # hash of the row's content with its masks
])

BLOCK_INDEX = pa.schema([  # blocks/<split>/index.parquet: one row per block
    ("class_id", pa.int32()),
    ("block", pa.int32()),  # number of the block within the class
    ("file", pa.string()),  # path below the shard folder
    ("row_group", pa.int32()),
    ("bytes", pa.int64()),  # total size of its image files
    ("annotation_ids", pa.list_(pa.int64())),
    ("image_ids", pa.list_(pa.int64())),
])

FAILURES = pa.schema([("file_name", pa.string()), ("stage", pa.string()), ("reason", pa.string())])

LEDGER = pa.schema([  # ledger.parquet: one row per part, for the next build
    ("part", pa.int32()),
    ("versions", pa.list_(pa.string())),  # versions of its photos, readable or not
    ("failures", pa.list_(pa.struct(list(FAILURES)))),
    ("turned", pa.int32()),  # its photos that were turned by their EXIF orientation; null in older ledgers
    ("as_stored", pa.int32()),  # its photos whose EXIF orientation was not applied
])

EPISODES = pa.schema([  # a fixed test list; seed, family, schema version and content hash are its metadata
    ("episode_id", pa.int64()),
    ("fold", pa.int32()),
    ("class_id", pa.int32()),
    ("query", pa.int64()),  # image ids
    ("supports", pa.list_(pa.int64())),
])


class ClassInfo(BaseModel):
    """One class of a dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    class_id: int
    name: str
    fold: int
    train_images: int
    test_images: int
    blocks: int = 0  # number of blocks of the train split


class Manifest(BaseModel):
    """The manifest of a shard folder. It is written last: a folder without it is unfinished."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: int
    dataset: str
    seed: int
    folds: int
    fold_rule: str
    source: dict[str, object]  # the data section of the recipe
    source_hash: str
    content_hash: str
    images: dict[str, int]  # split -> count
    annotations: dict[str, int]
    failures: int
    classes: list[ClassInfo]
    dropped_classes: dict[str, str]  # name -> reason
    dropped_ids: dict[str, int] | None = None  # name -> class id; None in shards of older versions
    files: dict[str, str]  # relative path -> hash of its content
    exif: dict[str, int] | None = None  # photos with an EXIF orientation: turned, as_stored; None: there are none

    def document(self) -> dict[str, Any]:
        """The manifest as it is written, without what only some datasets have."""
        return {k: v for k, v in self.model_dump().items() if k != "exif" or v}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One decoded (image, class).

    image [H, W, 3] uint8, mask [H, W] bool (union of the class's instances), ignore [H, W] bool (void and crowd);
    H, W: size of the photo, or of its crop where a part benchmark crops. If `size` is (H, W), then image, mask and
    ignore are squares made from the photo. `whole` is then (mask, ignore) at the photo's size if the squares are not
    enough: the object vanishes in them, or mirroring the square differs from mirroring the photo.
    """

    image_id: int
    image: np.ndarray
    mask: np.ndarray
    ignore: np.ndarray
    size: tuple[int, int] | None = None
    whole: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def photo_size(self) -> tuple[int, int]:
        """(H, W) of the photo, or of its crop, in pixels."""
        return self.size or (self.mask.shape[0], self.mask.shape[1])


@dataclass(frozen=True, kw_only=True)
class EpisodeSample:
    """One decoded clip: K references and J targets of one class."""

    class_id: int
    class_name: str
    references: list[Sample]
    targets: list[Sample]


class PhotoKey(NamedTuple):
    """Identifies the features of a photo. The recorded size decides how a photo with EXIF rotation is turned."""

    sha256: str
    height: int
    width: int
    mirrored: bool = False
