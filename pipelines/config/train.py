"""How a run is trained, and the features of frozen encoders that are kept for it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fss_models.optimisation import Optimizer
from pipelines.config.section import Positive, PromptName, Section, TrainPrecision


class SelectConfig(Section):
    """How the number of steps is chosen (`train.selection`)."""

    points: Positive = 5  # number of steps at which the model is scored, evenly spaced; the last is `train.steps`
    classes: Positive = 3  # base-holdout: number of base classes that are held out
    episodes: Positive = 100  # base-holdout: number of episodes; from train photos without a novel class
    seed: int = 0  # base-holdout: seed for drawing the classes and the episodes


class TrainConfig(Section):
    """How a run is trained."""

    steps: Positive = 200  # optimiser steps
    epochs: float = Field(0.0, ge=0)  # passes over the fold's train photos, in place of `steps`; 0: use `steps`
    stop: int = Field(0, ge=0)  # end after this number of steps, on the schedule of `steps`; 0: after all
    # How the number of steps is chosen. none: all steps. base-holdout: train without some base classes, score on them
    # for the best number of steps, then train anew on all base classes for that number. published: the checkpoint that
    # scores best on the test episodes themselves, as official codes do; its score is too good
    selection: Literal["none", "base-holdout", "published"] = "none"
    select: SelectConfig = SelectConfig()
    batch: Positive = 4  # clips of a step, over all workers
    accumulate: Positive = 1  # parts into which a worker divides its clips of a step: less memory, same gradients
    shots: Positive = 1  # references of a clip
    vary_shots: bool = False  # each batch uses 1 to `shots` references, drawn at random (as SANSA's released code)
    targets: Positive = 1  # targets of a clip (SANSA's J): a method may learn from its own earlier predictions
    prompts: PromptName = "mask"  # how references are marked; the marks are drawn from their masks
    lr: float = Field(1e-3, gt=0)  # learning rate after the warm-up
    optimizer: Optimizer = "adamw"  # a method may treat some of its parameters in another way, as its paper does
    momentum: float = Field(0.9, ge=0, lt=1)  # sgd only
    weight_decay: float = Field(0.0, ge=0)  # decoupled from the gradient with adamw, part of it with sgd
    # cosine: to 0. poly: to 0 with power 0.9. step: a tenth after each third of the steps
    schedule: Literal["cosine", "poly", "step", "constant"] = "cosine"
    warmup: int = Field(0, ge=0)  # steps in which the learning rate rises linearly
    clip_norm: float = Field(1.0, ge=0)  # largest norm of the gradients; 0: they are not clipped
    precision: TrainPrecision = "float32"
    flip: bool = True  # random horizontal flip of every image of a clip
    # In place of `flip`. fssam: scale, rotation, blur, flip and crop, as PFENet, BAM and CyCTR; ssp: crop and flip
    augment: Literal["none", "fssam", "ssp"] = "none"
    augment_scale: tuple[float, float] = (0.9, 1.1)  # range of the scale of `augment: fssam`
    sampler: Literal["balanced", "natural", "image"] = "balanced"  # query drawn by class, (photo, class) pair, photo
    novel_images: Literal["drop", "keep"] = "drop"  # train photos that also show a novel class
    checkpoint_every: Positive = 50  # steps between checkpoints
    log_every: Positive = 10  # steps between rows of the log
    workers: Positive = 1  # processes of a run (DDP), each with its share of the clips
    min_workers: int = Field(0, ge=0)  # least number of workers to go on with after a loss; 0: wait for `workers`
    compile: bool = False  # torch.compile of the forward pass and the losses
    pool_bytes: Positive = 512_000_000  # memory of the stream's blocks
    pixel_bytes: int = Field(256_000_000, ge=0)  # memory for decoded photos and masks that are reused; 0: none
    features: Literal["off", "float32", "bfloat16"] = "off"  # read kept features, not photos; missing ones are built

    @field_validator("features", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare off as false

    @model_validator(mode="after")
    def _kept_features_are_of_whole_photos(self) -> TrainConfig:
        if self.features != "off" and self.augment != "none":
            raise ValueError(f"train.augment={self.augment} changes every photo, so that features cannot be kept: "
                             "set train.features=off")
        return self

    @model_validator(mode="after")
    def _momentum_is_used(self) -> TrainConfig:
        if self.optimizer != "sgd" and self.momentum != TrainConfig.model_fields["momentum"].default:
            raise ValueError(f"train.optimizer={self.optimizer} ignores train.momentum")
        return self

    @model_validator(mode="after")
    def _clips_can_be_shared(self) -> TrainConfig:
        if self.min_workers > self.workers:
            raise ValueError(f"train.min_workers={self.min_workers} is more than train.workers={self.workers}")
        for world in range(self.min_workers or self.workers, self.workers + 1):
            if self.batch % (world * self.accumulate):
                parts = f" in {self.accumulate} parts each" if self.accumulate > 1 else ""
                raise ValueError(f"train.batch={self.batch} cannot be shared by {world} workers{parts}: "
                                 f"make it a multiple of {world * self.accumulate}")
        return self

    @model_validator(mode="after")
    def _nothing_of_selection_is_ignored(self) -> TrainConfig:
        used = {"none": set(), "published": {"points"}, "base-holdout": set(SelectConfig.model_fields)}[self.selection]
        for key in sorted(set(SelectConfig.model_fields) - used):
            if getattr(self.select, key) != SelectConfig.model_fields[key].default:
                raise ValueError(f"train.selection={self.selection} ignores train.select.{key}")
        if self.stop and self.selection != "none":
            raise ValueError(f"train.selection={self.selection} chooses the number of steps: leave train.stop out")
        if self.stop > self.steps and not self.epochs:
            raise ValueError(f"train.stop={self.stop} is more than train.steps={self.steps}")
        return self


class FeaturesConfig(Section):
    """Kept features of frozen encoders (`train.features`): their place, their size, and how they are built."""

    url: str = ""  # URL of the folder; empty: features/ in the workspace; recipes may share a folder
    max_bytes: Positive = 20_000_000_000  # largest size of all features that the recipe's runs need
    part_bytes: Positive = 64_000_000  # size of an output file
    batch: Positive = 8  # images encoded at a time
    actors: int = Field(0, ge=0)  # processes that encode; 0: one for each GPU that runs use, else one a machine
    cpus_per_actor: float = Field(0.5, gt=0)  # CPUs that each of these processes asks Ray for
    pool_bytes: Positive = 512_000_000  # memory of a run for features that it has read
