"""The source of labelled photos, and how they become shards."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fss_models.limits import LIMITS, PhotoLimits
from pipelines.config.section import Positive, Section

Benchmark = Literal["pascal5i", "coco20i", "lvis92i", "fss1000", "pascal_part", "paco_part", "ade20k", "isic", "lung"]


# The folds of each benchmark, their rule, and the pixels that a class must cover in a photo, as published.
BENCHMARKS: dict[str, dict[str, Any]] = {
    "pascal5i": {"folds": 4, "fold_rule": "contiguous", "min_pixels": 2048},
    "coco20i": {"folds": 4, "fold_rule": "interleaved", "min_pixels": 2048},
    "lvis92i": {"folds": 10, "fold_rule": "published"},
    "fss1000": {"folds": 2, "fold_rule": "published"},  # fold 0: the test classes, fold 1: the val classes
    "pascal_part": {"folds": 4, "fold_rule": "published"},
    "paco_part": {"folds": 4, "fold_rule": "published"},
    "ade20k": {"folds": 1, "fold_rule": "published"},  # only for training: no class is in a fold
    "isic": {"folds": 1, "fold_rule": "published"},
    "lung": {"folds": 1, "fold_rule": "published"},
}
_FILTER = {"min_area": 0.0, "min_pixels": 0, "min_images": 1, "max_side": 0}  # of a benchmark that says nothing else
RULES = ("folds", "fold_rule", "split", *_FILTER)  # keys of data that a benchmark decides

_OWN = ("coco", "yolo", "label_studio", "labelme", "cvat", "table")
_USED = {"shapes": {"images", "side", "seed"}, "pascal5i": {"root", "lists"}, "fss1000": {"root", "lists"},
         "lvis92i": {"root", "shots"},
         **{name: {"root", "annotations", "exif"} for name in _OWN},
         **{name: {"root", "exif"} for name in ("voc", "pairs")}}


class SourceConfig(Section):
    """The labelled photos, in one of the supported formats."""

    format: Literal["coco", "voc", "pairs", "yolo", "label_studio", "labelme", "cvat", "table", "shapes",
                    Benchmark] = "shapes"
    root: str = ""  # URL of the folder; not used by `shapes`
    annotations: str = ""  # file below root, for formats with one (JSON, XML, data.yaml, Parquet); empty: the only one
    # The EXIF orientation of photos. auto: applied where the format's tools do so (YOLO, Label Studio, LabelMe, CVAT,
    # tables), for others where only the turned photo has the recorded size; apply, ignore: for all photos
    exif: Literal["auto", "apply", "ignore"] = "auto"
    lists: str = ""  # pascal5i, fss1000: URL of the published lists of the tested photos or classes
    shots: Positive = 1  # lvis92i: a fold has the classes with more test photos than this
    images: Positive = 360  # shapes: number of photos
    side: Positive = 256  # shapes: side of a photo in pixels
    seed: int = 0  # shapes: seed of the drawing

    @model_validator(mode="after")
    def _fits_the_format(self) -> SourceConfig:
        if self.format != "shapes" and not self.root:
            raise ValueError(f"source format {self.format!r} needs a root")
        used = _USED.get(self.format, {"root"})
        for key in sorted(self.model_fields_set - used - {"format"}):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"source format {self.format!r} ignores {key!r}")
        return self

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As older versions wrote it where `exif` has its default, so that recorded sources and their hashes stay."""
        found: dict[str, Any] = serialise(self)
        return {k: v for k, v in found.items() if k != "exif" or v != "auto"}


class SplitConfig(Section):
    """The split into train and test photos. Only evaluation opens test photos."""

    file: str = ""  # JSON {name: {"train": [...], "test": [...]}}; empty: drawn with `seed`
    key: str = ""  # name of the entry in the file; empty: the last folder of the source's root
    test_fraction: float = Field(0.3, ge=0, lt=1)  # share of the photos that are tested, without a file; 0: all train
    seed: int = 0  # of the drawing, without a file


class DataConfig(Section):
    """How a source becomes shards."""

    name: str = "shapes"  # names the folder of the shards, and the dataset in tables
    source: SourceConfig = SourceConfig()
    split: SplitConfig = SplitConfig()
    folds: Positive = 4  # parts into which the classes are split
    # interleaved: as in COCO-20i; contiguous: as in PASCAL-5i; published: a benchmark's own
    fold_rule: Literal["interleaved", "contiguous", "published"] = "interleaved"
    min_images: Positive = 2  # a class with fewer train or test photos is left out and listed
    min_area: float = Field(0.01, ge=0, lt=1)  # share of a photo that a class must cover to count in it
    min_pixels: int = Field(0, ge=0)  # pixels that a class must cover to count in a photo, as published filters do
    block_size: Positive = 128  # annotations of a class that are stored together
    images_per_part: Positive = 64  # photos of an output file
    # The limits are not inherited: the order of these keys is part of the shards' hash.
    max_pixels: Positive = LIMITS.max_pixels  # a photo with more pixels is refused
    max_bytes: Positive = LIMITS.max_bytes  # a file with more bytes is refused
    max_seconds: Positive = 60  # a photo that takes longer to read, with its masks, is given up
    max_side: int = Field(0, ge=0)  # longer photos are shrunk to this longer side in pixels, with their masks; 0: never
    seed: int = 0  # of the order in which a class's annotations are put into blocks

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As older versions wrote it where `max_seconds` has its default, so that recorded data and hashes stay."""
        found: dict[str, Any] = serialise(self)
        return {k: v for k, v in found.items() if k != "max_seconds" or v != 60}

    @model_validator(mode="before")
    @classmethod
    def _benchmark_rules(cls, given: Any) -> Any:
        """Fill in the folds, filter and split of a benchmark, which cannot be changed; COCO-20i has two fold rules."""
        source = given.get("source") if isinstance(given, dict) else None
        name = source.get("format") if isinstance(source, dict) else getattr(source, "format", None)
        if name not in BENCHMARKS:
            if isinstance(given, dict) and given.get("fold_rule") == "published":
                raise ValueError("fold_rule 'published' is only for the formats of benchmarks")
            return given
        rules = {**_FILTER, **BENCHMARKS[name]}
        for key, value in rules.items():
            free = key == "min_images" or (key == "fold_rule" and name == "coco20i" and given.get(key) == "contiguous")
            if given.get(key, value) != value and not free:
                raise ValueError(f"benchmark {name!r} says {key}={value}; {given[key]} is not possible")
        if SplitConfig.model_validate(given.get("split", {})) != SplitConfig():
            raise ValueError(f"benchmark {name!r} has a published split and ignores data.split")
        return {**rules, **given}

    @property
    def limits(self) -> PhotoLimits:
        """The largest photo that is read."""
        return PhotoLimits(max_pixels=self.max_pixels, max_bytes=self.max_bytes)


class MixtureConfig(Section):
    """A further dataset, whose train photos a run is trained on too.

    The recipe's own data gets the remaining share (1 minus all weights). The folds of the further dataset are not used;
    the novel classes of the recipe's data are hidden in it, by name. In a fold where nothing of it is left, the others
    get its share.
    """

    data: DataConfig
    weight: float = Field(gt=0, lt=1)  # share of the clips that come from this dataset
    # Class of this dataset -> what it means, where its name does not say so: {pug: dog, sofa_bed: "sofa, bed"}. It is
    # hidden with these
    means: dict[str, str] = Field(default_factory=dict)
