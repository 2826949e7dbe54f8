"""Checkpoints of the official HDMNet code."""

from __future__ import annotations

from fss_models.base_learner import official
from fss_models.methods.hdmnet.config import HdmnetConfig
from fss_models.methods.hdmnet.model import Hdmnet
from fss_models.prototype_prompts.official import Rules

_TRANSFORMER = "transformer.mix_transformer."
RULES: Rules = (
    ("ppm.", "base_head.ppm."),
    ("cls.0.", "base_head.cls.0."),
    ("cls.1.", "base_head.cls.1."),
    ("base_learnear.2.", "base_head.cls.4."),
    *official.COMMON,
    (f"{_TRANSFORMER}down_sample_layers.", "decoder.transformer.levels."),
    (f"{_TRANSFORMER}match_layers.", "decoder.transformer.match."),
    (f"{_TRANSFORMER}parse_layers.", "decoder.transformer.parse."),
    (f"{_TRANSFORMER}cls.", "decoder.transformer.head."),
    *official.OTHERS,
)

read, write = official.checkpoint(lambda preset, config: Hdmnet(preset=preset, config=HdmnetConfig(**config)), RULES)
