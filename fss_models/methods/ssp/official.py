"""Checkpoints of the official SSP code: the fine-tuned trunk, without layer4."""

from __future__ import annotations

from fss_models.backbones.imagenet import ssp_name
from fss_models.methods.ssp.config import SspConfig
from fss_models.methods.ssp.model import Ssp
from fss_models.prior_guided.official import whole_checkpoint


def name_of(key: str) -> str:
    """The official name of one of our tensors."""
    return ssp_name(key.removeprefix("backbone."), forward=False)


read, write = whole_checkpoint(lambda preset: Ssp(preset=preset, config=SspConfig()), name_of, prefix="")
