"""Which names of two datasets mean the same class: a novel class of one hides its counterpart in another."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

# PASCAL's words that are others in COCO; all else is equal but for case, spaces and underscores.
COCO_WORDS = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}


def meanings(name: str) -> set[str]:
    """What a class name says, in one spelling and in COCO's words: `potted_plant` and `pottedplant` are the same.

    Alternatives after a comma count each ("sofa, couch, lounge"), remarks in brackets not ("bus_(vehicle)"), and a
    part is of its object ("dog+HEAD", "chair:leg").
    """
    whole = re.split(r"[+:]", re.sub(r"\(.*?\)", "", name))[0]
    words = (re.sub(r"[\s_]+", "", w).lower() for w in whole.split(","))
    return {COCO_WORDS.get(w, w) for w in words if w}


def counterparts(novel: Collection[str], classes: Mapping[int, str]) -> dict[int, str]:
    """Those of another dataset's classes (id -> name) that share a meaning with one of the `novel` names."""
    hidden = {meaning for name in novel for meaning in meanings(name)}
    return {c: name for c, name in classes.items() if meanings(name) & hidden}
