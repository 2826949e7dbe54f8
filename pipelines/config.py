"""What a recipe may say. Unknown keys are errors; every default is here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """Base of all sections: no unknown keys, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(Section):
    """Where labelled images come from."""

    format: Literal["coco", "voc", "pairs", "shapes"] = "shapes"
    root: str = ""  # URL; not used by `shapes`
    annotations: str = ""  # coco: file below root, default the only annotations/*.json
    images: Positive = 360  # shapes: how many to draw
    side: Positive = 256  # shapes: their side in pixels
    seed: int = 0  # shapes

    @model_validator(mode="after")
    def _fits_the_format(self) -> SourceConfig:
        if self.format != "shapes" and not self.root:
            raise ValueError(f"source format {self.format!r} needs a root")
        used = {"shapes": {"images", "side", "seed"}, "coco": {"root", "annotations"}}.get(self.format, {"root"})
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
    fold_rule: Literal["interleaved", "contiguous"] = "interleaved"  # COCO-20i's rule; PASCAL-5i is contiguous
    min_images: Positive = 2  # a class needs that many photos in train and in test, else it is dropped and listed
    min_area: float = Field(0.01, ge=0, lt=1)  # share of the photo a class must cover to count there
    block_size: Positive = 128
    images_per_part: Positive = 64
    max_pixels: Positive = 50_000_000
    max_bytes: Positive = 64_000_000
    seed: int = 0


class MethodConfig(Section):
    """One entry of the comparison."""

    name: str
    preset: str = "nano"
    config: dict[str, Any] = {}
    weights: str = ""  # SAM 2 checkpoint: path, URL or hf://repo/file, with sha256 below
    sha256: str = ""


class TrainConfig(Section):
    """How a run is optimised."""

    steps: Positive = 200
    batch: Positive = 4  # clips a step over all workers
    shots: Positive = 1
    targets: Positive = 1
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: int = Field(0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    flip: bool = True  # random horizontal flip of every image of a clip
    novel_images: Literal["drop", "keep"] = "drop"  # photos that also show a novel class
    checkpoint_every: Positive = 50
    log_every: Positive = 10
    workers: Positive = 1
    pool_bytes: Positive = 512_000_000


class EvalConfig(Section):
    """A fixed episode list, drawn once."""

    episodes: Positive = 100  # a fold
    shots: Positive = 1
    seed: int = 0
    batch: Positive = 8


class SweepConfig(Section):
    """Which runs: method x fold x seed."""

    folds: list[int] = []  # empty: all
    seeds: list[int] = [0]
    parallel: int = Field(0, ge=0)  # runs at a time; 0: as many as the machine has room for
    cpus_per_run: float = Field(1.0, gt=0)
    gpus_per_run: float = Field(0.0, ge=0)
    retries: int = Field(1, ge=0)


class ChooseConfig(Section):
    """The winner's rule: mean mIoU; if the paired bootstrap interval of the difference holds 0, the faster wins."""

    metric: Literal["miou", "fb_iou"] = "miou"
    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: Positive = 1000
    seed: int = 0


class PromoteConfig(Section):
    """The refit on all classes."""

    steps: int = Field(0, ge=0)  # 0: as many as a run of the sweep


class ServeConfig(Section):
    """The service."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, lt=65536)  # 0: any free one
    replicas: Positive = 1
    max_batch: Positive = 8
    wait_s: float = Field(0.02, ge=0)
    max_request_bytes: Positive = 64_000_000
    threads: int = Field(0, ge=0)  # torch threads of a replica; 0: the machine's cores


class LabelConfig(Section):
    """A labelling job."""

    chunk: Positive = 64  # images of one request and one output part
    batch: Positive = 8
    threshold: float = Field(0.5, gt=0, lt=1)  # probability above which a pixel is the object
    in_flight: Positive = 4  # chunks on their way at a time


class Recipe(Section):
    """Everything a chain of commands needs; can be printed and run again."""

    name: str = "demo"
    out: str = "out"  # URL of the workspace
    project: str = ""  # MLflow experiment and registered model `fss-<project>`; default the dataset's name
    tracking: str = ""  # MLflow URI; default a SQLite file in a local workspace
    data: DataConfig = DataConfig()
    methods: list[MethodConfig] = [MethodConfig(name="prior")]
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    sweep: SweepConfig = SweepConfig()
    choose: ChooseConfig = ChooseConfig()
    promote: PromoteConfig = PromoteConfig()
    serve: ServeConfig = ServeConfig()
    label: LabelConfig = LabelConfig()

    @property
    def project_name(self) -> str:
        """The project, by default the dataset's name."""
        return self.project or self.data.name
