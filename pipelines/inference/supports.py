"""Support sets: a class name and the marked photos that show it; how they are checked and stored.

Photos and prompts in storage are the truth; what a model computed from them is only a cache. The id is the hash of
photos and prompts, so the same support set has the same id on every machine. Photos are shown upright (EXIF applied),
and prompts are in pixels of the upright photo.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fss_models.clip import Prompt
from fss_models.errors import FssError
from fss_models.marks import KINDS, Mark, check_mark, mark_kind, mark_pixels, mark_prompt, marks_all
from fss_models.photo_files import decode_image, turned_size
from fss_models.segmenter import Segmenter
from pipelines.base.storage import Store, join

LINES = 8  # at most as many lines about supports are shown
NEARLY_ALL = 0.9  # of the photo: a mask that covers more may be inverted
RECORD = "support.json"


@dataclass(frozen=True)
class Support:
    """One photo (its original bytes) and the mark on it, as canonical JSON (see `marks.check_mark`)."""

    image: bytes
    mark: Mark

    @property
    def negative(self) -> bool:
        """Whether it shows what the class is not."""
        return bool(self.mark.get("negative"))

    @property
    def sha256(self) -> str:
        """SHA-256 of the photo's bytes, in hex digits."""
        return hashlib.sha256(self.image).hexdigest()


@dataclass(frozen=True)
class SupportSet:
    """A class name and the marked photos that show the class; `prompt` says better than the name what is meant."""

    class_name: str
    supports: tuple[Support, ...]
    prompt: str = ""

    @property
    def phrase(self) -> str:
        """What a method that reads names is told."""
        return self.prompt or self.class_name

    @cached_property
    def support_id(self) -> str:
        """16 hex digits: the hash of photos and prompts, in order."""
        parts: list[Any] = [[s.sha256, s.mark] for s in self.supports] + ([self.prompt] if self.prompt else [])
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def decoded(self) -> tuple[list[np.ndarray], list[Prompt]]:
        """Upright photos [H, W, 3] uint8 and their prompts."""
        return [decode_support(s.image) for s in self.supports], [mark_prompt(s.mark) for s in self.supports]

    def save(self, root: str) -> str:
        """Write the set to `root`/<id>. Returns the id. The record is written last: without it the folder is no set."""
        store = Store(join(root, self.support_id))
        for support in self.supports:
            if not store.exists(support.sha256):
                store.write_bytes(support.sha256, support.image)
        rows = [{"image": s.sha256, **s.mark} for s in self.supports]
        store.write_json(RECORD, {"class_name": self.class_name, "supports": rows} | prompt_key(self))
        return self.support_id


def load_support_set(root: str, support_id: str) -> SupportSet:
    """The support set that is stored below `root`. Raises `UnknownSupportError` if none has that id."""
    if not (len(support_id) == 16 and set(support_id) <= set("0123456789abcdef")):
        raise UnknownSupportError(support_id)
    store = Store(join(root, support_id))
    if not store.exists(RECORD):
        raise UnknownSupportError(support_id)
    record = store.read_json(RECORD)
    rows = [(store.read_bytes(row.pop("image")), row) for row in record["supports"]]
    return SupportSet(record["class_name"], tuple(Support(data, mark) for data, mark in rows), record.get("prompt", ""))


def prompt_key(supports: SupportSet) -> dict[str, str]:
    """The entry `prompt` of a record or request; empty for a set without one."""
    return {"prompt": supports.prompt} if supports.prompt else {}


class UnknownSupportError(FssError):
    """No support set has this id."""

    def __init__(self, support_id: str) -> None:
        super().__init__(f"unknown support_id {support_id[:64]!r}", hint="post it to /v1/supports first")
        self.support_id = support_id


