"""What the driver has in memory of a COCO annotation file: its images, its categories, where each annotation lies."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.data.class_names import clean_name
from pipelines.data.sources.base import SourceFailure, hashed_id
from pipelines.data.sources.coco_json import CocoReader, JsonRecord

LISTS = ("images", "annotations", "categories")
_NUMBER = re.compile(r"\s*([+-]?\d+)(\.0*)?\s*", re.ASCII)
Identity = int | str


def identity(value: object) -> Identity:
    """The id of a record: whole numbers as int, also where they are written as "7" or 7.0; other text as it is.

    Raises ValueError for anything else.
    """
    if isinstance(value, str) and value.strip():
        found = _NUMBER.fullmatch(value)
        return int(found[1]) if found else value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
        return int(value)
    raise ValueError(f"{str(value)[:40]!r} is no id")


def image_number(value: object) -> int:
    """The id of an image as a number of 64 bits: a hash if it is other text or larger. Raises ValueError."""
    found = identity(value)
    return found if isinstance(found, int) and -(2**63) <= found < 2**63 else hashed_id(str(found))


class ImageRecord(NamedTuple):
    """One record of `images`. size: (height, width) in pixels, None if it has none."""

    number: int
    name: str
    size: tuple[int, int] | None


class CocoIndex:
    """The records of one file.

    scores: number of annotations with a confidence, which only predictions have; ours: whether `fss label` wrote it.
    """

    def __init__(self) -> None:
        self.images: list[ImageRecord] = []
        self.scores, self.ours = 0, False
        self.sha256 = ""
        self._categories: list[dict[str, Any]] = []
        self._of, self._start, self._length = array("q"), array("q"), array("q")  # image id, first byte, bytes
        self._stamp = array("Q")

    @classmethod
    def read(cls, store: Store, name: str) -> CocoIndex:
        """Read the index of an annotation file. Raises `FssError` if it is not a COCO file."""
        index, where = cls(), store.path(name)
        store.size(name)  # raises `FssError` if it is missing
        with store.fs.open(where, "rb") as file:
            reader = CocoReader(file, where)
            for record in reader.records():
                if record.section in LISTS:
                    try:
                        index._add(reader, record)
                    except (KeyError, TypeError, ValueError, OverflowError) as error:
                        raise FssError(f"{record.section}: the record at byte {record.start} is not a COCO record "
                                       f"({type(error).__name__}: {error})", where=where) from error
        for key in LISTS:
            if not reader.sections.get(key):
                raise FssError(f"the file has no list {key!r}", where=where,
                               hint="give a COCO file, with the lists images, annotations and categories")
        index.sha256 = reader.sha256
        index.ours = isinstance(reader.info, dict) and "bundle_id" in reader.info
        return index

    def _add(self, reader: CocoReader, record: JsonRecord) -> None:
        if record.section == "annotations":
            of = record.value["image_id"]
            if isinstance(of, str) and not of.isascii():
                of = reader.again(record)["image_id"]
            self._of.append(image_number(of))
            self._start.append(record.start)
            self._length.append(record.end - record.start)
            self._stamp.append(reader.stamp(record))
            self.scores += "score" in record.value or "confidence" in record.value
            return
        value = reader.again(record)
        if record.section == "categories":
            self._categories.append({"id": identity(value["id"]), "name": clean_name(value["name"]),
                                     "of": clean_name(value.get("supercategory") or "")})
            return
        self.images.append(ImageRecord(image_number(value["id"]), str(value["file_name"] or ""), _size(value)))

    def categories(self, where: str) -> tuple[list[str], dict[Identity, int], list[SourceFailure]]:
        """(class names, category id -> class, a row for each name that several ids share).

        Classes follow the ids, numbers before text. Categories of the same name are one class. Raises `FssError` for
        a category without a name, for two of the same id, and for two of the same name below different supercategories.
        """
        names: dict[str, list[dict[str, Any]]] = {}
        ids: dict[Identity, str] = {}
        for category in sorted(self._categories, key=lambda c: (isinstance(c["id"], str), c["id"])):
            key, name = category["id"], category["name"]
            if not name:
                raise FssError(f"category {key} has no name", where=where)
            if ids.setdefault(key, name) != name:
                raise FssError(f"two categories have the same id {key}: {ids[key]} and {name}", where=where)
            same = names.setdefault(name, [])
            if same and same[0]["of"] != category["of"]:
                raise FssError(f"two categories are named {name}, of {same[0]['of'] or 'no supercategory'} and of "
                               f"{category['of'] or 'no supercategory'}", where=where, hint="rename one of them")
            same.append(category)
        classes = list(names)
        rows = []
        for name, same in names.items():
            if len({c["id"] for c in same}) > 1:
                shown = " and ".join(str(c["id"]) for c in same)
                reason = f"categories {shown} have the same name {name} and are read as one class"
                rows.append(SourceFailure(where, "index", reason))
        return classes, {key: classes.index(name) for key, name in ids.items()}, rows

    def spans(self) -> Mapping[int, bytes]:
        """Image id -> (first byte, length) of each of its annotations, as int64 bytes, in the file's order."""
        return self._grouped(self._start, self._length)

    def stamps(self) -> Mapping[int, bytes]:
        """Image id -> a 64-bit hash of each of its annotations, as bytes, in the file's order."""
        return self._grouped(self._stamp)

    def _grouped(self, *columns: array[int]) -> Mapping[int, bytes]:
        """Image id -> the bytes of its rows in `columns`, 8 bytes per value."""
        if not self._of:
            return {}
        of = np.frombuffer(self._of, dtype=np.int64)
        order = np.argsort(of, kind="stable")
        table = np.stack([np.frombuffer(c, dtype=np.int64) for c in columns], 1)
        ids, first = np.unique(of[order], return_index=True)
        return {int(i): part.tobytes() for i, part in zip(ids, np.split(table[order], first[1:]), strict=True)}


def _size(value: dict[str, Any]) -> tuple[int, int] | None:
    """The recorded (height, width), None where it is missing, empty or 0. Raises ValueError for other values."""
    found = [value.get(k) or 0 for k in ("height", "width")]
    height, width = (identity(v) for v in found)
    if isinstance(height, str) or isinstance(width, str):
        raise ValueError(f"its size {found} is not two numbers")
    return (height, width) if height > 0 and width > 0 else None
