"""Checkpoints of the official CyCTR code: the trunk, whose normalisation has no counters, and the decoder."""

from __future__ import annotations

from fss_models.backbones.imagenet import COUNTER, CYCTR_PREFIX
from fss_models.backbones.resnet import stem_name
from fss_models.methods.cyctr.config import CyctrConfig
from fss_models.methods.cyctr.model import Cyctr
from fss_models.prior_guided.official import whole_checkpoint


def name_of(key: str) -> str | None:
    """The official name of one of our tensors, None for a counter."""
    if key.startswith("decoder."):
        return key.removeprefix("decoder.")
    return None if key.endswith(COUNTER) else CYCTR_PREFIX + stem_name(key.removeprefix("backbone."))


read, write = whole_checkpoint(lambda preset: Cyctr(preset=preset, config=CyctrConfig()), name_of)
