"""What a recipe may say. Unknown keys are errors; every default is here."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(gt=0)]
PromptName = Literal["mask", "point", "box", "scribble", "multi"]


class Section(BaseModel):
    """Base of all sections: no unknown keys, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class MethodConfig(Section):
    """One entry of the comparison."""

    name: str
    preset: str = "nano"
    config: dict[str, Any] = {}
    # SAM 2 checkpoint: path, URL or hf://repo/file, with sha256 below. Empty: what ships for the preset, else random
    weights: str = ""  # random: random values even where weights ship
    sha256: str = ""

    @property
    def key(self) -> str:
        """The same for equal entries, whatever the order of their settings (a stored one's are sorted)."""
        return json.dumps(self.model_dump(), sort_keys=True)


class SelectConfig(Section):
    """How the number of steps is chosen (`train.selection`)."""

    points: Positive = 5  # steps at which the model is scored: so many, evenly spaced, the last being `train.steps`
    classes: Positive = 3  # base-holdout: base classes of the fold that are held out
    episodes: Positive = 100  # base-holdout: of the held-out classes, on train photos without a novel class
    seed: int = 0  # base-holdout: draws the classes and the episodes


class TrainConfig(Section):
    """How a run is optimised."""

    steps: Positive = 200
    epochs: float = Field(0.0, ge=0)  # replaces steps where given: passes over the fold's training photos
    stop: int = Field(0, ge=0)  # end after so many steps, the schedule being that of `steps`; 0: after all
    # none: all steps. base-holdout: trained without some base classes, the best number of steps on them chosen, then
    # trained on all for that number. published: the best checkpoint on the very test episodes, as official codes do
    selection: Literal["none", "base-holdout", "published"] = "none"
    select: SelectConfig = SelectConfig()
    batch: Positive = 4  # clips a step over all workers
    accumulate: Positive = 1  # parts in which a worker takes its clips of a step: less memory, the same gradients
    shots: Positive = 1
    vary_shots: bool = False  # each batch uses the first 1 to `shots` references, drawn anew (SANSA's released loop)
    targets: Positive = 1  # of a clip; a method may learn from its own earlier predictions (SANSA's J)
    prompts: PromptName = "mask"  # how references are marked; drawn from their masks
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: int = Field(0, ge=0)
    clip_norm: float = Field(1.0, ge=0)  # 0: gradients are not clipped
    precision: Literal["fp32", "bf16"] = "fp32"
    flip: bool = True  # random horizontal flip of every image of a clip
    augment: Literal["none", "fssam"] = "none"  # fssam: its scale, rotation, blur, flip and crop, instead of `flip`
    augment_scale: tuple[float, float] = (0.9, 1.1)  # of `augment`
    sampler: Literal["balanced", "natural", "image"] = "balanced"  # queries: class, (image, class) pair, photo uniform
    novel_images: Literal["drop", "keep"] = "drop"  # photos that also show a novel class
    checkpoint_every: Positive = 50
    log_every: Positive = 10
    workers: Positive = 1
    min_workers: int = Field(0, ge=0)  # elastic: goes on with so few where machines are lost; 0: waits for `workers`
    compile: bool = False  # torch.compile of the forward pass and the losses
    pool_bytes: Positive = 512_000_000
    pixel_bytes: int = Field(256_000_000, ge=0)  # decoded photos and masks kept for further episodes; 0: none
    features: Literal["off", "float32", "bfloat16"] = "off"  # kept ones instead of photos; built where missing

    @field_validator("features", mode="before")
    @classmethod
    def _off_is_a_word(cls, given: Any) -> Any:
        return "off" if given is False else given  # YAML reads a bare off as false

    @model_validator(mode="after")
    def _kept_features_are_of_whole_photos(self) -> TrainConfig:
        if self.features != "off" and self.augment != "none":
            raise ValueError(f"train.augment={self.augment} changes every photo anew: set train.features=off")
        return self

    @model_validator(mode="after")
    def _clips_can_be_shared(self) -> TrainConfig:
        if self.min_workers > self.workers:
            raise ValueError(f"train.min_workers={self.min_workers} is more than train.workers={self.workers}")
        for world in range(self.min_workers or self.workers, self.workers + 1):
            if self.batch % (world * self.accumulate):
                parts = f" in {self.accumulate} parts each" if self.accumulate > 1 else ""
                raise ValueError(f"train.batch={self.batch} cannot be shared by {world} workers{parts}: "
                                 "make it a multiple")
        return self

    @model_validator(mode="after")
    def _nothing_of_selection_is_ignored(self) -> TrainConfig:
        used = {"none": set(), "published": {"points"}, "base-holdout": set(SelectConfig.model_fields)}[self.selection]
        for key in sorted(set(SelectConfig.model_fields) - used):
            if getattr(self.select, key) != SelectConfig.model_fields[key].default:
                raise ValueError(f"train.selection={self.selection} ignores train.select.{key}")
        if self.stop and self.selection != "none":
            raise ValueError(f"train.selection={self.selection} chooses the steps: leave train.stop out")
        if self.stop > self.steps and not self.epochs:
            raise ValueError(f"train.stop={self.stop} is beyond train.steps={self.steps}")
        return self


