"""Which classes of a source a dataset contains, and the fold of each."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pipelines.config.data import BENCHMARKS, DataConfig
from pipelines.data.schema import ClassInfo

NO_FOLD = -2  # a class that is trained but never tested (-1 is `ALL_FOLDS`)


def fold_of(index: int, classes: int, cfg: DataConfig) -> int:
    """The fold of a class by the published rules; `index` is the position of the class among all of the source.

    interleaved (COCO-20i): index % folds; contiguous (PASCAL-5i): equal runs of neighbouring classes.
    """
    return index % cfg.folds if cfg.fold_rule == "interleaved" else index * cfg.folds // classes


def counted_classes(row: dict[str, Any], cfg: DataConfig) -> list[int]:
    """The classes that cover at least `min_area` and `min_pixels` of a photo. `row` is a row of the index."""
    least = max(1.0, cfg.min_area * row["height"] * row["width"], cfg.min_pixels)
    return [c for c, area in zip(row["class_ids"], row["class_areas"], strict=True) if area >= least]


def choose_classes(
    names: list[str], rows: list[dict[str, Any]], cfg: DataConfig, folds: list[int] | None = None
) -> tuple[list[ClassInfo], dict[str, str]]:
    """The classes with enough photos in both splits (ids unchanged), and the dropped ones (name -> reason).

    `folds`: the fold of each class, where a benchmark publishes a table. A class of a benchmark needs enough photos in
    one split only, because many classes are only trained or only tested. The same holds for a dataset whose photos are
    all in one split.
    """
    both = cfg.source.format not in BENCHMARKS and {"train", "test"} <= {row["split"] for row in rows}
    photos: Counter[tuple[int, str]] = Counter(
        (c, row["split"]) for row in rows for c in counted_classes(row, cfg))
    kept, dropped = [], {}
    for index, name in enumerate(names):
        train, test = photos[index, "train"], photos[index, "test"]
        enough = min(train, test) if both else max(train, test)
        if enough >= cfg.min_images:
            fold = fold_of(index, len(names), cfg) if folds is None else folds[index]
            kept.append(ClassInfo(class_id=index, name=name, fold=fold, train_images=train, test_images=test))
        else:
            dropped[name] = f"{train} train and {test} test photos {_needed(cfg, each=both)}"
    return kept, dropped


def _needed(cfg: DataConfig, *, each: bool) -> str:
    bounds = [f"{cfg.min_area:.2%} of their area"] if cfg.min_area else []
    bounds += [f"{cfg.min_pixels} pixels"] if cfg.min_pixels else []
    least = f" on {' and '.join(bounds)} or more" if bounds else ""
    return f"show it{least}; {cfg.min_images} of {'each are' if each else 'either is'} needed"
