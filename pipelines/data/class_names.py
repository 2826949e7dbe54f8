"""Class names: how sources read them, and which names of two datasets mean the same class.

Training on several datasets must not see a novel class under its name in another dataset.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping

# PASCAL's words for which COCO has another one. All other names differ only in case, spaces and underscores.
COCO_WORDS = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}


def shown_text(text: str) -> str:
    """Text that can be written as UTF-8: half characters, as broken escapes and file names leave them, as \\udcff."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def clean_name(name: object) -> str:
    """A class name as all sources read it: without blanks at its ends, in Unicode's composed form; "" for None."""
    return "" if name is None else unicodedata.normalize("NFC", shown_text(str(name))).strip(" \t\r\n\v\f\ufeff\u00a0")


def meanings(name: str) -> set[str]:
    """The meanings of a class name, in one spelling and in COCO's words: `potted_plant` becomes `pottedplant`.

    Every alternative in a list with commas is a meaning ("sofa, couch, lounge"). Remarks in brackets are dropped
    ("bus_(vehicle)"). A part means its object ("dog+HEAD", "chair:leg").
    """
    whole = re.split(r"[+:]", re.sub(r"\(.*?\)", "", name))[0]
    words = (re.sub(r"[\s_]+", "", w).lower() for w in whole.split(","))
    return {COCO_WORDS.get(w, w) for w in words if w}


def find_counterparts(novel: Collection[str], classes: Mapping[int, str], means: Mapping[str, str] | None = None
                      ) -> dict[int, str]:
    """The entries of `classes` (id -> name, of another dataset) that share a meaning with one of the `novel` names.

    means: further meanings of classes by their names, such as {"pug": "dog"}.
    """
    hidden, further = {meaning for name in novel for meaning in meanings(name)}, means or {}
    return {c: name for c, name in classes.items() if (meanings(name) | meanings(further.get(name, ""))) & hidden}
