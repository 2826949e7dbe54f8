"""Checkpoints of the official BAM code."""

from __future__ import annotations

from torch import Tensor

from fss_models.base_learner import official
from fss_models.methods.bam.config import BamConfig
from fss_models.methods.bam.model import Bam
from fss_models.official import OfficialCheckpoint
from fss_models.prototype_prompts.official import Rules

RULES: Rules = (("learner_base.0.", "base_head.ppm."), ("learner_base.1.", "base_head.cls."), *official.COMMON,
                *official.OTHERS)


def read(state: dict[str, Tensor], preset: str) -> OfficialCheckpoint:
    """Read all tensors of an official checkpoint, and K. Raises `FssError` naming the first that does not fit."""
    return official.read(state, lambda config: Bam(preset=preset, config=BamConfig(**config)), preset, RULES)


def write(model: Bam) -> dict[str, Tensor]:
    """Convert the model to an official checkpoint. Raises `FssError` if its trunk is not an official one."""
    return official.write(model, RULES)
