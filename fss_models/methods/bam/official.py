"""Checkpoints of the official BAM code."""

from __future__ import annotations

from fss_models.base_learner import official
from fss_models.methods.bam.config import BamConfig
from fss_models.methods.bam.model import Bam
from fss_models.prototype_prompts.official import Rules

RULES: Rules = (("learner_base.0.", "base_head.ppm."), ("learner_base.1.", "base_head.cls."), *official.COMMON,
                *official.OTHERS)

read, write = official.checkpoint(lambda preset, config: Bam(preset=preset, config=BamConfig(**config)), RULES)
