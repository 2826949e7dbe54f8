"""Checkpoints of the official SSP code: the fine-tuned trunk, without layer4."""

from __future__ import annotations

from torch import Tensor

from fss_models.backbones.imagenet import ssp_name
from fss_models.methods.ssp.config import SspConfig
from fss_models.methods.ssp.model import Ssp
from fss_models.official import OfficialCheckpoint
from fss_models.prior_guided.official import read_whole, write_whole


def name_of(key: str) -> str:
    """The official name of one of our tensors."""
    return ssp_name(key.removeprefix("backbone."), forward=False)


def read(state: dict[str, Tensor], preset: str) -> OfficialCheckpoint:
    """Read the trained tensors of an official checkpoint.

    Raises `FssError` naming the first missing, unknown or misshapen tensor.
    """
    found = read_whole(state, lambda: Ssp(preset=preset, config=SspConfig()), preset, name_of)
    return OfficialCheckpoint(state=found, also=("weights",))


def write(model: Ssp) -> dict[str, Tensor]:
    """Convert the model to an official checkpoint. Raises `FssError` if its trunk is not an official one."""
    return write_whole(model, name_of, prefix="")