class FeaturesConfig(Section):
    """Kept features of frozen encoders (`train.features`): where, how much, and how they are built."""

    url: str = ""  # default: features/ in the workspace; recipes may share one
    max_bytes: Positive = 20_000_000_000  # of all that the recipe's runs need
    part_bytes: Positive = 64_000_000
    batch: Positive = 8  # images encoded at a time
    actors: int = Field(0, ge=0)  # 0: one a GPU where runs use them, else one a machine
    cpus_per_actor: float = Field(0.5, gt=0)
    pool_bytes: Positive = 512_000_000  # records a run holds in memory


class EvalConfig(Section):
    """A fixed episode list: drawn once, or `list`, the URL of a published one ({fold} in it is the fold's number)."""

    list: str = ""
    episodes: Positive = 100  # a fold and draw
    draws: Positive = 1  # lists of so many episodes, drawn with seed, seed + 1, ...; the score is over all of them
    shots: Positive = 1
    seed: int = 0
    batch: Positive = 8
    prompts: PromptName = "mask"  # how supports are marked; drawn from their masks, the same for every method
    at: Literal["original", "square"] = "original"  # the size at which masks are compared; square: as SANSA's code does

    @model_validator(mode="after")
    def _a_list_decides(self) -> EvalConfig:
        for key in ("episodes", "draws", "shots", "seed") if self.list else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"eval.list has its own {key}; eval.{key} would be ignored")
        return self


class MixtureConfig(Section):
    """Another dataset whose train photos a run sees; the recipe's own has what the weights leave of 1.

    Its own folds hide nothing: the novel classes of the recipe's data do, by name.
    """

    data: DataConfig
    weight: float = Field(gt=0, lt=1)  # share of the clips


class SweepConfig(Section):
    """Which runs: method x fold x seed, and every combination of `matrix`."""

    # any key of the recipe -> the values it takes; preset, shots (train and eval) and dataset (data) are short names
    matrix: dict[str, list[Any]] = {}
    folds: list[int] = []  # empty: all; -1: no fold, trained on all classes
    seeds: list[int] = [0]
    parallel: int = Field(0, ge=0)  # runs at a time; 0: as many as the cluster has room for
    cpus_per_run: float = Field(1.0, gt=0)
    gpus_per_run: float = Field(0.0, ge=0)
    retries: int = Field(1, ge=0)


class RangeConfig(Section):
    """The values that a searched setting may take: one of the three."""

    choice: list[Any] = []
    uniform: tuple[float, float] | None = None
    log: tuple[float, float] | None = None  # uniform in the logarithm

    @model_validator(mode="after")
    def _one_of_them(self) -> RangeConfig:
        if sum([bool(self.choice), self.uniform is not None, self.log is not None]) != 1:
            raise ValueError("give one of choice, uniform and log")
        low, high = self.uniform or self.log or (1.0, 2.0)
        if low >= high or (self.log and low <= 0):
            raise ValueError(f"no range: {low:g} to {high:g}")
        return self


class SearchConfig(Section):
    """Hyper-parameters tried by `fss search`, scored on held-out base classes of a fold as `train.select` says."""

    space: dict[str, RangeConfig] = {}  # settings below train and methods.0.config
    trials: Positive = 16
    fold: int = Field(0, ge=0)
    stop_early: bool = True  # ASHA: at each scored step, trials outside the best third go no further
    seed: int = 0


