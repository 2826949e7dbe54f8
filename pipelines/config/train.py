"""How a run is optimised, and the features that are kept for it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.config.section import Positive, PromptName, Section


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
