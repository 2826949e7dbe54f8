"""Text as people's files have it: byte order marks, encodings, names of classes, and numbers written as text."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable

from fss_models.errors import BadImage
from pipelines.data.class_names import shown_text

_WIDE = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
         codecs.BOM_UTF16_BE: "UTF-16"}  # the longer marks first, because two of them begin alike


def plain_text(data: bytes) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises `BadImage` for another encoding, which is named."""
    wide = next((name for mark, name in _WIDE.items() if data.startswith(mark)), "")
    if not wide and b"\0" in data:
        wide = "UTF-16"
    if wide:
        raise BadImage(f"the file is {wide}; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadImage(f"the file is not UTF-8 (byte {error.start + 1}); save it as UTF-8") from error


def class_name(text: object) -> str:
    """The name of a class as all formats have it: without blanks and line ends around it, as text that can be shown."""
    return shown_text(str(text)).strip()


def whole_number(text: str) -> int | None:
    """The number in a text such as `3`, `3.0` or `3.000e+00`, None if it is not a whole number from 0 on."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if math.isfinite(value) and value >= 0 and value == int(value) else None


def merge_names(names: Iterable[object]) -> tuple[list[str], list[int], list[str]]:
    """(distinct names in order, the place there of each given name, what was merged, in words).

    Names that differ only in the blanks around them are one class.
    """
    places: dict[str, int] = {}
    of: list[int] = []
    merged: list[str] = []
    for number, given in enumerate(names):
        name = class_name(given)
        if name in places:
            merged.append(f"classes {of.index(places[name])} and {number} have the same name ({name}); "
                          "they are read as one")
        of.append(places.setdefault(name, len(places)))
    return list(places), of, merged
