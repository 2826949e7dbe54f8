"""BAM's lists as VRP-SAM, FCP and FSSAM carry them: data_list_{f}.txt and sub_class_file_list_{f}.txt.

The published loaders call `eval` on the second; here it is parsed as a literal. Paths in both are those of the author's
machine, so only the file names are used.
"""

from __future__ import annotations

import ast
from pathlib import PurePosixPath

from fss_models.errors import FssError
from pipelines.data.lists.files import ListFile, find_list


def bam_images(root: str, split: str, fold: int) -> tuple[list[str], ListFile]:
    """Image names (without folder and suffix) in list order. `split`: train or val.

    Raises `FssError` for a missing file and for a line that is not IMAGE LABEL.
    """
    file = find_list(root, f"{split}/data_list_{fold}.txt")
    names = []
    for number, line in enumerate(file.text.split("\n"), start=1):
        parts = line.split()
        if len(parts) not in (0, 2):
            raise FssError(f"line {number} has {len(parts)} words", where=file.where, hint="write lines as IMAGE LABEL")
        if parts:
            names.append(stem(parts[0]))
    return names, file


def bam_classes(root: str, split: str, fold: int) -> tuple[dict[int, list[str]], ListFile]:
    """0-based class id -> image names (without folder and suffix) in list order. `split`: train or val.

    Raises `FssError` for a missing file and for one that is not such a dict.
    """
    file = find_list(root, f"{split}/sub_class_file_list_{fold}.txt")
    try:
        value = ast.literal_eval(file.text)
        found = {int(c) - 1: [stem(image) for image, _ in entries] for c, entries in value.items()}
    except (ValueError, SyntaxError, AttributeError, TypeError, MemoryError, RecursionError) as error:
        raise FssError("this file is not a dict {class: [(image, label), ...]}", where=file.where) from error
    return found, file


def stem(path: str) -> str:
    """The name without folder and suffix: `/somewhere/COCO_val2014_000000000042.jpg` -> `COCO_val2014_000000000042`."""
    return PurePosixPath(path).stem
