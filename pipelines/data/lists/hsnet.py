"""HSNet's lists: `IMAGE__CC` lines for PASCAL-5i, class -> images for COCO-20i, class names for FSS-1000.

The layout is that of its repository: {trn,val}/fold{f}.txt, {trn,val}/fold{f}.pkl (or .json), {trn,val,test}.txt.
"""

from __future__ import annotations

import json
from typing import Any

from fss_models.errors import FssError
from pipelines.data.lists.files import ListFile, find_list
from pipelines.data.lists.plain_pickle import read_plain

Pair = tuple[str, int]  # image, 0-based class


def pascal_pairs(root: str, split: str, fold: int) -> tuple[list[Pair], ListFile]:
    """The (image, class) pairs of a fold, in order. `split`: trn or val.

    Raises `FssError` for a missing file and for a line that is not IMAGE__CC.
    """
    file = find_list(root, f"{split}/fold{fold}.txt")
    pairs = []
    for number, line in enumerate(file.text.split("\n"), start=1):
        if not line.strip():
            continue
        name, mark, value = line.strip().rpartition("__")
        if not mark or not value.isdigit() or not 1 <= int(value) <= 20:
            raise FssError(f"line {number} is {line[:60]!r}", where=file.where,
                           hint="write lines as IMAGE__CC, CC from 01 to 20")
        pairs.append((name, int(value) - 1))
    return pairs, file


def coco_images(root: str, split: str, fold: int) -> tuple[dict[int, list[str]], ListFile]:
    """Class id 0..79 -> image names in order, none for classes outside the fold. `split`: trn or val.

    Raises `FssError` for a missing file and for one that is not such a dict.
    """
    file = find_list(root, f"{split}/fold{fold}.pkl", f"{split}/fold{fold}.json")
    value = read_plain(file.data, where=file.where) if ".pkl" in file.where else _json(file)
    if not isinstance(value, dict):
        raise FssError("this file is not a dict of class -> images", where=file.where)
    found = {int(k): v for k, v in value.items() if isinstance(k, int) or str(k).isdigit()}
    for key, names in found.items():
        if not 0 <= key < 80 or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise FssError(f"entry {key} is not a list of images of a class 0..79", where=file.where)
    return found, file


def fss_classes(root: str, split: str) -> tuple[list[str], ListFile]:
    """The class names of a split (trn, val or test), sorted. Raises `FssError` if the file is missing."""
    file = find_list(root, f"{split}.txt")
    return sorted(name for line in file.text.split("\n") if (name := line.strip())), file


def _json(file: ListFile) -> Any:
    try:
        return json.loads(file.data)
    except ValueError as error:
        raise FssError(f"the file is not valid JSON: {error}", where=file.where) from error
