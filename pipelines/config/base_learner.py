"""How base learners are trained, and the training of one of them as a run whose name follows from its content."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field

from pipelines.config.section import Positive, Section, TrainPrecision, as_named
from pipelines.config.train import TrainConfig

BASE_NAME = "base"  # stands in a base learner's name where a run's has its method
_WATCHED = {"checkpoint_every", "log_every"}  # settings that do not change the result


class BaseLearnerConfig(Section):
    """How the base learner is trained that BAM and HDMNet build on: once for each fold, preset and seed of a sweep.

    The defaults are BAM's for PASCAL-5i, except the number of steps.
    """

    weights: str = ""  # ImageNet file of the trunk, path or URL; empty: random values, but at nano those of its package
    side: int = Field(0, ge=0)  # side of the photos in pixels; 0: that of the methods; BAM: 417
    steps: Positive = 1000  # optimiser steps
    epochs: float = Field(0.0, ge=0)  # passes over the fold's photos, in place of `steps`; 0: use `steps`
    batch: Positive = 12  # photos of a step
    lr: float = Field(2.5e-4, gt=0)  # learning rate of the trunk, and of the head where the trunk is not trained
    head_factor: float = Field(10.0, gt=0)  # times `lr`: learning rate of the head above a trained trunk
    optimizer: Literal["adamw", "sgd"] = "sgd"
    weight_decay: float = Field(1e-4, ge=0)  # of the optimiser
    schedule: Literal["cosine", "poly", "constant"] = "poly"
    clip_norm: float = Field(0.0, ge=0)  # largest norm of the gradients; 0: they are not clipped
    precision: TrainPrecision = "float32"
    # semseg: scale, rotation, blur, flip and crop, as BAM; flip: resized to a square, mirrored with probability 1/2
    augment: Literal["semseg", "flip"] = "semseg"
    augment_scale: tuple[float, float] = (0.5, 2.0)  # range of the scale of `augment`
    novel_images: Literal["drop", "keep"] = "drop"  # photos that also show a novel class, then as background; BAM: keep
    checkpoint_every: Positive = 200  # steps between checkpoints
    log_every: Positive = 50  # steps between rows of the log

    @property
    def train(self) -> TrainConfig:
        """The keys that every training run has."""
        return TrainConfig(**{k: getattr(self, k) for k in (
            "steps", "batch", "lr", "optimizer", "weight_decay", "schedule", "clip_norm", "precision",
            "checkpoint_every", "log_every")})


class BaseLearnerSpec(Section):
    """The content of a base learner's training. `fold` None: all classes. `holdout`: ids of base classes left out."""

    dataset: str
    shards: str  # URL
    data_hash: str  # content hash of the shards
    fold: int | None
    preset: str
    seed: int
    config: BaseLearnerConfig
    holdout: tuple[int, ...] = ()

    @property
    def train(self) -> TrainConfig:
        """How it is trained, as every run says it."""
        return self.config.train

    @property
    def name(self) -> str:
        """Name of the run, such as `shapes-base-nano-f0-s0-1a2b3c4d`."""
        content = [self.data_hash, as_named(self.config.model_dump(mode="json", exclude=_WATCHED)), self.holdout]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
        fold = "all" if self.fold is None else str(self.fold)
        return f"{self.dataset}-{BASE_NAME}-{self.preset}-f{fold}-s{self.seed}-{digest}"
