"""Pass 2 of a build: each class's training annotations, randomly permuted and cut into blocks, one row group each."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.base.storage import Store
from pipelines.config.data import DataConfig
from pipelines.data.classes import counted_classes
from pipelines.data.parquet import GROUP_ROWS, parquet_bytes
from pipelines.data.parts import part_name
from pipelines.data.schema import BLOCK_INDEX, BLOCKS, SCHEMA_VERSION, ClassInfo
from pipelines.data.sources.base import digest_of

BLOCK_BYTES = 64_000_000  # largest image bytes of a block; a block of large photos has fewer rows than block_size
FILE_BYTES = 128_000_000  # largest image bytes of a file; the next blocks of the class go into another file


class AnnotationLocation(NamedTuple):
    """One annotation, and the part and row of the image table where its photo is."""

    annotation_id: int
    image_id: int
    part: int
    row: int
    bytes: int
    digest: str


@dataclass(frozen=True)
class BlockFile:
    """One file of blocks: a pure function of the image table, the class and the seed.

    Its name contains a hash of its content, so a later build writes only the classes that changed and disturbs no
    reader.
    """

    class_id: int
    number: int  # number of the file within the class
    first: int  # number of its first block within the class
    blocks: list[list[AnnotationLocation]]

    @property
    def name(self) -> str:
        """Path of the file below the shard folder."""
        content = digest_of(SCHEMA_VERSION, self.digest)[:12]
        return f"blocks/train/class-{self.class_id:04d}-{self.number:03d}-{content}.parquet"

    @property
    def digest(self) -> str:
        """Hash of the annotations in the file, in order."""
        facts = [[(p.annotation_id, p.digest) for p in b] for b in self.blocks]
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def plan_blocks(rows: Sequence[dict[str, Any]], classes: Sequence[ClassInfo], cfg: DataConfig) -> list[BlockFile]:
    """The files of blocks to write, from the rows of the index. The list is empty if no photo is for training."""
    places: dict[int, list[AnnotationLocation]] = defaultdict(list)
    for row in rows:
        enough = set(counted_classes(row, cfg)) if row["split"] == "train" else set()
        for class_id in row["class_ids"]:
            if class_id in enough:
                where = (row["image_id"], row["part"], row["row"], row["bytes"], row["digest"])
                places[class_id].append(AnnotationLocation(annotation_id(row["image_id"], class_id), *where))
    if not places:
        return []
    return [f for c in classes for f in _files(c.class_id, _blocks(places[c.class_id], c.class_id, cfg))]


def annotation_id(image_id: int, class_id: int) -> int:
    """60 bits of a hash of image and class, so that the id does not depend on the annotations of other photos."""
    return int(digest_of(image_id, class_id)[:15], 16)


def _blocks(places: list[AnnotationLocation], class_id: int, cfg: DataConfig) -> list[list[AnnotationLocation]]:
    order = np.random.default_rng([cfg.seed, class_id]).permutation(len(places))
    blocks: list[list[AnnotationLocation]] = [[]]
    for i in order:
        size = sum(p.bytes for p in blocks[-1])
        if blocks[-1] and (len(blocks[-1]) >= cfg.block_size or size + places[i].bytes > BLOCK_BYTES):
            blocks.append([])
        blocks[-1].append(places[i])
    return blocks


def _files(class_id: int, blocks: list[list[AnnotationLocation]]) -> list[BlockFile]:
    groups: list[list[list[AnnotationLocation]]] = [[]]
    total = 0
    for block in blocks:
        size = sum(p.bytes for p in block)
        if groups[-1] and total + size > FILE_BYTES:
            groups.append([])
            total = 0
        groups[-1].append(block)
        total += size
    first = np.cumsum([0] + [len(g) for g in groups])
    return [BlockFile(class_id, i, int(first[i]), g) for i, g in enumerate(groups)]


def block_index(files: Sequence[BlockFile]) -> pa.Table:
    """Table with one row per block (schema `BLOCK_INDEX`)."""
    return pa.Table.from_pylist([
        {"class_id": f.class_id, "block": f.first + i, "file": f.name, "row_group": i,
         "bytes": sum(p.bytes for p in block), "annotation_ids": [p.annotation_id for p in block],
         "image_ids": [p.image_id for p in block]}
        for f in files for i, block in enumerate(f.blocks)
    ], schema=BLOCK_INDEX)


@dataclass(frozen=True)
class BlockBuilder:
    """Writes one file of blocks from the image table; a finished file is left as it is. Runs in Ray's workers."""

    out: str

    def __call__(self, file: BlockFile) -> int:
        """Write the file. Returns its number of annotations."""
        store = Store(self.out)
        if not store.exists(file.name):
            tables = (self._block(store, file.class_id, block) for block in file.blocks)
            store.write_bytes(file.name, parquet_bytes(tables, BLOCKS))
        return sum(len(b) for b in file.blocks)

    def _block(self, store: Store, class_id: int, block: list[AnnotationLocation]) -> pa.Table:
        found = {p["image_id"]: p for p in _photos(store, block)}
        return pa.Table.from_pylist([_row(place, class_id, found[place.image_id]) for place in block], schema=BLOCKS)


def _photos(store: Store, block: list[AnnotationLocation]) -> Iterator[dict[str, Any]]:
    """The rows of the image table that the block needs. Every row group is read once."""
    rows_of: dict[int, set[int]] = defaultdict(set)
    for place in block:
        rows_of[place.part].add(place.row)
    for part, rows in sorted(rows_of.items()):
        groups = sorted({row // GROUP_ROWS for row in rows})
        with store.open_parquet(part_name(part)) as file:
            table = file.read_row_groups(groups)
        first = {group: GROUP_ROWS * i for i, group in enumerate(groups)}  # only a part's last group is smaller
        yield from table.take([first[row // GROUP_ROWS] + row % GROUP_ROWS for row in sorted(rows)]).to_pylist()


def _row(place: AnnotationLocation, class_id: int, photo: dict[str, Any]) -> dict[str, Any]:
    own = next(a for a in photo["annotations"] if a["class_id"] == class_id)
    return {
        "annotation_id": place.annotation_id, "class_id": class_id, "instances": own["instances"],
        "image_class_ids": [a["class_id"] for a in photo["annotations"]],
        "image_class_areas": [a["area"] for a in photo["annotations"]],
        **{k: photo[k] for k in ("image_id", "image", "void_rle", "height", "width", "crop")},
    }
