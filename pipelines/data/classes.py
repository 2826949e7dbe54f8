"""Which classes a dataset keeps, and their folds."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipelines.config import DataConfig
from pipelines.data.schema import ClassInfo


def fold_of(index: int, classes: int, cfg: DataConfig) -> int:
    """The published rules, on the class's place among all classes of the source.

    interleaved (COCO-20i): index % folds; contiguous (PASCAL-5i): equal runs of neighbours.
    """
    return index % cfg.folds if cfg.fold_rule == "interleaved" else index * cfg.folds // classes


def counts(row: dict[str, Any], min_area: float) -> list[int]:
    """The classes that cover enough of a photo (a row of the index) to count there."""
    least = max(1.0, min_area * row["height"] * row["width"])
    return [c for c, area in zip(row["class_ids"], row["class_areas"], strict=True) if area >= least]


def choose_classes(names: list[str], rows: list[dict[str, Any]], cfg: DataConfig) -> tuple[
        list[ClassInfo], dict[str, str]]:
    """The classes with enough photos in both splits (ids unchanged), and the others with the reason."""
    photos: Counter[tuple[int, str]] = Counter(
        (c, row["split"]) for row in rows for c in counts(row, cfg.min_area))
    kept, dropped = [], {}
    for index, name in enumerate(names):
        train, test = photos[index, "train"], photos[index, "test"]
        if min(train, test) >= cfg.min_images:
            kept.append(ClassInfo(class_id=index, name=name, fold=fold_of(index, len(names), cfg),
                                  train_images=train, test_images=test))
        else:
            dropped[name] = (f"{train} train and {test} test photos show it on {cfg.min_area:.2%} of their area or "
                             f"more; {cfg.min_images} of each are needed")
    return kept, dropped
