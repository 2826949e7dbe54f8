"""Checkpoints of the official CyCTR code: the trunk, whose normalisation has no counters, and the decoder."""

from __future__ import annotations

from torch import Tensor

from fss_models.backbones.imagenet import COUNTER, CYCTR_PREFIX
from fss_models.backbones.resnet import stem_name
from fss_models.methods.cyctr.config import CyctrConfig
from fss_models.methods.cyctr.model import Cyctr
from fss_models.official import OfficialCheckpoint
from fss_models.prior_guided.official import read_whole, write_whole


def name_of(key: str) -> str | None:
    """The official name of one of our tensors, None for a counter."""
    if key.startswith("decoder."):
        return key.removeprefix("decoder.")
    return None if key.endswith(COUNTER) else CYCTR_PREFIX + stem_name(key.removeprefix("backbone."))


def read(state: dict[str, Tensor], preset: str) -> OfficialCheckpoint:
    """Read the trained tensors of an official checkpoint.

    Raises `FssError` naming the first missing, unknown or misshapen tensor.
    """
    found = read_whole(state, lambda: Cyctr(preset=preset, config=CyctrConfig()), preset, name_of)
    return OfficialCheckpoint(state=found, also=("weights",))


def write(model: Cyctr) -> dict[str, Tensor]:
    """Convert the model to an official checkpoint. Raises `FssError` if its trunk is not an official one."""
    return write_whole(model, name_of)
