"""The keys of a pretraining recipe. Unknown keys are errors."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipelines.config.data import DataConfig
from pipelines.config.section import Positive, Section, TrainPrecision, as_named
from pipelines.config.train import TrainConfig

# Keys that change how a pretraining is run or watched, not what it computes.
_BESIDE = {"out", "tracking", "retries", "threads", "device", "log_every", "measure_every", "checkpoint_every"}

if TYPE_CHECKING:
    from fss_models.pretraining.views import ViewConfig


class ViewsSection(Section):
    """How much the views of a photo differ: the fields of `ViewConfig`."""

    views: int = Field(3, ge=2)
    zoom: tuple[float, float] = (0.45, 1.15)
    turn: float = Field(20.0, ge=0, le=180)
    stretch: float = Field(1.3, ge=1)
    colour: float = Field(0.4, ge=0, lt=1)
    grey: float = Field(0.1, ge=0, le=1)
    paste: float = Field(0.5, ge=0, le=1)

    def build(self) -> ViewConfig:
        """The `ViewConfig` with these values."""
        from fss_models.pretraining.views import ViewConfig

        return ViewConfig(**self.model_dump())


class PretrainConfig(Section):
    """A pretraining: its datasets (only *train* photos are opened), the model's preset, and the optimisation."""

    name: str = "nano_pretrain"
    out: str = "out/pretrain"  # URL of the folder with the weights, the shards and the run
    tracking: str = ""  # MLflow URI; empty: MLFLOW_TRACKING_URI, else a SQLite file
    data: list[DataConfig] = Field(min_length=1)
    licences: dict[str, str] = Field(default_factory=dict)  # dataset name -> licence, for the weights' JSON file
    hide: tuple[str, ...] = ()  # names of classes whose objects are left out (to check for class leakage)
    preset: str = "nano"
    side: int = Field(0, ge=0, multiple_of=32)  # input side in pixels; 0: the preset's
    start: str = ""  # weight file to start from; empty: random values above the trunk
    views: ViewsSection = ViewsSection()
    held_out: float = Field(0.05, gt=0, lt=0.5)  # share of the train photos that are not trained on but used to measure
    steps: Positive = 4000
    clips: int = Field(16, gt=0, multiple_of=4)  # clips a step
    absent: float = Field(0.1, ge=0, lt=1)  # share of the clips whose last view lacks the object
    ring: Positive = 200  # number of encoded scenes in memory, from which clips are drawn
    fresh: Positive = 2  # new scenes a step; each replaces the oldest one
    lr: float = Field(1e-3, gt=0)
    warmup: int = Field(100, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    precision: TrainPrecision = "bfloat16"
    seed: int = 0
    threads: Positive = 1
    device: Literal["", "cpu", "cuda"] = ""  # empty: cuda where the cluster has a GPU, else cpu
    retries: int = Field(1, ge=0)  # further tries after a worker was lost
    log_every: Positive = 20
    measure_every: Positive = 250
    checkpoint_every: Positive = 250

    @property
    def train(self) -> TrainConfig:
        """The keys that every training run has: a cosine from `lr` down to 0 after the warm-up."""
        return TrainConfig(batch=self.clips, **{k: getattr(self, k) for k in (
            "steps", "lr", "weight_decay", "warmup", "clip_norm", "precision", "log_every", "checkpoint_every")})

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings that decide the numbers of a pretraining, as JSON."""
        return as_named(self.model_dump(mode="json", exclude=_BESIDE | (set() if self.side else {"side"})))

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return {"run": self.name, "settings": self.deciding}

    @property
    def key(self) -> str:
        """Name in the tracking store, with a hash of all that decides the result."""
        return f"{self.name}-{hashlib.sha256(json.dumps(self.deciding, sort_keys=True).encode()).hexdigest()[:8]}"
