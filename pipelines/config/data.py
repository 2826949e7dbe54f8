"""Where labelled images come from, and how they become shards."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.config.section import Positive, Section

Benchmark = Literal["pascal5i", "coco20i", "lvis92i", "fss1000", "pascal_part", "paco_part", "ade20k", "isic", "lung"]


# A benchmark fixes its folds, their rule and the least pixels a class must cover (specification datasets sections 1-6).
BENCHMARKS: dict[str, dict[str, Any]] = {
    "pascal5i": {"folds": 4, "fold_rule": "contiguous", "min_pixels": 2048},
    "coco20i": {"folds": 4, "fold_rule": "interleaved", "min_pixels": 2048},
    "lvis92i": {"folds": 10, "fold_rule": "published"},
    "fss1000": {"folds": 2, "fold_rule": "published"},  # 0: the test classes, 1: the val classes
    "pascal_part": {"folds": 4, "fold_rule": "published"},
    "paco_part": {"folds": 4, "fold_rule": "published"},
    "ade20k": {"folds": 1, "fold_rule": "published"},  # training only: no class is in a fold
    "isic": {"folds": 1, "fold_rule": "published"},
    "lung": {"folds": 1, "fold_rule": "published"},
}


_USED = {"shapes": {"images", "side", "seed"}, "pascal5i": {"root", "lists"}, "fss1000": {"root", "lists"},
         "lvis92i": {"root", "shots"},
         **{name: {"root", "annotations"} for name in ("coco", "yolo", "label_studio", "cvat", "table")}}


class SourceConfig(Section):
    """Where labelled images come from."""

    format: Literal["coco", "voc", "pairs", "yolo", "label_studio", "cvat", "table", "shapes", Benchmark] = "shapes"
    root: str = ""  # URL; not used by `shapes`
    annotations: str = ""  # file below root where a format has one, default the only one: JSON, XML, data.yaml, Parquet
    lists: str = ""  # pascal5i, fss1000: URL of the published lists that say which photos or classes are tested
    shots: Positive = 1  # lvis92i: its folds count the classes with more test photos than this
    images: Positive = 360  # shapes: how many to draw
    side: Positive = 256  # shapes: their side in pixels
    seed: int = 0  # shapes

    @model_validator(mode="after")
    def _fits_the_format(self) -> SourceConfig:
        if self.format != "shapes" and not self.root:
            raise ValueError(f"source format {self.format!r} needs a root")
        used = _USED.get(self.format, {"root"})
        for key in sorted(self.model_fields_set - used - {"format"}):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"source format {self.format!r} ignores {key!r}")
        return self


class SplitConfig(Section):
    """Image-level hold-out: test photos are opened by evaluation only."""

    file: str = ""  # JSON {name: {"train": [...], "test": [...]}}; drawn by seed where empty
    key: str = ""  # which entry of the file; default the last folder of the source's root
    test_fraction: float = Field(0.3, gt=0, lt=1)
    seed: int = 0


class DataConfig(Section):
    """From a source to shards."""

    name: str = "shapes"
    source: SourceConfig = SourceConfig()
    split: SplitConfig = SplitConfig()
    folds: Positive = 4
    fold_rule: Literal["interleaved", "contiguous", "published"] = "interleaved"  # COCO-20i's; PASCAL-5i: contiguous
    min_images: Positive = 2  # a class needs that many photos in train and in test, else it is dropped and listed
    min_area: float = Field(0.01, ge=0, lt=1)  # share of the photo a class must cover to count there
    min_pixels: int = Field(0, ge=0)  # and pixels; the published filters count these
    block_size: Positive = 128
    images_per_part: Positive = 64
    max_pixels: Positive = 50_000_000
    max_bytes: Positive = 64_000_000
    max_side: int = Field(0, ge=0)  # photos whose longer side is longer are shrunk to it, masks with them; 0: none
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _benchmark_rules(cls, given: Any) -> Any:
        """A benchmark's folds, filter and split are its own; only COCO-20i has two published splits."""
        source = given.get("source") if isinstance(given, dict) else None
        name = source.get("format") if isinstance(source, dict) else getattr(source, "format", None)
        if name not in BENCHMARKS:
            if isinstance(given, dict) and given.get("fold_rule") == "published":
                raise ValueError("fold_rule 'published' is for the benchmarks' own formats")
            return given
        rules = {"min_area": 0.0, "min_pixels": 0, "min_images": 1, "max_side": 0, **BENCHMARKS[name]}
        for key, value in rules.items():
            free = key == "min_images" or (key == "fold_rule" and name == "coco20i" and given.get(key) == "contiguous")
            if given.get(key, value) != value and not free:
                raise ValueError(f"benchmark {name!r} says {key}={value}; it cannot be {given[key]}")
        if SplitConfig.model_validate(given.get("split", {})) != SplitConfig():
            raise ValueError(f"benchmark {name!r} has its own split and ignores data.split")
        return {**rules, **given}


class MixtureConfig(Section):
    """Another dataset whose train photos a run sees; the recipe's own has what the weights leave of 1.

    Its own folds hide nothing: the novel classes of the recipe's data do, by name.
    """

    data: DataConfig
    weight: float = Field(gt=0, lt=1)  # share of the clips
