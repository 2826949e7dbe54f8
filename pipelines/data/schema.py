"""The shards' schema: what every reader and writer of Parquet agrees on. A change raises SCHEMA_VERSION."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 2  # 2: images have a crop; 1 can still be read

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
    ("crop", pa.list_(pa.int32())),  # x0, y0, x1, y1: the part of the photo that a part benchmark shows, else null
])

BLOCKS = pa.schema([  # blocks/<split>/class-*.parquet: one row group = one block = up to block_size annotations
    ("annotation_id", pa.int64()),  # follows from image and class
    ("class_id", pa.int32()),
    ("image_id", pa.int64()),
    ("image", pa.large_binary()),
    ("instances", pa.list_(INSTANCE)),
    ("void_rle", pa.binary()),
    ("crop", pa.list_(pa.int32())),  # as in the image table (no fixed list: Arrow cannot read null ones)
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
    ("bytes", pa.int64()),  # of the image file
    ("part", pa.int32()),  # images/part-<part>.parquet
    ("row", pa.int32()),  # of that part
    ("class_ids", pa.list_(pa.int32())),  # all classes in the photo, dropped ones too
    ("class_areas", pa.list_(pa.int64())),  # their pixels; 0 where only a crowd region shows the class
    ("sha256", pa.string()),
    ("digest", pa.string()),  # of the row's content, masks included
])

BLOCK_INDEX = pa.schema([  # blocks/<split>/index.parquet: one row a block
    ("class_id", pa.int32()),
    ("block", pa.int32()),  # number within the class
    ("file", pa.string()),  # below the shard folder
    ("row_group", pa.int32()),
    ("bytes", pa.int64()),  # of its image files
    ("annotation_ids", pa.list_(pa.int64())),
    ("image_ids", pa.list_(pa.int64())),
])

FAILURES = pa.schema([("file_name", pa.string()), ("stage", pa.string()), ("reason", pa.string())])

LEDGER = pa.schema([  # ledger.parquet: one row a part, for the next build
    ("part", pa.int32()),
    ("versions", pa.list_(pa.string())),  # of its photos, readable or not
    ("failures", pa.list_(pa.struct(list(FAILURES)))),
])

EPISODES = pa.schema([  # a fixed test list; its metadata hold seed, family, schema version and content hash
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
    blocks: int = 0  # of the train split


class Manifest(BaseModel):
    """What a shard folder holds. Written last: a folder without it is unfinished."""

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
    dropped_ids: dict[str, int] | None = None  # name -> class id; older builds do not say
    files: dict[str, str]  # relative path -> hash of its content


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One decoded (image, class).

    image [H, W, 3] uint8, mask [H, W] bool (union of the class's instances), ignore [H, W] bool (void and crowd);
    H, W: the photo, or its crop where a part benchmark crops. Where `size` gives these two, image, mask and ignore
    are squares that were made of the photo, and `whole` is (mask, ignore) at its size if the squares do not do: the
    object is too small to be seen in them, or its mirror image would be another one.
    """

    image_id: int
    image: np.ndarray
    mask: np.ndarray
    ignore: np.ndarray
    size: tuple[int, int] | None = None
    whole: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def photo_size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.size or (self.mask.shape[0], self.mask.shape[1])


@dataclass(frozen=True, kw_only=True)
class EpisodeSample:
    """One decoded clip: K references and J targets of one class."""

    class_id: int
    class_name: str
    references: list[Sample]
    targets: list[Sample]


class PhotoKey(NamedTuple):
    """Identifies a kept record of features. The recorded size tells how a photo with EXIF rotation is turned."""

    sha256: str
    height: int
    width: int
    mirrored: bool = False
