"""Checkpoints of the official PFENet code. They hold the trunk, whose statistics training moved, and the decoder."""

from __future__ import annotations

from torch import Tensor

from fss_models.methods.pfenet.config import PfenetConfig
from fss_models.methods.pfenet.model import Pfenet
from fss_models.official import OfficialCheckpoint
from fss_models.prior_guided.official import read_whole, write_whole


def read(state: dict[str, Tensor], preset: str) -> OfficialCheckpoint:
    """Read the trained tensors of an official checkpoint.

    The file does not say its scales and side: PASCAL-5i's are assumed; one of COCO-20i needs
    the setting side: 641.
    Raises `FssError` naming the first missing, unknown or misshapen tensor.
    """
    found = read_whole(state, lambda: Pfenet(preset=preset, config=PfenetConfig()), preset)
    return OfficialCheckpoint(state=found, also=("weights",))


def write(model: Pfenet) -> dict[str, Tensor]:
    """Convert the model to an official checkpoint. Raises `FssError` if its trunk is not an official one."""
    return write_whole(model)