def build_support_set(class_name: Any, rows: Sequence[tuple[bytes, dict[str, Any]]], where: str = "",
                      prompt: str = "") -> SupportSet:
    """A support set of checked photos and marks. Raises `FssError` naming the support (from 0) and the mistake."""
    if not isinstance(class_name, str) or not class_name.strip():
        raise FssError("class_name is missing", where=where,
                       hint='name what the supports show, like "class_name": "cat"')
    for key, text in (("class_name", class_name), ("prompt", prompt)):
        if any(not c.isprintable() for c in text.strip()):
            raise FssError(f"{key} has characters that cannot be shown", where=where)
    if not rows:
        raise FssError("there are no supports", where=where, hint="give at least one photo with a mark on it")
    supports = []
    for number, (data, mark) in enumerate(rows):
        place = f"{where + ': ' if where else ''}supports[{number}]"
        height, width = decode_support(data, place).shape[:2]
        supports.append(Support(data, check_mark(mark, height, width, place)))
    if all(s.negative for s in supports):
        raise FssError("all supports are negative", where=where, hint="show the object in at least one photo")
    return SupportSet(class_name.strip()[:200], tuple(supports), prompt.strip()[:200])


def words_line(method: str, classes: Sequence[SupportSet], *, reads: bool) -> str:
    """What the method is told in words, for people; `reads`: whether it reads names."""
    if not reads:
        return f"{method} reads no names: the marks alone say what to look for"
    told = ", ".join(repr(one.phrase) for one in classes[:LINES])
    return f"{method} is told in words: {told}{' ...' if len(classes) > LINES else ''}"


def check_reads(method: type[Segmenter], config: Any, supports: SupportSet) -> None:
    """Raises `FssError` if the method, with this configuration, cannot use a mark or the phrase of a support set."""
    name = f"class {supports.class_name!r}"
    check_marks(method, supports)
    for number, support in enumerate(supports.supports):
        if support.negative:
            method.check_negative(config, whole=marks_all(support.mark), where=f"{name}: supports[{number}]")
    method.check_phrase(supports.prompt, config, name)


def check_marks(method: type[Segmenter], supports: SupportSet) -> None:
    """Raises `FssError` for a support whose kind of mark the method cannot read."""
    for number, support in enumerate(supports.supports):
        method.check_kind(mark_kind(support.mark), f"class {supports.class_name!r}: supports[{number}]")


def decode_support(data: bytes, where: str = "") -> np.ndarray:
    """The upright photo as [H, W, 3] uint8. Raises `BadImage`."""
    return decode_image(data, where=where, exif=True)


def support_lines(classes: Sequence[SupportSet]) -> list[str]:
    """What was read from the supports, for people: a line a support, or a line a class where there are many."""
    if sum(len(one.supports) for one in classes) <= LINES:
        return [f"{one.class_name}: support {number}: {_mark_line(s)}" for one in classes
                for number, s in enumerate(one.supports, 1)]
    rest = len(classes) - LINES
    return [_class_line(one) for one in classes[:LINES]] + ([f"... and {rest} more classes"] if rest > 0 else [])


def _class_line(one: SupportSet) -> str:
    covered = [s for s in one.supports if mark_pixels(s.mark) is not None and not s.negative]
    negative = sum(s.negative for s in one.supports)
    count = f"{len(one.supports)} supports" + (f", {negative} of them negative" if negative else "")
    if not covered:
        return f"{one.class_name}: {count}"
    ordered = sorted(covered, key=_share)
    doubtful = f"; the largest: {_mark_line(ordered[-1])}" if _share(ordered[-1]) > NEARLY_ALL else ""
    return (f"{one.class_name}: {count}, marks of {_percent(_share(ordered[0]))} to "
            f"{_percent(_share(ordered[-1]))} of the photo{doubtful}")


def _mark_line(support: Support) -> str:
    if support.negative and marks_all(support.mark):
        return "negative, the whole photo"
    return ("negative " if support.negative else "") + _plain_line(support)


def _plain_line(support: Support) -> str:
    pixels = mark_pixels(support.mark)
    if pixels is None:
        kind = next(k for k in KINDS if k in support.mark)
        return f"{kind}, {len(support.mark[kind])} places"
    large = "mask" in support.mark and _share(support) > NEARLY_ALL and not support.negative
    doubt = "; is the mask inverted?" if large else ""
    kind = "mask" if "mask" in support.mark else "box"
    return f"{kind} of {pixels:,} pixels, {_percent(_share(support))} of the photo{doubt}"


def _share(support: Support) -> float:
    """The share of the photo that a mask or box covers."""
    height, width = support.mark["mask"]["size"] if "mask" in support.mark else turned_size(support.image)
    return (mark_pixels(support.mark) or 0) / (height * width)


def _percent(share: float) -> str:
    return f"{share * 100:.{1 if share >= 0.01 else 3}f} %"