class ChooseConfig(Section):
    """The winner's rule: mean mIoU; if the paired bootstrap interval of the difference holds 0, the faster wins."""

    metric: Literal["miou", "fb_iou"] = "miou"
    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: Positive = 1000
    seed: int = 0
    price_per_hour: float = Field(0.0, ge=0)  # of the machine that predicts, for the cost of a million images; 0: none
    currency: str = ""  # its name


class PromoteConfig(Section):
    """The refit on all classes."""

    steps: int = Field(0, ge=0)  # 0: as many as a run of the sweep


class CalibrateConfig(Section):
    """Fitting the calibrator of a bundle (`fss calibrate`, `fss promote`)."""

    sets: int = Field(160, ge=0)  # support sets drawn, classes in turn; 0: `fss promote` fits none
    targets: Positive = 4  # photos with the class, and as many without, a support set
    seed: int = 0


class ServeConfig(Section):
    """The service."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, lt=65536)  # 0: any free one
    replicas: Positive = 1
    max_replicas: int = Field(0, ge=0)  # replicas for people come and go with the load between the two; 0: they do not
    max_batch: Positive = 8
    wait_s: float = Field(0.02, ge=0)
    max_request_bytes: Positive = 64_000_000
    threads: int = Field(0, ge=0)  # torch threads of a replica; 0: the machine's cores
    roots: list[str] = []  # where photos of jobs started in the console may be; on loopback none means anywhere

    @model_validator(mode="after")
    def _between(self) -> ServeConfig:
        if 0 < self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is below replicas ({self.replicas})")
        return self


LabelFormat = Literal["coco_polygons", "parquet", "yolo", "semantic", "label_studio", "cvat"]


class LabelConfig(Section):
    """A labelling job."""

    chunk: Positive = 64  # images of one request and one output part
    batch: Positive = 8
    threshold: float = Field(0.5, gt=0, lt=1)  # probability above which a pixel is the object
    in_flight: Positive = 4  # chunks on their way at a time
    overlaps: Literal["keep", "resolve"] = "keep"  # of several classes: each its own mask, or one class a pixel
    pairs: int = Field(0, ge=0, le=4096)  # (class, photo) pairs a call of the model, as whole classes; 0: one class
    formats: list[LabelFormat] = []  # beside labels.json (COCO, run lengths) and failures.parquet
    # of a bundle with a calibrator
    prevalence: float = Field(0.5, gt=0, lt=1)  # share of the photos that show a class, as far as you know
    empty_below: float = Field(0.5, ge=0, le=1)  # probability below which a class is not there: an empty label
    review_below: float = Field(0.5, ge=0, le=1)  # probability of a good mask below which somebody should look


class Recipe(Section):
    """Everything a chain of commands needs; can be printed and run again."""

    name: str = "demo"
    out: str = "out"  # URL of the workspace
    project: str = ""  # MLflow experiment and registered model `fss-<project>`; default the dataset's name
    tracking: str = ""  # MLflow URI; default a SQLite file in a local workspace
    data: DataConfig = DataConfig()
    mixture: list[MixtureConfig] = []  # counterparts of a fold's novel classes are hidden in them (`class_names`)
    methods: list[MethodConfig] = [MethodConfig(name="prior")]
    train: TrainConfig = TrainConfig()
    features: FeaturesConfig = FeaturesConfig()
    eval: EvalConfig = EvalConfig()
    sweep: SweepConfig = SweepConfig()
    search: SearchConfig = SearchConfig()
    choose: ChooseConfig = ChooseConfig()
    promote: PromoteConfig = PromoteConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    serve: ServeConfig = ServeConfig()
    label: LabelConfig = LabelConfig()

    @model_validator(mode="after")
    def _mixture_leaves_room(self) -> Recipe:
        if sum(m.weight for m in self.mixture) >= 1:
            raise ValueError("mixture: the weights must leave a share for the recipe's own data")
        names = [self.data.name, *(m.data.name for m in self.mixture)]
        if len(set(names)) < len(names):
            raise ValueError(f"mixture: datasets need different names, not {names}")
        return self

    @property
    def project_name(self) -> str:
        """The project, by default the dataset's name."""
        return self.project or self.data.name
